"""The recipe of pictures code by code: short runs of every kind, its files, and its errors."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from generators.codes_tiny import BLOCKS
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import MMVQAutoencoder, VQAutoregressivePipeline, VQMaskedPipeline
from hf_mm.recipes import autoregressive

SHORT = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "save_steps": 1,
    "save_total_limit": None,
    "use_cpu": True,
    "disable_tqdm": True,
}


def train(folder, tokenizer, recipe=None, **settings):
    args = TrainingArguments(folder, **(autoregressive.DEFAULTS | SHORT | settings))
    fields = {"tokenizer": str(tokenizer), "rows": 24} | (recipe or {})
    return autoregressive.main(autoregressive.Recipe(**fields), args)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vq")
    torch.manual_seed(0)
    MMVQAutoencoder(**BLOCKS).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ar")
    return folder, train(folder, tokenizer)


def test_what_is_measured_is_written_down(trained):
    folder, results = trained
    assert results == json.loads((folder / "results.json").read_text())
    assert {"nats_per_code", "bits_per_dimension", "train_seconds", "environment"} <= results.keys()
    assert 0 < results["nats_per_code"] < 10
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 8 * 56
        assert grid.height > 10 * 56


def test_what_is_saved_draws_classes_by_name(trained):
    pipe = DiffusionPipeline.from_pretrained(trained[0])
    assert type(pipe) is VQAutoregressivePipeline
    assert pipe(class_labels=["3", "7"], seed=0, output_type="pt").images.shape == (2, 1, 8, 8)


def test_a_stopped_run_resumes_to_the_same_weights(trained, tokenizer, tmp_path):
    folder, _ = trained
    codes = {"codes_folder": str(folder / "codes")}
    train(tmp_path, tokenizer, codes, resume_from_checkpoint=str(folder / "checkpoint-1"))
    name = "transformer/model.safetensors"
    assert_close(load_file(tmp_path / name), load_file(folder / name), rtol=0, atol=0)


def test_masked_decoding_learns_the_same_codes(trained, tokenizer, tmp_path):
    codes = {"decoding": "masked", "codes_folder": str(trained[0] / "codes")}
    results = train(tmp_path, tokenizer, codes)
    assert 0 < results["masked_nats_per_code"] < 10
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is VQMaskedPipeline


def test_names_of_classes_are_texts_too(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(autoregressive, "PROMPTS", ("3", "4"))
    train(tmp_path, tokenizer, {"condition": "text", "flip": True, "shift_px": 1})
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe(prompt="7", seed=0, output_type="pt").images.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"condition": "colour"}, "`condition`='colour' is none of class, text, none"),
        ({"decoding": "spiral"}, "`decoding`='spiral' is none of raster, masked"),
    ],
)
def test_bad_flags_are_named(tokenizer, tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, tokenizer, recipe)
