"""The recipe of vision-language models: small runs of every way in, its files, and its errors."""

import json
import shutil

import pytest
from chat_tiny import CHATML, picture
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

from hf_mm import train_tokenizer
from hf_mm.recipes import vlm

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty questions about twenty pictures, as a parquet file with other column names."""
    folder = tmp_path_factory.mktemp("data")
    files = []
    for index in range(20):
        files.append(str(folder / f"{index}.png"))
        picture(index, 64, 64).save(files[-1])
    rows = {
        "photo": [file for file in files for _ in range(2)],
        "asked": ["is it red?", "what is it?"] * 20,
        "said": ["yes", "a thing"] * 20,
    }
    Dataset.from_dict(rows).to_parquet(folder / "rows.parquet")
    return {"dataset": str(folder / "rows.parquet"), "columns": "photo,asked,said"}


def train(folder, recipe, **settings):
    args = TrainingArguments(folder, **(vlm.DEFAULTS | SHORT | settings))
    return vlm.main(vlm.Recipe(**recipe), args)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    results = train(folder, data | {"align_steps": 2}, save_strategy="steps", save_steps=1)
    return folder, results


def test_it_trains_asks_and_writes_everything_down(trained):
    folder, results = trained
    assert results["questions"] == 2
    assert results == json.loads((folder / "results.json").read_text())
    assert {"exact_match", "train_seconds", "steps", "seed", "environment"} <= results.keys()
    assert Image.open(folder / "answers.png").size[0] > 200
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert f"{100 * results['exact_match']:.2f} %" in card


@pytest.mark.parametrize("lost", ["the second checkpoint", "the end of the first checkpoint"])
def test_a_stopped_run_resumes_to_the_same_weights(trained, data, lost, tmp_path):
    """From the middle of the second stage, and from the end of the first."""
    folder, _ = trained
    whole = load_file(folder / "model.safetensors")
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoint-2")
    (again / "model.safetensors").unlink()
    if lost == "the end of the first checkpoint":
        (again / "checkpoint-1" / "trainer_state.json").unlink()  # killed while it was written
    settings = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": "last"}
    train(again, data | {"align_steps": 2}, **settings)
    assert_close(load_file(again / "model.safetensors"), whole, rtol=0, atol=0)


def test_adapters_are_trained_on_a_checkpoint(trained, data, tmp_path):
    folder, _ = trained
    train(tmp_path, data | {"checkpoint": str(folder), "lora_rank": 2, "tower_rates": "connector=1e-3"})
    assert (tmp_path / "adapter_model.safetensors").is_file()
    AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_a_tokenizer_that_outgrew_its_model_is_refused(trained, data, tmp_path):
    folder, _ = trained
    grown = tmp_path / "grown"
    shutil.copytree(folder, grown)
    processor = AutoProcessor.from_pretrained(grown)
    processor.tokenizer.add_tokens(["<new>"])
    processor.save_pretrained(grown)
    with pytest.raises(
        ValueError, match=r"The tokenizer has \d+ tokens but the model knows \d+; load the two"
    ):
        train(tmp_path / "out", data | {"checkpoint": str(grown)})


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A vision tower and a language model as transformers saves them."""
    folder = tmp_path_factory.mktemp("parts")
    tower = CLIPVisionConfig(
        image_size=96, patch_size=8, hidden_size=32, num_hidden_layers=9, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(folder / "vision")
    CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size=96).save_pretrained(folder / "vision")
    tokenizer = train_tokenizer(["is it red? what is it? yes a thing"], 400)
    tokenizer.save_pretrained(folder / "text")
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    LlamaForCausalLM(language).save_pretrained(folder / "text")
    return {"vision_model": str(folder / "vision"), "text_model": str(folder / "text")}


@pytest.mark.parametrize("preset", ["llava", "molmo"])
def test_pretrained_parts_are_joined(preset, data, parts, tmp_path):
    train(tmp_path / "out", data | parts | {"preset": preset, "align_steps": 1}, max_steps=1)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    words = LlamaConfig.from_pretrained(parts["text_model"]).vocab_size
    assert model.config.connector == {"llava": "mlp", "molmo": "attention_pool"}[preset]
    assert model.config.text_config.vocab_size == words + {"llava": 1, "molmo": 4}[preset]


def test_words_come_first_own_texts_beside_and_questions_before_training(data, parts, tmp_path):
    flags = {"preset": "emoji", "word_steps": 2, "align_steps": 1, "rehearsal_texts": 3, "ask_before": True}
    (tmp_path / "say.jinja").write_text(CHATML)
    chosen = {"chat_template": str(tmp_path / "say.jinja"), "lora_rank": 2}
    results = train(tmp_path / "out", data | parts | flags | chosen, max_steps=1)
    assert {"exact_match", "questions", "plain_text_perplexity"} <= results["before"].keys()
    assert results["plain_text_perplexity"] > 1
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template == CHATML


def test_a_stopped_run_with_adapters_stands_again_on_what_was_aligned(data, parts, tmp_path):
    """Adapters alone would go on above an image tower that has not learnt any word."""
    flags = {"preset": "llava", "word_steps": 2, "align_towers": "vision,connector", "lora_rank": 2}
    settings = {"save_strategy": "steps", "save_steps": 1}
    train(tmp_path / "whole", data | parts | flags, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-2")
    train(tmp_path / "again", data | parts | flags, resume_from_checkpoint="last", **settings)
    for file in ("base/model.safetensors", "adapter_model.safetensors"):
        weights, right = (load_file(tmp_path / run / file) for run in ("again", "whole"))
        assert_close(weights, right, rtol=0, atol=0)
    untouched = CLIPVisionModel.from_pretrained(parts["vision_model"]).state_dict()
    aligned = load_file(tmp_path / "whole" / "base" / "model.safetensors")
    name = "embeddings.patch_embedding.weight"
    (tower,) = (weight for key, weight in aligned.items() if key.endswith(name))
    (before,) = (weight for key, weight in untouched.items() if key.endswith(name))
    assert not tower.equal(before)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"preset": "huge"}, "`preset`='huge' is none of demo, accurate, pointing, emoji"),
        ({"columns": "photo,asked"}, "`columns`='photo,asked' must name three columns"),
        (
            {"columns": "image,asked,said"},
            r"has no column 'image'; its columns are \['asked', 'photo', 'said'\]",
        ),
        ({"vision_model": "x"}, "Give both `vision_model` and `text_model`"),
        ({"word_steps": 2}, "`word_steps`=2 teach a connector the words of a language model that knows some"),
        ({"tower_rates": "vision:1"}, "`tower_rates`='vision:1' must look like"),
    ],
)
def test_bad_flags_are_named(recipe, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, data | recipe)


def test_unknown_flag_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--learning_rat"):
        vlm.run(["--output_dir", str(tmp_path), "--learning_rat", "1"])
