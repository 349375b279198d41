"""Averaged weights: what they are, where they go, and how a run goes on."""

import pytest
import torch
from models.clip_tiny import resnet_config, tiny_model
from pair_runs import Pairs, after, dropping, trainer, weights
from torch.testing import assert_close
from transformers import Trainer, TrainerCallback

from hf_mm import EMACallback, MMCLIPModel, build_optimizer

RUN = {"max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-2}
SAVING = {"save_strategy": "steps", "save_steps": 2}
CACHED = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}


class History(TrainerCallback):
    """Weights and buffers after every step."""

    def __init__(self):
        self.states = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.states.append({name: value.clone() for name, value in model.state_dict().items()})


def averaged(history, decay):
    """By the formula: the first step's, then a share of each."""
    mean = history.states[0]
    for state in history.states[1:]:
        mean = {name: decay * mean[name] + (1 - decay) * value for name, value in state.items()}
    return mean


@pytest.mark.parametrize("steps", [1, 2], ids=["plain", "cached"])
def test_the_average_follows_the_formula(steps, tmp_path):
    average, history = EMACallback(0.7), History()
    run = trainer(tmp_path, callbacks=[average, history], gradient_accumulation_steps=steps, **RUN)
    run.train()
    assert len(history.states) == 4
    assert_close(average.model.state_dict(), averaged(history, 0.7), rtol=1e-5, atol=1e-6)


def test_statistics_are_averaged_and_counts_are_copied(tmp_path):
    model, average, history = tiny_model(vision_config=resnet_config()), EMACallback(0.9), History()
    trainer(tmp_path, model, callbacks=[average, history], **(RUN | {"max_steps": 9})).train()
    found, expected = average.model.state_dict(), averaged(history, 0.9)
    counts = [name for name in found if "tracked" in name]
    assert counts
    assert {found[name].item() for name in counts} == {9}
    means = {name: value for name, value in found.items() if "running" in name}
    assert_close(means, {name: expected[name] for name in means}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, CACHED], ids=["plain", "cached"])
def test_a_resumed_run_ends_with_the_same_weights_and_the_same_average(changes, tmp_path):
    settings = RUN | SAVING | changes | {"train_sampling_strategy": "random", "bf16": True}
    whole_average, average = EMACallback(0.7), EMACallback(0.7)
    whole = after(
        trainer(tmp_path / "whole", tiny_model(**dropping()), callbacks=[whole_average], **settings)
    )
    torch.manual_seed(99)  # a new process starts from another state, and from other weights
    run = trainer(tmp_path / "again", tiny_model(5, **dropping()), callbacks=[average], **settings)
    resumed = after(run, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_close(resumed, whole, rtol=0, atol=0)
    assert_close(average.model.state_dict(), whole_average.model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(average.model.logit_scale, resumed["logit_scale"])


def test_evaluation_uses_the_average_and_leaves_the_run_alone(tmp_path):
    seen = []
    settings = RUN | {"eval_strategy": "steps", "eval_steps": 4}
    hooks = {"alignment_metrics": lambda model: seen.append(weights_of(model)) or {}}
    found = {}
    for evaluate in (True, False):
        average = EMACallback(0.7, evaluate=evaluate)
        run = trainer(tmp_path, callbacks=[average], hooks=hooks, **settings)
        run.train()
        found[evaluate] = weights(run)
        expected = weights_of(average.model) if evaluate else weights(run)
        assert_close(seen.pop(), expected, rtol=0, atol=0)
    assert_close(found[True], found[False], rtol=0, atol=0)


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_the_average_can_be_saved_and_loaded(tmp_path):
    average = EMACallback(0.7)
    trainer(tmp_path / "run", callbacks=[average], **RUN, bf16=True).train()
    average.save_ema(tmp_path / "averaged")
    loaded = MMCLIPModel.from_pretrained(tmp_path / "averaged")
    assert_close(weights_of(loaded), weights_of(average.model), rtol=0, atol=0)
    batch = Pairs(4).batch
    assert_close(average.model(**batch).logits_per_image, loaded(**batch).logits_per_image)


def test_the_model_can_end_with_the_averaged_weights(tmp_path):
    average = EMACallback(0.7, replace_at_end=True)
    final = after(trainer(tmp_path, callbacks=[average], **RUN))
    assert_close(final, weights_of(average.model), rtol=0, atol=0)
    other = EMACallback(0.7)
    assert not torch.equal(
        final["logit_scale"], after(trainer(tmp_path, callbacks=[other], **RUN))["logit_scale"]
    )


def test_the_best_checkpoint_brings_its_average(tmp_path):
    """The first of two evaluations is the best one."""
    values = iter([2.0, 1.0])
    hooks = {"alignment_metrics": lambda _: {"recall": next(values)}}
    average, history = EMACallback(0.7, replace_at_end=True), History()
    run = trainer(
        tmp_path, callbacks=[average, history], hooks=hooks,
        eval_strategy="steps", eval_steps=2, metric_for_best_model="recall", load_best_model_at_end=True,
        **RUN, **SAVING,
    )  # fmt: skip
    final = after(run)
    history.states = history.states[:2]
    expected = averaged(history, 0.7)
    assert_close(final, {name: expected[name] for name in final}, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_without_an_average_is_refused(tmp_path):
    trainer(tmp_path, **RUN, **SAVING).train()
    run = trainer(tmp_path, callbacks=[EMACallback()], **RUN)
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint-2 has no averaged_weights\.pt: it was written without"
    ):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_trainer_that_loads_no_average_is_refused(tmp_path):
    first = trainer(tmp_path, callbacks=[EMACallback()], **RUN, **SAVING)
    first.train()
    model = tiny_model()
    optimizers = (build_optimizer(model, first.args), None)
    stock = Trainer(
        model, first.args, train_dataset=Pairs(), callbacks=[EMACallback()], optimizers=optimizers
    )
    with pytest.raises(ValueError, match="goes on from step 2 but its averaged weights were not loaded"):
        stock.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: EMACallback(1.0), r"`decay`=1\.0 must be at least 0 and below 1"),
        (lambda folder: EMACallback().save_ema(folder), "no averaged weights before training begins"),
        (
            lambda folder: trainer(
                folder, callbacks=[EMACallback()], load_best_model_at_end=True, save_only_model=True,
                eval_strategy="steps", eval_steps=2, **RUN, **SAVING,
            ).train(),
            "`load_best_model_at_end` needs the averaged weights of the best checkpoint",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_said(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
