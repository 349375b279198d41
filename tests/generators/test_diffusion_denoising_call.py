"""One call for every denoiser: each gets what it knows, under its name; latents are scaled and back."""

import pytest
import torch
from diffusers import VQModel
from generators.diffusion_tiny import NAMES, TEXT_DIM, clip_text, dit, kl_autoencoder, text_unet, unet, words
from torch.testing import assert_close

from hf_mm import MMVQAutoencoder
from hf_mm.generators.diffusion.denoising_call import (
    class_count,
    denoise,
    encode_text,
    null_class,
    reads_padding,
    takes_classes,
    takes_texts,
)
from hf_mm.generators.diffusion.scaled_latents import (
    latent_moments,
    latents_of_pictures,
    pictures_of_latents,
)


def noisy(channels=1, rows=2):
    return torch.randn(rows, channels, 8, 8, generator=torch.Generator().manual_seed(3))


STATES = torch.randn(2, 5, TEXT_DIM, generator=torch.Generator().manual_seed(4))
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
TIMES, LABELS = torch.tensor([3, 700]), torch.tensor([0, 3])


@torch.no_grad()
def test_each_denoiser_is_called_as_it_wants_to_be():
    plain, classed, texts = unet(), unet(num_class_embeds=4), text_unet()
    assert torch.equal(denoise(plain, noisy(), TIMES), plain(noisy(), TIMES).sample)
    assert torch.equal(denoise(classed, noisy(), TIMES, LABELS), classed(noisy(), TIMES, LABELS).sample)
    expected = texts(noisy(4), TIMES, STATES).sample
    assert torch.equal(denoise(texts, noisy(4), TIMES, text_states=STATES, text_mask=MASK), expected)
    both = text_unet(num_class_embeds=4)
    expected = both(noisy(4), TIMES, STATES, class_labels=LABELS).sample
    assert torch.equal(denoise(both, noisy(4), TIMES, LABELS, STATES), expected)


@torch.no_grad()
def test_a_dit_gets_the_mask_and_the_second_time_and_loses_its_variance():
    texts = dit(text_dim=TEXT_DIM)
    expected = texts(noisy(), TIMES, encoder_hidden_states=STATES, encoder_attention_mask=MASK).sample
    assert torch.equal(denoise(texts, noisy(), TIMES, text_states=STATES, text_mask=MASK), expected)
    twice = dit(num_classes=3, second_time=True)
    expected = twice(noisy(), TIMES, LABELS, second_timestep=TIMES / 2).sample
    assert torch.equal(denoise(twice, noisy(), TIMES, LABELS, second_timestep=TIMES / 2), expected)
    learned = dit(out_channels=2)
    assert torch.equal(denoise(learned, noisy(), TIMES), learned(noisy(), TIMES).sample[:, :1])


def test_what_a_denoiser_takes_stands_in_its_config():
    kinds = {
        "unet": unet(),
        "classes": unet(num_class_embeds=4),
        "texts": text_unet(),
        "dit": dit(num_classes=3),
        "dit texts": dit(text_dim=TEXT_DIM),
    }
    assert [name for name, model in kinds.items() if takes_classes(model)] == ["classes", "dit"]
    assert [name for name, model in kinds.items() if takes_texts(model)] == ["texts", "dit texts"]
    assert [name for name, model in kinds.items() if reads_padding(model)] == ["texts"]


def test_the_null_class_is_the_number_of_the_classes():
    four = {number: str(number) for number in range(4)}
    assert (class_count(dit(num_classes=3)), null_class(dit(num_classes=3), NAMES)) == (3, 3)
    assert (class_count(unet(num_class_embeds=4)), null_class(unet(num_class_embeds=4))) == (3, 3)
    assert (class_count(unet(num_class_embeds=4), four), null_class(unet(num_class_embeds=4), four)) == (
        4,
        None,
    )
    assert (class_count(unet()), null_class(unet())) == (None, None)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: denoise(unet(num_class_embeds=4), noisy(), 3),
            "UNet2DModel is asked by `class_labels`, which",
        ),
        (lambda: denoise(unet(), noisy(), 3, LABELS), "UNet2DModel takes no `class_labels`, its config says"),
        (lambda: denoise(text_unet(), noisy(4), 3), "UNet2DConditionModel is asked by `text_states`"),
        (lambda: denoise(unet(), noisy(), 3, text_states=STATES), "UNet2DModel takes no `text_states`"),
        (lambda: denoise(dit(), noisy(), 3, second_timestep=1), "MMDiTModel takes no `second_timestep`"),
        (lambda: class_count(unet(), NAMES), "`id2label` has 3 names, but UNet2DModel draws no classes"),
        (
            lambda: class_count(unet(num_class_embeds=9), NAMES),
            "3 names, but .* 9 classes, .* give 8 or 9 names",
        ),
        (lambda: class_count(dit(num_classes=9), NAMES), "3 names, but MMDiTModel embeds 10 .* give 9 names"),
    ],
)
def test_conditions_that_do_not_fit_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@torch.no_grad()
def test_texts_are_the_last_states_of_their_encoder():
    encoder, given = clip_text(), words()(["a red apple", "pear"], padding=True, return_tensors="pt")
    expected = encoder(given["input_ids"]).last_hidden_state
    assert torch.equal(encode_text(encoder, given["input_ids"]), expected)
    masked = encode_text(encoder, **given)
    assert_close(masked[1, :3], expected[1, :3])
    assert not torch.equal(masked[1, 3:], expected[1, 3:])


@torch.no_grad()
def test_latents_are_scaled_as_stable_diffusion_scales_them_and_back():
    vae, pixels = kl_autoencoder(shift_factor=0.2), noisy()
    posterior = vae.encode(pixels).latent_dist
    latents = latents_of_pictures(vae, pixels)
    assert_close(latents, (posterior.mean - 0.2) * 0.7)
    source = torch.Generator().manual_seed(0)
    drawn = latents_of_pictures(vae, pixels, sample=True, generator=source)
    assert_close(drawn, (posterior.sample(torch.Generator().manual_seed(0)) - 0.2) * 0.7)
    mean, deviation = latent_moments(vae, pixels)
    assert_close(mean, latents)
    chance = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    assert_close(mean + deviation * chance, drawn)
    assert_close(pictures_of_latents(vae, latents), vae.decode(posterior.mean).sample)


@torch.no_grad()
@pytest.mark.parametrize("kind", [MMVQAutoencoder, VQModel])
def test_latents_of_a_codebook_are_scaled_too_and_have_no_spread(kind):
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "out_channels": 1, "latent_channels": 4, "block_out_channels": (8, 8)}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = kind(**sizes, **blocks if kind is VQModel else {}, norm_num_groups=4, scaling_factor=0.5).eval()
    expected = vae.encode(noisy()).latents
    assert_close(latents_of_pictures(vae, noisy(), sample=True), expected * 0.5)
    mean, deviation = latent_moments(vae, noisy())
    assert_close(mean, expected * 0.5)
    assert not deviation.any()
    assert_close(pictures_of_latents(vae, mean), vae.decode(expected).sample)
