"""Training with the stock loop: accumulation, resume and evaluation by answers."""

import pytest
import torch
from chat_tiny import picture, processor
from models.vlm_tiny import text_config, tiny_model
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import AnsweringTrainer, VLMCollator, build_optimizer, encode_rows, generate_answers
from hf_mm.data.chat import turns_of

WORDS = ("red", "blue", "yes", "no", "circle")


@pytest.fixture(scope="module")
def kit():
    """A processor and eight rows of one picture each, with one to three questions about it."""
    made = processor()
    rows = [
        {
            "images": [picture(index)],
            "conversations": [
                turns_of(f"is there a {WORDS[i]} shape?", WORDS[-1 - i]) for i in range(1 + index % 3)
            ],
        }
        for index in range(8)
    ]
    return made, rows


def model_for(made):
    token = made.image_token_id
    return tiny_model(text_config=text_config(vocab_size=len(made.tokenizer)), image_token_id=token)


def trainer(kit, folder, packed=True, labelled=False, **settings):
    made, rows = kit
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
    }
    model = model_for(made)
    args = TrainingArguments(folder, **(defaults | settings))
    return AnsweringTrainer(
        model,
        args,
        data_collator=VLMCollator(made, packed=packed, labelled_logits=labelled),
        train_dataset=encode_rows(made, rows, packed=packed),
        eval_dataset=encode_rows(made, rows[:2], packed=packed),
        processing_class=made,
        optimizers=(build_optimizer(model, args), None),
        answer_metrics=lambda asked: {"answers": float(len(generate_answers(asked, made, ask(rows), 4, 3)))},
    )


def ask(rows):
    return [{"image": row["images"][0], "question": "what color is it?"} for row in rows]


def weights_after(run, **resume):
    run.train(**resume)
    return {name: weight.detach().clone() for name, weight in run.model.named_parameters()}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_accumulating_gradients_equals_one_large_batch(kit, packed, tmp_path):
    """Rows carry one to three labelled answers, so a mean of means would differ."""
    if not packed:
        kit = (kit[0], [{**row, "conversations": row["conversations"][:1]} for row in kit[1]])
    norms, losses = [], []
    for batch, steps in ((8, 1), (2, 4)):
        run = trainer(
            kit, tmp_path, packed, per_device_train_batch_size=batch, gradient_accumulation_steps=steps
        )
        run.train()
        norms.append(run.state.log_history[0]["grad_norm"])
        losses.append(run.state.log_history[0]["loss"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_packed_training_equals_unpacked_training(kit, tmp_path):
    packed = trainer(kit, tmp_path, packed=True, labelled=True, per_device_train_batch_size=8)
    unpacked = trainer(kit, tmp_path, packed=False, per_device_train_batch_size=15)
    packed.train()
    unpacked.train()
    for name in ("loss", "grad_norm"):
        assert packed.state.log_history[0][name] == pytest.approx(
            unpacked.state.log_history[0][name], rel=1e-5
        )


def test_a_resumed_run_ends_with_the_same_weights(kit, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = weights_after(trainer(kit, tmp_path / "whole", **settings))
    torch.manual_seed(99)  # a new process starts from another state
    again = trainer(kit, tmp_path / "again", **settings)
    resumed = weights_after(again, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_close(resumed, whole, rtol=0, atol=0)


def test_answers_are_part_of_every_evaluation(kit, tmp_path):
    run = trainer(
        kit, tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        metric_for_best_model="answers", load_best_model_at_end=True,
    )  # fmt: skip
    run.train()
    logged = [entry["eval_answers"] for entry in run.state.log_history if "eval_answers" in entry]
    assert logged == [8.0, 8.0]
    assert run.state.best_metric == 8.0
    assert "eval_loss" in run.evaluate()
