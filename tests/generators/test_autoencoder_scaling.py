"""The scale of latents."""

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch.testing import assert_close

from hf_mm.generators.autoencoder.modeling_vq_autoencoder import MMVQAutoencoder
from hf_mm.generators.autoencoder.scaling import measure_scaling_factor

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": 8,
}


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    return torch.rand(40, 1, 8, 8) * 2 - 1


def test_of_a_vae_it_is_one_over_the_deviation_of_samples(pictures):
    torch.manual_seed(0)
    model = AutoencoderKL(**TINY)
    found = measure_scaling_factor(model, pictures.split(16))
    posterior = model.encode(pictures).latent_dist
    drawn = torch.cat([posterior.sample() for _ in range(200)])
    assert_close(found, 1 / drawn.std().item(), rtol=0.01, atol=0.0)  # 200 draws against the closed form


def test_latents_times_the_factor_have_deviation_one(pictures):
    torch.manual_seed(0)
    for model in (VQModel(**TINY), MMVQAutoencoder(**TINY, quantizer="fsq", fsq_levels=[5, 5, 5])):
        factor = measure_scaling_factor(model, [{"pixel_values": part} for part in pictures.split(7)])
        latents = model.encode(pictures).latents * factor
        assert_close(latents.std(correction=0).item(), 1.0, rtol=1e-4, atol=0.0)


def test_it_is_saved_in_the_config_and_the_mode_stays(pictures, tmp_path):
    model = AutoencoderKL(**TINY).train()
    factor = measure_scaling_factor(model, [pictures])
    assert model.training
    assert model.config.scaling_factor == factor
    model.save_pretrained(tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path).config.scaling_factor == factor


def test_measuring_leaves_a_codebook_as_it_was(pictures):
    model = MMVQAutoencoder(**TINY, num_vq_embeddings=8).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_scaling_factor(model, [pictures])
    assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_leave_the_config_alone(pictures, value):
    model = AutoencoderKL(**TINY)
    torch.nn.init.constant_(model.quant_conv.bias, value)
    before = model.config.scaling_factor
    with pytest.raises(ValueError, match=r"Some of the 1920 latents are not finite, so they have no scale"):
        measure_scaling_factor(model, [pictures])
    assert model.config.scaling_factor == before


def test_mistakes_are_named(pictures):
    model = AutoencoderKL(**TINY)
    with pytest.raises(ValueError, match="`batches` has no pictures"):
        measure_scaling_factor(model, [])
    vq = VQModel(**TINY)
    torch.nn.init.zeros_(vq.quant_conv.weight)
    torch.nn.init.ones_(vq.quant_conv.bias)
    with pytest.raises(ValueError, match="All 1920 latents equal 1, so they have no scale"):
        measure_scaling_factor(vq, [pictures])
