"""The same pixels as diffusers' own pipelines with the same parts, seeds and steps."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from generators.diffusion_tiny import clip_text, kl_autoencoder, text_unet, unet, words
from PIL import Image
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline
from hf_mm.generators.diffusion.convert_dit_diffusers import from_dit_transformer

PROMPTS = ["a red apple", "a green pear"]
STABLE = {"steps_offset": 1, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE_OPTIONS = STABLE | {"clip_sample": False, "set_alpha_to_one": False}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def parts():
    return {"vae": kl_autoencoder(channels=3), "text_encoder": clip_text(), "tokenizer": words()}


@pytest.fixture(scope="module")
def denoiser():
    return text_unet()


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ours(denoiser, scheduler, parts) -> ImageDiffusionPipeline:
    return quiet(ImageDiffusionPipeline(denoiser, scheduler, **parts))


def stable(cls, denoiser, scheduler, parts):
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return quiet(cls(unet=denoiser, scheduler=scheduler, **parts, **rest))


@pytest.mark.parametrize(
    ("peer", "scheduler"), [(DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler)]
)
def test_pixels_are_those_of_the_pipelines_of_pixels(peer, scheduler):
    model, options = unet(channels=3), {"num_inference_steps": 5, "output_type": "pt"}
    theirs = quiet(peer(model, scheduler()))(batch_size=3, generator=chance(), **options).images
    pipe = quiet(ImageDiffusionPipeline(model, scheduler()))
    found = pipe(num_images_per_prompt=3, generator=chance(), **options).images
    assert_close(found, theirs, rtol=0, atol=0)


def test_noise_of_ddim_steps_is_theirs():
    model, options = unet(channels=3), {"num_inference_steps": 4, "output_type": "pt", "eta": 0.7}
    theirs = quiet(DDIMPipeline(model, DDIMScheduler()))(generator=chance(), **options).images
    found = quiet(ImageDiffusionPipeline(model, DDIMScheduler()))(generator=chance(), **options).images
    assert_close(found, theirs, rtol=0, atol=0)


def test_classes_are_drawn_as_by_the_pipeline_of_dit():
    """With its own denoiser converted; its null class is 1000, which is the number of its classes."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2}
    shapes = {"sample_size": 8, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}
    model, vae = DiTTransformer2DModel(**sizes, **shapes).eval(), kl_autoencoder(channels=3)
    for block in model.transformer_blocks[1:]:  # as in published checkpoints
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    options = {"class_labels": [3, 207], "num_inference_steps": 3, "guidance_scale": 4.0}
    scheduler = DDIMScheduler(clip_sample=False)
    theirs = quiet(DiTPipeline(model, vae, scheduler))(**options, generator=chance(), output_type="np")
    pipe = quiet(ImageDiffusionPipeline(from_dit_transformer(model), scheduler, vae=vae))
    found = pipe(**options, generator=chance(), output_type="np").images
    assert_close(found, theirs.images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIMScheduler(**STABLE_OPTIONS),
        lambda: PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **STABLE),
        lambda: DPMSolverMultistepScheduler(**STABLE),
        lambda: EulerDiscreteScheduler(**STABLE),
        lambda: HeunDiscreteScheduler(**STABLE),
    ],
)
def test_texts_are_drawn_as_by_stable_diffusion(denoiser, parts, make):
    options = {"prompt": PROMPTS, "num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "pt"}
    options |= {"negative_prompt": ["a pear", ""], "num_images_per_prompt": 2}
    theirs = stable(StableDiffusionPipeline, denoiser, make(), parts)(**options, generator=chance()).images
    found = ours(denoiser, make(), parts)(**options, generator=chance()).images
    assert_close(found, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: DDIMScheduler(**STABLE_OPTIONS), lambda: EulerDiscreteScheduler(**STABLE)]
)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_pictures_are_begun_at_as_by_stable_diffusion(denoiser, parts, picture, make, strength):
    options = {"prompt": "a red apple", "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    options |= {"image": picture, "strength": strength}
    theirs = stable(StableDiffusionImg2ImgPipeline, denoiser, make(), parts)(**options, generator=chance())
    found = ours(denoiser, make(), parts)(**options, generator=chance()).images
    assert_close(found, theirs.images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: DDIMScheduler(**STABLE_OPTIONS), lambda: EulerDiscreteScheduler(**STABLE)]
)
@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_parts_of_pictures_are_drawn_as_by_stable_diffusion(denoiser, parts, picture, make, strength):
    mask = Image.fromarray(np.eye(16, dtype=np.uint8).repeat(3, 0)[:16] * 255)
    options = {"prompt": PROMPTS, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    options |= {"strength": strength}
    peer = stable(StableDiffusionInpaintPipeline, denoiser, make(), parts)
    theirs = peer(**options, image=picture, mask_image=mask, generator=chance(), height=16, width=16).images
    found = ours(denoiser, make(), parts)(
        **options, image=picture, mask_image=mask, generator=chance()
    ).images
    assert_close(found, theirs, rtol=1e-5, atol=1e-5)
