"""The recipe of GANs trains, by class, text or neither, and what it saves draws; faulty wishes are named."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import TrainingArguments

from hf_mm import GANPipeline
from hf_mm.recipes import gan

SHORT = gan.DEFAULTS | {
    "max_steps": 2,
    "per_device_train_batch_size": 6,
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture
def folder(tmp_path):
    """Coloured pictures with texts, as users have them."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        place = tmp_path / "data" / split
        place.mkdir(parents=True)
        lines = ["file_name,text"]
        for number in range(12):
            pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
            lines.append(f"{number}.png,{('a red bag', 'a green hat')[number % 2]}")
        (place / "metadata.csv").write_text("\n".join(lines))
    return str(tmp_path / "data")


def test_draws_digits_by_name_after_two_steps(tmp_path):
    args = TrainingArguments(str(tmp_path / "out"), **SHORT)
    results = gan.main(gan.Recipe(rows=30), args)
    assert results["steps"] == 2
    assert results["generator_weights"] < 1_000_000
    assert json.loads((tmp_path / "out" / "results.json").read_text())["dataset"] == "digits"
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe, GANPipeline)
    assert pipe(class_labels=["7", 3], seed=0).images[0].size == (8, 8)
    with Image.open(tmp_path / "out" / "grid.png") as grid, Image.open(tmp_path / "out" / "film.png") as film:
        assert grid.width == film.width
        assert film.height == grid.height
    assert "A GAN of digits" in (tmp_path / "out" / "README.md").read_text()


def test_learns_pictures_of_ones_own_by_text_and_measures_them(tmp_path, folder):
    args = TrainingArguments(str(tmp_path / "out"), **SHORT)
    asked = {"condition": "text", "net": "efficientnet-lite0@32", "measure_steps": 1}
    measures = gan.main(gan.Recipe(dataset=folder, image_size=16, **asked), args)["report"]["measures"]
    assert measures["coverage"]["floor"] > 0
    running = [json.loads(line) for line in (tmp_path / "out" / "measures.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in running] == [1, 2]
    assert running[0]["kernel distance"] != running[1]["kernel distance"]
    assert "class accuracy" not in measures
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe(prompt="a green bag", seed=0).images[0].size == (16, 16)


def test_the_command_prints_what_it_did(tmp_path, capsys):
    flags = {**SHORT, "max_steps": 1, "output_dir": tmp_path, "rows": 12, "condition": "none"}
    flags = {name: value for name, value in flags.items() if name not in ("use_cpu", "disable_tqdm")}
    argv = [f"--{name}={value}" for name, value in flags.items()] + ["--use_cpu", "--disable_tqdm=true"]
    assert gan.run(argv) == 0
    assert "1 steps in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "base", "patch", "channels"),
    [
        (8, 4, 1, (64, 32)),
        (16, 4, 1, (128, 64, 32)),
        (28, 7, 2, (64, 32)),
        (32, 4, 2, (128, 64, 32)),
        (64, 4, 2, (128, 128, 64, 32)),
    ],
)
def test_nets_fit_the_pictures_and_stay_below_a_million_weights(size, base, patch, channels):
    sizes = gan.sizes_of(size)
    assert sizes["base_size"] == base
    assert sizes["patch_size"] == patch
    assert sizes["block_out_channels"] == channels
    model = gan.MMGANGenerator(**sizes, num_classes=10)
    assert model(torch.zeros(1, 64), torch.tensor([3])).sample.shape == (1, 3, size, size)
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("text", r"`condition`='text' needs texts, which 'digits' does not have"),
        ("colour", r"`condition`='colour' is none of class, text, none"),
    ],
)
def test_conditions_that_the_pictures_do_not_have_are_refused(tmp_path, condition, message):
    args = TrainingArguments(str(tmp_path), **SHORT)
    with pytest.raises(ValueError, match=message):
        gan.main(gan.Recipe(rows=12, condition=condition), args)


def test_measuring_during_a_run_needs_a_net(tmp_path):
    args = TrainingArguments(str(tmp_path), **SHORT)
    with pytest.raises(ValueError, match="`measure_steps`=5 needs `net`, in whose features to measure"):
        gan.main(gan.Recipe(rows=12, measure_steps=5), args)


def test_pictures_without_classes_are_refused_by_class(tmp_path, folder):
    args = TrainingArguments(str(tmp_path / "out"), **SHORT)
    with pytest.raises(ValueError, match=r"`condition`='class' needs classes, which .*data' does not have"):
        gan.main(gan.Recipe(dataset=folder), args)


def test_the_example_trains_and_draws(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "draw_digits.py"
    changes = {name: value for name, value in SHORT.items() if name not in gan.DEFAULTS}
    changes |= {"max_steps": 1, "save_strategy": "no"}
    for path in runpy.run_path(str(example))["main"](str(tmp_path), **changes):
        with Image.open(path) as page:
            assert page.size == (640, 64)
