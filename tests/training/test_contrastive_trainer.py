"""Contrastive training: any number of small batches is one large batch."""

import pytest
import torch
from models import vlm_tiny
from models.clip_tiny import pairs, resnet_config, tiny_model
from pair_runs import Pairs, dropping, gradients, losses, trainer, weights
from torch.testing import assert_close
from torch.utils.data import IterableDataset
from transformers import CLIPConfig, CLIPModel

from hf_mm import train_only
from hf_mm.objectives.contrastive import info_nce
from hf_mm.objectives.sigmoid import sigmoid_loss

SPLITS = [(4, 2), (2, 4), (1, 8)]
SIGMOID = {"objective": "sigmoid"}
MODELS = [
    pytest.param({}, id="softmax"),
    pytest.param(SIGMOID, id="sigmoid"),
    pytest.param({"similarity": "euclidean", "label_smoothing": 0.1}, id="euclidean"),
]


def same(found, expected):
    """To 1e-5 of the largest number of all, as float32 adds them up in another order."""
    size = max(value.abs().max().item() for value in expected.values())
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, size))


def split(folder, model, size, steps, **settings):
    settings |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    return gradients(folder, model, **settings)


@pytest.mark.parametrize("changes", MODELS)
@pytest.mark.parametrize(("size", "steps"), SPLITS)
def test_small_batches_give_the_gradient_of_the_large_one(changes, size, steps, tmp_path):
    large = split(tmp_path, tiny_model(**changes), 8, 1)
    same(split(tmp_path, tiny_model(**changes), size, steps), large)
    assert large["logit_scale"] != 0


@pytest.mark.parametrize("changes", [{}, SIGMOID], ids=["softmax", "sigmoid"])
def test_a_large_batch_is_the_objective_of_all_its_pairs(changes, tmp_path):
    model = tiny_model(**changes)
    found = split(tmp_path, tiny_model(**changes), 2, 4)
    output = model(**pairs(12, 0) | {name: value[:8] for name, value in Pairs().batch.items()})
    temperature = (model.logit_scale.exp(), *([] if model.logit_bias is None else [model.logit_bias]))
    function = info_nce if model.logit_bias is None else sigmoid_loss
    function(output.image_embeds, output.text_embeds, *temperature).backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    same(found, expected)


def test_dropout_is_the_same_in_both_passes(tmp_path):
    """The reference keeps the graphs of all small batches, with the generator's states of the first pass."""
    model = tiny_model(**dropping())
    states = []
    model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    found = split(tmp_path, model, 4, 2)
    assert len(states) == 4
    assert all(torch.equal(one, two) for one, two in zip(states[:2], states[2:], strict=True))

    reference, rows = tiny_model(**dropping()).train(), Pairs()
    features = []
    for state, start in zip(states[:2], (0, 4), strict=True):
        torch.set_rng_state(state)
        features.append(reference(**{name: value[start : start + 4] for name, value in rows.batch.items()}))
    images, texts = (
        torch.cat([getattr(out, name) for out in features]) for name in ("image_embeds", "text_embeds")
    )
    info_nce(images, texts, reference.logit_scale.exp()).backward()
    expected = {name: weight.grad for name, weight in reference.named_parameters() if weight.grad is not None}
    same(found, expected)
    assert not torch.equal(
        found["visual_projection.weight"], split(tmp_path, tiny_model(), 4, 2)["visual_projection.weight"]
    )


def test_activation_checkpointing_changes_no_gradient(tmp_path):
    plain = split(tmp_path, tiny_model(**dropping()), 4, 2)
    checkpointed = split(tmp_path, tiny_model(**dropping()), 4, 2, activation_checkpointing=True)
    same(checkpointed, plain)


def test_in_mixed_precision_the_gradients_agree_to_its_precision(tmp_path):
    large = split(tmp_path, tiny_model(), 8, 1, bf16=True)
    small = split(tmp_path, tiny_model(), 2, 4, bf16=True)
    exact = split(tmp_path, tiny_model(), 8, 1)
    flat = [torch.cat([grads[name].flatten() for name in sorted(exact)]) for grads in (large, small, exact)]
    assert not torch.equal(flat[0], flat[2])
    assert (flat[1] - flat[0]).norm() < 0.02 * flat[0].norm()  # bf16 keeps eight bits


def test_chunks_change_no_gradient(tmp_path):
    whole = split(tmp_path, tiny_model(), 4, 2)
    same(split(tmp_path, tiny_model(), 4, 2, hooks={"chunk_size": 3}), whole)


def test_the_last_window_of_an_epoch_is_a_smaller_batch(tmp_path):
    """Twelve rows by four small batches of two: eight pairs, then four."""
    settings = {"max_steps": 4, "learning_rate": 0.0}
    run = trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings)
    run.train()
    model, rows = tiny_model(), Pairs()
    expected = []
    for part in (slice(0, 8), slice(8, 12)):
        out = model(**{name: value[part] for name, value in rows.batch.items()}, return_loss=True)
        expected.append(out.loss.item())
    assert losses(run) == pytest.approx(expected * 2, rel=1e-5)


class Stream(IterableDataset):
    """Ten pairs, and again from the beginning when asked again."""

    def __iter__(self):
        rows = Pairs(10)
        return (rows[index] for index in range(10))


def test_a_stream_that_ends_within_a_step_goes_on_with_its_next_round(tmp_path):
    """Five small batches of two rows: steps of batches 0 1, 2 3, 4 and 0 again, 1 2."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    run = trainer(tmp_path, rows=Stream(), learning_rate=0.0, **settings)
    run.train()
    model, rows = tiny_model(), Pairs(10)
    expected = []
    for part in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]):
        out = model(**{name: value[part] for name, value in rows.batch.items()}, return_loss=True)
        expected.append(out.loss.item())
    assert losses(run) == pytest.approx(expected, rel=1e-5)


def test_a_stream_too_short_for_one_step_is_refused(tmp_path):
    run = trainer(tmp_path, rows=Stream(), gradient_accumulation_steps=4)
    with pytest.raises(
        ValueError, match="end after 3 batches, before one step of `gradient_accumulation_steps`=4"
    ):
        run.train()


class Saved:
    """What autograd keeps for the backward pass, weights included; knows the most that was alive at once."""

    alive = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Saved.alive += tensor.nbytes
        Saved.most = max(Saved.most, Saved.alive)

    def __del__(self):
        Saved.alive -= self.tensor.nbytes


def test_memory_is_that_of_a_small_batch(tmp_path):
    def most(size, steps, **settings):
        Saved.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            split(tmp_path, tiny_model(), size, steps, **settings)
        return Saved.most

    small = most(2, 1, max_steps=4)  # the same eight rows, two by two
    assert most(2, 4) <= small < 0.5 * most(8, 1)


def test_one_small_batch_is_a_plain_step(tmp_path):
    model, calls = tiny_model(), []
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer(tmp_path, model, max_steps=2).train()
    assert calls == [True, True]


def test_running_statistics_count_each_batch_once(tmp_path):
    def statistics(model):
        return {
            name: value for name, value in model.named_buffers() if "running" in name or "tracked" in name
        }

    model = tiny_model(vision_config=resnet_config())
    trainer(tmp_path, model, learning_rate=0.0, gradient_accumulation_steps=2).train()
    reference, rows = tiny_model(vision_config=resnet_config()).train(), Pairs()
    for start in (0, 4):
        reference(**{name: value[start : start + 4] for name, value in rows.batch.items()})
    assert_close(statistics(model), statistics(reference), rtol=1e-5, atol=1e-6)


def test_a_locked_tower_is_deaf_to_training(tmp_path):
    model = tiny_model(**dropping(), seed=3)
    train_only(model, ["text", "temperature"])
    before = weights(trainer(tmp_path, model))
    modes = []
    model.vision_model.register_forward_pre_hook(lambda part, _: modes.append(part.training))
    model.text_model.register_forward_pre_hook(lambda part, _: modes.append(part.training))
    run = trainer(tmp_path, model, gradient_accumulation_steps=2)
    run.train()
    assert modes == [False, True] * 4
    moved = {
        name.split(".")[0] for name, value in weights(run).items() if not torch.equal(value, before[name])
    }
    assert moved == {"text_model", "text_projection", "logit_scale"}


def test_the_temperature_alone_can_be_trained(tmp_path):
    model = tiny_model()
    train_only(model, ["temperature"])
    found = split(tmp_path, model, 4, 2)
    assert found.keys() == {"logit_scale"}
    assert_close(
        found["logit_scale"], split(tmp_path, tiny_model(), 8, 1)["logit_scale"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("upwards", "bound"), [(True, 100.0), (False, 1.0)])
def test_the_temperature_is_clamped_after_each_step(upwards, bound, tmp_path):
    """The gradient of untrained towers makes the scale smaller, and ascent makes it larger."""
    model = tiny_model()
    train_only(model, ["temperature"])
    run = trainer(tmp_path, model, learning_rate=1e3)
    run.optimizer.param_groups[0]["maximize"] = upwards
    run.train()
    assert model.logit_scale.exp().item() == pytest.approx(bound, rel=1e-5)


def test_evaluation_gives_the_mean_loss_of_its_batches(tmp_path):
    run = trainer(tmp_path, tiny_model(**dropping()), rows=None)
    found = run.evaluate()["eval_loss"]
    model, rows = tiny_model(**dropping()), Pairs(6, seed=1)
    parts = [
        model(**{name: value[part] for name, value in rows.batch.items()}, return_loss=True).loss.item()
        for part in (slice(0, 4), slice(4, 6))
    ]
    assert found == pytest.approx((4 * parts[0] + 2 * parts[1]) / 6, rel=1e-5)


def test_predictions_are_the_vectors_of_both_towers(tmp_path):
    run = trainer(
        tmp_path, hooks={"compute_metrics": lambda found: {"shapes": [p.shape for p in found.predictions]}}
    )
    assert run.evaluate()["eval_shapes"] == [(6, 16), (6, 16)]


def test_alignment_is_measured_at_every_evaluation(tmp_path):
    seen = []

    def measure(model):
        seen.append((type(model).__name__, model.training))
        return {"recall": 0.25 * len(seen)}

    run = trainer(
        tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        metric_for_best_model="recall", load_best_model_at_end=True, hooks={"alignment_metrics": measure},
    )  # fmt: skip
    run.train()
    assert seen == [("MMCLIPModel", False)] * 2
    logged = [entry for entry in run.state.log_history if "eval_recall" in entry]
    assert [entry["eval_recall"] for entry in logged] == [0.25, 0.5]
    assert all("eval_loss" in entry for entry in logged)
    assert run.state.best_metric == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"per_device_train_batch_size": 1},
            "one pair has nothing to compare with: `per_device_train_batch_size`=1, "
            "`gradient_accumulation_steps`=1, 1 process",
        ),
        (
            {"hooks": {"exchange": "ring"}},
            r"`exchange`='ring' does not suit the softmax .*\['gather', 'local'\]",
        ),
    ],
)
def test_settings_that_teach_nothing_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **settings)


def test_other_models_are_refused(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = CLIPConfig(text_config=small, vision_config=small | {"image_size": 8, "patch_size": 8})
    run = trainer(tmp_path)
    with pytest.raises(TypeError, match="CLIPModel declares no `towers`"):
        type(run)(CLIPModel(config), run.args, train_dataset=Pairs())
    with pytest.raises(
        TypeError, match="`model` is a MMVLMForConditionalGeneration; ContrastiveTrainer needs"
    ):
        type(run)(vlm_tiny.tiny_model(), run.args, train_dataset=Pairs())


def test_sharded_models_are_refused(tmp_path):
    run = trainer(tmp_path)
    run.is_fsdp_enabled = True
    with pytest.raises(
        ValueError, match=r"holds the whole model in each process .* start one process per device"
    ):
        run._check_settings()


def test_a_single_pair_at_the_end_of_an_epoch_is_reported_once(tmp_path, caplog):
    run = trainer(tmp_path, rows=Pairs(5), max_steps=4)
    run.train()
    assert [record.getMessage() for record in caplog.records if "single pair" in record.getMessage()] == [
        "Step 2 has a single pair, which teaches nothing; leave the end of an epoch out with "
        "`dataloader_drop_last=True`."
    ]
    assert losses(run)[1] == 0.0
