"""RoIAlign: the numbers of the paper's definition, place by place, and gradients to maps and boxes."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from hf_mm import roi_align


def bilinear(plane, y, x):
    """One place of one channel, as the published kernels read it."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    lower = plane[below, left] * (1 - dx) + plane[below, right] * dx
    return float(upper * (1 - dy) + lower * dy)


def by_hand(features, boxes, image_index, bins, sampling_ratio, aligned):
    out = torch.zeros(len(boxes), features.shape[1], *bins, dtype=features.dtype)
    for n, (box, image) in enumerate(zip(boxes.tolist(), image_index.tolist(), strict=True)):
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = box
        high, wide = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        bin_high, bin_wide = high / bins[0], wide / bins[1]
        down = sampling_ratio or max(math.ceil(bin_high), 1)
        across = sampling_ratio or max(math.ceil(bin_wide), 1)
        for c in range(features.shape[1]):
            for i in range(bins[0]):
                for j in range(bins[1]):
                    total = 0.0
                    for v in range(down):
                        y = y1 - shift + (i + (v + 0.5) / down) * bin_high
                        for u in range(across):
                            x = x1 - shift + (j + (u + 0.5) / across) * bin_wide
                            total += bilinear(features[image, c], y, x)
                    out[n, c, i, j] = total / (down * across)
    return out


def maps():
    return torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


BOXES = torch.tensor(
    [
        [0.0, 0.0, 7.0, 5.0],  # the whole map
        [1.3, 0.4, 3.9, 4.6],
        [2.0, 1.0, 2.4, 1.2],  # less than a cell
        [-3.5, -2.0, 2.0, 1.0],  # partly outside
        [5.0, 3.0, 11.0, 9.0],
        [6.0, 4.0, 6.0, 4.0],  # a point
    ],
    dtype=torch.float64,
)
IMAGES = torch.tensor([0, 1, 1, 0, 1, 0])


@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (7, 7)])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, None])
@pytest.mark.parametrize("aligned", [True, False])
def test_it_is_the_definition_computed_place_by_place(bins, sampling_ratio, aligned):
    got = roi_align(maps(), BOXES, IMAGES, bins, sampling_ratio, aligned)
    expected = by_hand(maps(), BOXES, IMAGES, bins, sampling_ratio, aligned)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_a_box_that_is_one_cell_reads_that_cell():
    got = roi_align(maps(), torch.tensor([[2.0, 3.0, 3.0, 4.0]]), torch.tensor([1]), 1, sampling_ratio=1)
    torch.testing.assert_close(got[0, :, 0, 0], maps()[1, :, 3, 2])


def test_the_bins_of_a_whole_map_are_its_cells():
    whole = torch.tensor([[0.0, 0.0, 7.0, 5.0]])
    got = roi_align(maps(), whole, torch.tensor([0]), (5, 7), sampling_ratio=1)
    torch.testing.assert_close(got[0], maps()[0])


@pytest.mark.parametrize("sampling_ratio", [2, None])
def test_gradients_reach_maps_and_boxes(sampling_ratio):
    features, boxes = maps().requires_grad_(), BOXES[1:4].clone().requires_grad_()
    assert gradcheck(
        lambda f, b: roi_align(f, b, IMAGES[1:4], (2, 2), sampling_ratio), (features, boxes), atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_is_that_of_the_maps(dtype):
    got = roi_align(maps().to(dtype), BOXES.float(), IMAGES, 2)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(
        got.double(), roi_align(maps(), BOXES, IMAGES, 2), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("sampling_ratio", [2, None])
def test_no_boxes_give_no_rows(sampling_ratio):
    none = roi_align(maps(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (2, 3), sampling_ratio)
    assert none.shape == (0, 3, 2, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": maps()[0]}, r"`features` must be floats .* got torch.float64 \(3, 5, 7\)"),
        ({"features": maps().long()}, r"got torch.int64 \(2, 3, 5, 7\)"),
        ({"boxes": BOXES[:, :3]}, r"got \(6, 3\) and \(6,\)"),
        ({"image_index": IMAGES[:2]}, r"got \(6, 4\) and \(2,\)"),
        ({"output_size": (0, 2)}, r"`output_size`=\(0, 2\)"),
        ({"sampling_ratio": 0}, "`sampling_ratio`=0 must be at least 1"),
        ({"image_index": IMAGES + 1}, "from 1 to 2, there are 2 maps"),
    ],
)
def test_what_cannot_be_read_is_named(changes, words):
    arguments = {"features": maps(), "boxes": BOXES, "image_index": IMAGES, **changes}
    with pytest.raises(ValueError, match=words):
        roi_align(**arguments)
