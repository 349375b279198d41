"""Text to image from nothing, and from a folder of Stable Diffusion: as a whole, by LoRA, for one subject."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from generators.diffusion_tiny import clip_text, kl_autoencoder, text_unet, words
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import ImageDiffusionPipeline
from hf_mm.recipes import text_to_image

ARGS = text_to_image.DEFAULTS | {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Of drawing; the pictures are noise anyhow."""
    monkeypatch.setattr(text_to_image, "STEPS", 2)
    monkeypatch.setattr(text_to_image, "COLUMNS", 2)
    monkeypatch.setattr(text_to_image, "DIT", {"hidden_size": 16, "num_layers": 1, "num_heads": 2})


def pictures(folder, count=4):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (18, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A published model, pictures with texts, and pictures of one subject."""
    root = tmp_path_factory.mktemp("text_to_image")
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    StableDiffusionPipeline(
        kl_autoencoder(channels=3),
        clip_text(),
        words(),
        text_unet(),
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "published")
    pictures(root / "data" / "train")
    lines = ["file_name,text", *(f"{n}.png,{('a red apple', 'a green pear')[n % 2]}" for n in range(4))]
    (root / "data" / "train" / "metadata.csv").write_text("\n".join(lines))
    pictures(root / "subject", 2)
    return root


def trained(folder, **options):
    results = text_to_image.main(text_to_image.Recipe(**options), TrainingArguments(str(folder), **ARGS))
    assert results["steps"] == 2
    assert json.loads((folder / "results.json").read_text())["weights"] == results["weights"]
    for name in ("grid", "neighbours"):
        with Image.open(folder / f"{name}.png") as page:
            assert page.width > 16
    return results


def saved_weights(folder):
    names = ("pytorch_lora_weights", "denoiser/diffusion_pytorch_model", "text_encoder/model")
    files = {name: folder / f"{name}.safetensors" for name in names}
    return {name: load_file(path) for name, path in files.items() if path.is_file()}


def test_from_nothing_in_pixels_by_texts(tmp_path, places):
    trained(tmp_path, dataset=str(places / "data"), image_size=16)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe, ImageDiffusionPipeline)
    assert pipe.prediction_type == "flow_sample"
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "text-to-image"
    assert "MMDiTModel in pixels, trained from nothing on 4 pictures of data with 16 px" in card.text
    assert "image = pipeline('a red apple', num_inference_steps=2, guidance_scale=3.0).images[0]" in card.text
    assert all(f"({name}.png)" in card.text for name in ("samples", "grid"))
    assert "neighbours.png" not in card.text  # it shows training pictures, which may be private
    drawn = pipe("a green apple", seed=0, num_inference_steps=2).images[0]
    assert drawn.size == (16, 16)


def test_a_size_that_eight_patches_do_not_divide_is_learnt(tmp_path, places):
    trained(tmp_path, dataset=str(places / "data"), image_size=28)  # no multiple of 8
    denoiser = DiffusionPipeline.from_pretrained(tmp_path).denoiser
    assert (denoiser.config["sample_size"], denoiser.config["patch_size"]) == (28, 4)


def test_from_nothing_in_latents_what_diffusers_alone_opens(tmp_path, places, monkeypatch):
    monkeypatch.setattr(text_to_image, "UNET_WIDTHS", (8, 16))
    vae = str(places / "published")  # of any pipeline
    trained(tmp_path, dataset=str(places / "data"), image_size=16, denoiser="unet", vae=vae)
    assert list((tmp_path / "latents").glob("*.npy"))
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "plain")
    assert plain.scheduler.config["prediction_type"] == "v_prediction"
    plain.set_progress_bar_config(disable=True)
    assert plain("a red pear", num_inference_steps=2).images[0].size == (16, 16)


def test_a_published_model_is_trained_as_a_whole_from_cached_latents_and_texts(tmp_path, places):
    trained(tmp_path, dataset=str(places / "data"), pretrained=str(places / "published"))
    for name in ("latents", "text_states"):
        assert list((tmp_path / name).glob("*.npy"))
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "plain")
    changed, first = plain.unet.state_dict(), text_unet().state_dict()
    assert all(not torch.equal(changed[name], first[name]) for name in ("conv_in.weight", "conv_out.weight"))
    assert_close(plain.text_encoder.state_dict(), clip_text().state_dict(), rtol=0, atol=0)


def test_adapters_of_unet_and_text_encoder_alone_are_trained_and_load_into_stable_diffusion(tmp_path, places):
    options = {"pretrained": str(places / "published"), "lora_rank": 2, "train_text_encoder": True}
    results = trained(tmp_path, dataset=str(places / "data"), **options)
    weights = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == results["weights"]
    ups = [weight for name, weight in weights.items() if "up.weight" in name or "lora_B" in name]
    assert all(weight.any() for weight in ups), "nothing was learnt"
    assert not (tmp_path / "model_index.json").exists()
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.pipeline_tag, card.data.license) == ("text-to-image", "other")
    assert {"hf-mm", "lora"} == set(card.data.tags)
    assert f'from_pretrained("{places / "published"}")\npipeline.load_lora_weights("' in card.text
    assert "custom_pipeline" not in card.text
    plain = StableDiffusionPipeline.from_pretrained(places / "published")
    plain.load_lora_weights(tmp_path)
    assert plain.get_list_adapters() == {"unet": ["default_0"], "text_encoder": ["default_0"]}


def test_a_subject_is_learnt_beside_what_the_model_drew_of_its_class(tmp_path, places):
    asked = {"instance_prompt": "a red apple", "class_prompt": "a apple", "rows": 3}
    options = {"pretrained": str(places / "published"), "subject": str(places / "subject")}
    results = trained(tmp_path, **options, **asked)
    assert len(list((tmp_path / "class").glob("*.png"))) == 3
    assert results["train_rows"] == 2
    published = ImageDiffusionPipeline.from_stable_diffusion(places / "published")
    published.set_progress_bar_config(disable=True)
    drawn = published("a apple", seed=1, num_inference_steps=2, guidance_scale=3.0).images[0]
    with Image.open(tmp_path / "class" / "00001.png") as kept:
        assert np.abs(np.asarray(kept).astype(int) - np.asarray(drawn)).max() <= 1  # levels


@pytest.mark.parametrize("way", ["pixels", "latents", "lora", "subject"])
def test_a_stopped_run_resumes_to_the_same_weights(tmp_path, places, way):
    """Also its tokenizer, latents, and pictures of the class are those of the run that was not stopped."""
    published = {"pretrained": str(places / "published")}
    options = {
        "pixels": {"dataset": str(places / "data"), "image_size": 16},
        "latents": {"dataset": str(places / "data"), "image_size": 16, "vae": str(places / "published")},
        "lora": {"dataset": str(places / "data"), **published, "lora_rank": 2, "train_text_encoder": True},
        "subject": {"subject": str(places / "subject"), "instance_prompt": "a red apple", **published},
    }[way]
    if way == "subject":
        options |= {"class_prompt": "a apple", "rows": 3}
    kept = ARGS | {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    for name in ("whole", "resumed"):
        args = TrainingArguments(str(tmp_path / name), **kept)
        if name == "resumed":
            args.resume_from_checkpoint = str(tmp_path / "whole" / "checkpoint-1")
        text_to_image.main(text_to_image.Recipe(**options), args)
    assert [path.name for path in (tmp_path / "resumed").glob("checkpoint-*")] == ["checkpoint-2"]
    whole = saved_weights(tmp_path / "whole")
    assert whole
    assert_close(saved_weights(tmp_path / "resumed"), whole, rtol=0, atol=0)


def test_the_command_knows_at_which_rate_each_way_is_trained(tmp_path, places, capsys):
    flags = {"pretrained": places / "published", "lora_rank": 2, "subject": places / "subject"}
    flags |= {"instance_prompt": "a red apple", "output_dir": tmp_path, "max_steps": 1, "logging_steps": 1}
    argv = [f"--{name}={value}" for name, value in flags.items()] + ["--use_cpu", "--disable_tqdm=true"]
    assert text_to_image.run(argv) == 0
    assert "1 steps in" in capsys.readouterr().out
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert log[0]["denoiser_learning_rate"] == 1e-4


def test_the_command_takes_the_steps_of_latents_where_these_are_learnt(tmp_path, places, monkeypatch):
    monkeypatch.setitem(text_to_image.PRESETS, "latents", {"max_steps": 3})
    flags = {
        "vae": places / "published",
        "dataset": places / "data",
        "image_size": 16,
        "output_dir": tmp_path,
    }
    assert text_to_image.run([f"--{name}={value}" for name, value in flags.items()] + ["--use_cpu"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 3


def test_the_example_trains_and_draws(tmp_path, places):
    example = Path(__file__).parents[2] / "examples" / "draw_texts.py"
    data = {"dataset": str(places / "data"), "rows": 2}
    changes = {name: ARGS[name] for name in ("use_cpu", "disable_tqdm", "save_strategy")} | {"max_steps": 1}
    for path in runpy.run_path(str(example))["main"](str(tmp_path), ("a red apple",), **data, **changes):
        with Image.open(path) as page:
            assert page.size == (6 * 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoiser": "vit"}, r"`denoiser`='vit' is none of dit, unet"),
        ({"lora_rank": 4}, r"`lora_rank`=4 needs `pretrained` to go on from"),
        ({"rows": 0}, r"`rows`=0 must be above 0, `lora_rank`=0 0 or more"),
        ({"dataset": "digits", "vlm": "judge"}, r"`vlm`='judge' judges what is drawn of easy-vqa only"),
        ({"class_prompt": "a dog"}, r"`class_prompt`='a dog' needs `subject`, of whose class it is"),
        ({"pretrained": "sd", "vae": "v"}, r"`pretrained`='sd' brings its autoencoder"),
        (
            {"pretrained": "sd", "subject": "dog"},
            r"`subject`='dog' and `instance_prompt`=None belong together",
        ),
        ({"dataset": "digits"}, r"have no texts to learn; `hf-mm train diffusion` needs none"),
    ],
)
def test_wishes_that_do_not_go_together_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        text_to_image.main(text_to_image.Recipe(**options), TrainingArguments(str(tmp_path), **ARGS))
