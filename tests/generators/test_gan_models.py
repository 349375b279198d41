"""Generator and discriminator of a GAN: the contract, conditions, what begins as what, errors."""

import math

import pytest
import torch
from generators.gan_tiny import SIZES, batch, discriminator, generator
from generators.generator_contract import GeneratorModelContract
from torch import nn
from torch.testing import assert_close

from hf_mm import MMGANDiscriminator, MMGANGenerator, zero_centred_penalty
from hf_mm.generators.gan.blocks_gan import ACTIVATION_GAIN, GANBlock, downsample, upsample

NOISE = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
CONDITIONS = {
    "none": ({}, {}),
    "classes": ({"num_classes": 3}, {"class_labels": torch.tensor([0, 2])}),
    "words": (
        {"vocab_size": 9},
        {
            "input_ids": torch.tensor([[3, 4, 0], [5, 6, 7]]),
            "attention_mask": torch.tensor([[1, 1, 0], [1] * 3]),
        },
    ),
    "texts": ({"text_embed_dim": 4}, {"text_embeds": torch.tensor([[1.0, 2, 3, 4], [-2, 1, 0, 1]])}),
}


class TestGenerator(GeneratorModelContract):
    model_class = MMGANGenerator

    def options(self):
        return SIZES | {"out_channels": 1, "latent_dim": 5, "num_classes": 3, "class_names": ["a", "b", "c"]}

    def inputs(self):
        return {"latents": NOISE.clone(), "class_labels": torch.tensor([0, 2])}


class TestDiscriminator(GeneratorModelContract):
    model_class = MMGANDiscriminator
    answer = "logits"

    def options(self):
        return SIZES | {"in_channels": 1, "vocab_size": 9}

    def inputs(self):
        return {"sample": batch(2)["pixel_values"], **CONDITIONS["words"][1]}


@pytest.mark.parametrize("kind", CONDITIONS)
def test_every_kind_of_condition_changes_the_picture_and_the_logit(kind):
    options, asked = CONDITIONS[kind]
    made = generator(**options)(NOISE, **asked).sample
    logits = discriminator(**options)(made, **asked).logits
    assert made.shape == (2, 1, 8, 8)
    assert logits.shape == (2,)
    for name, value in asked.items():
        other = asked | {name: value.flip(0)}
        assert not torch.equal(generator(**options)(NOISE, **other).sample, made)
        assert not torch.equal(discriminator(**options)(made, **other).logits, logits)


def test_padding_of_a_text_changes_nothing():
    options, asked = CONDITIONS["words"]
    longer = {
        name: torch.cat([value, torch.zeros_like(value[:, :2])], dim=1) for name, value in asked.items()
    }
    assert_close(generator(**options)(NOISE, **longer).sample, generator(**options)(NOISE, **asked).sample)


def test_the_length_of_a_text_vector_does_not_count():
    """An encoder may give vectors of any length."""
    model, vectors = generator(text_embed_dim=4), CONDITIONS["texts"][1]["text_embeds"]
    made = model(NOISE, text_embeds=vectors).sample
    assert_close(model(NOISE, text_embeds=vectors * 50).sample, made)


def test_vectors_of_conditions_stand_for_the_conditions():
    options, asked = CONDITIONS["classes"]
    model = generator(**options)
    vectors = model.condition(**asked)
    assert_close(model(NOISE, condition_embeds=vectors).sample, model(NOISE, **asked).sample, rtol=0, atol=0)


def test_a_block_is_the_identity_at_the_start_and_learns_nevertheless():
    torch.manual_seed(0)
    block, picture = GANBlock(8, 2, 4, depth=3), torch.randn(2, 8, 5, 5)
    assert_close(block(picture), picture, rtol=0, atol=0)
    block(picture).square().mean().backward()
    assert block.conv_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("depth", [1, 16])
def test_branches_are_scaled_down_by_the_depth_of_the_net(depth):
    """Fixup: L^(-1 / (2 m - 2)) for each of the m - 1 = 2 layers, so 1 / sqrt(L) for the branch."""
    torch.manual_seed(0)
    block = GANBlock(64, 2, 16, depth)
    gain = block.conv_in.weight.std() * math.sqrt(64) * block.conv_mid.weight.std() * math.sqrt(16 * 9)
    assert gain.item() == pytest.approx(ACTIVATION_GAIN**2 / math.sqrt(depth), rel=0.02)


@pytest.mark.parametrize("build", [MMGANGenerator, MMGANDiscriminator])
def test_nothing_is_normalised_and_biases_stand_before_activations_only(build):
    model = build(num_classes=3)
    kinds = {type(part) for part in model.modules() if not list(part.children())}
    assert kinds == {nn.Conv2d, nn.Linear, nn.Embedding, type(GANBlock(16, 2, 16, 1).activation_in)}
    biased = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert all(name.endswith(("activation_in.bias", "activation_mid.bias")) for name in biased)
    assert len(biased) == 6


def test_pictures_and_logits_have_about_unit_variance_at_the_start():
    torch.manual_seed(0)
    made = MMGANGenerator(num_classes=4)(torch.randn(256, 64), torch.arange(256) % 4).sample
    logits = MMGANDiscriminator(num_classes=4)(torch.randn(256, 3, 32, 32), torch.arange(256) % 4).logits
    assert 0.5 < made.std() < 1.5
    assert 0.1 < logits.std() < 1.5  # means of 2x2 pixels take variance from noise


def test_small_presets_stay_below_a_million_weights():
    for model in (MMGANGenerator(num_classes=10), MMGANDiscriminator(num_classes=10)):
        assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


def test_patches_of_two_pixels_draw_the_size_that_was_asked_for():
    options = {"sample_size": 16, "patch_size": 2}
    made = generator(**options, out_channels=3)(NOISE).sample
    assert made.shape == (2, 3, 16, 16)
    assert discriminator(**options, in_channels=3)(made).logits.shape == (2,)


def test_resampling_is_bilinear():
    picture = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    rows = torch.tensor([0.0, 1.0, 3.0, 4.0])  # quarters of the way between pixel centres
    assert_close(upsample(picture)[0, 0], rows + torch.tensor([0.0, 2.0, 6.0, 8.0])[:, None])
    shrunk = nn.functional.interpolate(upsample(picture), scale_factor=0.5, mode="bilinear")
    assert_close(downsample(upsample(picture)), shrunk)


def test_the_penalty_of_a_discriminator_is_that_of_finite_differences():
    """In float64, along a random direction of all weights."""
    model = discriminator(num_classes=3).double()
    labels, source = torch.tensor([0, 2]), torch.Generator().manual_seed(3)
    pixels = torch.rand(2, 1, 8, 8, generator=source, dtype=torch.float64)

    def penalty():
        leaf = pixels.clone().requires_grad_()
        return zero_centred_penalty(model(leaf, labels).logits, leaf)

    weights = list(model.parameters())
    direction = [torch.randn(w.shape, generator=source, dtype=torch.float64) for w in weights]
    slopes = torch.autograd.grad(penalty(), weights, allow_unused=True)
    pairs = zip(slopes, direction, strict=True)
    slope = sum((s * d).sum().item() for s, d in pairs if s is not None)
    values = []
    for step in (1e-7, -1e-7):
        with torch.no_grad():
            for weight, change in zip(weights, direction, strict=True):
                weight += step * change
        values.append(penalty().item())
        with torch.no_grad():
            for weight, change in zip(weights, direction, strict=True):
                weight -= step * change
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sample_size": 32},
            r"2 stages from `base_size`=4 px.*`patch_size`=1 make 8 px, not `sample_size`=32",
        ),
        ({"layers_per_block": (1,)}, r"\(16, 8\) and `layers_per_block`=\(1,\) must name the same stages"),
        ({"group_size": 12}, r"`group_size`=12 must divide 32, a stage of 16 channels times `expansion`=2"),
        ({"num_classes": 3, "vocab_size": 4}, r"one kind of condition.*'num_classes': 3, 'vocab_size': 4"),
        ({"num_classes": 0}, r"one kind of condition of at least 1, got {'num_classes': 0}"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    for build in (generator, discriminator):
        with pytest.raises(ValueError, match=message):
            build(**changes)


def test_names_of_classes_must_be_as_many():
    with pytest.raises(ValueError, match=r"`class_names` has 2 names for `num_classes`=3"):
        generator(num_classes=3, class_names=("a", "b"))


def test_a_missing_condition_is_named():
    with pytest.raises(ValueError, match=r"asked by `class_labels`, which are missing; got \['input_ids'\]"):
        generator(num_classes=3)(NOISE, input_ids=torch.tensor([[1], [2]]))


def test_noise_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"`latents` must be \(batch, 5\), got \(2, 4\)"):
        generator()(NOISE[:, :4])


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16), (1, 8, 8)])
def test_pictures_of_other_sizes_or_channels_are_refused(shape):
    with pytest.raises(
        ValueError, match=rf"`sample` must be \(batch, 1, 8, 8\), got \({', '.join(map(str, shape))}\)"
    ):
        discriminator()(torch.zeros(shape))
