"""The loop of several phases: whose gradients, in which order, at which rate, and when it stops."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from phased_tiny import Mean, TinyGAN, rows, run_of, settings, weights
from PIL import Image
from torch import nn
from torch.testing import assert_close
from transformers import TrainerCallback

from hf_mm import DivergedError, PhasedTrainer, PixelCollator


class Watching(TinyGAN):
    """Notes at each loss which parameters learn, and which have a gradient of the phase before."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def loss(self, batch, phase):
        learning = {name.split(".")[0] for name, weight in self.named_parameters() if weight.requires_grad}
        graded = {name for name, weight in self.named_parameters() if weight.grad is not None}
        self.noted.append((phase, learning, graded, self.judge.training, self.generator.training))
        return super().loss(batch, phase)


def test_a_phase_leaves_no_gradient_in_the_models_of_another(tmp_path):
    objective = Watching()
    run_of(tmp_path, objective, max_steps=2).train()
    assert objective.noted == [(name, {name}, set(), False, True) for name in objective.phases] * 2
    assert all(weight.grad is None for weight in objective.parameters())
    assert all(weight.requires_grad for weight in objective.parameters())


def test_only_the_weights_of_active_phases_move(tmp_path):
    objective = TinyGAN(late=2)
    before = copy.deepcopy(objective.state_dict())
    run = run_of(tmp_path, objective, max_steps=2, warmup_steps=0)
    run.train()
    after = objective.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"generator"}


def test_both_phases_see_the_batches_of_the_step_and_each_epoch_has_every_row(tmp_path):
    objective = TinyGAN()
    data = rows(12)
    run_of(tmp_path, objective, data, PixelCollator(), max_steps=6, gradient_accumulation_steps=2).train()
    by_step = {}
    for step, phase, total in objective.seen:
        by_step.setdefault(step, {}).setdefault(phase, []).append(total)
    assert len(by_step) == 6
    assert all(parts["generator"] == parts["discriminator"] for parts in by_step.values())
    seen = [total for parts in by_step.values() for total in parts["generator"]]
    assert sum(seen[:3]) == pytest.approx(data.pixel_values().sum().item(), abs=1e-3)  # 3 times 4 of 12 rows
    assert sum(seen[3:6]) == pytest.approx(sum(seen[:3]), abs=1e-3)
    assert seen[:3] != seen[3:6]


def test_small_batches_add_up_to_a_large_one(tmp_path):
    found = []
    for size, parts in ((8, 1), (2, 4)):
        run = run_of(
            tmp_path,
            Mean(),
            collator=PixelCollator(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_grad_norm=0.1,
        )
        run.train()
        found.append((run.objective.state_dict(), [entry["model_loss"] for entry in run.state.log_history]))
    assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert len(found[0][1]) == 3


def one_step(tmp_path, **changes):
    """Gradient and change of the weights in one step of plain descent at rate 1."""
    objective = Mean()
    before = copy.deepcopy(objective.model.state_dict())
    settings = {"optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    run = run_of(tmp_path, objective, collator=PixelCollator(), max_steps=1, **(settings | changes))
    run.train()
    moved = {name: before[name] - value for name, value in objective.model.state_dict().items()}
    return run, torch.cat([value.flatten() for value in moved.values()])


def test_gradients_are_clipped_by_their_length_and_it_is_logged(tmp_path):
    run, free = one_step(tmp_path, max_grad_norm=0.0)
    assert run.state.log_history[-1]["model_grad_norm"] == pytest.approx(free.norm().item(), rel=1e-5)
    clipped_run, clipped = one_step(tmp_path, max_grad_norm=0.05)
    assert clipped_run.state.log_history[-1]["model_grad_norm"] == pytest.approx(free.norm().item(), rel=1e-5)
    assert_close(clipped, free * (0.05 / free.norm()), rtol=1e-4, atol=1e-6)  # torch adds 1e-6 to the norm


def test_only_matrices_decay(tmp_path):
    run = run_of(tmp_path, Mean(), max_steps=1, weight_decay=0.5)
    run.train()
    checkpoint = torch.load(tmp_path / "checkpoint-1" / "phases.pt")
    groups = checkpoint["phases"]["model"]["optimizer"]["param_groups"]
    order = [weight.ndim for weight in run.objective.parameters()]
    assert order == [2, 1, 2, 1]
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.5), (2, 0.0)]


def test_weight_decay_shrinks_matrices(tmp_path):
    _, free = one_step(tmp_path, max_grad_norm=0.0)
    _, decayed = one_step(tmp_path, max_grad_norm=0.0, weight_decay=0.5)
    start = Mean().model
    assert_close(decayed[:32], free[:32] + 0.5 * start.weight.flatten().detach(), rtol=1e-5, atol=1e-6)
    assert_close(decayed[32:], free[32:], rtol=0, atol=0)


def test_each_phase_has_its_rate_and_its_schedule(tmp_path):
    run = run_of(
        tmp_path,
        TinyGAN(late=2),
        options={"learning_rates": {"discriminator": 0.5}},
        logging_steps=1,
        warmup_steps=2,
        learning_rate=0.1,
        lr_scheduler_type="linear",
    )
    run.train()
    logs = run.state.log_history
    # After each step: of 6 steps of which 2 warm up, and of the 4 that begin with the third.
    assert [entry["generator_learning_rate"] for entry in logs] == pytest.approx(
        [0.05, 0.1, 0.075, 0.05, 0.025, 0]
    )
    assert [entry["discriminator_learning_rate"] for entry in logs] == pytest.approx(
        [0, 0, 0.25, 0.5, 0.25, 0]
    )
    assert "discriminator_loss" not in logs[1]
    assert "discriminator_loss" in logs[2]


class Noted(TrainerCallback):
    """Weights and buffers of the generator after each step."""

    def __init__(self):
        self.states = []

    def on_step_end(self, args, state, control, **kwargs):
        self.states.append(copy.deepcopy(kwargs["model"].generator.state_dict()))


def test_averages_of_weights_and_buffers_are_those_of_hand(tmp_path):
    noted = Noted()
    run = run_of(tmp_path, options={"callbacks": [noted]}, max_steps=5)
    run.train()
    expected = noted.states[0]
    for state in noted.states[1:]:
        for name, value in state.items():
            average = 0.7 * expected[name] + 0.3 * value if value.is_floating_point() else value
            expected = {**expected, name: average}
    assert {"1.running_mean", "1.num_batches_tracked"} <= set(expected)
    own = copy.deepcopy(run.objective.state_dict())
    with run.averages_applied():
        assert_close(run.objective.generator.state_dict(), expected, rtol=1e-5, atol=1e-6)
        assert not run.objective.generator.training
    assert_close(run.objective.state_dict(), own, rtol=0, atol=0)
    assert run.objective.generator.training
    assert not run.objective.judge.training


def test_without_averages_the_weights_themselves_are_saved(tmp_path):
    run = run_of(tmp_path, options={"ema_decay": None})
    run.train()
    run.save_model()
    assert_close(torch.load(tmp_path / "weights.pt"), run.objective.generator.state_dict(), rtol=0, atol=0)


def test_previews_come_from_the_same_noise_and_disturb_nothing(tmp_path):
    plain = run_of(tmp_path / "plain", options={"preview_count": 0})
    plain.train()
    run = run_of(tmp_path / "drawn", options={"preview_steps": 2, "preview_count": 5})
    run.train()
    assert_close(weights(run), weights(plain), rtol=0, atol=0)
    assert not (tmp_path / "plain" / "previews").exists()
    files = {path.name for path in (tmp_path / "drawn" / "previews").iterdir()}
    assert files == {"step-2.png", "step-4.png", "step-6.png"}
    with run.averages_applied():
        pictures = run.objective.preview(torch.Generator().manual_seed(42), 5)
    shown = np.asarray(Image.open(tmp_path / "drawn" / "previews" / "step-6.png"))
    levels = ((pictures + 1) * 127.5).round().to(torch.uint8).numpy()
    assert shown.shape == (2 * 6 + 2, 3 * 6 + 2)  # 3 columns of 4 px and lines of 2 px
    assert (shown[2:6, 8:12] == levels[1, 0]).all()
    assert (shown[8:12, 2:6] == levels[3, 0]).all()


def test_metrics_tell_speed_and_losses_and_the_log_is_kept(tmp_path):
    run = run_of(tmp_path)
    metrics = run.train()
    assert {"train_runtime", "train_images_per_second", "train_peak_memory_mb"} <= set(metrics)
    assert metrics["train_generator_loss"] == run.state.log_history[-1]["generator_loss"]
    assert metrics["epoch"] == pytest.approx(6 * 4 / 11)
    written = json.loads((tmp_path / "trainer_state.json").read_text())
    assert [entry["step"] for entry in written["log_history"]] == [2, 4, 6]
    assert {"spread", "images_per_second", "discriminator_grad_norm"} <= set(written["log_history"][0])


def test_the_progress_bar_shows_losses_and_speed(tmp_path, capfd):
    run_of(tmp_path).train()
    shown = capfd.readouterr().err
    assert "generator_loss=" in shown
    assert "images/s=" in shown
    assert "6/6" in shown


def test_epochs_become_steps(tmp_path):
    run = run_of(tmp_path, max_steps=-1, num_train_epochs=2, save_strategy="epoch")
    run.train()
    assert run.state.global_step == 6  # 22 rows, 4 a step
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


def test_bfloat16_computes_in_half_and_keeps_whole_weights(tmp_path):
    objective = TinyGAN()
    types = []
    objective.discriminator[0].register_forward_hook(
        lambda module, inputs, output: types.append(output.dtype)
    )
    run = run_of(tmp_path, objective, bf16=True, max_steps=2)
    run.train()
    assert set(types) == {torch.bfloat16}
    assert {weight.dtype for weight in objective.parameters()} == {torch.float32}
    plain = run_of(tmp_path, max_steps=2)
    plain.train()
    # Half precision keeps 8 bits; a step of Adam is as long as its rate, whatever the gradient.
    assert_close(objective.state_dict(), plain.objective.state_dict(), rtol=0.05, atol=0.04)


class Poisoned(TinyGAN):
    """Loss or gradient goes wrong at a step."""

    def __init__(self, what, at):
        super().__init__()
        self.what, self.at = what, at

    def loss(self, batch, phase):
        loss, logs = super().loss(batch, phase)
        if self.step == self.at and phase == "generator":
            loss = (
                loss * math.nan
                if self.what == "loss"
                else loss + self.generator[0].bias.sub(self.generator[0].bias.detach()).abs().sqrt().sum()
            )
        return loss, logs


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path, what):
    run = run_of(tmp_path, Poisoned(what, 4))
    kept = r"The last good checkpoint is .*checkpoint-4; go on from it with lower `learning_rate`s"
    with pytest.raises(DivergedError, match=rf"Step 5: the {what} of phase 'generator' is nan\. {kept}"):
        run.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert all(value.isfinite().all() for value in run.objective.state_dict().values())
    saved = torch.load(tmp_path / "checkpoint-4" / "objective.pt")
    assert all(value.isfinite().all() for value in saved.values())


class Collapsed(TinyGAN):
    """Objects to its spread after a while."""

    def health(self, logs):
        assert {"spread", "generator_loss", "discriminator_loss"} <= set(logs)
        if self.step >= 4:
            raise DivergedError(f"all pictures are alike, `spread`={logs['spread']:.2f}; lower the rate.")


def test_a_collapsed_run_is_named_and_not_saved(tmp_path):
    run = run_of(tmp_path, Collapsed(), logging_steps=100)
    named = r"Step 4: all pictures are alike, `spread`=\d\.\d\d; lower the rate\. The last good checkpoint is"
    with pytest.raises(DivergedError, match=named + r" .*checkpoint-2;"):
        run.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2"}


def test_a_run_that_fails_at_once_has_no_checkpoint(tmp_path):
    with pytest.raises(
        DivergedError, match=r"Step 1: .* No checkpoint was written before it; train anew with"
    ):
        run_of(tmp_path, Poisoned("loss", 0)).train()


def test_what_has_no_meaning_here_is_refused(tmp_path):
    refused = {
        "eval_strategy": "steps",
        "dataloader_drop_last": True,
        "gradient_checkpointing": True,
        "hub_strategy": "checkpoint",
    }
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"`{name}`={value!r} has no meaning for PhasedTrainer: "):
            run_of(tmp_path, **{name: value})
    for schedule in ("reduce_lr_on_plateau", "greedy"):  # transformers wants an evaluation for the first
        with pytest.raises(ValueError, match=f"`lr_scheduler_type`='{schedule}' has no meaning for Phased"):
            run_of(tmp_path, lr_scheduler_type=schedule, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="`preview_steps`=-1 and `preview_count`=4 must be 0 or more"):
        run_of(tmp_path, options={"preview_steps": -1})
    with pytest.raises(ValueError, match="`train_dataset` has no rows; there is nothing to learn"):
        PhasedTrainer(TinyGAN(), settings(tmp_path), [])
    with pytest.raises(TypeError, match="`train_dataset` is a generator without a length"):
        PhasedTrainer(TinyGAN(), settings(tmp_path), (row for row in rows()))


class Faulty(TinyGAN):
    """Says something wrong about itself."""

    def __init__(self, **wrong):
        super().__init__()
        self.wrong = wrong
        self.averaged = wrong.get("averaged", self.averaged)
        self.phases = wrong.get("phases", self.phases)

    def phase_parameters(self, phase):
        return self.wrong.get("parameters", lambda phase: super(Faulty, self).phase_parameters(phase))(phase)

    def loss(self, batch, phase):
        return (self.wrong["loss"], {}) if "loss" in self.wrong else super().loss(batch, phase)


def test_a_faulty_objective_is_named(tmp_path):
    shared = nn.Linear(2, 2)
    cases = [
        ({"phases": ()}, r"`phases` of Faulty must be different names, one at least; got \(\)"),
        ({"parameters": lambda phase: []}, "Phase 'discriminator' of Faulty has no parameters; give it some"),
        (
            {"parameters": lambda phase: [shared.weight]},
            r"has a parameter \(2, 2\) that belongs to no submodule",
        ),
        (
            {"averaged": ("encoder",)},
            r"`averaged` names 'encoder', which is no submodule of Faulty; there are \[",
        ),
        (
            {"averaged": ("generator", "generator.0")},
            r"'generator\.0' is averaged twice; name each submodule",
        ),
        (
            {"loss": torch.zeros(2, requires_grad=True)},
            r"in phase 'discriminator' must be a scalar .*, got \(2,\)",
        ),
        ({"loss": torch.zeros(())}, r"must be a scalar that depends .*, got \(\) without a graph"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            run_of(tmp_path, Faulty(**wrong)).train()
    twice = Faulty()
    twice.wrong = {"parameters": lambda phase: [twice.generator[0].weight]}
    with pytest.raises(
        ValueError, match=r"'generator\.0\.weight' of Faulty is given twice, by the phases 'disc"
    ):
        run_of(tmp_path, twice).train()
    with pytest.raises(
        ValueError, match=r"`learning_rates` names \['critic'\]; the phases are \['discriminator'"
    ):
        run_of(tmp_path, options={"learning_rates": {"critic": 1.0}}).train()


def test_previews_of_another_shape_are_an_error(tmp_path):
    objective = TinyGAN()
    objective.preview = lambda noise, count: torch.zeros(count + 1, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"`preview` of TinyGAN must give \(4, channels, .*, got \(5, 1, 4, 4\)"
    ):
        run_of(tmp_path, objective, max_steps=1).train()
