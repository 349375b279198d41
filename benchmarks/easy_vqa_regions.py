"""Regions of easy-VQA: how long they take, and what a linear probe reads off them.

    python benchmarks/easy_vqa_regions.py --out easy_vqa_regions.json

Regions of both splits are computed (into `--cache`, by default a folder of its own, so that the time is that
of a first call). Shape and colour are then told from the feature of each training picture's first region, by
a logistic regression fitted on three quarters of the training pictures whose questions settle both
(`easy_vqa_classes`); measured on the last quarter. Test pictures are not looked at.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_mm import RegionStore, easy_vqa_classes, easy_vqa_regions, write_results


def probe(store: RegionStore) -> dict[str, float]:
    """Accuracies of shape and colour on held-out training pictures."""
    rows = easy_vqa_classes("train").remove_columns("image")
    first = np.stack([store[image_id]["features"][0].numpy() for image_id in rows["image_id"]])
    names = [caption.split() for caption in rows["caption"]]
    fitted = len(names) * 3 // 4
    found = {"fitted_images": fitted, "held_out_images": len(names) - fitted}
    for kind, number in (("colour", 0), ("shape", 1)):
        labels = np.array([name[number] for name in names])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        model.fit(first[:fitted], labels[:fitted])
        found[f"{kind}_accuracy"] = float(model.score(first[fitted:], labels[fitted:]))
    return found


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or folder
        wall, cpu = time.perf_counter(), time.process_time()
        stores = {split: easy_vqa_regions(split, cache) for split in ("train", "test")}
        images = sum(map(len, stores.values()))
        results = {
            "images": images,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "bytes_per_image": stores["train"].bytes_per_image,
            "regions_per_image": stores["train"].regions / len(stores["train"]),
            **probe(stores["train"]),
        }
    write_results(options.out, results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
