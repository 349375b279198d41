"""Regions are hidden in the share asked for, with all that overlap them, the same ones by the seed."""

import pytest
import torch

from hf_mm import box_iou, mask_regions
from hf_mm.data.region_masking import overlapping_groups


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def crowded(pictures=40, regions=36, side=0.12):
    """Boxes of one size at random places, some of which overlap."""
    corners = torch.rand(pictures, regions, 2, generator=seeded(1)) * (1 - side)
    return torch.cat((corners, corners + side), dim=2), torch.ones(pictures, regions).long()


def apart(pictures, regions):
    """Boxes side by side."""
    left = torch.arange(regions) / regions
    box = torch.stack((left, torch.zeros(regions), left + 1 / regions, torch.ones(regions)), dim=1)
    return box.expand(pictures, -1, -1), torch.ones(pictures, regions).long()


def test_regions_that_overlap_or_overlap_a_third_one_are_a_group():
    strips = torch.tensor(
        [[[0.0, 0, 1, 1], [0.0, 2, 1, 3], [0.0, 0.3, 1, 1.3], [0.0, 0.6, 1, 1.6], [0, 0, 1, 1]]]
    )
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    assert box_iou(strips[0], strips[0])[0, 3] < 0.4 < box_iou(strips[0], strips[0])[2, 3]
    assert overlapping_groups(strips, mask).tolist() == [[0, 1, 0, 0, -1]]
    assert overlapping_groups(strips, mask, 0.6).tolist() == [[0, 1, 2, 3, -1]]


def test_no_visible_region_overlaps_a_hidden_one():
    boxes, mask = crowded()
    for overlap in (0.4, 0.2):
        hidden, moved = mask_regions(boxes, mask, overlap=overlap, generator=seeded()), 0
        for of_picture, chosen in zip(boxes, hidden, strict=True):
            apart_by = box_iou(of_picture[chosen], of_picture[~chosen])
            assert apart_by.max() <= overlap
            moved += int((box_iou(of_picture[chosen], of_picture[chosen]) > overlap).sum() - chosen.sum())
        assert moved > 0
    alone = mask_regions(boxes, mask, overlap=1.0, generator=seeded())
    leaks = [box_iou(b[h], b[~h]).max() > 0.4 for b, h in zip(boxes, alone, strict=True)]
    assert any(leaks)


def test_the_share_is_of_the_regions_of_each_picture_and_one_at_least():
    boxes, mask = apart(30, 40)
    assert set(mask_regions(boxes, mask, 0.15, generator=seeded()).sum(1).tolist()) == {6}
    mask = (torch.arange(40) < torch.tensor([1, 2, 20, 40])[:, None]).long()
    hidden = mask_regions(boxes[:4], mask, 0.15, generator=seeded())
    assert hidden.sum(1).tolist() == [1, 1, 3, 6]
    assert not (hidden & ~mask.bool()).any()


def test_every_region_is_hidden_about_as_often():
    boxes, mask = apart(2000, 10)
    often = mask_regions(boxes, mask, 0.2, generator=seeded()).float().mean(0)
    assert (often - 0.2).abs().max() < 0.03


def test_a_crowd_of_more_than_half_stays_visible_where_there_are_others():
    crowd, mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(1, 4, 1), torch.ones(1, 4).long()
    assert mask_regions(crowd, mask, generator=seeded()).all()
    one_apart = torch.cat((crowd, torch.tensor([[[2.0, 2.0, 3.0, 3.0]]])), dim=1)
    for seed in range(10):
        hidden = mask_regions(one_apart, torch.ones(1, 5).long(), generator=seeded(seed))
        assert hidden.tolist() == [[False] * 4 + [True]]


def test_the_same_generator_gives_the_same_regions_and_torch_another():
    boxes, mask = crowded()
    first, again, other = (mask_regions(boxes, mask, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    assert torch.equal(mask_regions(boxes, mask), first)


def test_what_does_not_fit_is_named():
    boxes, mask = apart(2, 4)
    with pytest.raises(
        ValueError, match=r"`region_mask` \(pictures, regions\), got \(2, 4, 4\) and \(2, 3\)"
    ):
        mask_regions(boxes, mask[:, :3])
    for share in (0.0, 1.0):
        with pytest.raises(
            ValueError, match=rf"`share`={share} of the regions must hide some and leave some"
        ):
            mask_regions(boxes, mask, share)
    with pytest.raises(ValueError, match=r"`overlap`=40 be in 0..1"):
        mask_regions(boxes, mask, overlap=40)
