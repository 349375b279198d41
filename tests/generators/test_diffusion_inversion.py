"""Pictures back to noise: against diffusers' inverse scheduler, closed forms, and drawing again."""

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from generators.diffusion_tiny import NAMES, clip_text, dit, kl_autoencoder, text_unet, unet, words
from torch import nn
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline
from hf_mm.objectives.noising import convert_prediction

SCHEDULED = ("epsilon", "sample", "v_prediction")


def scheduler(kind: str, **changes) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    if kind not in SCHEDULED:
        return FlowMatchEulerDiscreteScheduler(**changes)
    return DDIMScheduler(**{"prediction_type": kind, "clip_sample": False} | changes)


def pipeline(denoiser: nn.Module, kind: str = "epsilon", parts: dict | None = None, **changes):
    pipe = ImageDiffusionPipeline(denoiser, scheduler(kind, **changes), prediction_type=kind, **(parts or {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(count: int = 2, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(5))


def distance(pipe, image, asked: dict | None = None, repeats: int = 0, steps: int = 3, scale: float = 1.0):
    """The largest difference of pictures drawn from the noise they were inverted to, levels -1 to 1."""
    options = {"num_inference_steps": steps, "guidance_scale": scale} | (asked or {})
    noise = pipe.invert(image, repeats=repeats, **options)
    each = 1 if isinstance(options.get("class_labels"), list) else len(image)
    drawn = pipe(latents=noise, num_images_per_prompt=each, output_type="latent", **options).images
    return (drawn - pipe.encode(image)).abs().max().item()


class SmoothDenoiser(ModelMixin, ConfigMixin):
    """The mean of the pictures behind a noisy one, where pixels are normal of deviation 0.5; bent a little.

    Args:
        kind: What it predicts.
        bend: 0.0 for a linear denoiser, whose steps have a closed form.
        sample_size: Pixels a side.
        in_channels: Channels.
        patch_size: Any size will do.
    """

    @register_to_config
    def __init__(
        self,
        kind: str = "epsilon",
        bend: float = 0.3,
        sample_size: int = 8,
        in_channels: int = 1,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(0.5))
        self.kept = DDIMScheduler().alphas_cumprod

    def forward(self, sample, timestep, return_dict=True):
        alpha, sigma = 1 - timestep / 1000, timestep / 1000
        if self.config.kind in SCHEDULED:
            kept = self.kept[int(timestep)]
            alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        share = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
        clean = share * (sample + self.config.bend * sigma * sample.roll(1, -1).sin())
        return (convert_prediction(clean, sample, alpha, sigma, "sample", self.config.kind),)


@torch.no_grad()
def test_a_linear_denoiser_is_inverted_as_its_closed_form_says():
    pipe, image, steps = pipeline(SmoothDenoiser(bend=0.0)), picture(), 8
    kept, plain, exact = pipe.denoiser.kept.double(), 1.0, 1.0
    for start in range(0, 1000, 1000 // steps):
        before = kept[start - 125] if start else torch.tensor(1.0).double()
        here = kept[start]
        factor = (1 - here).sqrt() / (here * 0.25 + 1 - here)
        of_noise = (1 - before).sqrt() - (before * (1 - here) / here).sqrt()
        stretch = (before / here).sqrt()
        plain *= (1 - of_noise * factor) / stretch
        exact /= stretch + of_noise * factor
    pixels = pipe.encode(image)
    assert_close(pipe.invert(image, num_inference_steps=steps), (plain * pixels).float())
    assert_close(pipe.invert(image, num_inference_steps=steps, repeats=100), (exact * pixels).float())


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_walks_as_the_inverse_scheduler_of_diffusers(kind, spacing):
    pipe = pipeline(unet(), kind, timestep_spacing=spacing)
    inverse = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    inverse.set_timesteps(8)
    expected = pipe.encode(picture())
    for time in inverse.timesteps:
        output = pipe.denoiser(expected, time).sample
        expected = inverse.step(output, time, expected).prev_sample
    assert_close(pipe.invert(picture(), num_inference_steps=8), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_velocity"])
def test_what_is_drawn_again_comes_nearer_with_more_steps(kind):
    pipe = pipeline(SmoothDenoiser(kind), kind)
    found = {steps: distance(pipe, picture(), steps=steps) for steps in (5, 10, 20)}
    assert found[20] < found[10] < found[5]
    assert all(error < 5 / steps for steps, error in found.items()), found


@pytest.mark.parametrize("kind", [*SCHEDULED, "flow_velocity", "flow_sample"])
def test_repeated_steps_return_exactly(kind):
    pipe = pipeline(SmoothDenoiser(kind), kind)
    assert distance(pipe, picture(), repeats=80) < 1e-4 < distance(pipe, picture())


def test_a_mean_flow_is_inverted_in_its_few_steps():
    pipe = pipeline(dit(second_time=True), "mean_flow")
    assert distance(pipe, picture(), steps=2, repeats=100) < 1e-4


def test_a_schedule_that_ends_in_noise_alone_returns():
    pipe = pipeline(unet(), "v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert pipe.invert(picture(), num_inference_steps=10).isfinite().all()


def test_classes_and_guidance_are_those_of_drawing():
    pipe = pipeline(dit(num_classes=3), "flow_velocity", {"id2label": NAMES})
    asked = {"class_labels": ["hat", "bag"]}
    assert distance(pipe, picture(), asked, repeats=20, scale=2.0) < 1e-4
    plain = pipe.invert(picture(), num_inference_steps=4, **asked)
    guided = pipe.invert(picture(), num_inference_steps=4, guidance_scale=2.0, **asked)
    other = pipe.invert(picture(), num_inference_steps=4, class_labels="shoe")
    assert not torch.allclose(plain, guided)
    assert not torch.allclose(plain, other)


def test_texts_and_latents_are_those_of_drawing():
    parts = {"vae": kl_autoencoder(), "text_encoder": clip_text(), "tokenizer": words()}
    pipe = pipeline(text_unet(), "epsilon", parts)
    image, asked = picture(size=16), {"prompt": "a red apple"}
    found = pipe.invert(image, num_inference_steps=4, **asked)
    assert found.shape == (2, 4, 8, 8)
    assert not torch.allclose(found, pipe.invert(image, "a green pear", num_inference_steps=4))


def test_chunks_change_nothing():
    pipe = pipeline(dit(num_classes=3), "flow_velocity", {"id2label": NAMES})
    options = {"class_labels": [2, 0, 1], "num_inference_steps": 3}
    whole = pipe.invert(picture(3), **options)
    assert_close(pipe.invert(picture(3), chunk_size=2, **options), whole)


def test_steps_that_cannot_be_undone_are_refused():
    with pytest.raises(
        ValueError, match=r"DDIMScheduler with `clip_sample` cannot be undone; .*clip_sample=Fa"
    ):
        pipeline(unet(), clip_sample=True).invert(picture())
    pipe = pipeline(unet())
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(
        ValueError, match=r"steps of DPMSolverMultistepScheduler cannot be undone; .*= DDIMSche"
    ):
        pipe.invert(picture())
    with pytest.raises(ValueError, match="with `stochastic_sampling` cannot be undone"):
        pipeline(unet(), "flow_velocity", stochastic_sampling=True).invert(picture())


def test_wrong_numbers_are_refused():
    pipe = pipeline(dit(num_classes=3), "flow_velocity", {"id2label": NAMES})
    with pytest.raises(ValueError, match="have 2 entries for 3 pictures in `image`"):
        pipe.invert(picture(3), class_labels=[0, 1])
    with pytest.raises(ValueError, match="and `repeats`=-1 at least 0"):
        pipe.invert(picture(), class_labels=0, repeats=-1)
