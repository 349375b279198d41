"""The average velocity: against closed forms, finite differences and its formulas."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_mm.objectives.mean_flow import (
    adaptive_squared_error,
    guided_velocity,
    interval_times,
    mean_flow_target,
)

SHAPE = (5, 2, 3, 3)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times_apart(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    times, earlier, apart = interval_times(count, 1.0, generator=torch.Generator().manual_seed(1))
    assert apart == count
    return times.double(), earlier.double()


def wide(times: torch.Tensor) -> torch.Tensor:
    return times.reshape(-1, 1, 1, 1)


class Net(nn.Module):
    """Something smooth that depends on all three."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)

    def forward(self, noisy, times, earlier):
        return torch.tanh(self.mix(noisy) * (1 + wide(times).sin())) + wide(times * earlier) * noisy


def test_target_is_the_identity_by_finite_differences():
    net, noisy, velocity = Net(), draws(*SHAPE), draws(*SHAPE, seed=1)
    times, earlier = times_apart()
    step = 1e-5
    ahead = net(noisy + step * velocity, times + step, earlier)
    behind = net(noisy - step * velocity, times - step, earlier)
    expected = velocity - wide(times - earlier) * (ahead - behind) / (2 * step)
    found = mean_flow_target(net, noisy, velocity, times, earlier)
    assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert not found.requires_grad


def test_without_an_interval_it_is_flow_matching():
    velocity, (times, _) = draws(*SHAPE, seed=1), times_apart()
    assert_close(mean_flow_target(Net(), draws(*SHAPE), velocity, times, times), velocity, rtol=0, atol=0)


def gaussian_average(noisy, times, earlier, mean=0.7, spread=0.4):
    """The average velocity where pictures are normal: places in deviations from the mean stay."""

    def deviation(time):
        return ((1 - time) ** 2 * spread**2 + time**2).sqrt()

    times, earlier = wide(times), wide(earlier)
    arrived = (1 - earlier) * mean
    arrived = arrived + deviation(earlier) / deviation(times) * (noisy - (1 - times) * mean)
    return (noisy - arrived) / (times - earlier)


def gaussian_velocity(noisy, times, mean=0.7, spread=0.4):
    """The mean of noise - picture, given their mixture."""
    times = wide(times)
    share = (times - (1 - times) * spread**2) / ((1 - times) ** 2 * spread**2 + times**2)
    return share * (noisy - (1 - times) * mean) - mean


def test_the_true_average_of_normal_pictures_is_its_own_target():
    noisy, (times, earlier) = draws(*SHAPE), times_apart()
    target = mean_flow_target(gaussian_average, noisy, gaussian_velocity(noisy, times), times, earlier)
    assert_close(target, gaussian_average(noisy, times, earlier))


def test_a_single_picture_is_reached_in_one_step_from_anywhere():
    picture, (times, earlier) = draws(*SHAPE[1:], seed=2), times_apart()

    def average(noisy, times, earlier):
        return (noisy - picture) / wide(times)

    noise = draws(*SHAPE)
    noisy, velocity = (1 - wide(times)) * picture + wide(times) * noise, noise - picture
    assert_close(mean_flow_target(average, noisy, velocity, times, earlier), average(noisy, times, earlier))
    zeros = torch.zeros_like(times)
    assert_close(noisy - wide(times) * average(noisy, times, zeros), picture.expand(SHAPE))


def test_adaptive_error_is_its_formula_and_its_weight_has_no_gradient():
    prediction, target = draws(*SHAPE).requires_grad_(), draws(*SHAPE, seed=1)
    losses, squared = adaptive_squared_error(prediction, target, power=0.75, offset=0.01)
    difference = (prediction - target).detach()
    assert_close(squared, difference.square().sum((1, 2, 3)))
    weights = 1 / (squared + 0.01) ** 0.75
    assert_close(losses, weights * squared)
    (gradient,) = torch.autograd.grad(losses.sum(), prediction)
    assert_close(gradient, 2 * wide(weights) * difference)


def test_the_errors_of_half_precision_are_added_up_in_float32():
    prediction = torch.full((1, 4, 32, 32), 0.5, dtype=torch.float16)
    losses, squared = adaptive_squared_error(prediction * 40, prediction, power=0.0)
    assert_close(losses, torch.tensor([4096 * 19.5**2]))
    assert_close(losses, squared)


def test_guidance_goes_beyond_what_the_net_says_without_a_condition():
    velocity, unconditional = draws(*SHAPE), draws(*SHAPE, seed=1)
    expected = unconditional + 2.5 * (velocity - unconditional)
    assert_close(guided_velocity(velocity, unconditional, 2.5), expected)
    assert_close(guided_velocity(velocity, unconditional, 1.0), velocity)


def test_mixing_the_net_in_leaves_what_is_learnt_as_it_is():
    velocity, unconditional = draws(*SHAPE), draws(*SHAPE, seed=1)
    learnt = guided_velocity(velocity, unconditional, 2.5)
    assert_close(guided_velocity(velocity, unconditional, 2.5, conditional=learnt, mixing=0.6), learnt)


def test_times_are_apart_in_the_share_asked_for_and_in_order():
    torch.manual_seed(0)
    found = [interval_times(3, 0.25) for _ in range(2000)]
    for times, earlier, apart in found[:50]:
        assert (earlier[:apart] < times[:apart]).all()
        assert torch.equal(earlier[apart:], times[apart:])
        assert 0 < earlier.min() <= times.max() < 1
    assert abs(sum(apart for *_, apart in found) / 6000 - 0.25) < 0.02


def test_times_are_the_later_and_the_earlier_of_logit_normal_draws():
    times, earlier, _ = interval_times(40_000, 1.0, -0.4, 1.2, torch.Generator().manual_seed(0))
    logits = torch.cat([times, earlier]).logit()
    assert_close(logits.mean(), torch.tensor(-0.4), rtol=0, atol=0.02)
    assert_close(logits.std(), torch.tensor(1.2), rtol=0, atol=0.02)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match=r"`share_apart`=25 must be a share in 0\.\.1"):
        interval_times(4, 25)
    with pytest.raises(ValueError, match=r"`mixing`=1\.0 must be at least 0 and below 1"):
        guided_velocity(draws(1), draws(1), 2.0, draws(1), mixing=1.0)
    with pytest.raises(ValueError, match=r"`mixing`=0\.5 mixes `conditional` in, which is missing"):
        guided_velocity(draws(1), draws(1), 2.0, mixing=0.5)
    with pytest.raises(ValueError, match=r"`power`=-1 must be at least 0, and `offset`=0 above 0"):
        adaptive_squared_error(draws(1), draws(1), power=-1, offset=0)
