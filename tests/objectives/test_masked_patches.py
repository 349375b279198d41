"""Masked patch prediction: classes are mean levels, the loss is the mean over patches and channels."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from hf_mm.objectives.masked_patches import masked_colour_loss, patch_colour_classes

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def normalised(levels):
    """What an image processor makes of (B, Y, X, 3) levels."""
    mean, std = (torch.tensor(numbers, dtype=torch.float32) for numbers in (MEAN, STD))
    return ((torch.as_tensor(levels).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def test_patches_of_one_colour_have_its_levels():
    """Each of the 256, through float32 and back."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    levels = np.concatenate([levels, 255 - levels, levels.transpose(0, 2, 1, 3)], axis=3)
    image = levels.repeat(4, axis=1).repeat(4, axis=2)
    classes = patch_colour_classes(normalised(image), 4, MEAN, STD)
    assert classes.dtype == torch.long
    assert torch.equal(classes, torch.as_tensor(levels).long().flatten(1, 2))


def test_classes_are_the_mean_over_a_patch_rounded_down():
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3))
    exact = levels.reshape(2, 2, 4, 3, 4, 3).mean((2, 4)).reshape(2, 6, 3)
    classes = patch_colour_classes(normalised(levels), 4, MEAN, STD)
    assert torch.equal(classes, torch.as_tensor(np.floor(exact)).long())


def test_half_precision_and_values_out_of_range_stay_classes():
    image = torch.tensor([-9.0, 9.0]).repeat_interleave(4).expand(1, 3, 4, 8)
    classes = patch_colour_classes(image.bfloat16(), 4, MEAN, STD)
    assert classes.tolist() == [[[0] * 3, [255] * 3]]


def test_images_that_have_no_classes_are_refused():
    with pytest.raises(ValueError, match=r"`pixel_values` must be \(batch, .*, got \(3, 8, 8\)"):
        patch_colour_classes(torch.zeros(3, 8, 8), 4, MEAN, STD)
    with pytest.raises(ValueError, match="`pixel_values` is 8x10 px, not a multiple of `patch_size`=4; pad"):
        patch_colour_classes(torch.zeros(1, 3, 8, 10), 4, MEAN, STD)
    with pytest.raises(ValueError, match="one number for each of the 3 channels, got 1 and 3"):
        patch_colour_classes(torch.zeros(1, 3, 8, 8), 4, (0.5,), STD)


def predictions(patches=5):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(patches, 768, generator=draw, requires_grad=True)
    return logits, torch.randint(0, 256, (patches, 3), generator=draw)


def test_it_is_the_mean_of_the_losses_of_the_three_channels():
    logits, classes = predictions()
    loss = masked_colour_loss(logits, classes)
    channels = [cross_entropy(logits[:, 256 * c : 256 * c + 256], classes[:, c]) for c in range(3)]
    peer = sum(channels) / 3
    assert_close(loss, peer, rtol=1e-6, atol=1e-6)
    assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(peer, logits), rtol=1e-6, atol=1e-6)


def test_without_a_clue_it_costs_the_logarithm_of_256():
    assert_close(masked_colour_loss(torch.zeros(2, 768), predictions(2)[1]).item(), math.log(256))


def test_accumulated_patches_add_up():
    logits, classes = predictions()
    parts = [masked_colour_loss(logits[a:b], classes[a:b], 5) for a, b in ((0, 1), (1, 5))]
    assert_close(sum(parts), masked_colour_loss(logits, classes), rtol=1e-6, atol=1e-6)


def test_patches_that_do_not_count_are_left_out():
    logits, classes = predictions()
    hidden = classes.index_fill(0, torch.tensor([1, 4]), -100)
    kept = [0, 2, 3]
    assert_close(masked_colour_loss(logits, hidden), masked_colour_loss(logits[kept], classes[kept]))


@pytest.mark.parametrize("items", [None, 0, 4])
def test_nothing_hidden_is_an_exact_zero(items):
    logits, classes = predictions(0)
    loss = masked_colour_loss(logits, classes, items)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 768)


def test_logits_and_classes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"channels \* 256\) and `classes` .* got \(5, 768\) and \(4, 3\)"):
        masked_colour_loss(predictions(5)[0], predictions(4)[1])
