"""Transport plans against the algorithm in double precision and against exact optimal transport."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch.testing import assert_close

from hf_mm.objectives.optimal_transport import (
    cosine_cost,
    inner_tokens,
    transport_plan,
    word_patch_alignment_loss,
)

SIZES = [(5, 9), (12, 36), (3, 7), (8, 8), (1, 6), (6, 1)]


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def costs(words, patches, seed=0):
    return cosine_cost(vectors(1, words, 8, seed=seed), vectors(1, patches, 8, seed=seed + 100))


def everywhere(cost):
    """Masks of pairs without padding."""
    return torch.ones(cost.shape[:2], dtype=torch.bool), torch.ones(cost.shape[::2], dtype=torch.bool)


def padded_batch():
    """Words and patches of pairs of all `SIZES`, with noise in the padding, and their masks."""
    longest = [max(side) for side in zip(*SIZES, strict=True)]
    lengths = torch.tensor(SIZES)
    masks = [torch.arange(longest[side] + 2) < lengths[:, side : side + 1] for side in (0, 1)]
    return [vectors(*mask.shape, 8, seed=seed) for seed, mask in enumerate(masks)], masks


def algorithm_in_double_precision(cost, beta, iterations, inner):
    """Algorithm 1 of Xie et al. for one pair, patches first, as the paper writes it."""
    n, m = cost.T.shape
    sigma, plan = np.full(m, 1 / m), np.ones((n, m))
    nearness = np.exp(-cost.T / beta)
    for _ in range(iterations):
        kernel = nearness * plan
        for _ in range(inner):
            delta = 1 / n / (kernel @ sigma)
            sigma = 1 / m / (kernel.T @ delta)
        plan = delta[:, None] * kernel * sigma
    return plan.T


def exact_distance(cost):
    """The linear program: rows and columns of the plan have to add up to equal shares."""
    n, m = cost.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    shares = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=shares).fun


@pytest.mark.parametrize(
    ("beta", "iterations", "inner"), [(0.5, 50, 1), (0.5, 1, 1), (0.2, 20, 3), (2.0, 70, 1)]
)
def test_plans_are_those_of_the_algorithm_in_double_precision(beta, iterations, inner):
    (words, patches), (rows, columns) = padded_batch()
    cost = cosine_cost(words, patches)
    plans = transport_plan(cost, rows, columns, beta, iterations, inner)
    assert plans.dtype == torch.float32
    for pair, (n, m) in enumerate(SIZES):
        wanted = algorithm_in_double_precision(cost[pair, :n, :m].double().numpy(), beta, iterations, inner)
        expected = torch.zeros_like(plans[pair])
        expected[:n, :m] = torch.as_tensor(wanted)
        assert_close(plans[pair], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("iterations", "error"), [(50, 1e-2), (1000, 1e-4)])
@pytest.mark.parametrize("size", SIZES)
def test_distances_are_near_those_of_exact_transport(size, iterations, error):
    """As a share of the distance: what the docstring of `transport_plan` promises."""
    for seed in range(5):
        cost = costs(*size, seed=seed)
        plan = transport_plan(cost, *everywhere(cost), iterations=iterations)
        assert_close(
            (cost * plan).sum().item(), exact_distance(cost[0].double().numpy()), rtol=error, atol=1e-6
        )


def test_as_many_words_as_patches_are_assigned_one_to_one():
    cost = costs(8, 8)
    plan = transport_plan(cost, *everywhere(cost), iterations=2000)
    expected = torch.zeros(8, 8)
    expected[linear_sum_assignment(cost[0].numpy())] = 1 / 8
    assert_close(plan[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_words_and_patches_have_equal_shares(size):
    cost = costs(*size)
    plan = transport_plan(cost, *everywhere(cost))
    assert plan.min() >= 0
    assert_close(plan.sum(2), torch.full((1, size[0]), 1 / size[0]), rtol=1e-5, atol=0)
    assert_close(plan.sum(1), torch.full((1, size[1]), 1 / size[1]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("beta", [0.05, 0.5, 10.0])
@pytest.mark.parametrize("inner", [1, 5])
def test_plans_stay_finite_and_become_exact_where_all_costs_are_extreme(beta, inner):
    """Zeros and twos: a plan that lost what looked dear at first could not come back."""
    draws = torch.rand(4, 12, 50, generator=torch.Generator().manual_seed(1))
    cost = 2 * torch.cat([draws > 0.97, draws < 0.97, draws[:1] >= 0]).float()
    plan = transport_plan(cost, *everywhere(cost), beta, 2000 // inner, inner)
    exact = torch.tensor([exact_distance(pair.double().numpy()) for pair in cost]).float()
    assert_close((cost * plan).sum((1, 2)), exact, rtol=1e-4, atol=1e-5)


def test_autocast_changes_nothing():
    (words, patches), (rows, columns) = padded_batch()
    matched = torch.tensor([True, False] * 3)
    expected = word_patch_alignment_loss(words, patches, rows, columns, matched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = word_patch_alignment_loss(words, patches, rows, columns, matched)
        cost = cosine_cost(words, patches)
        plan = transport_plan(cost, rows, columns)
    assert {part.dtype for part in (loss, cost, plan)} == {torch.float32}
    assert torch.equal(loss, expected)
    assert torch.equal(plan, transport_plan(cosine_cost(words, patches), rows, columns))


def test_half_precision_is_widened_and_double_precision_kept():
    (words, patches), (rows, columns) = padded_batch()
    matched = torch.tensor([True, False] * 3)
    halves = [part.bfloat16() for part in (words, patches)]
    loss = word_patch_alignment_loss(*halves, rows, columns, matched)
    widened = [part.float() for part in halves]
    assert torch.equal(loss, word_patch_alignment_loss(*widened, rows, columns, matched))
    doubles = [part.double() for part in (words, patches)]
    assert word_patch_alignment_loss(*doubles, rows, columns, matched).dtype == torch.float64


def test_the_loss_is_distances_of_matched_less_those_of_mismatched_pairs_by_the_pairs():
    (words, patches), (rows, columns) = padded_batch()
    matched = torch.tensor([True, False, False, True, True, False])
    expected = 0.0
    for pair, (n, m) in enumerate(SIZES):
        own, its = words[pair, :n].double(), patches[pair, :m].double()
        cost = 1 - own @ its.T / own.norm(dim=1, keepdim=True) / its.norm(dim=1)
        distance = (cost.numpy() * algorithm_in_double_precision(cost.numpy(), 0.5, 50, 1)).sum()
        expected += distance if matched[pair] else -distance
    loss = word_patch_alignment_loss(words, patches, rows, columns, matched)
    assert_close(loss.item(), expected / 6, rtol=1e-5, atol=1e-6)
    part = word_patch_alignment_loss(words, patches, rows, columns, matched, num_items_in_batch=24)
    assert_close(part.item(), expected / 24, rtol=1e-5, atol=1e-6)


def test_one_word_goes_to_all_patches_alike():
    word, patches = vectors(1, 1, 4), vectors(1, 5, 4, seed=1)
    cosines = torch.cosine_similarity(word, patches, dim=-1)
    one = torch.ones(1, 1, dtype=torch.bool)
    loss = word_patch_alignment_loss(word, patches, one, one.expand(1, 5), one[0])
    assert_close(loss, (1 - cosines).mean(), rtol=1e-5, atol=1e-6)


def test_gradients_take_the_plan_as_given_and_leave_the_padding_alone():
    (words, patches), (rows, columns) = padded_batch()
    matched = torch.tensor([True, False] * 3)
    words.requires_grad_(), patches.requires_grad_()
    loss = word_patch_alignment_loss(words, patches, rows, columns, matched)
    found = torch.autograd.grad(loss, [words, patches])
    plan = transport_plan(cosine_cost(words, patches), rows, columns)
    assert not plan.requires_grad
    signs = torch.where(matched, 1.0, -1.0)
    cosines = torch.cosine_similarity(words.unsqueeze(2), patches.unsqueeze(1), dim=-1)
    peer = (((1 - cosines) * plan).sum((1, 2)) * signs).sum() / 6
    assert_close(found, torch.autograd.grad(peer, [words, patches]), rtol=1e-5, atol=1e-6)
    for gradient, mask in zip(found, (rows, columns), strict=True):
        assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))


def test_pairs_without_words_or_without_patches_cost_an_exact_zero():
    words, patches = vectors(3, 4, 8).requires_grad_(), vectors(3, 5, 8, seed=1).requires_grad_()
    rows, columns = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)
    rows[0], columns[1] = False, False
    plan = transport_plan(cosine_cost(words, patches), rows, columns)
    assert torch.equal(plan[:2], torch.zeros(2, 4, 5))
    loss = word_patch_alignment_loss(words, patches, rows, columns, torch.tensor([True] * 3))
    alone = word_patch_alignment_loss(words[2:], patches[2:], rows[2:], columns[2:], torch.tensor([True]))
    assert_close(loss, alone / 3)
    for gradient in torch.autograd.grad(loss, [words, patches]):
        assert gradient.isfinite().all()
        assert torch.equal(gradient[:2], torch.zeros_like(gradient[:2]))


@pytest.mark.parametrize("pairs", [0, 2])
def test_nothing_to_move_is_an_exact_zero(pairs):
    words, patches = torch.zeros(pairs, 4, 8, requires_grad=True), torch.zeros(pairs, 5, 8)
    masks = torch.zeros(pairs, 4, dtype=torch.bool), torch.zeros(pairs, 5, dtype=torch.bool)
    loss = word_patch_alignment_loss(words, patches, *masks, torch.zeros(pairs, dtype=torch.bool))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, words)[0], torch.zeros(pairs, 4, 8))


def test_states_of_length_zero_cost_one_and_get_finite_gradients():
    words, patches = torch.zeros(1, 2, 4, requires_grad=True), vectors(1, 3, 4)
    cost = cosine_cost(words, patches)
    assert torch.equal(cost, torch.ones(1, 2, 3))
    assert torch.autograd.grad(cost.sum(), words)[0].isfinite().all()


def test_words_are_what_stands_between_the_first_and_the_last_token():
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[0, 1] = expected[0, 2] = expected[1, 3] = True
    assert torch.equal(inner_tokens(mask), expected)
    assert torch.equal(inner_tokens(mask.bool()), expected)


def test_wrong_inputs_of_a_plan_are_refused():
    cost = costs(3, 4)
    rows, columns = everywhere(cost)
    with pytest.raises(ValueError, match=r"`cost` must be \(pairs, words, patches\), got \(3, 4\)"):
        transport_plan(cost[0], rows, columns)
    with pytest.raises(ValueError, match=r"`rows` must be \(1, 3\) booleans for a cost .* got \(1, 4\) of"):
        transport_plan(cost, columns, columns)
    with pytest.raises(ValueError, match=r"`columns` must be \(1, 4\) booleans .* of torch.int64"):
        transport_plan(cost, rows, columns.long())
    with pytest.raises(ValueError, match=r"`beta`=0.01 must be at least 0.05: float32 holds no shorter"):
        transport_plan(cost, rows, columns, beta=0.01)
    with pytest.raises(ValueError, match="`iterations`=0 and `inner`=1 must be at least 1"):
        transport_plan(cost, rows, columns, iterations=0)


def test_wrong_inputs_of_the_loss_are_refused():
    words, patches, matched = vectors(2, 3, 8), vectors(2, 4, 8), torch.tensor([True, False])
    masks = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`words` must be .* got \(2, 3, 8\) and \(2, 4, 6\)"):
        word_patch_alignment_loss(words, patches[..., :6], *masks, matched)
    with pytest.raises(ValueError, match=r"`matched` must be \(2,\) booleans.*int64; from labels take"):
        word_patch_alignment_loss(words, patches, *masks, matched.long())
