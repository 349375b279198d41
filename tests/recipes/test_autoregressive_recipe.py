"""The recipe of pictures code by code: short runs of every kind, its files, and its errors."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from generators import gan_tiny
from generators.codes_tiny import BLOCKS
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_mm import GANPipeline, MMVQAutoencoder, VQAutoregressivePipeline, VQMaskedPipeline
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
    train(tmp_path, tokenizer, {"condition": "text", "views": 10})
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe(prompt="7", seed=0, output_type="pt").images.shape == (1, 1, 8, 8)


def test_pictures_are_compared_with_the_test_split_in_the_features_of_a_net(trained, tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    classes = {number: str(number) for number in range(10)}
    config = ViTConfig(image_size=8, patch_size=4, id2label=classes, **sizes)
    ViTForImageClassification(config).save_pretrained(tmp_path / "net")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "net")
    codes = {"net": str(tmp_path / "net"), "codes_folder": str(trained[0] / "codes"), "measure_steps": 1}
    report = train(tmp_path / "ar", tokenizer, codes)["report"]
    assert report["pictures"] == 24
    assert {"class accuracy", "coverage"} <= report["measures"].keys()
    running = [json.loads(line) for line in (tmp_path / "ar" / "measures.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in running] == [1, 2]
    assert running[0]["Frechet distance"] != running[1]["Frechet distance"] > 0


def test_a_tokenizer_without_codes_is_named(tmp_path):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="vae' is AutoencoderKL, which has no codes; train one by"):
        train(tmp_path, tmp_path / "vae")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    GANPipeline(gan_tiny.generator()).save_pretrained(tmp_path / "gan")
    for name, message in (
        (
            "empty",
            "empty' is a folder without a model with a codebook; train one by "
            "`hf-mm train autoencoder --model vq`",
        ),
        ("gan", "gan' is a folder without a model with a codebook"),
        ("nowhere", "nowhere': there is no such folder, and the Hub gives no such model; train one by"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            train(tmp_path, tmp_path / name)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"condition": "colour"}, "`condition`='colour' is none of class, text, none"),
        ({"decoding": "spiral"}, "`decoding`='spiral' is none of raster, masked"),
        ({"views": 3}, "`views`=3 is none of 1, 2, 5, 10"),
        ({"measure_steps": 5}, "`measure_steps`=5 needs `net`, in whose features to measure"),
    ],
)
def test_bad_flags_are_named(tokenizer, tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, tokenizer, recipe)
