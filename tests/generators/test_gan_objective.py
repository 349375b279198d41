"""What a GAN learns by: whose gradients, which losses, how penalties fall, when a run is given up."""

import math

import pytest
import torch
from generators.gan_tiny import CLASSES, batch, discriminator, generator, objective, text_encoder
from torch import nn
from torch.nn.functional import softplus
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import DivergedError, GANObjective, GANPipeline, PhasedTrainer, PixelRows
from hf_mm.data.tokenizer import word_tokenizer
from hf_mm.generators.gan.objective_gan import diversity

LOSSES = ["relativistic", "non_saturating", "hinge"]


def only(learner: GANObjective, phase: str) -> GANObjective:
    """As the trainer has it in a phase."""
    learner.requires_grad_(False)
    for weight in learner.phase_parameters(phase):
        weight.requires_grad_(True)
    return learner


def settings(folder, **changes):
    flags = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    flags |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "max_grad_norm": 0.0}
    return TrainingArguments(str(folder), **flags | changes)


def rows(count=12):
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
    return PixelRows(pixels, torch.arange(count) % 3, CLASSES)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_a_phase_leaves_no_gradient_in_the_other_net(phase, kind):
    learner = only(objective(adversarial_loss=kind), phase)
    learner.loss(batch(), phase)[0].backward()
    other = {"discriminator": "generator", "generator": "discriminator"}[phase]
    assert all(weight.grad is None for weight in learner.phase_parameters(other))
    assert all(weight.grad is not None for weight in learner.phase_parameters(phase))


def test_phases_share_no_parameter_and_leave_none_out():
    learner = objective()
    found = [id(weight) for phase in learner.phases for weight in learner.phase_parameters(phase)]
    assert len(found) == len(set(found)) == len(list(learner.parameters()))


def test_the_discriminators_loss_is_r3gan_written_out():
    """softplus(fake - real) + gamma / 2 (R1 + R2), each net called for one half at a time."""
    learner, given = objective(gamma=0.8), batch()
    torch.manual_seed(5)
    loss, logs = learner.loss(given, "discriminator")
    torch.manual_seed(5)
    labels = given["class_labels"]
    with torch.no_grad():
        fake = learner.generator(torch.randn(4, 5), labels).sample
    lengths, logits = [], []
    for pictures in (given["pixel_values"].clone(), fake):
        pictures.requires_grad_()
        logits.append(learner.discriminator(pictures, labels).logits)
        (slopes,) = torch.autograd.grad(logits[-1].sum(), pictures)
        lengths.append(slopes.square().sum(dim=(1, 2, 3)).mean())
    expected = softplus(logits[1] - logits[0]).mean() + 0.8 / 2 * (lengths[0] + lengths[1])
    assert_close(loss, expected)
    assert_close(logs, {"lead": (logits[0] - logits[1]).mean().detach(), "r1": lengths[0], "r2": lengths[1]})


def test_the_generators_loss_is_r3gan_written_out():
    learner, given = objective(), batch()
    torch.manual_seed(5)
    loss, _ = learner.loss(given, "generator")
    torch.manual_seed(5)
    labels = given["class_labels"]
    fake = learner.generator(torch.randn(4, 5), labels).sample
    real_logits = learner.discriminator(given["pixel_values"], labels).logits
    assert_close(loss, softplus(real_logits - learner.discriminator(fake, labels).logits).mean())


def test_without_weight_there_is_no_penalty():
    loss, logs = objective(gamma=0.0).loss(batch(), "discriminator")
    assert set(logs) == {"lead"}
    assert loss.requires_grad


def test_the_weight_of_the_penalties_falls_along_half_a_cosine():
    learner = objective(gamma=2.0, gamma_end=0.5, gamma_steps=100)
    found = []
    for learner.step in (0, 25, 50, 100, 1000):
        found.append(learner.current_gamma())
    assert found == pytest.approx([2.0, 0.5 + 0.75 * (1 + math.sqrt(0.5)), 1.25, 0.5, 0.5])
    assert objective(gamma=2.0).current_gamma() == 2.0


def test_texts_are_read_by_the_nets_or_by_a_frozen_encoder():
    words = {
        "input_ids": torch.tensor([[3, 1], [4, 1]]),
        "attention_mask": torch.ones(2, 2, dtype=torch.long),
    }
    given = {"pixel_values": batch(2)["pixel_values"], **words}
    for options, encoder in (({"vocab_size": 8}, None), ({"text_embed_dim": 7}, text_encoder())):
        learner = objective(options, text_encoder=encoder)
        for phase in learner.phases:
            learner.loss(given, phase)[0].backward()
        learner.train()
        assert encoder is None or not (
            encoder.training or any(w.grad is not None for w in encoder.parameters())
        )


def test_previews_show_the_classes_in_turn_from_the_same_noise():
    learner = objective()
    shown = learner.preview(torch.Generator().manual_seed(3), 4)
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    assert shown is not None
    assert_close(shown, learner.generator(noise, torch.tensor([0, 1, 2, 0])).sample)


def test_previews_of_texts_need_prompts():
    words, source = word_tokenizer(["red", "bag"]), torch.Generator().manual_seed(0)
    assert objective({"vocab_size": 4}, tokenizer=words).preview(source, 3) is None
    learner = objective({"vocab_size": 4}, tokenizer=words, preview_prompts=["red bag", "bag"])
    shown = learner.preview(source, 3)
    assert shown is not None
    assert shown.shape == (3, 1, 8, 8)


def test_trains_saves_and_draws(tmp_path):
    """The whole way: the loop, the averages, the pipeline in a folder."""
    learner = objective({"num_classes": 3, "sample_size": 8})
    before = [weight.clone() for weight in learner.parameters()]
    trainer = PhasedTrainer(learner, settings(tmp_path), rows(), ema_decay=0.5, preview_count=6)
    metrics = trainer.train()
    assert all(math.isfinite(metrics[f"train_{name}"]) for name in ("lead", "r1", "r2", "diversity"))
    assert not any(torch.equal(*pair) for pair in zip(before, learner.parameters(), strict=True))
    trainer.save_model()
    pipe = GANPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    with trainer.averages_applied():
        wanted = learner.generator(torch.ones(1, 5), torch.tensor([1])).sample
    drawn = pipe(class_labels=1, latents=torch.ones(1, 5), output_type="pt").images
    assert_close(drawn, (wanted.detach() / 2 + 0.5).clamp(0, 1))


class Constant(nn.Module):
    """A generator whose pictures do not depend on the noise."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, latents, **conditions):
        return self.model(latents * 0, **conditions)


def test_a_collapsed_generator_ends_the_run_and_is_named(tmp_path):
    learner = objective(collapse_start=2, patience=2)
    learner.generator = Constant(learner.generator)
    trainer = PhasedTrainer(
        learner, settings(tmp_path, max_steps=9, save_strategy="steps", save_steps=1), rows()
    )
    with pytest.raises(
        DivergedError, match=r"Step 3: The generator collapsed: its pictures have 0 of the"
    ) as caught:
        trainer.train()
    assert "below `least_diversity`=0.02 for 2 logs in a row. Raise `gamma`" in str(caught.value)
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-2'}" in str(caught.value)


def test_a_resumed_run_counts_on(tmp_path):
    """Two of the logs that were too many came before the checkpoint."""
    flags = {"max_steps": 9, "save_strategy": "steps", "save_steps": 1}
    for resumed in (None, tmp_path / "checkpoint-3"):
        learner = objective(collapse_start=2, patience=3)
        learner.generator = Constant(learner.generator)
        with pytest.raises(DivergedError, match="Step 4: The generator collapsed"):
            PhasedTrainer(learner, settings(tmp_path, **flags), rows()).train(resumed)


def test_a_generator_that_recovers_is_not_given_up():
    learner = objective(collapse_start=0, patience=2)
    for found in (0.01, 0.5, 0.01, 0.5):
        learner.health({"diversity": found})
    learner.health({"diversity": 0.01})
    with pytest.raises(DivergedError, match="collapsed"):
        learner.health({"diversity": 0.01})


def test_an_untrained_generator_is_given_time():
    learner = objective(collapse_start=100, patience=1)
    learner.step = 99
    learner.health({"diversity": 0.0})
    learner.step = 100
    with pytest.raises(DivergedError, match="collapsed"):
        learner.health({"diversity": 0.0})


def test_diversity_is_the_share_of_the_real_variance_within_classes():
    labels = torch.tensor([0, 0, 1, 1])
    real = torch.tensor([0.0, 2.0, 10.0, 14.0]).view(4, 1, 1, 1)
    assert_close(diversity(real / 2, real, labels), torch.tensor(0.25))
    one_each = torch.tensor([1.0, 1.0, 7.0, 7.0]).view(4, 1, 1, 1)
    assert diversity(one_each, real, labels) == 0
    assert diversity(one_each, real) > 0.2
    assert diversity(one_each, one_each, labels) == 1


@pytest.mark.parametrize("label", [3, -1])
def test_class_ids_out_of_range_are_named(label):
    given = batch() | {"class_labels": torch.tensor([0, 1, label, 2])}
    with pytest.raises(ValueError, match=rf"`class_labels`\[2\] is {label}, but the model knows the"):
        objective().loss(given, "discriminator")


def test_missing_conditions_are_named():
    pixels = {"pixel_values": batch()["pixel_values"]}
    with pytest.raises(ValueError, match=r"asked by classes, but the batch has only \['pixel_values'\]"):
        objective().loss(pixels, "generator")
    with pytest.raises(ValueError, match=r"asked by texts, but the batch has only \['pixel_values'\]"):
        objective({"vocab_size": 4}).loss(pixels, "generator")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"models": {"vocab_size": 3}, "tokenizer": word_tokenizer(["red", "bag"])},
            r"ids up to 3, but the gen",
        ),
        ({"adversarial_loss": "wasserstein"}, r"No adversarial loss 'wasserstein'; there are relativistic"),
        ({"gamma": -1.0}, r"`gamma`=-1.0 and `gamma_end`=None must be at least 0"),
        ({"gamma_end": 0.1}, r"`gamma_end`=0.1 must be at least 0, and `gamma_steps`=0 at least 1"),
        ({"text_encoder": text_encoder()}, r"`text_embed_dim`=None and `text_encoder`=CLIPTextModelWithProj"),
    ],
)
def test_faulty_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objective(**options)


def test_nets_for_other_pictures_or_conditions_are_refused():
    with pytest.raises(ValueError, match=r"generator has `num_classes`=3, the discriminator `num_classes`=2"):
        GANObjective(generator(num_classes=3), discriminator(num_classes=2))
    with pytest.raises(
        ValueError, match=r"generator has `out_channels`=1, the discriminator `in_channels`=3"
    ):
        GANObjective(generator(), discriminator(in_channels=3))
