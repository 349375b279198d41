"""`hf-mm look` writes every picture of every kind of model, all or none."""

import pytest
import torch
from evaluation.pairs_tiny import own_processor, own_vilt
from hub.sharing_tiny import tiny_vlm
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTImageProcessorPil
from visualization.seen_tiny import clip, mm_clip, mm_vit_classifier, processor, tower, vit_classifier

from hf_mm.cli import main
from hf_mm.models.clip.modeling_clip import MMCLIPVisionModelWithProjection
from hf_mm.models.clip.processing_clip import MMCLIPProcessor

pytestmark = pytest.mark.slow  # matplotlib takes a second for the pictures of a model

FOUR = ["filters", "positions", "input_attention", "attention_distance"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.radial_gradient("L").convert("RGB").resize((40, 30)).save(path)
    return str(path)


def save(model, images, folder):
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    return str(folder)


def looks(capsys, folder, *argv):
    """Names without the ending of the pictures that were written and named."""
    capsys.readouterr()
    assert main(["look", *argv, "--out", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.removeprefix(f"{folder}/").removesuffix(".png") for line in lines]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.png" for name in names)
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10, name  # something is on it
    return names


def fails(capsys, folder, *argv):
    capsys.readouterr()
    assert main(["look", *argv, "--out", str(folder)]) == 2
    assert not list(folder.glob("*"))
    return capsys.readouterr().err


SQUARE = ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.mark.parametrize(
    "model",
    [
        mm_vit_classifier,
        lambda: mm_vit_classifier(stem_channels=[8, 8]).vit,
        vit_classifier,
        lambda: MMCLIPVisionModelWithProjection(mm_clip().config),
    ],
    ids=["mm_vit", "mm_vit_stem", "vit", "mm_clip_vision"],
)
def test_a_vision_transformer_gives_four_pictures(model, picture, tmp_path, capsys):
    folder = save(model(), SQUARE, tmp_path / "model")
    assert looks(capsys, tmp_path / "out", folder, picture, picture) == FOUR


def test_a_vision_language_model_gives_four_pictures(picture, tmp_path, capsys):
    folder = save(*tiny_vlm(crops=2), tmp_path / "model")
    assert looks(capsys, tmp_path / "out", folder, picture) == FOUR


@pytest.mark.parametrize(("model", "ours"), [(clip, False), (mm_clip, True)], ids=["clip", "mm_clip"])
def test_clip_gives_the_words_too_when_asked(model, ours, picture, tmp_path, capsys):
    both = processor()
    both = MMCLIPProcessor(both.image_processor, both.tokenizer) if ours else both
    folder = save(model(), both, tmp_path / "model")
    assert looks(capsys, tmp_path / "out", folder, picture, "--text", "a red circle") == [
        *FOUR,
        "word_relevance",
    ]


def test_vilt_gives_the_words_when_asked_and_no_attention_without(picture, tmp_path, capsys):
    folder = save(own_vilt(), own_processor(), tmp_path / "model")
    assert looks(capsys, tmp_path / "out", folder, picture) == ["filters", "positions"]
    names = looks(capsys, tmp_path / "words", folder, picture, "--text", "a red circle")
    assert names == ["filters", "positions", "word_attention", "word_transport"]


def test_an_adapter_is_shown_with_its_model(picture, tmp_path, capsys):
    folder = save(mm_vit_classifier(), SQUARE, tmp_path / "model")
    looks(capsys, tmp_path / "before", folder, picture)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(type(mm_vit_classifier()).from_pretrained(folder), lora)
    assert looks(capsys, tmp_path / "after", save(model, SQUARE, tmp_path / "adapter"), picture) == FOUR
    before, after = (
        {name: (tmp_path / run / f"{name}.png").read_bytes() for name in FOUR} for run in ("before", "after")
    )
    changed = {name for name in FOUR if before[name] != after[name]}
    assert changed == {"input_attention", "attention_distance"}


def test_without_a_table_of_positions_there_are_three(picture, tmp_path, capsys):
    folder = save(tower("dinov3_vit"), SQUARE, tmp_path / "model")
    assert looks(capsys, tmp_path / "out", folder, picture) == [name for name in FOUR if name != "positions"]


def test_a_text_for_a_model_without_a_text_tower_is_refused(picture, tmp_path, capsys):
    folder = save(mm_vit_classifier(), SQUARE, tmp_path / "model")
    line = fails(capsys, tmp_path / "out", folder, picture, "--text", "a circle")
    assert "MMViTForImageClassification compares no image with a text" in line


def test_half_of_a_clip_model_has_no_words(picture, tmp_path, capsys):
    folder = save(MMCLIPVisionModelWithProjection(mm_clip().config), processor(), tmp_path / "model")
    line = fails(capsys, tmp_path / "out", folder, picture, "--text", "a circle")
    assert "was saved as MMCLIPVisionModelWithProjection, without a text tower (text_" in line


def test_an_error_in_the_last_picture_leaves_none(picture, tmp_path, capsys):
    folder = save(clip(), processor(), tmp_path / "model")
    assert "has no word" in fails(capsys, tmp_path / "out", folder, picture, "--text", " ")


def test_pictures_that_become_different_sizes_are_refused(picture, tmp_path, capsys):
    images = ViTImageProcessorPil(size={"height": 16, "width": 16}, do_resize=False)
    folder = save(mm_vit_classifier(), images, tmp_path / "model")
    Image.new("RGB", (16, 16)).save(tmp_path / "other.png")
    line = fails(capsys, tmp_path / "out", folder, picture, str(tmp_path / "other.png"))
    assert "become 2 sizes, [(16, 16), (30, 40)] px; look at one at a time" in line


def test_a_model_without_patches_is_refused(picture, tmp_path, capsys):
    torch.manual_seed(0)
    model = ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    )
    folder = save(model, SQUARE, tmp_path / "model")
    assert "ResNetModel has 0 vision towers" in fails(capsys, tmp_path / "out", folder, picture)
