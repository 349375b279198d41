"""Name what is in an image: the class whose prompts it resembles most. No training, only the names.

python examples/zero_shot.py MODEL IMAGE LABEL LABEL ...
"""

import sys

from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

from hf_mm import ZeroShotClassifier, register


def main(folder: str, image: object, *labels: str) -> dict[str, float]:
    """Classify `image`, a path or picture, by a CLIP model of ours or of transformers, a folder or Hub id."""
    register()  # our model types; without it pass trust_remote_code=True
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    classifier = ZeroShotClassifier(model, processor, labels, progress=False)
    scores = classifier.probabilities([image])[0].tolist()
    found = dict(sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1]))
    for label, score in found.items():
        print(f"{score:>6.1%} {label}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
