"""Pictures out of noise: the contract, seeds, chunks, guidance, prompts, parts of pictures, switches."""

import logging

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
)
from diffusers import FlowMatchEulerDiscreteScheduler as FlowEuler
from generators.diffusion_tiny import NAMES, clip_text, dit, kl_autoencoder, text_unet, unet, words
from generators.generator_contract import PipelineContract
from PIL import Image
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline, MMCLIPTextConfig, MMCLIPTextModel, MMVQAutoencoder


def quiet(*parts, **options) -> ImageDiffusionPipeline:
    pipe = ImageDiffusionPipeline(*parts, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classes(scheduler=None, **changes) -> ImageDiffusionPipeline:
    """Pixels, with three classes and the null class."""
    return quiet(unet(num_class_embeds=4), scheduler or DDIMScheduler(), **{"id2label": NAMES} | changes)


def texts(**changes) -> ImageDiffusionPipeline:
    """Latents, with prompts."""
    parts = {"vae": kl_autoencoder(channels=3), "text_encoder": clip_text(), "tokenizer": words()}
    return quiet(text_unet(), DDIMScheduler(clip_sample=False), **parts | changes)


def dit_texts(**changes) -> ImageDiffusionPipeline:
    """Pixels by a flow, with prompts whose padding is masked, and classes."""
    model = dit(text_dim=12, num_classes=3, **changes)
    parts = {"text_encoder": clip_text(), "tokenizer": words(), "prediction_type": "flow_velocity"}
    return quiet(model, FlowEuler(), **parts, id2label=NAMES)


def drawn(pipe, **options):
    return pipe(**{"num_inference_steps": 3, "output_type": "pt"} | options).images


class CountedCalls:
    """Rows of each call of a denoiser."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.rows: list[int] = []
        model.register_forward_pre_hook(lambda module, inputs: self.rows.append(len(inputs[0])))


class TestPixels(PipelineContract):
    pipeline_class = ImageDiffusionPipeline

    def pipeline(self):
        return classes()

    def call(self):
        return {"class_labels": ["shoe", 2], "num_inference_steps": 3, "guidance_scale": 2.0}

    def picture(self):
        return 1, 8, 8


class TestLatentsOfTexts(TestPixels):
    count = 4

    def pipeline(self):
        return texts()

    def call(self):
        return {"prompt": ["a red apple", "pear"], "num_images_per_prompt": 2, "num_inference_steps": 3}

    def picture(self):
        return 3, 16, 16


def test_a_text_tower_of_this_package_is_saved_and_opened_with_no_flag(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    tower = MMCLIPTextModel(MMCLIPTextConfig(**sizes, **ids, max_position_embeddings=6)).eval()
    pipe = texts(text_encoder=tower)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.text_encoder) is MMCLIPTextModel
    expected = drawn(pipe, prompt="a red pear", seed=0)
    assert_close(drawn(again, prompt="a red pear", seed=0), expected, rtol=0, atol=0)


@pytest.mark.parametrize("make", [lambda: classes(EulerAncestralDiscreteScheduler()), dit_texts])
def test_a_picture_depends_on_its_own_seed_whatever_it_is_drawn_with(make):
    pipe = make()
    together = drawn(pipe, class_labels=[0, 1, 2, 1, 0], seed=7)
    alone = [drawn(pipe, class_labels=label, seed=7 + n) for n, label in enumerate([0, 1, 2, 1, 0])]
    parts = drawn(pipe, class_labels=[0, 1, 2, 1, 0], seed=range(7, 12), chunk_size=2)
    # rows of other batches round otherwise, in noise of up to 40 here, and guidance enlarges it
    assert_close(torch.cat(alone), together, rtol=0, atol=2e-4)
    assert_close(parts, together, rtol=0, atol=2e-4)
    sources = [torch.Generator().manual_seed(7 + n) for n in range(5)]
    assert_close(drawn(pipe, class_labels=[0, 1, 2, 1, 0], generator=sources), together, rtol=0, atol=0)


def test_chunks_of_one_generator_begin_at_the_same_noise():
    pipe, calls = classes(), {"class_labels": [0, 1, 2, 1]}
    whole = drawn(pipe, **calls, generator=torch.Generator().manual_seed(0))
    count = CountedCalls(pipe.denoiser)
    parts = drawn(pipe, **calls, generator=torch.Generator().manual_seed(0), chunk_size=3, guidance_scale=3.0)
    assert_close(parts, whole, rtol=0, atol=1e-5)
    assert count.rows == [6] * 3 + [2] * 3


@pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
def test_chunks_are_joined_in_every_form(output_type):
    images = drawn(texts(), prompt=["a", "pear", "red"], seed=0, chunk_size=2, output_type=output_type)
    assert len(images) == 3


def test_without_guidance_the_denoiser_is_asked_once():
    pipe = classes()
    count = CountedCalls(pipe.denoiser)
    drawn(pipe, class_labels=[0, 1], guidance_scale=1.0)
    assert count.rows == [2, 2, 2]


def test_guidance_in_an_interval_saves_calls():
    """Of times 750, 500, 250 and 0 the two in the middle are guided."""
    pipe = classes()
    count = CountedCalls(pipe.denoiser)
    options = {"class_labels": [0, 1], "guidance_scale": 4.0, "num_inference_steps": 4, "seed": 0}
    part = drawn(pipe, **options, guidance_interval=(0.2, 0.6))
    assert count.rows == [2, 4, 4, 2]
    whole, none = drawn(pipe, **options), drawn(pipe, **options | {"guidance_scale": 1.0})
    assert not torch.equal(part, whole)
    assert not torch.equal(part, none)


def test_guidance_goes_from_the_null_class_beyond_the_class():
    """By hand: one step of a flow from noise to the picture, u + s (c - u)."""
    pipe = dit_texts()
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = drawn(
        pipe,
        class_labels="hat",
        prompt="pear",
        negative_prompt="a",
        guidance_scale=2.5,
        latents=noise,
        num_inference_steps=1,
        output_type="latent",
    )
    said = []
    for label, text in ((2, "pear"), (3, "a")):
        tokens = words()([text], return_tensors="pt", padding=True)
        states = pipe.text_encoder(**tokens).last_hidden_state
        asked = {"class_labels": torch.tensor([label]), "encoder_hidden_states": states}
        said.append(pipe.denoiser(noise, torch.tensor(1000.0), **asked).sample)
    assert_close(found, noise - (said[1] + 2.5 * (said[0] - said[1])), rtol=1e-5, atol=1e-5)


def test_guidance_is_on_for_what_is_asked_and_off_else():
    pipe = classes()
    count = CountedCalls(pipe.denoiser)
    drawn(pipe, class_labels=1)
    drawn(pipe)
    assert count.rows == [2, 2, 2, 1, 1, 1]


def test_nothing_asked_is_the_null_class_or_the_empty_text():
    pipe = classes()
    named = quiet(pipe.denoiser, DDIMScheduler())  # without names numbers go by the embeddings
    assert_close(drawn(pipe, seed=0), drawn(named, seed=0), rtol=0, atol=0)
    pipe = texts()
    assert_close(drawn(pipe, seed=0), drawn(pipe, prompt="", seed=0, guidance_scale=1.0), rtol=0, atol=0)


def test_a_long_prompt_is_cut_and_reported_once(caplog):
    pipe = texts()
    long = "a red apple a green pear"
    with caplog.at_level(logging.WARNING):
        cut = drawn(pipe, prompt=[long, "pear"], num_images_per_prompt=2, seed=0, chunk_size=1)
        drawn(pipe, prompt=long, seed=0)
    (record,) = [entry for entry in caplog.records if "context" in entry.getMessage()]
    assert "1 of the prompts are longer than the context of 6 tokens" in record.getMessage()
    assert "which has 8, 'green pear' is not read" in record.getMessage()
    assert_close(cut[:2], drawn(pipe, prompt="a red apple a", num_images_per_prompt=2, seed=0))


def test_a_prompt_as_long_as_the_context_is_not_reported(caplog):
    with caplog.at_level(logging.WARNING):
        drawn(texts(), prompt="a red apple a", seed=0)
    assert "context" not in caplog.text


def test_what_a_mask_leaves_stays():
    pipe = classes()
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    options = {"image": picture, "mask_image": Image.fromarray(mask), "class_labels": 0, "seed": 0}
    (found,) = drawn(pipe, **options, strength=1.0)
    (wanted,) = torch.from_numpy(np.array(picture)).float()[None] / 255
    assert_close(found[0, :, :4], wanted[:, :4])
    assert not torch.allclose(found[0, :, 4:], wanted[:, 4:], atol=0.05)


def test_little_strength_keeps_the_picture_and_walks_few_steps():
    pipe = classes()
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    count = CountedCalls(pipe.denoiser)
    options = {"image": picture, "class_labels": 0, "seed": 0, "num_inference_steps": 50}
    found = drawn(pipe, **options, strength=0.02, guidance_scale=1.0)
    assert count.rows == [1]
    assert (found[0, 0] - torch.from_numpy(np.array(picture)) / 255).abs().max() < 0.15


def test_pictures_to_begin_at_come_in_any_form():
    pipe = texts()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    forms = [
        [Image.fromarray(one) for one in pixels],
        pixels.astype(np.float32) / 255,
        torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255,
    ]
    made = [drawn(pipe, prompt=["pear", "apple"], image=form, seed=0) for form in forms]
    assert_close(made[0], made[1], rtol=0, atol=0)
    assert_close(made[0], made[2], rtol=0, atol=0)


def test_each_class_begins_at_its_own_picture_however_many_are_drawn_of_it():
    pipe, image = classes(), torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    options = {"class_labels": [0, 1], "image": image, "num_images_per_prompt": 2, "guidance_scale": 1.0}
    for chance in ({"seed": 0}, {"generator": torch.Generator().manual_seed(0)}):
        found = drawn(pipe, **options, **chance, strength=0.02, num_inference_steps=50)
        assert (found.flatten(1).mean(1).round() == torch.tensor([0, 0, 1, 1])).all()
    mask = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    found = drawn(pipe, **options, mask_image=mask, seed=0, strength=1.0)
    assert [torch.equal(one, image[n // 2]) for n, one in enumerate(found)] == [True, True, False, False]


def test_an_autoencoder_may_be_wider_than_the_denoiser():
    """As where float16 overflows in it."""
    pipe = texts(vae=kl_autoencoder(channels=3))
    pipe.denoiser.to(torch.bfloat16)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert pipe.encode(image).dtype == torch.bfloat16
    noise = pipe.invert(image, "pear", num_inference_steps=2)
    assert drawn(pipe, prompt="pear", latents=noise, image=image).isfinite().all()


def test_a_picture_of_a_prompt_does_not_depend_on_longer_ones_beside_it():
    pipe = dit_texts()
    options = {"class_labels": 1, "seed": 3}
    alone = drawn(pipe, prompt="pear", **options)
    together = drawn(pipe, prompt=["pear", "a red green apple"], **options)
    assert_close(together[:1], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[1:], alone, atol=1e-2)
    options["negative_prompt"] = "a red"
    alone = drawn(pipe, prompt="pear", **options)
    together = drawn(pipe, prompt=["pear", "a red green apple"], **options)
    assert_close(together[:1], alone, rtol=0, atol=1e-4)


def test_a_flow_begins_at_a_picture_on_the_straight_line():
    """One step from halfway: x - v / 2 with x = (picture + noise) / 2."""
    pipe = quiet(dit(), FlowEuler(), prediction_type="flow_velocity")
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = drawn(pipe, image=image, latents=noise, strength=0.5, num_inference_steps=2, output_type="latent")
    halfway = (image * 2 - 1 + noise) / 2
    velocity = pipe.denoiser(halfway, torch.tensor(500.0)).sample
    assert_close(found, halfway - velocity / 2, rtol=1e-5, atol=1e-5)


def test_latents_with_a_shift_or_a_codebook_are_scaled_back():
    vae = kl_autoencoder(shift_factor=0.3)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    pipe = quiet(unet(channels=4), DDIMScheduler(clip_sample=False), vae=vae)
    assert_close(pipe.decode(latents, "pt"), (vae.decode(latents / 0.7 + 0.3).sample / 2 + 0.5).clamp(0, 1))
    codes = MMVQAutoencoder(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        vq_embed_dim=4,
        scaling_factor=2.0,
    ).eval()
    pipe = quiet(unet(channels=4), DDIMScheduler(clip_sample=False), vae=codes)
    assert_close(pipe.decode(latents, "pt"), (codes.decode(latents / 2).sample / 2 + 0.5).clamp(0, 1))
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert_close(pipe.encode(image), codes.encode(image * 2 - 1).latents * 2)


def test_sizes_may_be_others_than_in_training():
    assert drawn(texts(), prompt="pear", height=32, width=20).shape == (1, 3, 32, 20)


def test_callbacks_see_each_step_and_may_change_it():
    pipe, seen = classes(), []

    def look(self, step, timestep, tensors):
        assert self is pipe
        seen.append((step, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    names = ("latents", "clean")
    options = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names}
    assert (drawn(pipe, class_labels=[0, 1], **options) == 0.5).all()
    assert seen == [(step, time, ["clean", "latents"]) for step, time in enumerate([666, 333, 0])]


def test_a_callback_can_stop_the_walk():
    pipe, seen = classes(), []

    def stop(self, step, timestep, tensors):
        seen.append(step)
        self._interrupt = step == 1

    drawn(pipe, num_inference_steps=9, callback_on_step_end=stop)
    assert seen == [0, 1]
    drawn(pipe, num_inference_steps=2, callback_on_step_end=lambda *said: seen.append(said[1]))
    assert seen == [0, 1, 0, 1]


def test_the_progress_bar_counts_all_steps_of_all_chunks(capsys):
    pipe = ImageDiffusionPipeline(unet(), DDPMScheduler())
    drawn(pipe, num_images_per_prompt=4, chunk_size=2)
    assert "6/6" in capsys.readouterr().err


@pytest.mark.parametrize(
    "switch", ["enable_attention_slicing", "enable_vae_slicing", "enable_model_cpu_offload"]
)
def test_switches_for_memory_change_no_pixel(switch):
    pipe = texts()
    options = {"prompt": ["a red apple", "pear"], "seed": 0}
    expected = drawn(pipe, **options)
    getattr(pipe, switch)(**({"device": "cpu"} if "offload" in switch else {}))
    assert_close(drawn(pipe, **options), expected, rtol=0, atol=1e-5)


def test_large_pictures_are_decoded_in_tiles():
    pipe = texts()
    pipe.enable_vae_tiling()
    calls = CountedCalls(pipe.vae.decoder)
    assert drawn(pipe, prompt="pear", height=32, width=32).shape == (1, 3, 32, 32)
    assert len(calls.rows) > 1


def test_switches_can_be_undone():
    pipe = texts()
    for switch in ("attention_slicing", "vae_slicing", "vae_tiling"):
        getattr(pipe, f"enable_{switch}")()
        getattr(pipe, f"disable_{switch}")()
    vae = pipe.vae
    assert isinstance(vae, AutoencoderKL)
    assert not vae.use_slicing
    assert not vae.use_tiling


@pytest.mark.parametrize("switch", ["enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling"])
def test_switches_that_can_do_nothing_say_so(switch):
    with pytest.raises(ValueError, match="lower `chunk_size` of the call instead"):
        getattr(classes(), switch)()


def test_offloading_wants_an_accelerator():
    with pytest.raises(RuntimeError, match="requires accelerator"):
        texts().enable_model_cpu_offload()
