"""Noise by a schedule: equal to diffusers' schedulers; targets that convert exactly; weights by formulas."""

from itertools import permutations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from torch.testing import assert_close

from hf_mm.objectives.noising import (
    SNR_WEIGHTINGS,
    add_noise,
    convert_prediction,
    diffusion_target,
    schedule_of,
    snr_weights,
)

TARGETS = ("epsilon", "sample", "v_prediction")
SCHEDULERS = {
    "linear": DDPMScheduler(),
    "cosine": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "ends in noise": DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "stable diffusion": PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    "solver": DPMSolverMultistepScheduler(num_train_timesteps=200),
}


def pictures(count=5, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, count, 3, 4, 4, generator=draw, dtype=torch.float64).to(dtype)
    return clean, noise


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "solver"])
def test_noise_is_added_as_the_scheduler_adds_it(name):
    """To the last bit, first and last timestep included."""
    scheduler, (clean, noise) = SCHEDULERS[name], pictures()
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    alphas, sigmas = schedule_of(scheduler)
    noisy = add_noise(clean, noise, alphas[timesteps], sigmas[timesteps])
    assert torch.equal(noisy, scheduler.add_noise(clean, noise, timesteps))


def test_the_schedule_of_a_solver_is_that_of_its_betas():
    alphas, sigmas = schedule_of(SCHEDULERS["solver"])
    products = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 200), 0)
    assert_close(alphas, products.sqrt())
    assert_close(alphas**2 + sigmas**2, torch.ones(200))


def test_the_velocity_is_that_of_the_scheduler():
    scheduler, (clean, noise) = SCHEDULERS["linear"], pictures()
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    alphas, sigmas = (table[timesteps] for table in schedule_of(scheduler))
    found = diffusion_target("v_prediction", clean, noise, alphas, sigmas)
    assert torch.equal(found, scheduler.get_velocity(clean, noise, timesteps))


def test_the_other_targets_are_the_noise_and_the_picture_themselves():
    clean, noise = pictures()
    assert torch.equal(diffusion_target("epsilon", clean, noise, 0.6, 0.8), noise)
    for kind in ("sample", "flow_sample"):
        assert torch.equal(diffusion_target(kind, clean, noise, 0.6, 0.8), clean)
    assert torch.equal(diffusion_target("flow_velocity", clean, noise, 0.6, 0.8), noise - clean)


@pytest.mark.parametrize(("have", "want"), list(permutations(TARGETS, 2)))
def test_a_target_converts_exactly_to_each_other_along_the_whole_schedule(have, want):
    clean, noise = pictures(1000, torch.float64)
    alphas, sigmas = (table.double() for table in schedule_of(SCHEDULERS["linear"]))
    noisy = add_noise(clean, noise, alphas, sigmas)
    given = diffusion_target(have, clean, noise, alphas, sigmas)
    found = convert_prediction(given, noisy, alphas, sigmas, have, want)
    expected = diffusion_target(want, clean, noise, alphas, sigmas)
    # the schedule is float32, so that its squares add up to 1 only to 1e-7
    assert_close(found, expected, rtol=0, atol=1e-9)
    back = convert_prediction(found, noisy, alphas, sigmas, want, have)
    assert_close(back, given, rtol=0, atol=1e-9)


@pytest.mark.parametrize("have", ["v_prediction", "sample"])
@pytest.mark.parametrize("want", TARGETS)
def test_where_there_is_noise_alone_all_but_the_noise_itself_still_converts(have, want):
    clean, noise = pictures()
    given = diffusion_target(have, clean, noise, 0.0, 1.0)
    found = convert_prediction(given, noise, 0.0, 1.0, have, want)
    assert_close(found, diffusion_target(want, clean, noise, 0.0, 1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("have", "want"), list(permutations(["flow_velocity", "flow_sample", "epsilon"], 2)))
def test_targets_of_a_flow_convert_too(have, want):
    clean, noise = pictures(4, torch.float64)
    times = torch.tensor([0.01, 0.5, 0.9, 0.99], dtype=torch.float64)
    noisy = add_noise(clean, noise, 1 - times, times)
    given = diffusion_target(have, clean, noise, 1 - times, times)
    expected = diffusion_target(want, clean, noise, 1 - times, times)
    assert_close(convert_prediction(given, noisy, 1 - times, times, have, want), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("have", "alpha", "sigma", "words"),
    [("epsilon", 0.0, 1.0, "noise alone has no picture"), ("sample", 1.0, 0.0, "`sigma` is 0")],
)
def test_what_says_nothing_new_is_not_divided_by_zero(have, alpha, sigma, words):
    clean, noise = pictures()
    with pytest.raises(ValueError, match=f"{words}.*; predict 'v_prediction'"):
        convert_prediction(noise, clean, torch.tensor(alpha), torch.tensor(sigma), have, "v_prediction")
    assert convert_prediction(noise, clean, alpha, sigma, have, have) is noise


def test_weights_equal_the_formulas_of_the_papers():
    """Hang et al. 2023, section 3.4; Salimans and Ho 2022, section 4: all in terms of the picture's error."""
    alphas, sigmas = schedule_of(SCHEDULERS["linear"])
    snr = (alphas / sigmas).double() ** 2
    five, one = torch.full_like(snr, 5.0), torch.ones_like(snr)
    expected = {
        ("epsilon", "constant"): one,
        ("sample", "constant"): one,
        ("v_prediction", "constant"): one,
        ("epsilon", "min_snr"): torch.minimum(snr, five) / snr,
        ("sample", "min_snr"): torch.minimum(snr, five),
        ("v_prediction", "min_snr"): torch.minimum(snr, five) / (snr + 1),
        ("epsilon", "snr"): one,
        ("sample", "snr"): snr,
        ("v_prediction", "snr"): snr / (snr + 1),
        ("epsilon", "truncated_snr"): torch.maximum(snr, one) / snr,
        ("sample", "truncated_snr"): torch.maximum(snr, one),
        ("v_prediction", "truncated_snr"): torch.maximum(snr, one) / (snr + 1),
        ("epsilon", "snr_plus_one"): (snr + 1) / snr,
        ("sample", "snr_plus_one"): snr + 1,
        ("v_prediction", "snr_plus_one"): one,
    }
    assert len(expected) == len(TARGETS) * len(SNR_WEIGHTINGS)
    for (kind, weighting), weights in expected.items():
        assert_close(snr_weights(kind, weighting, snr), weights, rtol=1e-12, atol=0)
    assert_close(snr_weights("sample", "min_snr", snr, gamma=2.0).max(), torch.tensor(2.0).double())


@pytest.mark.parametrize("weighting", [name for name in SNR_WEIGHTINGS if name != "constant"])
def test_a_weighting_counts_the_same_error_alike_whatever_is_predicted(weighting):
    clean, noise = pictures(1000, torch.float64)
    alphas, sigmas = (table.double() for table in schedule_of(SCHEDULERS["cosine"]))
    snr, noisy = (alphas / sigmas) ** 2, add_noise(clean, noise, alphas, sigmas)
    wrong = diffusion_target("v_prediction", clean, noise, alphas, sigmas) + 0.1
    found = []
    for kind in TARGETS:
        said = convert_prediction(wrong, noisy, alphas, sigmas, "v_prediction", kind)
        error = said - diffusion_target(kind, clean, noise, alphas, sigmas)
        found.append(snr_weights(kind, weighting, snr) * error.square().flatten(1).mean(1))
    for other in found[1:]:
        assert_close(other, found[0], rtol=1e-5, atol=0)  # the schedule is float32


def test_weights_have_their_limits_where_there_is_no_picture_and_where_there_is_no_noise():
    ends = torch.tensor([0.0, torch.inf])
    assert snr_weights("v_prediction", "min_snr", ends).tolist() == [0, 0]
    assert snr_weights("v_prediction", "snr", ends).tolist() == [0, 1]
    assert snr_weights("v_prediction", "truncated_snr", ends).tolist() == [1, 1]
    assert snr_weights("epsilon", "min_snr", ends).tolist() == [1, 0]
    assert snr_weights("sample", "min_snr", ends).tolist() == [0, 5]
    with pytest.raises(ValueError, match=r"'truncated_snr' of 'epsilon' is infinite at .* 0\.0; take"):
        snr_weights("epsilon", "truncated_snr", ends)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda ones: schedule_of(FlowMatchEulerDiscreteScheduler()), "no `alphas_cumprod`.*'flow_velocity'"),
        (
            lambda ones: diffusion_target("eps", ones, ones, 1.0, 0.0),
            "No prediction 'eps'; there are epsilon,",
        ),
        (lambda ones: convert_prediction(ones, ones, 0.6, 0.8, "sample", "v"), "No prediction 'v'"),
        (lambda ones: snr_weights("flow_velocity", "snr", ones), "'flow_velocity' has no weights by `snr`"),
        (lambda ones: snr_weights("sample", "p2", ones), "No weighting 'p2'; there are constant, snr,"),
        (lambda ones: snr_weights("sample", "min_snr", ones, 0.0), "`gamma`=0.0 must be above 0"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(2, 1, 2, 2))
