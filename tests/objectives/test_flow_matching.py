"""Flow matching: the path and the velocity by their formulas, times, and what Euler steps make of them."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from hf_mm.objectives.flow_matching import (
    flow_path,
    flow_velocity,
    flow_weights,
    logit_normal_times,
    sample_from_velocity,
    uniform_times,
    velocity_from_sample,
)
from hf_mm.objectives.noising import add_noise, diffusion_target


def pictures(count=4):
    return torch.randn(2, count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_path_and_its_derivative_are_the_formulas_and_those_of_the_scheduler():
    clean, noise = pictures()
    scheduler = FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps[[0, 250, 800, 999]]
    noisy = flow_path(clean, noise, timesteps / 1000)
    assert_close(noisy, scheduler.scale_noise(clean, timesteps, noise), rtol=0, atol=1e-6)
    times = torch.tensor([0.0, 0.3, 0.7, 1.0])
    for row, time in enumerate(times.tolist()):
        assert_close(flow_path(clean, noise, times)[row], (1 - time) * clean[row] + time * noise[row])
    assert torch.equal(flow_path(clean, noise, times)[[0, 3]], torch.stack([clean[0], noise[3]]))
    moved = flow_path(clean, noise, times + 0.25) - flow_path(clean, noise, times)
    assert_close(flow_velocity(clean, noise), moved / 0.25, rtol=0, atol=1e-5)
    assert_close(noisy, add_noise(clean, noise, 1 - timesteps / 1000, timesteps / 1000))
    assert torch.equal(flow_velocity(clean, noise), diffusion_target("flow_velocity", clean, noise, 0.5, 0.5))


def test_velocity_and_picture_convert_into_each_other():
    clean, noise = pictures()
    times = torch.tensor([0.01, 0.3, 0.7, 1.0])
    noisy = flow_path(clean, noise, times)
    # dividing by 0.01 makes the rounding of a hundred times as large
    assert_close(velocity_from_sample(clean, noisy, times), noise - clean, rtol=0, atol=1e-4)
    assert_close(sample_from_velocity(noise - clean, noisy, times), clean, rtol=0, atol=1e-6)
    assert_close(sample_from_velocity(noise - clean, clean, 0.0), clean)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_exact_on_one_picture_at_any_number_of_steps(steps, shift):
    """All paths are straight and meet in the picture, so no step goes wrong."""
    picture, noise = pictures(1)
    scheduler = FlowMatchEulerDiscreteScheduler()
    times = torch.linspace(1, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=(shift * times / (1 + (shift - 1) * times)).tolist())
    sample = noise
    for timestep in scheduler.timesteps:
        velocity = velocity_from_sample(picture, sample, timestep / 1000)
        sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
    assert_close(sample, picture, rtol=0, atol=1e-5)


def test_logit_normal_times_have_the_mean_and_the_spread_that_are_asked_for():
    times = logit_normal_times(100_000, mean=0.5, std=1.5, generator=torch.Generator().manual_seed(0))
    assert times.min() > 0
    assert times.max() < 1
    logits = times.double().logit()
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(logits.std()) == pytest.approx(1.5, abs=0.02)
    middle = logit_normal_times(100_000, generator=torch.Generator().manual_seed(0)).sort().values
    expected = torch.sigmoid(torch.tensor([-1.0, 0.0, 1.0]))  # where a normal has 16, 50 and 84 %
    assert_close(middle[[15_866, 50_000, 84_134]], expected, rtol=0, atol=0.01)


def test_uniform_times_reach_the_noise_and_never_the_picture():
    times = uniform_times(100_000, torch.Generator().manual_seed(0))
    assert 0 < times.min() < 1e-3
    assert 1 - 1e-3 < times.max() <= 1
    assert_close(times.sort().values, torch.arange(1, 100_001) / 100_000, rtol=0, atol=0.01)
    # Of seed 3 torch draws a 0 there, one number in 2^24.
    times = uniform_times(1_532_312, torch.Generator().manual_seed(3))
    assert times[-1] == 1
    assert times.min() > 0


def test_an_error_of_the_picture_can_count_as_that_of_the_velocity():
    clean, noise = pictures()
    times = torch.tensor([0.1, 0.3, 0.7, 1.0])
    noisy, guess = flow_path(clean, noise, times), clean + 0.1
    error = (velocity_from_sample(guess, noisy, times) - (noise - clean)).square().flatten(1).mean(1)
    weights = flow_weights("flow_sample", "velocity", times)
    assert_close(weights * (guess - clean).square().flatten(1).mean(1), error, rtol=1e-4, atol=0)
    assert flow_weights("flow_sample", "velocity", torch.tensor([0.01, 0.0])).tolist() == pytest.approx(
        [400] * 2
    )
    for kind, weighting in (("flow_sample", "constant"), ("flow_velocity", "velocity")):
        assert torch.equal(flow_weights(kind, weighting, times), torch.ones(4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: velocity_from_sample(*pictures(), torch.tensor([0.5, 0.0, 1, 1])),
            "`times` has 0.0, but at 0",
        ),
        (lambda: logit_normal_times(2, std=0.0), "`std`=0.0 must be above 0"),
        (lambda: flow_weights("epsilon", "constant", torch.ones(1)), "'epsilon' is no target of a flow"),
        (lambda: flow_weights("flow_sample", "snr", torch.ones(1)), "No weighting 'snr' of flows; there are"),
    ],
)
def test_bad_arguments_of_flows_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
