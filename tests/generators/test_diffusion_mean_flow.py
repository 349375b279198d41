"""Average velocities: learnt by their formula, exact where they are known, drawn with in few steps."""

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from generators.diffusion_tiny import NAMES, clip_text, dit, text_unet, words
from sklearn.datasets import load_digits
from torch import nn
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline, MeanFlowObjective


class KnownFlow(ModelMixin, ConfigMixin):
    """The average velocity between normal pictures and noise; with `spread` 0.0 of a single picture.

    Args:
        spread: Deviation of the pixels.
        in_channels: As the next, what pipelines ask for.
        sample_size: Pixels a side.
        patch_size: Any size will do.
        second_time: It is asked for both.
    """

    @register_to_config
    def __init__(
        self,
        spread: float = 0.0,
        in_channels: int = 1,
        sample_size: int = 8,
        patch_size: int = 1,
        second_time: bool = True,
    ) -> None:
        super().__init__()
        self.picture = nn.Parameter(
            torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
        )

    def deviation(self, time):
        return ((1 - time) ** 2 * self.config.spread**2 + time**2).sqrt()

    def forward(self, sample, timestep, second_timestep, return_dict=True):
        time, earlier = (part.reshape(-1, 1, 1, 1) for part in (timestep, second_timestep))
        apart = sample - (1 - time) * self.picture
        kept = self.deviation(earlier) / self.deviation(time)
        return ((apart * (1 - kept) / (time - earlier) - self.picture),)


def drawn(pipe: ImageDiffusionPipeline, **options) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(output_type="latent", **options).images


def digits(count: int = 64) -> dict[str, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(pixels[:count], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return {"pixel_values": pictures, "class_labels": torch.tensor(labels[:count]) % 3}


def objective(**options) -> MeanFlowObjective:
    return MeanFlowObjective(dit(num_classes=3, second_time=True), id2label=NAMES, **options)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_single_picture_is_drawn_exactly_in_any_number_of_steps(steps):
    learner = MeanFlowObjective(KnownFlow(), share_apart=1.0)
    found = drawn(learner.pipeline(), num_inference_steps=steps, num_images_per_prompt=3, seed=0)
    assert_close(found, learner.denoiser.picture.detach().expand(3, -1, -1, -1))


def test_the_truth_has_no_error():
    learner = MeanFlowObjective(KnownFlow(), share_apart=1.0)
    batch = {"pixel_values": learner.denoiser.picture.detach().expand(8, -1, -1, -1)}
    _, logs = learner.loss(batch, "denoiser")
    assert logs["squared_error"] < 1e-8


def test_one_step_goes_where_the_whole_flow_goes():
    learner, noise = MeanFlowObjective(KnownFlow(spread=0.3)), torch.randn(2, 1, 8, 8)
    options = {"latents": noise, "num_images_per_prompt": 2}
    found = drawn(learner.pipeline(), num_inference_steps=1, **options)
    assert_close(found, (learner.denoiser.picture + 0.3 * noise).detach())
    assert_close(drawn(learner.pipeline(), num_inference_steps=4, **options), found)


def test_the_loss_and_its_gradient_are_the_formula():
    learner, batch = objective(share_apart=0.5, power=0.75, offset=0.01).eval(), digits(6)
    torch.manual_seed(0)
    loss, logs = learner.loss(batch, "denoiser")
    found = torch.autograd.grad(loss, learner.denoiser.proj_out.weight)[0]
    torch.manual_seed(0)
    clean, labels = batch["pixel_values"], batch["class_labels"]
    noise = torch.randn_like(clean)
    ends = torch.stack([torch.sigmoid(torch.randn(6) - 0.4) for _ in range(2)])
    times, earlier = ends.amax(0), ends.amin(0)
    torch.rand(())
    earlier = torch.where(torch.arange(6) < 3, earlier, times)
    noisy = (1 - times.reshape(-1, 1, 1, 1)) * clean + times.reshape(-1, 1, 1, 1) * noise

    def average(noisy, times, earlier):
        return learner.denoiser(noisy, times, labels, second_timestep=earlier).sample

    tangents = (noise - clean, torch.ones(6), torch.zeros(6))
    prediction, slope = torch.func.jvp(average, (noisy, times, earlier), tangents)
    target = (noise - clean - (times - earlier).reshape(-1, 1, 1, 1) * slope).detach()
    squared = (prediction - target).square().sum((1, 2, 3))
    expected = (squared / (squared.detach() + 0.01) ** 0.75).mean()
    assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert_close(logs["squared_error"], squared.mean().detach() / 64, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(expected, learner.denoiser.proj_out.weight)
    assert_close(found, gradient, rtol=1e-4, atol=1e-5)


def test_guidance_is_learnt_where_there_is_a_condition_and_within_its_interval():
    learner = objective(guidance_scale=2.0, guidance_interval=(0.2, 0.9), mixing=0.5)
    batch, dropped = digits(4), torch.tensor([False, True, False, False])
    noisy, velocity = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    times = torch.tensor([0.5, 0.5, 0.1, 0.95])
    asked = learner.conditions(batch, 4, dropped)
    with torch.no_grad():
        found = learner.learnt_velocity(batch, asked, dropped, noisy, velocity, times)
        net = learner.denoiser
        nothing = net(noisy, times, torch.full((4,), 3), second_timestep=times).sample
        shown = net(noisy, times, batch["class_labels"], second_timestep=times).sample
    assert_close(found[1:], velocity[1:], rtol=0, atol=0)
    assert_close(found[0], (velocity - 0.5 * nothing + 0.5 * shown)[0], rtol=1e-5, atol=1e-5)


def test_a_short_run_lowers_the_error():
    learner, batch = objective().train(), digits(32)
    torch.manual_seed(1)
    mover = torch.optim.Adam(learner.phase_parameters("denoiser"), lr=3e-3)
    errors = []
    for _ in range(30):
        loss, logs = learner.loss(batch, "denoiser")
        mover.zero_grad()
        loss.backward()
        mover.step()
        errors.append(logs["squared_error"].item())
    assert sum(errors[-10:]) < 0.85 * sum(errors[:10])


def test_texts_are_learnt_with_guidance_too():
    denoiser = dit(text_dim=12, second_time=True)
    parts = {"text_encoder": clip_text(), "tokenizer": words(), "preview_prompts": ("a red apple",)}
    learner = MeanFlowObjective(denoiser, guidance_scale=3.0, share_apart=0.5, **parts).train()
    batch = {"pixel_values": digits(4)["pixel_values"]}
    batch |= dict(words()(["a red apple", "a pear"] * 2, padding=True, return_tensors="pt"))
    loss, _ = learner.loss(batch, "denoiser")
    loss.backward()
    assert all(weight.grad is not None for weight in learner.phase_parameters("denoiser"))
    assert learner.eval().preview(torch.Generator().manual_seed(0), 2).shape == (2, 1, 8, 8)


def test_rows_count_as_much_as_they_are_said_to():
    learner, batch = objective().eval(), digits(4)
    losses = []
    for weights in (None, torch.ones(4), torch.tensor([2.0, 0.0, 0.0, 2.0])):
        torch.manual_seed(0)
        given = batch if weights is None else batch | {"row_weights": weights}
        losses.append(learner.loss(given, "denoiser")[0])
    assert_close(losses[1], losses[0])
    assert losses[2] != losses[0]


def test_the_saved_pipeline_draws_the_same_in_two_steps(tmp_path):
    pipe = objective().pipeline()
    expected = drawn(pipe, class_labels=["hat", "bag"], num_inference_steps=2, seed=0)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert again.prediction_type == "mean_flow"
    assert_close(
        drawn(again, class_labels=["hat", "bag"], num_inference_steps=2, seed=0), expected, rtol=0, atol=0
    )


def test_parts_that_cannot_learn_it_are_refused():
    with pytest.raises(ValueError, match=r"needs a denoiser that is asked for two times"):
        MeanFlowObjective(text_unet())
    with pytest.raises(ValueError, match=r"predicts 'mean_flow'.*write `pipe.scheduler = FlowMatchEuler"):
        MeanFlowObjective(dit(second_time=True), DDIMScheduler())
    with pytest.raises(ValueError, match=r"up to `num_train_timesteps`=1000, .*num_train_timesteps=1\)"):
        objective(scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match=r"`guidance_scale`=2.0 needs conditions"):
        MeanFlowObjective(dit(second_time=True), guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"`guidance_scale`=2.0 is learnt beside pictures without a cond"):
        objective(guidance_scale=2.0, condition_dropout=0.0)
    with pytest.raises(ValueError, match=r"`guidance_scale`=-1.0 must be 0 or more"):
        objective(guidance_scale=-1.0)
    with pytest.raises(ValueError, match=r"`guidance_interval`=\(0.9, 0.1\) must be two times"):
        objective(guidance_interval=(0.9, 0.1))
    with pytest.raises(ValueError, match=r"`share_apart`=2 must be a share"):
        objective(share_apart=2)
