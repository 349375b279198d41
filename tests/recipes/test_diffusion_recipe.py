"""The recipe of diffusion trains every system, and what it saves draws; faulty wishes are named."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from data.test_latent_store import vae
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_mm import ImageDiffusionPipeline
from hf_mm.recipes import diffusion

SHORT = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes of tests."""
    monkeypatch.setattr(diffusion, "WIDTHS", {0: 16})
    monkeypatch.setattr(diffusion, "PIXEL_WIDTH", 16)
    monkeypatch.setattr(diffusion, "LATENT_WIDTH", 16)
    monkeypatch.setattr(diffusion, "DIT", {"num_layers": 1, "num_heads": 2})


def train(folder, system, recipe=None, **settings):
    args = TrainingArguments(str(folder), **(diffusion.DEFAULTS | SHORT | settings))
    fields = {"system": system, "rows": 24, "inference_steps": 2} | (recipe or {})
    return diffusion.main(diffusion.Recipe(**fields), args)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    vae().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("system", ["ddpm", "flow-dit", "mean-flow"])
def test_each_system_of_pixels_draws_digits_by_name(tmp_path, system):
    results = train(tmp_path, system)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (results["steps"], results["train_rows"], results["inference_steps"]) == (2, 24, 2)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe, ImageDiffusionPipeline)
    assert pipe.prediction_type == diffusion.SYSTEMS[system]["prediction_type"]
    assert pipe(class_labels=["7", 3], num_inference_steps=2, seed=0).images[0].size == (8, 8)
    with Image.open(tmp_path / "grid.png") as grid, Image.open(tmp_path / "strip.png") as strip:
        assert min(grid.height, strip.height) > 10 * 56  # a row for each class
    assert f"{system} of digits" in (tmp_path / "README.md").read_text()


def test_ddpm_draws_with_fresh_noise_from_noise_alone(tmp_path):
    train(tmp_path, "ddpm")
    scheduler = DiffusionPipeline.from_pretrained(tmp_path).scheduler
    scheduler.set_timesteps(20)
    assert (type(scheduler).__name__, int(scheduler.timesteps[0])) == ("DDPMScheduler", 999)


def test_latents_are_made_once_and_the_pipeline_decodes_them(tmp_path, autoencoder):
    results = train(tmp_path, "latent-flow", {"vae": str(autoencoder)})
    assert results["encoding_seconds"] >= 0
    made = (tmp_path / "latents" / "index.json").stat().st_mtime_ns
    train(tmp_path, "latent-flow", {"vae": str(autoencoder)})
    assert (tmp_path / "latents" / "index.json").stat().st_mtime_ns == made
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe.denoiser.config["in_channels"] == 4
    assert_close(pipe.vae.state_dict(), vae().state_dict(), rtol=0, atol=0)
    assert pipe(class_labels="7", num_inference_steps=2, seed=0).images[0].size == (8, 8)


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path, autoencoder):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    train(tmp_path / "whole", "latent-flow", {"vae": str(autoencoder)}, **options)
    last = options | {"resume_from_checkpoint": str(tmp_path / "whole" / "checkpoint-1")}
    train(tmp_path / "resumed", "latent-flow", {"vae": str(autoencoder)}, **last)
    assert [path.name for path in (tmp_path / "resumed").glob("checkpoint-*")] == ["checkpoint-2"]
    name = "denoiser/diffusion_pytorch_model.safetensors"
    assert_close(load_file(tmp_path / "resumed" / name), load_file(tmp_path / "whole" / name), rtol=0, atol=0)


def test_pictures_are_compared_with_the_test_split_in_the_features_of_a_net(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    classes = {number: str(number) for number in range(10)}
    config = ViTConfig(image_size=8, patch_size=4, id2label=classes, **sizes)
    ViTForImageClassification(config).save_pretrained(tmp_path / "net")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "net")
    recipe = {"net": str(tmp_path / "net"), "measure_steps": 1, "inference_steps": 1}
    results = train(tmp_path / "out", "flow-dit", recipe)
    assert results["report"]["pictures"] == 24
    assert {"class accuracy", "coverage"} <= results["report"]["measures"].keys()
    lines = (tmp_path / "out" / "measures.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "patches"),
    [
        ("pixels", {8: 2, 9: 1, 27: 3, 28: 4, 32: 4, 64: 8}),
        ("latents", {2: 1, 7: 1, 8: 2, 14: 2, 16: 4}),
    ],
)
def test_a_transformer_of_any_size_has_few_patches(kind, patches):
    sizes = diffusion.PATCHES[kind]
    assert {side: diffusion.patch_size_of(side, *sizes) for side in patches} == patches


@pytest.mark.parametrize(
    ("size", "sides"), [(8, [8, 4]), (16, [16, 8, 4]), (28, [28, 14, 7]), (32, [32, 16, 8, 4])]
)
def test_nets_fit_the_pictures(size, sides):
    unet = diffusion.build_unet(1, size, 10)
    assert len(unet.config.block_out_channels) == len(sides)
    attends = [name == "AttnDownBlock2D" for name in unet.config.down_block_types]
    assert attends == [4 < side <= 8 for side in sides]
    for model in (unet, diffusion.build_dit(1, size, 10, latent=False)):
        out = model(torch.zeros(1, 1, size, size), torch.tensor([1]), torch.tensor([10]))
        assert out.sample.shape == (1, 1, size, size)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"system": "gan"}, "`system`='gan' is none of ddpm, flow-unet, flow-dit, latent-flow, mean-flow"),
        ({"system": "latent-flow"}, "`system`='latent-flow' needs `vae`; train one by"),
        ({"system": "ddpm", "vae": "out/vae"}, "`system`='ddpm' learns pixels; leave `vae` out"),
        ({"measure_steps": 5}, "`measure_steps`=5 needs `net`, in whose features to measure"),
    ],
)
def test_bad_flags_are_named(tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, recipe.pop("system", "ddpm"), recipe)


def test_autoencoders_that_will_not_do_are_named(tmp_path):
    blocks = {"block_out_channels": (8,) * 4, "sample_size": 8}
    stages = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae(**blocks, **stages).save_pretrained(tmp_path / "vector")
    with pytest.raises(ValueError, match="makes one vector of a picture, and a denoiser needs a map"):
        train(tmp_path, "latent-flow", {"vae": str(tmp_path / "vector")})
    diffusion.build_unet(1, 8, None).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="unet' is UNet2DModel, which encodes no pictures"):
        train(tmp_path, "latent-flow", {"vae": str(tmp_path / "unet")})


def test_the_command_prints_what_it_did(tmp_path, capsys):
    flags = {"max_steps": 1, "output_dir": tmp_path, "rows": 12, "inference_steps": 1, "system": "flow-dit"}
    argv = [f"--{name}={value}" for name, value in flags.items()] + ["--use_cpu", "--disable_tqdm=true"]
    assert diffusion.run(argv) == 0
    assert "1 steps in" in capsys.readouterr().out


def test_the_example_trains_and_draws(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "diffuse_digits.py"
    for path in runpy.run_path(str(example))["main"](str(tmp_path), steps=2, **SHORT):
        with Image.open(path) as page:
            assert page.width > page.height
