"""Small models that score a picture and a text together, with a processor: transformers' ViLT and ours."""

import numpy as np
import torch
from models.vilt_tiny import peer_config, scrambled, tiny_config
from PIL import Image
from transformers import BertTokenizer, ViltForImageAndTextRetrieval, ViltImageProcessorPil, ViltProcessor

from hf_mm.models.vilt.heads_vilt import MMViltForImageAndTextRetrieval
from hf_mm.models.vilt.image_processing_vilt import MMViltImageProcessor
from hf_mm.models.vilt.processing_vilt import MMViltProcessor

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "circle",
    "##s",
    "on",
    "is",
    "no",
    "?",
]
SMALL = {"size": {"shortest_edge": 32}, "size_divisor": 8}
TEXTS = ["a red circle", "circles", "is a blue circle on red ?", "no", "a blue circle", "circles"]


def tokenizer():
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def transformers_processor():
    return ViltProcessor(ViltImageProcessorPil(**SMALL), tokenizer())


def own_processor():
    return MMViltProcessor(MMViltImageProcessor(**SMALL), tokenizer(), max_length=12)


def transformers_vilt(seed=0, **changes):
    return telling(scrambled(ViltForImageAndTextRetrieval(peer_config(**changes)), seed))


def own_vilt(seed=0, **changes):
    return telling(scrambled(MMViltForImageAndTextRetrieval(tiny_config(**changes)), seed))


def telling(model):
    """Scores that differ much from text to text."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(10 if "rank" in name else 2)
    return model


def pictures(count, seed=0):
    """Of several shapes."""
    random = np.random.default_rng(seed)
    shades = random.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    sizes = [(40, 32), (32, 32), (32, 50), (90, 40)]
    return [
        Image.fromarray(shade).resize(sizes[number % len(sizes)], Image.Resampling.NEAREST)
        for number, shade in enumerate(shades)
    ]


@torch.no_grad()
def one_by_one(model, processor, images, texts):
    """(N, M) scores, each of a pass of its own."""
    scores = torch.empty(len(images), len(texts))
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            inputs = processor(images=image, text=text, return_tensors="pt")
            scores[row, column] = model(**inputs).logits.item()
    return scores
