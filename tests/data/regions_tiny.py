"""Regions with known numbers, and stores of them."""

import torch
from torch.testing import assert_close

from hf_mm import RegionStoreWriter

FEATURES = 8


def regions(number, width=FEATURES, classes=5):
    """The regions of image `number`: 2 or 3 of them, with all that a detector may say."""
    chance = torch.Generator().manual_seed(number)
    count = 2 + number % 2
    corners = torch.rand(count, 2, generator=chance) / 2
    return {
        "boxes": torch.cat([corners, corners + 0.1 + 0.3 * torch.rand(count, 2, generator=chance)], dim=1),
        "features": torch.randn(count, width, generator=chance),
        "image_size": (64 + number, 48),
        "scores": torch.rand(count, generator=chance),
        "class_scores": torch.rand(count, classes, generator=chance).softmax(dim=1),
        "labels": torch.randint(classes, (count,), generator=chance),
        "tags": [f"tag {number} é", "cat", "dog"][:count],
    }


def write(folder, numbers, width=FEATURES, images_per_shard=512, dtype="float32", writer=0):
    """Add those images that are not in the store, and tell which they were."""
    with RegionStoreWriter(folder, width, "detr", dtype, "shares", writer, images_per_shard) as out:
        missing = [number for number in numbers if number not in out]
        for number in missing:
            out.add(number, regions(number, width))
    return [str(number) for number in missing]


def same(found, expected):
    """The same columns, and the same in them to the last bit."""
    assert set(found) == {*expected, "detector"}
    assert found["detector"] == "detr"
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert_close(found[name], value, rtol=0, atol=0)
        else:
            assert found[name] == value
