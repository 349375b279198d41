"""Masks hide what they promise, exactly; the loss is the mean error over the pixels that count."""

import pytest
import torch
from torch.testing import assert_close

from hf_mm.objectives.masked_image import (
    block_patch_masks,
    masked_pixel_loss,
    patch_pixels,
    pixels_of_patches,
    random_patch_masks,
)

MAKERS = [random_patch_masks, block_patch_masks]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (3, 7), (1, 2)])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.75, 0.99])
def test_every_row_hides_exactly_the_share(maker, grid, share):
    masks = maker(20, grid, share, generator=seeded())
    patches = grid[0] * grid[1]
    expected = min(max(round(share * patches), 1), patches - 1)
    assert masks.dtype == torch.bool
    assert masks.shape == (20, patches)
    assert masks.sum(1).tolist() == [expected] * 20


@pytest.mark.parametrize("maker", MAKERS)
def test_the_same_generator_gives_the_same_masks_and_torch_another(maker):
    first, again = (maker(4, (14, 14), 0.4, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(3)
    drawn = maker(4, (14, 14), 0.4)
    torch.manual_seed(3)
    assert torch.equal(drawn, maker(4, (14, 14), 0.4))
    assert not torch.equal(drawn, maker(4, (14, 14), 0.4))


@pytest.mark.parametrize("maker", MAKERS)
def test_rows_differ_and_no_patch_is_favoured_at_random(maker):
    masks = maker(1000, (14, 14), 0.4, generator=seeded())
    assert len(masks.unique(dim=0)) > 950
    often = masks.float().mean(0)
    if maker is random_patch_masks:  # blocks cover the middle more often than the corners
        assert_close(often, torch.full((196,), 0.4), rtol=0, atol=0.07)
    assert 0.02 < often.min() < often.max() < 0.8
    assert_close(often, often.flip(0), rtol=0, atol=0.07)


def test_a_unit_hides_whole_squares():
    masks = random_patch_masks(5, (12, 6), 0.5, unit=3, generator=seeded()).unflatten(1, (12, 6))
    squares = masks.unflatten(2, (2, 3)).unflatten(1, (4, 3)).float().mean((2, 4))
    assert set(squares.flatten().tolist()) == {0.0, 1.0}
    assert squares.sum((1, 2)).tolist() == [4.0] * 5


def test_blocks_lie_together():
    """Of the neighbours of a hidden patch far more are hidden than by chance."""
    blocks, scattered = (maker(200, (14, 14), 0.4, generator=seeded()) for maker in reversed(MAKERS))
    assert both_hidden(blocks) > 0.75
    assert both_hidden(scattered) == pytest.approx(0.4, abs=0.03)


def both_hidden(masks):
    grids = masks.unflatten(1, (14, 14))
    left, right = grids[:, :, :-1], grids[:, :, 1:]
    return ((left & right).sum() / left.sum()).item()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("grid", "share"), [((4, 4), 0.0), ((4, 4), 1.0), ((4, 4), float("nan")), ((1, 1), 0.5)]
)
def test_a_share_that_hides_nothing_or_all_is_named(maker, grid, share):
    with pytest.raises(ValueError, match=r"`share`=.* of \dx\d patches must hide some and leave some"):
        maker(1, grid, share)


def test_units_and_blocks_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"`unit`=3 must divide the 14x14 patches"):
        random_patch_masks(1, (14, 14), 0.5, unit=3)
    with pytest.raises(ValueError, match=r"`smallest`=0 must be at least 1 patch"):
        block_patch_masks(1, (14, 14), 0.5, smallest=0)


def test_patches_are_squares_of_the_image_and_go_back():
    images = torch.randn(2, 3, 8, 12, generator=seeded())
    patches = patch_pixels(images, 4)
    assert patches.shape == (2, 6, 48)
    assert_close(patches[1, 4], images[1, :, 4:8, 4:8].flatten(), rtol=0, atol=0)
    assert_close(pixels_of_patches(patches, 4, (2, 3)), images, rtol=0, atol=0)


def test_the_loss_is_the_mean_over_pixels_that_count():
    predicted, target = torch.zeros(1, 3, 2), torch.tensor([[[1.0, -2.0], [100.0, 100.0], [3.0, 4.0]]])
    scored = torch.tensor([[True, False, True]])
    assert masked_pixel_loss(predicted, target, scored).item() == 2.5
    assert masked_pixel_loss(predicted, target, scored, num_items_in_batch=4).item() == 1.25


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), 5])
def test_no_pixels_that_count_are_an_exact_zero_with_gradient_zero(items):
    predicted, scored = torch.randn(2, 3, 4, requires_grad=True), torch.zeros(2, 3, dtype=torch.bool)
    loss = masked_pixel_loss(predicted, torch.ones(2, 3, 4), scored, False, items)
    assert loss.item() == 0.0
    assert torch.equal(torch.autograd.grad(loss, predicted)[0], torch.zeros_like(predicted))


def test_normalized_targets_have_mean_0_and_deviation_1_and_a_plain_patch_is_0():
    target = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]])
    first = torch.tensor([[True, False]])
    assert masked_pixel_loss(torch.zeros(1, 2, 3), target, first, True).item() == pytest.approx(2 / 3)
    assert masked_pixel_loss(torch.zeros(1, 2, 3), target, ~first, True).item() == 0.0
