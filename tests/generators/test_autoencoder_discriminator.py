"""The discriminator of patches."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_mm.generators.autoencoder.patch_discriminator import MMPatchDiscriminator


def discriminator(layers=2):
    torch.manual_seed(0)
    return MMPatchDiscriminator(in_channels=1, base_channels=8, num_layers=layers, norm_num_groups=4)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch_of_the_pixels_that_the_paper_says(layers, field):
    model = discriminator(layers)
    convolutions = [part for part in model.layers if isinstance(part, nn.Conv2d)]
    alone = nn.Sequential(*convolutions)  # the norms see the whole picture
    pixels = torch.zeros(1, 1, 96, 96, requires_grad=True)
    logits = alone(pixels)
    (gradient,) = torch.autograd.grad(logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2], pixels)
    seen = gradient[0, 0].abs() > 0
    assert (seen.any(0).sum(), seen.any(1).sum()) == (field, field)


def test_there_is_one_logit_for_each_patch():
    assert discriminator()(torch.zeros(3, 1, 32, 24)).shape == (3, 1, 6, 4)
    model = discriminator(3)
    assert model(torch.zeros(1, 1, model.least_px, model.least_px)).shape == (1, 1, 1, 1)


def test_a_logit_depends_on_its_picture_alone_in_every_mode():
    """What batch normalisation would break."""
    model, pixels = discriminator().train(), torch.rand(4, 1, 16, 16)
    together = model(pixels)
    assert_close(torch.cat([model(part) for part in pixels.split(1)]), together)
    assert_close(model.eval()(pixels), together, rtol=0, atol=0)
    assert not list(model.buffers())


def test_save_and_load_keeps_every_bit(tmp_path):
    model, pixels = discriminator(), torch.rand(1, 1, 16, 16)
    model.save_pretrained(tmp_path)
    again = MMPatchDiscriminator.from_pretrained(tmp_path)
    assert_close(again(pixels), model(pixels), rtol=0, atol=0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`base_channels`=12 must be a multiple of `norm_num_groups`=8"):
        MMPatchDiscriminator(base_channels=12)
    with pytest.raises(ValueError, match="`num_layers`=0 must be at least 1"):
        MMPatchDiscriminator(num_layers=0)
    with pytest.raises(
        ValueError, match=r"`sample` must be \(batch, 1, height, width\), got \(1, 3, 32, 32\)"
    ):
        discriminator()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(
        ValueError, match="`sample` is 8x8 px; a discriminator of 2 layers needs 12 px at least"
    ):
        discriminator()(torch.zeros(1, 1, 8, 8))
