"""The recipe of ViLT: short runs of every task, one from the other, its files, and its errors."""

import json

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import MMViltForQuestionAnswering, MMViltProcessor
from hf_mm.recipes import vilt

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}


def train(folder, recipe, **settings):
    args = TrainingArguments(folder, **(vilt.DEFAULTS | SHORT | settings))
    return vilt.main(vilt.Recipe(**({"rows": 24} | recipe)), args)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return folder, train(folder, {"task": "pretrain"}, save_strategy="steps", save_steps=1)


def test_pretraining_is_measured_on_held_out_captions_and_written_down(pretrained):
    folder, results = pretrained
    assert results == json.loads((folder / "results.json").read_text())
    assert 0 < results["held_out_loss"] < 20
    assert {"train_seconds", "steps", "seed", "objectives", "environment"} <= results.keys()
    assert MMViltProcessor.from_pretrained(folder).max_length == 24


@pytest.mark.parametrize(
    ("task", "measures"),
    [
        ("vqa", {"exact_match", "by_type", "question_prior"}),
        ("retrieval", {"image_to_text_R@1", "text_to_image_R@10", "pictures"}),
        ("nlvr", {"accuracy", "by_kind", "statements"}),
    ],
)
def test_every_task_starts_from_what_was_pretrained(task, measures, pretrained, tmp_path):
    folder, _ = pretrained
    results = train(tmp_path, {"task": task, "checkpoint": str(folder)}, learning_rate=1e-9)
    assert measures <= results.keys()
    assert results["checkpoint"]
    name = "vilt.blocks.0.mlp.fc1.weight"
    assert_close(
        load_file(tmp_path / "model.safetensors")[name],
        load_file(folder / "model.safetensors")[name],
        rtol=0,
        atol=1e-6,
    )


def test_a_stopped_run_resumes_to_the_same_weights(pretrained, tmp_path):
    folder, _ = pretrained
    settings = {"save_strategy": "steps", "save_steps": 1}
    train(tmp_path, {"task": "pretrain"}, resume_from_checkpoint=str(folder / "checkpoint-1"), **settings)
    again, whole = (load_file(place / "model.safetensors") for place in (tmp_path, folder))
    assert_close(again, whole, rtol=0, atol=0)


def test_adapters_and_from_nothing(pretrained, tmp_path):
    folder, _ = pretrained
    train(tmp_path / "lora", {"task": "vqa", "checkpoint": str(folder), "lora_rank": 2})
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    train(tmp_path / "new", {"task": "vqa", "views": True})
    model = MMViltForQuestionAnswering.from_pretrained(tmp_path / "new")
    assert model.config.num_labels == 13


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"task": "caption"}, "`task`='caption' is none of pretrain, vqa, retrieval, nlvr"),
        (
            {"task": "pretrain", "objectives": "mlm,itc"},
            r"`objectives`='mlm,itc' names \['itc'\]; give some of \['mlm'",
        ),
    ],
)
def test_bad_flags_are_named(recipe, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, recipe)
