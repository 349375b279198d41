"""`hf-mm score` draws, compares, writes and shows; pictures that do not fit are named."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from generators import diffusion_tiny, gan_tiny
from generators.codes_tiny import raster_pipeline
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_mm import AutoencoderPipeline, GANPipeline, ImageDiffusionPipeline
from hf_mm.cli import main
from hf_mm.data.generation_rows import generation_rows

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A classifier of ten classes that has learnt nothing."""
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=8, patch_size=4, num_labels=10, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of the first twenty test pictures themselves."""
    folder = tmp_path_factory.mktemp("drawn")
    for number, levels in enumerate(generation_rows("digits", "test").pixels[:20]):
        Image.fromarray(levels[0].numpy()).save(folder / f"{number:03}.png")
    return folder


def run(model, out, net, *options):
    return main(["score", str(model), "digits", "--out", str(out), "--net", str(net), *options])


def fails(capsys, *argv):
    capsys.readouterr()
    assert run(*argv) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_of_the_test_pictures_has_no_distance(drawn, net, tmp_path, capsys):
    assert run(drawn, tmp_path, net) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["measures"]["Frechet distance"]["value"] == pytest.approx(0, abs=1e-6)
    assert results["measures"]["coverage"]["value"] == 1 >= results["measures"]["coverage"]["floor"]
    assert (results["pictures"], results["asked"], results["dataset"]) == (20, "nothing", "digits")
    assert {"net", "training_pictures", "environment", "seed", "model"} <= results.keys()
    assert printed.startswith(f"20 pictures, features of {net}; 'real pictures' is what")
    assert printed.endswith(f"{tmp_path / 'neighbours.png'}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "samples.png", "neighbours.png"}
    assert Image.open(tmp_path / "samples.png").mode == "L"


def test_a_pipeline_with_classes_is_asked_for_those_of_the_test_pictures(net, tmp_path):
    GANPipeline(gan_tiny.generator(num_classes=10)).save_pretrained(tmp_path / "gan")
    assert run(tmp_path / "gan", tmp_path / "a", net, "--limit", "24", "--batch_size", "10") == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert (results["pictures"], results["asked"]) == (24, "classes")
    assert 0 <= results["measures"]["class accuracy"]["value"] <= 1
    again = [tmp_path / "gan", tmp_path / "b", net, "--limit", "24", "--batch_size", "10"]
    assert run(*again) == 0
    assert json.loads((tmp_path / "b" / "results.json").read_text())["measures"] == results["measures"]


@pytest.mark.parametrize(("classes", "asked"), [(None, "nothing"), (10, "classes")])
def test_diffusion_is_asked_for_classes_where_it_knows_some(net, tmp_path, classes, asked):
    names = None if classes is None else {number: str(number) for number in range(classes)}
    denoiser = diffusion_tiny.unet(num_class_embeds=None if classes is None else classes + 1)
    ImageDiffusionPipeline(denoiser, DDIMScheduler(), id2label=names).save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", tmp_path / "out", net, "--limit", "12", "--train_limit", "20") == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["asked"] == asked


@pytest.mark.parametrize("kind", ["autoencoder", "autoregressive"])
def test_pipelines_are_asked_for_as_many_pictures_by_the_name_they_have_for_it(kind, net, tmp_path):
    torch.manual_seed(0)
    if kind == "autoencoder":
        sizes = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
        pipeline = AutoencoderPipeline(AutoencoderKL(**sizes, **BLOCKS, sample_size=8))
    else:
        pipeline = raster_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    options = ("--ask", "nothing", "--limit", "14", "--train_limit", "50", "--batch_size", "7")
    assert run(tmp_path / "model", tmp_path / "out", net, *options) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["pictures"], results["asked"]) == (14, "nothing")
    assert results["training_pictures"] == 50
    assert "class accuracy" not in results["measures"]


def test_bad_input_is_one_line(drawn, net, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has neither model_index.json nor pictures (.png, .jpg" in fails(capsys, empty, tmp_path, net)
    assert "nowhere: there is no such folder, and the Hub gives no such pipeline; give a saved" in fails(
        capsys, tmp_path / "nowhere", tmp_path, net
    )
    assert "nowhere': there is no such folder, and the Hub gives no such model. Give efficientnet-l" in fails(
        capsys, drawn, tmp_path, tmp_path / "nowhere"
    )
    assert "empty': that folder has no model of pictures with an image processor. Give efficientnet" in fails(
        capsys, drawn, tmp_path, empty
    )
    large = ("--image_size", "16")
    assert "is 8x8 px, the data set's pictures are 16x16; set `--image_size`" in fails(
        capsys, drawn, tmp_path, net, *large
    )
    coloured = tmp_path / "coloured"
    coloured.mkdir()
    Image.new("RGB", (8, 8), "red").save(coloured / "red.png")
    assert "has colours, the data set's pictures are grey" in fails(capsys, coloured, tmp_path, net)
    GANPipeline(gan_tiny.generator(num_classes=10, out_channels=3)).save_pretrained(tmp_path / "gan")
    assert "draws (channels, height, width) (3, 8, 8), the pictures of digits are (1, 8, 8)" in fails(
        capsys, tmp_path / "gan", tmp_path, net, "--limit", "12"
    )
    assert "no texts to ask for; take `--ask nothing`" in fails(
        capsys, tmp_path / "gan", tmp_path, net, "--ask", "texts"
    )
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(drawn.iterdir())[:10]:
        (few / path.name).write_bytes(path.read_bytes())
    assert "10 pictures are too few for `k`=5" in fails(capsys, few, tmp_path, net)
