"""Adversarial losses: the formulas of the papers, and penalties with the right gradients."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from hf_mm import discriminator_loss, generator_loss, zero_centred_penalty

REAL = torch.tensor([2.0, -0.5, 0.3])
FAKE = torch.tensor([-1.5, 0.25, 4.0])


def smooth_discriminator(dtype=torch.float64):
    """Two convolutions, smooth enough for finite differences of finite differences."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1)]
    net = nn.Sequential(*layers).to(dtype)
    net(torch.zeros(1, 2, 6, 6, dtype=dtype))
    return net


def pictures(count=3, dtype=torch.float64):
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_relativistic_losses_are_those_of_r3gan():
    """E f(G - D) as minus log sigmoid of the other's lead, in plain numbers."""
    pairs = list(zip(REAL.tolist(), FAKE.tolist(), strict=True))
    critic = sum(-math.log(1 / (1 + math.exp(-(real - fake)))) for real, fake in pairs) / 3
    artist = sum(-math.log(1 / (1 + math.exp(-(fake - real)))) for real, fake in pairs) / 3
    assert discriminator_loss("relativistic", REAL, FAKE).item() == pytest.approx(critic, rel=1e-6)
    assert generator_loss("relativistic", FAKE, REAL).item() == pytest.approx(artist, rel=1e-6)


def test_non_saturating_losses_are_cross_entropies_of_real_and_generated():
    ones, zeros = torch.ones(3), torch.zeros(3)
    real, fake = (binary_cross_entropy_with_logits(x, y) for x, y in ((REAL, ones), (FAKE, zeros)))
    assert_close(discriminator_loss("non_saturating", REAL, FAKE), real + fake)
    assert_close(generator_loss("non_saturating", FAKE), binary_cross_entropy_with_logits(FAKE, ones))


def test_hinge_losses_stop_at_the_margin():
    expected = (0 + 1.5 + 0.7) / 3 + (0 + 1.25 + 5.0) / 3
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx(expected)
    assert generator_loss("hinge", FAKE).item() == pytest.approx(-FAKE.mean().item())


@pytest.mark.parametrize("kind", ["relativistic", "non_saturating", "hinge"])
def test_each_player_pulls_the_logits_its_own_way(kind):
    """Arguments the wrong way round would teach the discriminator to praise what is generated."""
    real, fake = (torch.zeros(4, requires_grad=True) for _ in range(2))
    discriminator_loss(kind, real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    generator_loss(kind, fake, real.detach()).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("kind", ["relativistic", "non_saturating", "hinge"])
def test_patch_logits_are_averaged_as_pictures_are(kind):
    real, fake = REAL.repeat(4).reshape(2, 1, 2, 3), FAKE.repeat(4).reshape(2, 1, 2, 3)
    assert_close(discriminator_loss(kind, real, fake), discriminator_loss(kind, REAL, FAKE))
    assert_close(generator_loss(kind, fake, real), generator_loss(kind, FAKE, REAL))


@pytest.mark.parametrize("kind", ["relativistic", "non_saturating", "hinge"])
def test_losses_of_half_precision_are_float32(kind):
    real, fake = REAL.bfloat16(), FAKE.bfloat16()
    expected = discriminator_loss(kind, real.float(), fake.float())
    assert discriminator_loss(kind, real, fake).dtype == torch.float32
    assert_close(discriminator_loss(kind, real, fake), expected, rtol=0, atol=0)


def test_penalty_of_a_linear_discriminator_is_the_square_of_its_weights():
    weight = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
    samples = pictures().requires_grad_()
    penalty = zero_centred_penalty((samples * weight).sum(dim=(1, 2, 3)) + 7.0, samples)
    assert_close(penalty, weight.square().sum())
    penalty.backward()
    assert_close(weight.grad, 2 * weight.detach())


def test_penalty_is_that_of_finite_differences():
    net, samples, step = smooth_discriminator(), pictures(2), 1e-5
    total = 0.0
    with torch.no_grad():
        for row in range(2):
            for pixel in range(samples[0].numel()):
                nudge = torch.zeros_like(samples[:1]).flatten()
                nudge[pixel] = step
                nudge = nudge.reshape_as(samples[:1])
                slope = (net(samples[row : row + 1] + nudge) - net(samples[row : row + 1] - nudge)) / (
                    2 * step
                )
                total += slope.item() ** 2
    samples.requires_grad_()
    assert zero_centred_penalty(net(samples), samples).item() == pytest.approx(total / 2, rel=1e-7)


def test_gradients_of_the_penalty_are_those_of_finite_differences():
    net, samples = smooth_discriminator(), pictures(2)

    def penalty():
        leaf = samples.clone().requires_grad_()
        return zero_centred_penalty(net(leaf), leaf)

    penalty().backward()
    for name, parameter in net.named_parameters():
        flat = parameter.data.view(-1)
        for place in range(0, flat.numel(), max(flat.numel() // 4, 1)):
            kept, values = flat[place].item(), []
            for sign in (1, -1):
                flat[place] = kept + sign * 1e-5
                values.append(penalty().item())
            flat[place] = kept
            slope = (values[0] - values[1]) / 2e-5
            found = 0.0 if parameter.grad is None else parameter.grad.view(-1)[place].item()
            assert found == pytest.approx(slope, rel=1e-5, abs=1e-8), name


def test_penalty_of_patches_is_that_of_their_sum():
    samples = pictures(1).requires_grad_()
    maps = samples.square().mean(dim=1, keepdim=True)  # (1, 1, 6, 6)
    assert_close(zero_centred_penalty(maps, samples), zero_centred_penalty(maps.sum(dim=(1, 2, 3)), samples))


def test_penalty_says_that_samples_need_gradients():
    with pytest.raises(ValueError, match=r"`samples` require no gradients.*before the discriminator sees"):
        zero_centred_penalty(smooth_discriminator()(pictures()), pictures())


def test_an_unknown_loss_names_those_there_are():
    with pytest.raises(ValueError, match=r"No adversarial loss 'wasserstein'; there are relativistic, non_"):
        discriminator_loss("wasserstein", REAL, FAKE)
    with pytest.raises(ValueError, match=r"No adversarial loss 'wasserstein'; there are relativistic, non_"):
        generator_loss("wasserstein", FAKE)


def test_relativistic_losses_need_pairs():
    with pytest.raises(ValueError, match=r"`real_logits` \(3,\) and `fake_logits` \(2,\) must be pairs"):
        discriminator_loss("relativistic", REAL, FAKE[:2])
    with pytest.raises(ValueError, match=r"compares pairs; pass `real_logits` too"):
        generator_loss("relativistic", FAKE)
