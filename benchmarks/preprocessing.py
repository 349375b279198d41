"""Preprocessing against transformers' own processors: the same pictures, in one process, taking turns.

    python benchmarks/preprocessing.py --out preprocessing.json

Every rival gets the same batch, their calls alternate, the median counts (CPU time of the process, one
thread). `levels` is the largest distance of a pixel from the first rival's, in steps of 1/255, and `share`
the share of pixels more than one step away. Rows of bytes ("uint8") are compared after normalising them.

Molmo 2's processor needs torchvision. Its row runs transformers' own code all the same, with torch in the
place of the two functions of torchvision that it calls; in that row `hf_mm` stretches as it does, and Pillow,
which cannot resize without antialiasing, is there for its time only.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    ViltImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, SizeDict
from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

from hf_mm import MMCLIPImageProcessor, MMViltImageProcessor, MMVLMImageProcessor
from hf_mm.imaging.jpeg import jpeg_decoder

HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
CLIP = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
COCO_SIZES = [(480, 640), (427, 640), (640, 480), (425, 640), (640, 427), (480, 640), (500, 375), (333, 500)]
BYTES = {"keep_uint8": True, "do_rescale": False, "do_normalize": False}


class Molmo2WithTorch(Molmo2ImageProcessor):
    """transformers' processor of Molmo 2, with torch in the place of torchvision."""

    def __init__(self) -> None:
        pass

    def resize(self, image: torch.Tensor, size: SizeDict, antialias: bool, **_: object) -> torch.Tensor:
        """As torchvision resizes float pixels, bilinear."""
        side = (size.height, size.width)
        return torch.nn.functional.interpolate(image, side, mode="bilinear", antialias=antialias)

    def normalize(
        self, image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, inplace: bool = False
    ) -> torch.Tensor:
        """As torchvision does it."""
        return image.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))

    def run(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """The patches of the global view and of at most 12 crops of each, (views, 576, 588)."""
        return self._preprocess(
            [torch.from_numpy(picture).permute(2, 0, 1).contiguous() for picture in pictures],
            size=SizeDict(height=336, width=336),
            resample=Image.Resampling.BILINEAR,
            do_resize=True,
            do_convert_rgb=True,
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            max_crops=12,
            overlap_margins=[4, 4],
            patch_size=14,
            pooling_size=[2, 2],
            disable_grouping=None,
            return_tensors=None,
            **HALF,
        )["pixel_values"]


def photos(number: int, height: int, width: int) -> list[np.ndarray]:
    """Pictures with the smoothness of photos: noise at every scale, weaker the finer."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(number):
        total = np.zeros((height, width, 3))
        for cells in (4, 16, 64, 256):
            noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            total += np.asarray(layer) / cells**0.5
        pictures.append((255 * (total - total.min()) / np.ptp(total)).astype(np.uint8))
    return pictures


def jpegs(pictures: list[np.ndarray]) -> list[bytes]:
    """Each picture as the bytes of a JPEG file."""
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def open_all(files: list[bytes]) -> list[Image.Image]:
    """What transformers' processors read: opened, not yet decoded."""
    return [Image.open(io.BytesIO(data)) for data in files]


def crops_one_by_one(pictures: list[np.ndarray], processor: MMVLMImageProcessor) -> torch.Tensor:
    """Molmo's views by Pillow and numpy, crop by crop: what one writes without thinking of speed."""
    views, mean, std = [], np.array(processor.image_mean), np.array(processor.image_std)
    for picture in pictures:
        rows, cols = processor.grid_for(*picture.shape[:2])
        padded = []
        for height, width in ((336, 336), (224 * rows + 112, 224 * cols + 112)):
            scale = min(height / picture.shape[0], width / picture.shape[1])
            new = (int(picture.shape[1] * scale), int(picture.shape[0] * scale))
            new = (width, height) if processor.fit == "stretch" else new
            canvas = Image.new("RGB", (width, height))
            resized = Image.fromarray(picture).resize(new, Image.Resampling.BILINEAR)
            canvas.paste(resized, ((width - new[0]) // 2, (height - new[1]) // 2))
            padded.append(canvas)
        crops = [padded[0]] + [
            padded[1].crop((224 * j, 224 * i, 224 * j + 336, 224 * i + 336))
            for i in range(rows)
            for j in range(cols)
        ]
        views += [
            ((np.asarray(crop) / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1) for crop in crops
        ]
    return torch.from_numpy(np.stack(views))


def workloads() -> dict[str, dict[str, Callable[[], torch.Tensor]]]:
    """Row: {rival: a call that makes the pixel values}; the first rival is the peer."""
    files, small, large = jpegs(photos(8, 480, 640)), photos(32, 64, 64), photos(1, 768, 1024)
    photographs = jpegs(photos(8, 768, 1024))
    mixed = jpegs([photos(1, *size)[0] for size in COCO_SIZES])
    clip, our_clip = CLIPImageProcessorPil(), {e: MMCLIPImageProcessor(exact=e) for e in (True, False)}
    vilt, our_vilt = ViltImageProcessorPil(), {e: MMViltImageProcessor(exact=e) for e in (True, False)}
    llava = LlavaImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    vit = ViTImageProcessorPil(size={"height": 64, "width": 64})
    ours = {
        (size, exact): MMVLMImageProcessor(size=size, exact_resize=exact)
        for size in (224, 336)
        for exact in (True, False)
    }
    crops = {"max_crops": 12, "pooling_size": 2}
    molmo = {e: MMVLMImageProcessor(**crops, exact_resize=e) for e in (True, False)}
    molmo_bytes = MMVLMImageProcessor(**crops, exact_resize=False, **BYTES)
    like_molmo2 = {"fit": "stretch", "resample": 2, "antialias": False, **crops, **HALF}
    molmo2 = {e: MMVLMImageProcessor(**like_molmo2, exact_resize=e) for e in (True, False)}
    molmo2_bytes = MMVLMImageProcessor(**like_molmo2, exact_resize=False, **BYTES)
    tiny = MMVLMImageProcessor(size=64, patch_size=8, pooling_size=2, fit="stretch", **HALF)

    def run(processor: object, pictures: list) -> torch.Tensor:
        return processor(pictures, return_tensors="pt")["pixel_values"]

    return {
        "8 JPEG files of 1024x768 to CLIP's 224 px": {
            "CLIPImageProcessorPil": lambda: run(clip, open_all(photographs)),
            "hf_mm exact": lambda: run(our_clip[True], photographs),
            "hf_mm": lambda: run(our_clip[False], photographs),
        },
        "8 JPEG files of mixed sizes to ViLT's 384 px, padded": {
            "ViltImageProcessorPil": lambda: run(vilt, open_all(mixed)),
            "hf_mm exact": lambda: run(our_vilt[True], mixed),
            "hf_mm": lambda: run(our_vilt[False], mixed),
        },
        "8 JPEG files of 640x480 to 224 px": {
            "CLIPImageProcessorPil": lambda: run(clip, open_all(files)),
            "hf_mm exact": lambda: run(ours[224, True], files),
            "hf_mm": lambda: run(ours[224, False], files),
        },
        "8 JPEG files of 640x480 to 336 px": {
            "LlavaImageProcessorPil": lambda: run(llava, open_all(files)),
            "hf_mm exact": lambda: run(ours[336, True], files),
            "hf_mm": lambda: run(ours[336, False], files),
        },
        "32 pictures of 64x64, as they are": {
            "ViTImageProcessorPil": lambda: run(vit, small),
            "hf_mm": lambda: run(tiny, small),
        },
        "768x1024 array to 1 + 12 crops of 336 px": {
            "Pillow, crop by crop": lambda: crops_one_by_one(large, molmo[True]),
            "hf_mm exact": lambda: run(molmo[True], large),
            "hf_mm": lambda: run(molmo[False], large),
            "hf_mm uint8": lambda: run(molmo_bytes, large),
        },
        "Molmo, 12 crops: 768x1024 array to 1 + 12 of 336 px, stretched": {
            "Molmo2ImageProcessor": lambda: Molmo2WithTorch().run(large),
            "Pillow, crop by crop": lambda: crops_one_by_one(large, molmo2[True]),
            "hf_mm exact": lambda: run(molmo2[True], large),
            "hf_mm": lambda: run(molmo2[False], large),
            "hf_mm uint8": lambda: run(molmo2_bytes, large),
        },
    }


IMAGES = (8, 8, 8, 8, 32, 1, 1)
STD = (0.26130258, 0.5, 0.26130258, 0.26130258, 0.5, 0.26130258, 0.5)  # smallest of the row's processors


def as_views(pixels: torch.Tensor, colours: dict) -> torch.Tensor:
    """What a rival returned, bytes or patches, as the others return it: (views, 3, side, side) normalised."""
    if pixels.ndim == 3:  # Molmo 2's: rows, columns and colours of each patch in one
        patches = pixels.unflatten(2, (14, 14, 3)).unflatten(1, (24, 24))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    if pixels.dtype != torch.uint8:
        return pixels
    mean, std = (torch.tensor(colours[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return (pixels / 255 - mean) / std


def measure(
    rivals: dict[str, Callable[[], torch.Tensor]], images: int, std: float, rounds: int
) -> list[dict]:
    """Time the rivals in turns and compare what they make with the first one's."""
    outputs = {name: call() for name, call in rivals.items()}
    seconds = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    peer, *_ = rivals
    outputs = {name: as_views(pixels, HALF if std == 0.5 else CLIP) for name, pixels in outputs.items()}
    rows = []
    for name in rivals:
        median = statistics.median(seconds[name])
        apart = (outputs[name] - outputs[peer]).abs() * 255 * std
        rows.append(
            {
                "rival": name,
                "images_per_second": images / median,
                "ratio": statistics.median(seconds[peer]) / median,
                "levels": apart.max().item(),
                "share": (apart > 1.2).float().mean().item(),
                "equal": torch.equal(outputs[name], outputs[peer]),
            }
        )
    return rows


def main() -> None:
    """Run all workloads, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = {}
    for (workload, rivals), images, std in zip(workloads().items(), IMAGES, STD, strict=True):
        table[workload] = measure(rivals, images, std, args.rounds)
        print(workload)
        for row in table[workload]:
            print(
                f"  {row['rival']:24} {row['images_per_second']:8.1f} images/s  {row['ratio']:5.2f}x  "
                f"levels {row['levels']:.2f}  share {row['share']:.5f}{'  equal' * row['equal']}"
            )
    if args.out:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        versions |= {"pillow": PIL.__version__, "simplejpeg": jpeg_decoder() and jpeg_decoder().__version__}
        args.out.write_text(json.dumps({"versions": versions, "workloads": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
