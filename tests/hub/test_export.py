"""`hf-mm export`: a folder for plain transformers, whole or not there at all."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import BertConfig, BertModel, ViTImageProcessorPil

from hf_mm.cli import main
from hf_mm.hub import export as module
from hf_mm.hub.export import export
from hf_mm.models.vit.configuration_vit import MMViTConfig
from hf_mm.models.vit.convert_vit import ViTCheckpoint
from hf_mm.models.vit.modeling_vit import MMViTForImageClassification

SIZES = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    config = MMViTConfig(**SIZES, id2label={0: "cat", 1: "dog", 2: "owl"})
    model = MMViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "ours")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "ours")
    return model


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_plain_transformers_loads_model_and_image_processor(saved, tmp_path):
    """In a process that has no `hf_mm`, with the Auto classes and no flag."""
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    picture = Image.effect_noise((20, 30), 80).convert("RGB")
    picture.save(tmp_path / "picture.png")
    pixels = ViTImageProcessorPil(size={"height": 16, "width": 16})(picture, return_tensors="pt")
    torch.save(saved(**pixels).logits, tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        "from PIL import Image\n"
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\n"
        "processor = AutoImageProcessor.from_pretrained('theirs')\n"
        "model = AutoModelForImageClassification.from_pretrained('theirs')\n"
        "assert 'hf_mm' not in sys.modules and type(model).__name__ == 'ViTForImageClassification'\n"
        "logits = model(**processor(Image.open('picture.png'), return_tensors='pt')).logits\n"
        "torch.testing.assert_close(logits, torch.load('expected.pt'), rtol=1e-5, atol=1e-5)\n"
    )
    env = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_written_files_are_named_and_hold_no_code_of_ours(saved, tmp_path, capsys):
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    assert names(tmp_path / "theirs") == ["config.json", "model.safetensors", "preprocessor_config.json"]
    lines = capsys.readouterr().out.splitlines()
    assert f"{tmp_path / 'theirs'}/model.safetensors" in lines
    assert "auto_map" not in (tmp_path / "theirs" / "config.json").read_text()


def test_a_model_saved_alone_is_exported_alone(saved, tmp_path):
    (tmp_path / "ours" / "preprocessor_config.json").unlink()
    assert export(tmp_path / "ours", tmp_path / "theirs") == ["config.json", "model.safetensors"]


def test_half_precision_stays_half(saved, tmp_path):
    saved.to(torch.bfloat16).save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    again = MMViTForImageClassification.from_pretrained(tmp_path / "theirs")
    assert_close(again.state_dict(), saved.state_dict(), rtol=0, atol=0)


def test_an_empty_folder_may_be_named(saved, tmp_path):
    (tmp_path / "theirs").mkdir()
    assert export(tmp_path / "ours", tmp_path / "theirs")


def test_a_folder_with_files_is_refused_and_left_alone(saved, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 2
    assert "theirs exists and is not empty; name a new folder or remove it first." in capsys.readouterr().err
    assert names(tmp_path / "theirs") == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(saved, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_torch_state_dict", full)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path / "ours", tmp_path / "theirs")
    assert names(tmp_path) == ["ours"]


def test_a_folder_that_transformers_would_not_load_whole_is_not_left_behind(saved, tmp_path, monkeypatch):
    rows = tuple((ours, old.replace("layernorm_after", "norm"), *_) for ours, old, *_ in ViTCheckpoint.names)
    monkeypatch.setattr(ViTCheckpoint, "names", rows)
    with pytest.raises(ValueError, match=r"ViTForImageClassification does not take: .*layernorm_after"):
        export(tmp_path / "ours", tmp_path / "theirs")
    assert names(tmp_path) == ["ours"]


def test_other_models_and_absent_folders_are_named(tmp_path, capsys):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, vocab_size=8)).save_pretrained(tmp_path / "bert")
    assert main(["export", str(tmp_path / "bert"), str(tmp_path / "out")]) == 2
    assert "holds a model of type 'bert'; only models of this package" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert "absent does not exist; wanted a folder or a Hub id." in capsys.readouterr().err


def test_an_architecture_that_the_class_cannot_become_is_named(saved, tmp_path):
    with pytest.raises(ValueError, match="MMViTForImageClassification cannot be exported as 'llava'; it can"):
        export(tmp_path / "ours", tmp_path / "theirs", "llava")


def test_a_config_that_names_no_class_is_refused(tmp_path):
    MMViTConfig(**SIZES).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"does not say which class it was saved from"):
        export(tmp_path / "ours", tmp_path / "theirs")
