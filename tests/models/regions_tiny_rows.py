"""Regions of pictures, small and none like another, for tests of the processor and the collators."""

import torch
from transformers import BertTokenizer

WIDTH, CLASSES = 6, 5
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "dog",
    "cat",
    "##s",
    "is",
    "it",
    "?",
]
BOXES = [  # of which the first two overlap by 0.6
    [0.0, 0.0, 0.5, 0.5],
    [0.0, 0.0, 0.5, 0.3],
    [0.5, 0.5, 1.0, 1.0],
    [0.6, 0.0, 0.9, 0.2],
    [0.1, 0.7, 0.3, 0.9],
]
TAGS = ["dog", "cat", "red", "blue", "a"]


def tokenizer(**options):
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, **options)


def regions(count=3, seed=0, **changes):
    """What a detector may have found in one picture."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "boxes": torch.tensor(BOXES[:count]),
        "features": torch.randn(count, WIDTH, generator=draw),
        "class_scores": torch.randn(count, CLASSES, generator=draw).softmax(1),
        "labels": torch.randint(0, CLASSES, (count,), generator=draw),
        "attributes": torch.randint(0, 3, (count,), generator=draw),
        "tags": TAGS[:count],
        "image_size": (200, 100),
    } | changes
