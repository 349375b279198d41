"""The recipe trains every kind of autoencoder and leaves what it promises."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import TrainingArguments, ViTImageProcessorPil

from hf_mm import AutoencoderPipeline, MMViTConfig, MMViTForImageClassification, generation_rows
from hf_mm.recipes import autoencoder
from hf_mm.registry import register, register_generators

SHORT = autoencoder.DEFAULTS | {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


def train(folder, model, **options):
    changes = {name: options.pop(name) for name in list(options) if name in SHORT or name.startswith("save")}
    recipe = autoencoder.Recipe(model, **{"rows": 40, "feature_net": "none"} | options)
    return autoencoder.main(recipe, TrainingArguments(str(folder), **SHORT | changes))


@pytest.fixture
def classifier(tmp_path):
    """Such as `hf-mm train vit_classifier` leaves, of 8 numbers a picture."""
    torch.manual_seed(0)
    config = MMViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    place = str(tmp_path / "classifier")
    MMViTForImageClassification(config).save_pretrained(place)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(place)
    return place


@pytest.mark.parametrize("model", ["vae", "vq", "vq-plain", "fsq", "diffusers-vq"])
def test_each_kind_trains_and_is_measured_on_the_test_split(tmp_path, model):
    results = train(tmp_path, model)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (results["steps"], results["train_rows"], results["test_rows"]) == (2, 40, 40)
    register_generators()
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe, AutoencoderPipeline)
    assert pipe.vae.config.scaling_factor == results["scaling_factor"]
    test = generation_rows("digits", "test")[:40].pixel_values()
    again = pipe.reconstruct((test + 1) / 2, output_type="pt").images * 2 - 1
    assert (again - test).square().mean().item() == pytest.approx(results["mse"], rel=1e-4)
    assert ("kl_nats" in results) == (model == "vae")
    bits = {"bits_per_dimension_gaussian", "bits_per_dimension_laplace", "gaussian_scale", "laplace_scale"}
    assert bits & results.keys() == (bits if model == "vae" else set())
    assert ("perplexity" in results) == (model != "vae")
    assert {path.name for path in tmp_path.glob("*.png")} == (
        {"samples.png", "reconstructions.png"} | ({"prior.png", "between.png"} if model == "vae" else set())
    )


def test_a_vqgan_is_all_of_it(tmp_path):
    train(tmp_path, "vqgan")
    logs = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert "perceptual" in logs[0]
    assert "adversarial" not in logs[0]
    assert {"adversarial", "adversarial_weight", "discriminator_loss"} <= set(logs[1])


def test_a_classifier_serves_as_perceptual_and_as_feature_network(tmp_path, classifier):
    register()
    results = train(tmp_path / "run", "fsq", perceptual=classifier, feature_net=classifier)
    assert 0 <= results["rFD_of_real_pictures"] < results["rFD"]
    logs = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert "perceptual" in logs[0]


def test_the_prior_of_a_vae_is_measured_while_it_learns(tmp_path, classifier):
    register()
    train(tmp_path / "run", "vae", measure_steps=1, feature_net=classifier)
    entries = [json.loads(line) for line in (tmp_path / "run" / "measures.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert all(0 < entry["floor"] < entry["Frechet distance"] for entry in entries)


def test_a_run_goes_on_from_its_last_checkpoint_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", "vq", save_strategy="steps", save_steps=1)
    (tmp_path / "rest").mkdir()
    (tmp_path / "whole" / "checkpoint-1").rename(tmp_path / "rest" / "checkpoint-1")
    again = autoencoder.main(
        autoencoder.Recipe("vq", rows=40, feature_net="none"),
        TrainingArguments(str(tmp_path / "rest"), resume_from_checkpoint="last", **SHORT),
    )
    assert (again["mse"], again["perplexity"]) == (whole["mse"], whole["perplexity"])


def test_latents_of_a_vae_are_one_vector_or_a_map():
    for downscale, places, width in ((None, 1, 32), (8, 4, 4)):
        model = autoencoder.build_model(autoencoder.Recipe("vae", downscale=downscale), 32, 3)
        with torch.no_grad():
            latents = model.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mean
        assert latents.shape == (1, width, places, places)


@pytest.mark.parametrize(("size", "codes"), [(8, 4), (16, 16), (32, 64), (64, 64)])
def test_a_picture_has_64_codes_at_most(size, codes):
    model = autoencoder.build_model(autoencoder.Recipe("fsq"), size, 1)
    with torch.no_grad():
        assert model.encode(torch.zeros(1, 1, size, size)).indices.numel() == codes


def test_colour_pictures_of_a_folder_are_learnt_too(tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            place = tmp_path / "data" / split / "some"
            place.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((20, 16), 40 + number).convert("RGB").save(place / f"{number}.png")
    results = train(tmp_path / "run", "fsq", dataset=str(tmp_path / "data"), image_size=16)
    assert (results["train_rows"], results["test_rows"]) == (6, 3)
    assert Image.open(tmp_path / "run" / "reconstructions.png").mode == "RGB"


def test_the_command_prints_what_it_measured(tmp_path, capsys):
    flags = {"model": "fsq", "output_dir": tmp_path, "max_steps": 1, "rows": 20, "feature_net": "none"}
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert autoencoder.run([*argv, "--use_cpu", "true", "--disable_tqdm", "true"]) == 0
    assert "| psnr " in capsys.readouterr().out


def test_the_command_knows_what_a_data_set_takes(tmp_path, monkeypatch):
    monkeypatch.setitem(autoencoder.PRESETS, "digits", {"max_steps": 1, "per_device_train_batch_size": 3})
    flags = {"model": "fsq", "output_dir": tmp_path, "rows": 20, "feature_net": "none"}
    argv = [f"--{name}={value}" for name, value in flags.items()]
    assert autoencoder.run([*argv, "--use_cpu", "--disable_tqdm=true"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 1


def test_what_has_no_prior_is_not_measured_while_it_learns(tmp_path):
    for model, net in (("vq", "efficientnet-lite0"), ("vae", "none")):
        with pytest.raises(ValueError, match=f"`measure_steps`=1 needs .*; they are '{model}' and '{net}'"):
            train(tmp_path, model, measure_steps=1, feature_net=net)


def test_mistakes_are_named():
    with pytest.raises(
        ValueError, match="`model`='gan' must be one of vae, vq, fsq, vq-plain, vqgan, diffusers-vq"
    ):
        autoencoder.build_model(autoencoder.Recipe("gan"), 8, 1)
    for downscale in (3, 16, 256):
        with pytest.raises(ValueError, match=f"`downscale`={downscale} must be a power of 2 up to 64"):
            autoencoder.build_model(autoencoder.Recipe("vq", downscale=downscale), 8, 1)
