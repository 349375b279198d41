"""The recipe of the region BERTs: short runs of every task, a comparison, its files, and its errors."""

import json

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import MMRegionProcessor
from hf_mm.recipes import region_bert

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    return tmp_path_factory.mktemp("regions")


@pytest.fixture(scope="module")
def train(regions):
    def run(folder, settings=None, **recipe):
        args = TrainingArguments(folder, **(region_bert.DEFAULTS | SHORT | (settings or {})))
        return region_bert.main(region_bert.Recipe(rows=16, cache_folder=str(regions), **recipe), args)

    return run


@pytest.fixture(scope="module")
def pretrained(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return folder, train(folder, {"save_strategy": "steps", "save_steps": 1})


def test_pretraining_is_measured_on_held_out_captions_and_written_down(pretrained):
    folder, results = pretrained
    assert results == json.loads((folder / "results.json").read_text())
    assert {"train_seconds", "steps", "preset", "parameters", "environment"} <= results.keys()
    assert 0 < results["held_out_loss"] < 40
    processor = MMRegionProcessor.from_pretrained(folder)
    assert (processor.max_length, processor.feature_size) == (24, 448)


@pytest.mark.parametrize(
    ("task", "measures"),
    [("vqa", {"exact_match", "by_type", "question_prior"}), ("select", {"accuracy", "by_objects", "chance"})],
)
def test_every_task_starts_from_what_was_pretrained(task, measures, train, pretrained, tmp_path):
    folder, _ = pretrained
    results = train(tmp_path, {"learning_rate": 1e-9}, task=task, checkpoint=str(folder))
    assert measures <= results.keys()
    assert results["checkpoint"]
    got, before = (load_file(place / "model.safetensors") for place in (tmp_path, folder))
    name = next(name for name in before if name.endswith("fc1.weight"))
    assert_close(got[name], before[name], rtol=0, atol=1e-6)


def test_a_stopped_run_resumes_to_the_same_weights(train, pretrained, tmp_path):
    folder, _ = pretrained
    stopped = str(folder / "checkpoint-1")
    train(tmp_path, {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": stopped})
    again, whole = (load_file(place / "model.safetensors") for place in (tmp_path, folder))
    # Sums of so few columns as the matching head has depend on how memory is aligned, in the last digit.
    assert_close(again, whole, rtol=0, atol=1e-6)


def test_adapters_are_saved_alone(train, pretrained, tmp_path):
    folder, _ = pretrained
    train(tmp_path, task="vqa", checkpoint=str(folder), lora_rank=2)
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_a_comparison_has_a_row_for_each_preset_a_table_and_a_plot(train, tmp_path):
    results = train(tmp_path, compare="vl-bert,oscar", seeds="1,2")
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written == results
    rows = {row["preset"]: row for row in written["comparison"]}
    assert list(rows) == ["vl-bert", "oscar"]
    assert all(len(row["values"]) == 2 and row["seeds"] == [1, 2] for row in rows.values())
    assert "vl-bert" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"task": "caption"}, "`task`='caption' is none of pretrain, vqa, select"),
        ({"preset": "bert"}, r"'bert' is no preset; there are \['lxmert'"),
    ],
)
def test_bad_flags_are_named(recipe, message, train, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **recipe)
