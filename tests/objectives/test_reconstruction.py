"""Reconstruction errors, the divergence of latents, and the weight of an adversarial term."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from hf_mm.objectives.reconstruction import (
    RECONSTRUCTION_LOSSES,
    adaptive_adversarial_weight,
    calibrated_gaussian_nll,
    gaussian_kl,
    reconstruction_loss,
)


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    return torch.rand(3, 2, 4, 4) * 2 - 1, torch.rand(3, 2, 4, 4) * 2 - 1


def test_errors_are_means_over_all_numbers(pictures):
    sample, target = pictures
    error = (sample - target).flatten().tolist()
    assert_close(reconstruction_loss(*pictures, "l1").item(), sum(map(abs, error)) / len(error))
    assert_close(reconstruction_loss(*pictures, "l2").item(), sum(e * e for e in error) / len(error))
    smooth = sum(0.5 * e * e if abs(e) < 1 else abs(e) - 0.5 for e in error) / len(error)
    assert_close(reconstruction_loss(*pictures, "smooth_l1").item(), smooth)


def test_calibrated_nll_is_the_likelihood_under_the_best_deviation(pictures):
    sample, target = pictures
    best = (sample - target).square().mean().sqrt()
    assert_close(calibrated_gaussian_nll(*pictures), -Normal(sample, best).log_prob(target).mean())
    for other in (0.9 * best, 1.1 * best):
        assert calibrated_gaussian_nll(*pictures) < -Normal(sample, other).log_prob(target).mean()


def test_calibrated_nll_has_the_gradient_of_half_the_logarithm_of_the_error(pictures):
    sample, target = pictures[0].requires_grad_(), pictures[1]
    (found,) = torch.autograd.grad(calibrated_gaussian_nll(sample, target), sample)
    (wanted,) = torch.autograd.grad(0.5 * (sample - target).square().mean().log(), sample)
    assert_close(found, wanted)


def test_calibrated_nll_of_a_perfect_picture_is_finite(pictures):
    loss = calibrated_gaussian_nll(pictures[0], pictures[0])
    assert_close(loss.item(), math.log(1 / 255) + 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("kind", RECONSTRUCTION_LOSSES)
def test_half_precision_is_widened(pictures, kind):
    sample, target = (part.bfloat16() for part in pictures)
    loss = reconstruction_loss(sample, target, kind)
    assert loss.dtype == torch.float32
    assert_close(loss, reconstruction_loss(sample.float(), target.float(), kind))


def test_kl_is_that_of_torch_distributions():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    wanted = kl_divergence(posterior, Normal(0.0, 1.0)).sum((1, 2, 3))
    assert_close(gaussian_kl(mean, log_variance), wanted)


def test_kl_of_the_prior_itself_is_zero_and_flat():
    mean, log_variance = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    divergence = gaussian_kl(mean, log_variance)
    assert_close(divergence, torch.zeros(2))
    for gradient in torch.autograd.grad(divergence.sum(), (mean, log_variance)):
        assert_close(gradient, torch.zeros(2, 3))


def test_kl_by_hand():
    mean, variance = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.5]])
    wanted = 0.5 * ((4 - 1 - math.log(4) + 1) + (0.5 - 1 - math.log(0.5) + 4))
    assert_close(gaussian_kl(mean, variance.log()), torch.tensor([wanted]))


def test_adaptive_weight_is_the_ratio_of_the_gradients():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    reconstruction, adversarial = (weight**2).sum(), 2 * weight[0]  # gradients (6, 8) and (2, 0)
    assert_close(adaptive_adversarial_weight(reconstruction, adversarial, weight), torch.tensor(10 / 2.0001))


def test_adaptive_weight_ends_at_ten_thousand():
    weight = nn.Parameter(torch.tensor([1.0]))
    found = adaptive_adversarial_weight(100 * weight.sum(), 0 * weight.sum(), weight)
    assert_close(found, torch.tensor(1e4))
    assert not found.requires_grad


def test_adaptive_weight_leaves_graphs_and_gradients_as_they_were():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    losses = (weight**2).sum(), 2 * weight[0]
    adaptive_adversarial_weight(*losses, weight)
    assert weight.grad is None
    sum(losses).backward()
    assert_close(weight.grad, torch.tensor([8.0, 8.0]))


def test_mistakes_are_named(pictures):
    with pytest.raises(
        ValueError, match=r"No reconstruction loss 'l3'; there are l1, l2, smooth_l1, gaussian"
    ):
        reconstruction_loss(*pictures, "l3")
    for kind in RECONSTRUCTION_LOSSES:
        with pytest.raises(ValueError, match=r"`sample` \(3, 2, 4, 4\) and `target` \(1, 2, 4, 4\)"):
            reconstruction_loss(pictures[0], pictures[1][:1], kind)
    with pytest.raises(ValueError, match=r"`mean` \(3,\) and `log_variance` \(2,\)"):
        gaussian_kl(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="`last_layer` requires no gradient"):
        adaptive_adversarial_weight(torch.zeros(()), torch.zeros(()), torch.zeros(2))
