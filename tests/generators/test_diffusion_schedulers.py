"""Schedulers: swapped, shifted once, told apart by what they expect; and what else a call may have wrong."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers import FlowMatchEulerDiscreteScheduler as FlowEuler
from generators.diffusion_tiny import NAMES, clip_text, dit, kl_autoencoder, text_unet, unet, words
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline
from hf_mm.generators.diffusion.scheduler_fit import set_steps
from hf_mm.objectives.noising import convert_prediction

FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
POINT = 0.3  # the picture that `OnePicture` always sees


def quiet(*parts, **options) -> ImageDiffusionPipeline:
    pipe = ImageDiffusionPipeline(*parts, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class OnePicture(nn.Module):
    """The exact denoiser of a single grey picture, in place of one that learnt it."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, config: dict, kind: str, scheduler=None) -> None:
        super().__init__()
        self.config, self.kind, self.scheduler = config, kind, scheduler

    def level(self, timestep: Tensor) -> tuple[float, float]:
        if self.kind.startswith("flow"):
            return 1 - float(timestep) / 1000, float(timestep) / 1000
        kept = np.interp(float(timestep), np.arange(1000), self.scheduler.alphas_cumprod.numpy())
        return kept**0.5, (1 - kept) ** 0.5

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        picture = torch.full_like(sample, POINT)
        if self.kind == "sample":
            return (picture,)
        have = "flow_sample" if self.kind.startswith("flow") else "sample"
        return (convert_prediction(picture, sample, *self.level(timestep), have, self.kind),)


def one_picture(kind: str, scheduler) -> ImageDiffusionPipeline:
    model = OnePicture(unet().config, kind, scheduler)
    pipe = quiet(unet(), scheduler, prediction_type=kind)
    pipe.register_modules(denoiser=model)
    return pipe


def walked(pipe: ImageDiffusionPipeline, steps: int, **options) -> Tensor:
    return pipe(num_inference_steps=steps, seed=0, output_type="latent", **options).images


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "cls",
    [
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_any_scheduler_arrives_at_the_picture_that_the_denoiser_knows(cls, kind):
    """All end without noise, so where the denoiser is exact, so are they."""
    config = DDPMScheduler(prediction_type=kind).config
    found = walked(one_picture(kind, cls.from_config(config)), 20)
    assert_close(found, torch.full_like(found, POINT), rtol=0, atol=2e-2)


@pytest.mark.parametrize("kind", ["flow_velocity", "flow_sample"])
@pytest.mark.parametrize(
    "make",
    [
        FlowEuler,
        lambda: FlowEuler(shift=3.0),
        FlowMatchHeunDiscreteScheduler,
        lambda: DPMSolverMultistepScheduler(**FLOW_SIGMAS),
        lambda: UniPCMultistepScheduler(**FLOW_SIGMAS),
    ],
)
def test_any_flow_arrives_at_the_picture_that_the_denoiser_knows(make, kind):
    found = walked(one_picture(kind, make()), 8)
    assert_close(found, torch.full_like(found, POINT), rtol=0, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_along_a_flow_is_exact_at_any_number_of_steps(steps):
    found = walked(one_picture("flow_velocity", FlowEuler()), steps)
    assert_close(found, torch.full_like(found, POINT), rtol=0, atol=1e-5)


def test_a_shift_is_applied_once_and_the_steps_end_at_the_picture():
    """By itself the scheduler shifts what it has shifted before."""
    scheduler = FlowEuler(shift=3.0)
    timesteps = set_steps(scheduler, 4, torch.device("cpu"))
    times = torch.tensor([1.0, 0.75, 0.5, 0.25])
    assert_close(timesteps / 1000, 3 * times / (1 + 2 * times))
    assert float(scheduler.sigmas[-1]) == 0
    scheduler.set_timesteps(4)
    assert not torch.allclose(scheduler.timesteps, timesteps)


def test_a_mean_flow_is_asked_for_both_ends_of_a_step():
    """Of one time more; one step is noise minus the average velocity."""
    model = dit(second_time=True)
    pipe, seen = quiet(model, FlowEuler(), prediction_type="mean_flow"), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((float(args[1]), float(kwargs["second_timestep"]))),
        with_kwargs=True,
    )
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = pipe(latents=noise, num_inference_steps=1, output_type="latent").images
    pipe(num_inference_steps=4, output_type="latent")
    assert seen == [(1000, 0), (1000, 750), (750, 500), (500, 250), (250, 0)]
    assert_close(found, noise - model(noise, 1000.0, second_timestep=0.0).sample)


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        ("epsilon", DDIMScheduler()),
        ("v_prediction", DDIMScheduler(prediction_type="v_prediction")),
        ("epsilon", EulerDiscreteScheduler()),
        ("epsilon", DPMSolverMultistepScheduler()),
        ("flow_velocity", FlowEuler()),
        ("flow_sample", FlowEuler()),
    ],
)
def test_callbacks_see_the_picture_in_the_noise(kind, scheduler):
    seen = []
    options = {"callback_on_step_end": lambda *said: seen.append(said[3]["clean"])}
    walked(one_picture(kind, scheduler), 4, callback_on_step_end_tensor_inputs=("clean",), **options)
    for clean in seen:
        assert_close(clean, torch.full_like(clean, POINT), rtol=0, atol=5e-3)


def obey(error: pytest.ExceptionInfo, pipe: ImageDiffusionPipeline) -> None:
    """Run the line that a message says to write."""
    line = str(error.value).split("write `")[1].split("`")[0]
    exec(line, {"pipe": pipe, **globals(), "FlowMatchEulerDiscreteScheduler": FlowEuler})


@pytest.mark.parametrize(
    ("kind", "scheduler", "message"),
    [
        ("v_prediction", DDIMScheduler(), "predicts 'v_prediction'.*but DDIMScheduler expects epsilon"),
        ("epsilon", DPMSolverMultistepScheduler(**FLOW_SIGMAS), "DPMSolver.* expects flow_prediction"),
        ("flow_velocity", UniPCMultistepScheduler(), "predicts 'flow_velocity'.*UniPC.* expects epsilon"),
        ("flow_sample", UniPCMultistepScheduler(use_flow_sigmas=True), "expects epsilon along a flow"),
        ("flow_velocity", DDIMScheduler(), "DDIMScheduler expects epsilon"),
        ("mean_flow", UniPCMultistepScheduler(**FLOW_SIGMAS), "expects flow_prediction of one time"),
        ("sample", DDIMInverseScheduler(prediction_type="sample"), "from pictures to noise, and so draws"),
        ("epsilon", DDPMScheduler(variance_type="learned_range"), "learned variance.*'learned_range'"),
    ],
)
def test_a_scheduler_that_disagrees_is_named_with_the_line_that_fixes_it(kind, scheduler, message):
    """The line is taken at its word."""
    model = dit(second_time=kind == "mean_flow")
    with pytest.raises(ValueError, match=message) as error:
        ImageDiffusionPipeline(model, scheduler, prediction_type=kind)
    fits = FlowEuler() if kind.startswith(("flow", "mean")) else DDPMScheduler(prediction_type=kind)
    pipe = quiet(model, fits, prediction_type=kind)
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=message):
        pipe()
    obey(error, pipe)
    assert walked(pipe, 3).isfinite().all()


@pytest.mark.parametrize("scheduler", [FlowEuler(), EDMEulerScheduler()])
def test_where_no_line_is_enough_the_betas_are_asked_for(scheduler):
    message = r"write `pipe.scheduler = DDIMScheduler\(prediction_type='sample', \.\.\.\)` with the betas"
    with pytest.raises(ValueError, match=message):
        ImageDiffusionPipeline(unet(), scheduler, prediction_type="sample")


def classes(**changes) -> ImageDiffusionPipeline:
    return quiet(unet(num_class_embeds=4), DDIMScheduler(), **{"id2label": NAMES} | changes)


def texts(**changes) -> ImageDiffusionPipeline:
    parts = {"vae": kl_autoencoder(channels=3), "text_encoder": clip_text(), "tokenizer": words()}
    return quiet(text_unet(), DDIMScheduler(clip_sample=False), **parts | changes)


def grey(width: int, height: int, mode: str = "L") -> Image.Image:
    return Image.new(mode, (width, height))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: quiet(unet(), DDIMScheduler()), {"class_labels": 0}, "UNet2DModel knows no classes"),
        (classes, {"prompt": "x"}, "UNet2DModel reads no texts, its config says; leave `prompt` out"),
        (classes, {"class_labels": 3}, r"`class_labels`\[0\] is 3, but the model knows the classes 0 to 2"),
        (classes, {"guidance_scale": 2.0}, "has nothing to guide to; pass `class_labels` or `prompt`"),
        (classes, {"class_labels": 0, "guidance_scale": -1.0}, "`guidance_scale`=-1.0 must be 0 or more"),
        (classes, {"guidance_interval": (0.8, 0.2)}, r"`guidance_interval`=\(0.8, 0.2\) must be two times"),
        (
            lambda: classes(id2label=dict(enumerate("abcd"))),
            {"class_labels": 0, "guidance_scale": 2.0},
            "needs the null class, but all 4 classes that UNet2DModel embeds have names",
        ),
        (
            lambda: classes(id2label=dict(enumerate("abcd"))),
            {},
            "was trained on 4 classes and never without one; pass `class_labels`",
        ),
        (classes, {"num_images_per_prompt": 0}, "`num_images_per_prompt`=0 must be at least 1"),
        (classes, {"chunk_size": 0}, "`chunk_size`=0 must be at least 1"),
        (classes, {"num_inference_steps": 0}, "`num_inference_steps`=0 and"),
        (classes, {"height": 9}, "`height`=9 px is no multiple of 2, which UNet2DModel needs; take 8"),
        (classes, {"image": grey(7, 8)}, "`width`=7 px is no multiple of 2"),
        (classes, {"image": grey(8, 8), "height": 16}, "`height`=16, but `image` has 8 px there"),
        (classes, {"image": grey(8, 8, "RGB")}, r"modes \['RGB'\], the pipeline draws one size in grey"),
        (classes, {"image": [grey(8, 8), grey(4, 4)]}, r"sizes \[\(4, 4\), \(8, 8\)\] px"),
        (classes, {"image": torch.ones(1, 1, 8, 8) * 2}, r"`image` must be in \[0, 1\], got 2 to 2"),
        (classes, {"image": torch.ones(1, 3, 8, 8)}, r"`image` must be \(pictures, 1, height, width\)"),
        (classes, {"image": torch.ones(2, 1, 8, 8)}, "2 pictures in `image` for 1 to be drawn"),
        (classes, {"image": grey(8, 8), "strength": 0.01}, "less than one step; raise one of them"),
        (classes, {"image": grey(8, 8), "strength": 1.5}, "`strength`=1.5 must be above 0 and at most 1"),
        (classes, {"mask_image": grey(8, 8)}, "pass that as `image`"),
        (
            classes,
            {"image": grey(8, 8), "mask_image": grey(4, 8)},
            "`mask_image` has 1 of 4x8 px for 1 pictures of 8x8 px",
        ),
        (classes, {"latents": torch.zeros(1, 1, 8, 9)}, r"`latents` must be \(1, 1, 8, 8\) for 1 pictures"),
        (classes, {"seed": [1, 2]}, "`seed` has 2 entries for 1 pictures"),
        (classes, {"eta": 2.0}, "`eta`=2.0 from 0 to 1"),
        (classes, {"output_type": "jpg"}, "`output_type`='jpg' is not one of"),
        (
            classes,
            {"callback_on_step_end_tensor_inputs": ["noise"]},
            r"names \['noise'\]; there are \['latents', 'clean'\]",
        ),
        (texts, {"prompt": []}, "`prompt` is an empty list"),
        (texts, {"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, "has 3 entries for 2 prompts"),
        (
            texts,
            {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1.0},
            "`negative_prompt` has no effect with `guidance_scale`=1",
        ),
        (lambda: texts(tokenizer=None), {"prompt": "a"}, "has no `tokenizer` to read `prompt` by"),
        (lambda: texts(text_encoder=None), {"prompt": "a"}, "has no `text_encoder` to read `prompt` by"),
    ],
)
def test_faulty_wishes_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make()(**options)


def test_prompts_and_classes_must_be_as_many():
    model = text_unet(num_class_embeds=4)
    pipe = quiet(model, DDIMScheduler(), text_encoder=clip_text(), tokenizer=words())
    with pytest.raises(ValueError, match="`prompt` has 2 entries and `class_labels` 3"):
        pipe(prompt=["a", "b"], class_labels=[0, 1, 2])


def test_eta_is_of_ddim_only():
    with pytest.raises(ValueError, match=r"`eta`=0.5 is of DDIMScheduler, DDPMScheduler has none"):
        quiet(unet(), DDPMScheduler())(eta=0.5)


def test_a_picture_is_no_text():
    with pytest.raises(TypeError, match="`image` must be PIL images, an array or a tensor, got str"):
        classes()(image=["cat.png"])


def test_shifts_that_cannot_be_applied_once_are_refused():
    for scheduler, message in (
        (FlowMatchHeunDiscreteScheduler(shift=3.0), "would apply its `shift`=3.0 twice"),
        (FlowEuler(use_dynamic_shifting=True), "has `use_dynamic_shifting`"),
    ):
        pipe = quiet(dit(), scheduler, prediction_type="flow_velocity")
        with pytest.raises(ValueError, match=message) as error:
            pipe()
        obey(error, pipe)
        assert walked(pipe, 2).isfinite().all()


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ((unet(), DDIMScheduler()), {"prediction_type": "noise"}, "`prediction_type`='noise' is not one of"),
        (
            (unet(), FlowEuler()),
            {"prediction_type": "mean_flow"},
            "a denoiser that is asked for two times",
        ),
        ((unet(), DDIMScheduler()), {"id2label": NAMES}, "has 3 names, but UNet2DModel draws no classes"),
        (
            (unet(num_class_embeds=4), DDIMScheduler()),
            {"id2label": {1: "a", 2: "b", 3: "c"}},
            r"must number the classes 0 to 2, got \['1', '2', '3'\]",
        ),
        (
            (unet(), DDIMScheduler(clip_sample=False)),
            {"vae": kl_autoencoder()},
            "UNet2DModel reads 1 channels .* the latents of AutoencoderKL have 4",
        ),
        (
            (unet(channels=4), DDPMScheduler()),
            {"vae": kl_autoencoder()},
            "DDPMScheduler has `clip_sample`, which cuts off at -1 and 1 .* clip_sample=False",
        ),
        (
            (unet(), DDIMScheduler()),
            {"text_encoder": clip_text()},
            "leave `text_encoder` out",
        ),
        (
            (text_unet(cross_attention_dim=8), DDIMScheduler()),
            {"text_encoder": clip_text()},
            "reads text states of width 8, those of CLIPTextModel have 12",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_named(parts, options, message):
    with pytest.raises(ValueError, match=message):
        ImageDiffusionPipeline(*parts, **options)


def test_numbers_that_are_not_finite_stop_the_walk_at_their_step():
    pipe = quiet(unet(), DDIMScheduler())

    def spoil(self, step, timestep, tensors):
        return {"latents": tensors["latents"] * float("nan")} if step == 2 else {}

    with pytest.raises(FloatingPointError, match=r"not finite after step 3 of 10 \(timestep 700\)"):
        pipe(num_inference_steps=10, callback_on_step_end=spoil)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory")])
def test_too_little_memory_is_answered_by_the_switches_that_help(error):
    pipe = texts()

    def fail(module: nn.Module, inputs: tuple) -> None:
        raise error

    pipe.vae.decoder.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        pipe(prompt=["a"] * 8, num_inference_steps=1, chunk_size=6)
    said = str(raised.value)
    assert "drawing 6 pictures at a time on cpu" in said
    for advice in ("`chunk_size=3`", "enable_attention_slicing()", "enable_vae_slicing()", "bfloat16"):
        assert advice in said
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("part", ["text_encoder", "vae", "denoiser"])
def test_advice_comes_wherever_memory_runs_out(part):
    pipe, image = texts(), torch.rand(3, 3, 16, 16)

    def fail(module: nn.Module, inputs: tuple, options: dict) -> None:
        raise RuntimeError("MPS backend out of memory")

    place = pipe.vae.encoder if part == "vae" else getattr(pipe, part)
    place.register_forward_pre_hook(fail, with_kwargs=True)
    calls = [lambda: pipe(prompt="a", image=image, num_images_per_prompt=3)]
    if part != "text_encoder":
        pipe.text_encoder = clip_text()
        calls.append(lambda: pipe.invert(image, "a"))
    for call in calls:
        with pytest.raises(torch.OutOfMemoryError, match=r"draw smaller pictures \(`height` and `width`"):
            call()


def test_an_autoencoder_that_overflows_is_named():
    pipe = texts()
    pipe.vae.decoder.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    with pytest.raises(FloatingPointError, match=r"AutoencoderKL decodes .*`pipe.vae.to\(torch.float32\)"):
        pipe(prompt="a", num_inference_steps=1)


def test_other_errors_pass_as_they_are():
    pipe = texts()

    def fail(module: nn.Module, inputs: tuple) -> None:
        raise RuntimeError("another")

    pipe.denoiser.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^another$"):
        pipe(prompt="a")
