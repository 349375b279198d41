"""Components and pipelines of diffusers are saved whole or not at all, as safetensors only."""

import errno
import json

import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from hub.sharing_tiny import BLOCKS, tiny_kl, tiny_pipeline, tiny_vq

from hf_mm import AutoencoderPipeline, MMVQAutoencoder
from hf_mm.hub.diffusers_registration import register_with_diffusers

CODE = "modeling_vq_autoencoder.py"


class SomebodysAutoencoder(MMVQAutoencoder):
    """A class that has no home in this package."""


class SomebodysPipeline(AutoencoderPipeline):
    """And one around it."""


def contents(folder) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def first_weight(model) -> float:
    return next(model.parameters()).flatten()[0].item()


@pytest.mark.parametrize("make", [tiny_vq, tiny_pipeline], ids=["component", "pipeline"])
def test_full_disk_keeps_the_earlier_save(tmp_path, monkeypatch, make):
    make().save_pretrained(tmp_path)
    before = contents(tmp_path)

    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make().save_pretrained(tmp_path)
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob("_*"))


@pytest.mark.parametrize("variant", [None, "ema"])
@pytest.mark.parametrize(("first", "second"), [("10KB", "1GB"), ("1GB", "10KB"), ("10KB", "20KB")])
def test_weights_of_the_earlier_save_do_not_outlive_the_new_ones(tmp_path, first, second, variant):
    """Also not in the folder of a component: diffusers would load them."""
    old, new = tiny_pipeline(tiny_vq(seed=0)), tiny_pipeline(tiny_vq(seed=1))
    old.save_pretrained(tmp_path / "again", max_shard_size=first, variant=variant)
    new.save_pretrained(tmp_path / "again", max_shard_size=second, variant=variant)
    new.save_pretrained(tmp_path / "fresh", max_shard_size=second, variant=variant)
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh")
    again = DiffusionPipeline.from_pretrained(tmp_path / "again", variant=variant)
    assert first_weight(again.vae) == first_weight(new.vae) != first_weight(old.vae)


def test_a_variant_stands_beside_the_other_weights(tmp_path):
    tiny_vq(seed=0).save_pretrained(tmp_path)
    tiny_vq(seed=1).save_pretrained(tmp_path, variant="ema", max_shard_size="10KB")
    for variant, seed in ((None, 0), ("ema", 1)):
        again = MMVQAutoencoder.from_pretrained(tmp_path, variant=variant)
        assert first_weight(again) == first_weight(tiny_vq(seed))


def test_saving_into_the_folder_that_is_loaded_from_keeps_the_weights(tmp_path):
    """The loaded weights may still be read from the file that is written."""
    tiny_pipeline().save_pretrained(tmp_path)
    before = contents(tmp_path)["vae/diffusion_pytorch_model.safetensors"]
    DiffusionPipeline.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert contents(tmp_path)["vae/diffusion_pytorch_model.safetensors"] == before


@pytest.mark.parametrize("make", [tiny_vq, tiny_pipeline], ids=["component", "pipeline"])
def test_pickled_weights_are_refused(tmp_path, make):
    with pytest.raises(
        ValueError, match=r"`safe_serialization=False` would write pickled weights, .* leave it"
    ):
        make().save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [tiny_vq, tiny_pipeline], ids=["component", "pipeline"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, make):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(FileExistsError, match="model"):
        make().save_pretrained(tmp_path / "model")


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    tiny_vq().save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model").exists()


def test_a_config_that_is_saved_alone_comes_with_its_code(tmp_path):
    tiny_vq().save_config(tmp_path / "model")
    tiny_pipeline().save_config(tmp_path / "pipeline")
    assert set(contents(tmp_path)) == {
        f"model/{CODE}",
        "model/config.json",
        "pipeline/model_index.json",
        "pipeline/pipeline.py",
    }


def test_a_compiled_component_is_saved_as_itself(tmp_path):
    pipe = tiny_pipeline()
    pipe.vae = torch.compile(pipe.vae)
    pipe.save_pretrained(tmp_path)
    assert set(contents(tmp_path)) >= {f"vae/{CODE}", "pipeline.py"}
    assert type(DiffusionPipeline.from_pretrained(tmp_path).vae) is MMVQAutoencoder


def test_a_class_of_somebody_else_is_saved_as_diffusers_does_it(tmp_path):
    """Its code is not ours to send; who registers it finds it."""
    torch.manual_seed(0)
    model = SomebodysAutoencoder(num_vq_embeddings=8, **BLOCKS)
    SomebodysPipeline(model).save_pretrained(tmp_path)
    files = contents(tmp_path)
    assert not [name for name in files if name.endswith(".py")]
    assert json.loads(files["model_index.json"])["vae"] == [__name__, "SomebodysAutoencoder"]
    assert "auto_map" not in json.loads(files["vae/config.json"])
    register_with_diffusers(SomebodysAutoencoder, SomebodysPipeline)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is SomebodysPipeline
    assert type(again.vae) is SomebodysAutoencoder
    assert first_weight(again.vae) == first_weight(model)


def test_around_a_component_of_diffusers_the_component_stays_as_it_is(tmp_path):
    tiny_pipeline(tiny_kl()).save_pretrained(tmp_path / "pipeline")
    tiny_kl().save_pretrained(tmp_path / "kl")
    assert set(contents(tmp_path / "pipeline" / "vae")) == set(contents(tmp_path / "kl"))
