"""Bits per dimension of a VAE: probabilities of levels, and a bound that exact posteriors reach."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import VQModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from scipy import stats
from torch import nn
from torch.testing import assert_close

from hf_mm import evidence_bound
from hf_mm.evaluation.generation_bound import level_nats

CURVES = {"gaussian": stats.norm, "laplace": stats.laplace}
EDGE = torch.tensor([[0.3, -0.2], [1.4, -1.7]]).view(1, 1, 2, 2)


def shares(level, mean, scale, curve):
    """By hand: what lies within half a step of a level, or beyond the last one."""
    below = 1.0 if level == 255 else curve.cdf((level + 0.5) / 127.5 - 1, mean, scale)
    return below - (0.0 if level == 0 else curve.cdf((level - 0.5) / 127.5 - 1, mean, scale))


@pytest.mark.parametrize("kind", CURVES)
def test_probabilities_of_levels_are_shares_of_the_curve_and_add_up_to_one(kind):
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    for mean, scale in ((0.3, 0.05), (1.2, 0.5), (-1.5, 1.0)):
        found = (-level_nats(levels, torch.full((256, 1, 1, 1), mean), scale, kind)).exp()
        mean = torch.tensor(mean).item()  # of float32
        expected = [shares(level, mean, scale, CURVES[kind]) for level in range(256)]
        assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-12)
        assert found.sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", CURVES)
def test_levels_far_from_the_curve_have_finite_logarithms(kind):
    levels = torch.tensor([0, 254], dtype=torch.uint8).view(-1, 1, 1, 1)
    far = 2 - 1 / 255  # to the rim of both that is nearer
    found = level_nats(levels, torch.tensor([1.0, -1.0 + 2 / 255 - 2 / 255]).view(-1, 1, 1, 1), 0.01, kind)
    exact = -CURVES[kind].logcdf(-far / 0.01)
    assert found[0].item() == pytest.approx(exact, rel=1e-4)
    assert found.isfinite().all()


class LinearVAE(nn.Module):
    """x = W z + b + noise with z ~ N(0, 1), of which all is known: probabilistic principal components."""

    def __init__(self, noise, blurred=0.0):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.4 * torch.randn(4, 2, generator=draw))
        self.bias, self.noise, self.blurred = 0.1, noise, blurred

    def encode(self, pixels):
        covariance = torch.linalg.inv(torch.eye(2) + self.weight.T @ self.weight / self.noise**2)
        mean = (pixels.flatten(1) - self.bias) @ self.weight @ covariance / self.noise**2
        rotated = torch.linalg.eigh(covariance)
        self.axes = rotated.eigenvectors  # latents are given in axes in which they are independent
        spread = rotated.eigenvalues.log() + self.blurred
        moments = torch.cat((mean @ self.axes, spread.expand(len(mean), 2)), dim=1)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(moments[..., None, None]))

    def decode(self, latents):
        drawn = latents.flatten(1) @ self.axes.T @ self.weight.T + self.bias
        return SimpleNamespace(sample=drawn.unflatten(1, (1, 2, 2)))

    def pictures(self, count, seed):
        """Levels that it draws itself, and their bits per dimension: those of the density times a step."""
        draw = torch.Generator().manual_seed(seed)
        exact = torch.distributions.MultivariateNormal(
            torch.full((4,), self.bias), self.weight @ self.weight.T + self.noise**2 * torch.eye(4)
        )
        noise = torch.randn(count, 4, generator=draw)
        drawn = exact.loc + noise @ torch.linalg.cholesky(exact.covariance_matrix).T
        inside = drawn[(drawn.abs() < 1).all(dim=1)]  # nothing was cut
        levels = ((inside + 1) * 127.5).round().to(torch.uint8)
        nats = -exact.log_prob(levels / 127.5 - 1).mean().item()
        return levels.unflatten(1, (1, 2, 2)), nats / 4 / math.log(2) - math.log2(2 / 255)


@torch.no_grad()
def test_a_linear_vae_with_its_exact_posterior_reaches_the_likelihood():
    model = LinearVAE(noise=0.15)
    pictures, exact = model.pictures(600, 0)
    bound = evidence_bound(model, pictures, pictures, draws=50)
    # 30,000 draws of about one nat each; and a step is a twentieth of the noise
    assert bound.bits_per_dimension == pytest.approx(exact, abs=0.02)
    assert bound.scale == pytest.approx(0.15, rel=0.05)
    assert bound.divergence_bits > 0.1
    assert bound.bits_per_dimension == bound.reconstruction_bits + bound.divergence_bits
    blurred = evidence_bound(LinearVAE(noise=0.15, blurred=1.5), pictures, pictures, draws=50)
    assert blurred.bits_per_dimension > exact + 0.05  # another posterior stays above


class Constant(LinearVAE):
    """Its latents say nothing, and all pictures are expected to be the same."""

    def encode(self, pixels):
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.zeros(len(pixels), 4, 1, 1)))

    def decode(self, latents):
        return SimpleNamespace(sample=EDGE.expand(len(latents), -1, -1, -1))


@pytest.mark.parametrize("kind", CURVES)
def test_without_latents_it_is_the_probability_of_the_levels_at_the_likeliest_width(kind):
    draw = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (40, 1, 2, 2), generator=draw, dtype=torch.uint8)
    bound = evidence_bound(Constant(0.1), pictures[:20], pictures[20:], kind, batch_size=7)
    assert bound.divergence_bits == pytest.approx(0, abs=1e-9)

    def bits(part, scale):
        found = [
            shares(level, mean, scale, CURVES[kind])
            for picture in part
            for level, mean in zip(picture.flatten().tolist(), EDGE.flatten().tolist(), strict=True)
        ]
        return -sum(map(math.log2, found)) / len(found)

    assert bound.bits_per_dimension == pytest.approx(bits(pictures[:20], bound.scale), rel=1e-9)
    fitted = bits(pictures[20:], bound.scale)
    assert all(fitted < bits(pictures[20:], bound.scale * factor) for factor in (0.9, 1.1))


def test_what_has_no_bound_is_named():
    pictures = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="`distribution`='cauchy' must be one of gaussian, laplace"):
        evidence_bound(Constant(0.1), pictures, pictures, "cauchy")
    with pytest.raises(ValueError, match="`draws`=0 must be at least 1"):
        evidence_bound(Constant(0.1), pictures, pictures, draws=0)
    codes = VQModel(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(
        TypeError, match=r"VQModel has no posterior \(`encode\(...\).latent_dist`\); the bound"
    ):
        evidence_bound(codes, pictures, pictures)
