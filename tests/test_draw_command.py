"""`hf-mm draw` draws by every kind of pipeline, the same for the same seed, and says what does not go."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler
from generators import diffusion_tiny, gan_tiny
from generators.codes_tiny import raster_pipeline
from PIL import Image

from hf_mm import AutoencoderPipeline, GANPipeline, ImageDiffusionPipeline, sample_grid
from hf_mm.cli import main

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with one pipeline of each kind, by name."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    text = {"text_encoder": diffusion_tiny.clip_text(), "tokenizer": diffusion_tiny.words()}
    denoisers = {
        "classes": diffusion_tiny.unet(num_class_embeds=4),
        "texts": diffusion_tiny.dit(channels=3, text_dim=diffusion_tiny.TEXT_DIM),
    }
    names = diffusion_tiny.NAMES
    pipelines = {
        "gan": GANPipeline(gan_tiny.generator(num_classes=10)),
        "codes": raster_pipeline(),
        "vae": AutoencoderPipeline(AutoencoderKL(**sizes, **BLOCKS, sample_size=8)),
        "classes": ImageDiffusionPipeline(denoisers["classes"], DDIMScheduler(), id2label=names),
        "texts": ImageDiffusionPipeline(denoisers["texts"], DDIMScheduler(), **text),
        "stock": DDPMPipeline(diffusion_tiny.unet(), DDPMScheduler()),
    }
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(folder / name)
    return folder


def draws(capsys, *argv):
    capsys.readouterr()
    assert main(["draw", *map(str, argv)]) == 0
    return capsys.readouterr().out.splitlines()


def fails(capsys, *argv):
    capsys.readouterr()
    assert main(["draw", *map(str, argv)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "options", "tiles"),
    [
        ("gan", ["--class", "3", "7", "--set", "truncation=0.5"], (2, 3)),
        ("codes", ["--set", "temperature=0.5", "top_k=2"], (1, 3)),
        ("vae", [], (1, 3)),
        ("classes", ["--class", "shoe", "2", "--steps", "2", "--guidance", "2"], (2, 3)),
        (
            "texts",
            ["--prompt", "a red apple", "a pear", "--steps", "2", "--negative_prompt", "green"],
            (2, 3),
        ),
        ("stock", ["--steps", "2"], (1, 3)),
    ],
)
def test_every_kind_of_pipeline_draws_the_same_grid_for_the_same_seed(
    saved, tmp_path, capsys, kind, options, tiles
):
    common = [saved / kind, *options, "--count", 3]
    assert draws(capsys, *common, "--seed", 1, "--out", tmp_path / "a.png") == [str(tmp_path / "a.png")]
    draws(capsys, *common, "--seed", 1, "--out", tmp_path / "b.png")
    draws(capsys, *common, "--seed", 2, "--out", tmp_path / "c.png")
    first, again, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    rows, columns = tiles
    assert first.shape[0] >= rows * 56
    assert first.shape[1] >= columns * 56


def test_the_grid_is_what_the_pipeline_draws_row_by_row(saved, tmp_path, capsys):
    pipe = ImageDiffusionPipeline.from_pretrained(saved / "classes")
    images = pipe(class_labels=["hat", "bag"], num_images_per_prompt=2, num_inference_steps=2, seed=5).images
    options = ["--class", "hat", "bag", "--count", 2, "--steps", 2, "--seed", 5]
    draws(capsys, saved / "classes", *options, "--out", tmp_path / "grid.png")
    expected = sample_grid(images, 2, row_labels=["hat", "bag"])
    assert np.array_equal(Image.open(tmp_path / "grid.png"), expected)


def test_the_strip_ends_in_the_first_picture_of_each_row(saved, tmp_path, capsys):
    options = ["--class", "hat", "bag", "--count", 2, "--steps", 3, "--frames", 2]
    files = [tmp_path / "grid.png", tmp_path / "strip.png"]
    lines = draws(capsys, saved / "classes", *options, "--out", files[0], "--strip", files[1])
    assert lines == [str(path) for path in files]
    grid, strip = (np.asarray(Image.open(path)) for path in files)
    left = grid.shape[1] - 2 * 58  # of the first column
    second = grid[-58:-2, left : left + 56]  # first picture of the second row
    assert np.array_equal(strip[-58:-2, -58:-2], second)


def test_stable_diffusion_shows_its_steps_too(saved, tmp_path, capsys):
    text = {"text_encoder": diffusion_tiny.clip_text(), "tokenizer": diffusion_tiny.words()}
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = {"vae": diffusion_tiny.kl_autoencoder(channels=3), **text}
    pipe = ImageDiffusionPipeline(diffusion_tiny.text_unet(), scheduler, **parts)
    pipe.to_pipeline().save_pretrained(tmp_path / "plain")
    files = ["--out", tmp_path / "grid.png", "--strip", tmp_path / "strip.png"]
    draws(capsys, tmp_path / "plain", "--prompt", "a red apple", "--steps", 2, "--count", 1, *files)
    assert Image.open(tmp_path / "strip.png").width > 100


@pytest.mark.slow  # matplotlib
def test_words_of_a_prompt_are_laid_on_its_picture(saved, tmp_path, capsys):
    files = ["--out", tmp_path / "grid.png", "--words", tmp_path / "words.png"]
    draws(capsys, saved / "texts", "--prompt", "a red apple", "--steps", 2, "--count", 1, *files)
    assert len(Image.open(tmp_path / "words.png").convert("RGB").getcolors(1 << 24)) > 100


def test_what_a_pipeline_does_not_take_is_said_before_anything_is_drawn(saved, tmp_path, capsys):
    out = ["--out", tmp_path / "grid.png"]
    (saved / "adapters").mkdir()
    (saved / "adapters" / "pytorch_lora_weights.safetensors").touch()
    faults = {
        ("gan", "--steps", "3"): "GANPipeline takes no `num_inference_steps`; leave `--steps` out.",
        ("vae", "--class", "3"): "AutoencoderPipeline takes no `class_labels`; leave `--class` out.",
        ("gan", "--set", "warmth=3"): "`--set warmth=3` sets nothing that GANPipeline takes: class_labels",
        ("gan", "--strip", "s.png"): "GANPipeline does not denoise step by step, as ImageDiffusionPipeline",
        ("gan", "--lora", "x"): "GANPipeline takes no adapters; leave `--lora` out.",
        ("texts", "--lora", "nowhere"): "nowhere: there is no such folder, and the Hub gives no such LoRA;",
        ("texts", "--lora", str(saved / "texts")): "texts has no adapters: there is no pytorch_lora_weights",
        ("classes", "--frames", "0"): "`--frames`=0 must be at least 1.",
        ("nowhere",): "nowhere: there is no such folder, and the Hub gives no such pipeline; give",
        ("adapters",): "adapters has adapters, not a pipeline; draw by the model that they were trained on",
        ("texts", "--words", "w.png"): "`--words` looks at one `--prompt`, got 0; give one.",
        ("classes", "--count", "0"): "`--count`=0 must be at least 1.",
        ("classes", "--class", "boat"): "boat",
        ("classes/denoiser",): "is no saved pipeline: it has no model_index.json.",
    }
    for (kind, *options), message in faults.items():
        assert message in fails(capsys, saved / kind, *options, *out)
    wrong = fails(capsys, saved / "vae", "--out", tmp_path / "grid")
    assert "grid` does not end in one of .png, .jpg" in wrong
    assert not list(tmp_path.iterdir())
