"""False partners: never true ones, drawn as a softmax says, the same from the same chance."""

import pytest
import torch
from torch.testing import assert_close

from hf_mm.objectives.hard_negatives import distributed_hard_negatives, hard_negatives


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_pair_is_never_its_own_negative_however_alike():
    similarity = 50 * torch.eye(6)
    for seed in range(50):
        found = hard_negatives(similarity, generator=seeded(seed))
        assert found.dtype == torch.long
        assert not (found == torch.arange(6)).any()
        assert found.min() >= 0
        assert found.max() < 6


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_not_even_the_least_and_the_largest_draw_is_a_true_partner(monkeypatch, draw):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, draw))
    groups = torch.tensor([0, 0, 1, 1, 0, 1, 0, 1])
    found = hard_negatives(torch.randn(8, 8, generator=seeded()), groups)
    assert not (groups[found] == groups).any()


def test_pairs_of_one_group_are_not_each_others_negatives():
    groups = torch.tensor([7, 3, 7, 3, 5])
    for seed in range(50):
        found = hard_negatives(torch.randn(5, 5, generator=seeded(seed)), groups, seeded(seed))
        assert not (groups[found] == groups).any()


def test_draws_follow_the_softmax_of_the_false_partners():
    similarity = torch.tensor(
        [[9.0, 1.0, 0.0, 2.0], [0.0, 9.0, 0.0, 0.0], [3.0, 1.0, 9.0, 2.0], [1, 2, 3, 4]]
    )
    draws, chance = torch.zeros(4, 4), seeded()
    for _ in range(2000):
        draws[torch.arange(4), hard_negatives(similarity, generator=chance)] += 1
    expected = similarity.fill_diagonal_(-torch.inf).softmax(1)
    assert_close(draws / 2000, expected, rtol=0, atol=0.035)  # three standard deviations


def test_partners_that_look_alike_are_drawn_almost_always_when_the_scale_is_large():
    similarity = torch.randn(8, 8, generator=seeded())
    hardest = similarity.clone().fill_diagonal_(-torch.inf).argmax(1)
    assert torch.equal(hard_negatives(1e4 * similarity, generator=seeded()), hardest)


@pytest.mark.parametrize("scale", [1e-8, 1e4])
def test_half_precision_and_any_scale_give_valid_columns(scale):
    similarity = (scale * torch.randn(40, 40, generator=seeded())).bfloat16()
    found = hard_negatives(similarity, generator=seeded())
    assert not (found == torch.arange(40)).any()


def test_the_same_chance_draws_the_same_and_torch_has_another():
    similarity = torch.randn(30, 30, generator=seeded())
    first, again = (hard_negatives(similarity, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(3)
    assert torch.equal(hard_negatives(similarity), first)
    assert not torch.equal(hard_negatives(similarity), first)


def test_without_any_false_partner_a_pair_gets_its_own():
    assert hard_negatives(torch.ones(1, 1)).tolist() == [0]
    groups = torch.tensor([1, 1, 1])
    assert hard_negatives(torch.randn(3, 3, generator=seeded()), groups).tolist() == [0, 1, 2]


def test_features_that_are_nan_still_give_columns_of_the_batch():
    found = hard_negatives(torch.full((3, 3), torch.nan))
    assert set(found.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("number", [5, 33])
def test_without_processes_the_distributed_form_draws_both_ways_from_one_matrix(number):
    images, texts = torch.randn(number, 6, generator=seeded()), torch.randn(number, 6, generator=seeded(1))
    groups, chance = torch.arange(number) // 2, seeded(2)
    found = distributed_hard_negatives(images, texts, 2.0, groups=groups, generator=seeded(2))
    similarity = 2 * images @ texts.T
    assert torch.equal(found[0], hard_negatives(similarity, groups, chance))
    assert torch.equal(found[1], hard_negatives(similarity.T, groups, chance))


def test_no_gradient_goes_through_the_choice():
    images = torch.randn(4, 6, generator=seeded()).requires_grad_()
    assert not any(found.requires_grad for found in distributed_hard_negatives(images, images, 1.0))


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"`similarity` must be square, true pairs on .* got \(3, 4\)"):
        hard_negatives(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="`similarity` has no rows; skip empty batches"):
        hard_negatives(torch.zeros(0, 0))
    with pytest.raises(ValueError, match=r"`groups` must be \(3,\) integers.* got \(2,\) of torch.int64"):
        hard_negatives(torch.zeros(3, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`groups` must be \(3,\) integers.* of torch.float32"):
        distributed_hard_negatives(torch.zeros(3, 2), torch.zeros(3, 2), 1.0, groups=torch.zeros(3))
    with pytest.raises(ValueError, match="No process has any pairs; skip empty batches"):
        distributed_hard_negatives(torch.zeros(0, 2), torch.zeros(0, 2), 1.0)
