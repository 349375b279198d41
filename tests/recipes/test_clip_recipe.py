import json

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoModel, TrainingArguments, pipeline

from hf_mm import MMCLIPModel, encode_images, encode_texts, load_rgb, retrieval_metrics
from hf_mm.recipes import clip

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 60, 220), "grey": (128, 128, 128)}


@pytest.fixture
def pictures(tmp_path):
    """40 plain pictures with captions in a parquet file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = {"image": [], "caption": []}
    for number in range(40):
        name, colour = list(COLOURS.items())[number % 4]
        noisy = np.clip(np.array(colour) + rng.integers(-20, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
        path = folder / f"{number}.png"
        PILImage.fromarray(noisy).save(path)
        rows["image"].append(str(path))
        rows["caption"].append(f"a {name} wall, number {number}")
    features = Features({"image": Image(), "caption": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


def arguments(folder, **changes):
    fields = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "warmup_steps": 0,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **(clip.DEFAULTS | fields | changes))


@pytest.mark.slow
@pytest.mark.parametrize("towers", [("vit", "transformer"), ("resnet", "bag_of_words")], ids="-".join)
def test_leaves_a_model_that_others_can_use(pictures, tmp_path, towers):
    out = tmp_path / "out"
    recipe = clip.Recipe(dataset=str(pictures), vision_model=towers[0], text_model=towers[1])
    results = clip.main(recipe, arguments(out, gradient_accumulation_steps=2))
    assert json.loads((out / "results.json").read_text()) == results
    assert results["steps"] == 2
    assert results["candidates"] == 4
    assert results["chance"]["image_to_text_R@1"] == pytest.approx(0.25)
    assert load_rgb(out / "matches.png").size
    card = (out / "README.md").read_text()
    assert "zero-shot-image-classification" in card
    assert "4 pictures that training never saw" in card
    assert isinstance(AutoModel.from_pretrained(out), MMCLIPModel)
    classify = pipeline("zero-shot-image-classification", model=str(out), trust_remote_code=False)
    said = classify(PILImage.new("RGB", (64, 64), "red"), candidate_labels=["red", "blue"])
    assert {row["label"] for row in said} == {"red", "blue"}
    assert sum(row["score"] for row in said) == pytest.approx(1.0)


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(pictures, tmp_path):
    recipe = clip.Recipe(dataset=str(pictures))
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    clip.main(recipe, arguments(tmp_path / "whole", **saving))
    whole = MMCLIPModel.from_pretrained(tmp_path / "whole").state_dict()
    for name in ("checkpoint-2", "checkpoint-3"):
        (tmp_path / "whole" / name / "trainer_state.json").unlink()  # killed while it was written
    clip.main(recipe, arguments(tmp_path / "whole", resume_from_checkpoint="last", **saving))
    again = MMCLIPModel.from_pretrained(tmp_path / "whole").state_dict()
    assert all(weight.equal(again[name]) for name, weight in whole.items())


@pytest.mark.slow
def test_trains_one_tower_and_adapters_of_a_checkpoint(pictures, tmp_path):
    clip.main(clip.Recipe(dataset=str(pictures)), arguments(tmp_path / "base"))
    base = MMCLIPModel.from_pretrained(tmp_path / "base")
    recipe = clip.Recipe(
        dataset=str(pictures),
        checkpoint=str(tmp_path / "base"),
        train_towers="text,temperature",
        tower_rates="text=1e-2",
    )
    clip.main(recipe, arguments(tmp_path / "lit"))
    lit = MMCLIPModel.from_pretrained(tmp_path / "lit")
    assert all(
        weight.equal(dict(lit.vision_model.named_parameters())[name])
        for name, weight in base.vision_model.named_parameters()
    )
    assert not lit.text_projection.weight.equal(base.text_projection.weight)
    recipe = clip.Recipe(dataset=str(pictures), checkpoint=str(tmp_path / "base"), lora_rank=2)
    clip.main(recipe, arguments(tmp_path / "lora"))
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()


def test_refuses_too_few_rows(pictures, tmp_path):
    few = Dataset.from_parquet(str(pictures)).select(range(10))
    few.to_parquet(tmp_path / "few.parquet")
    with pytest.raises(ValueError, match="too few rows to hold a tenth out"):
        clip.main(clip.Recipe(dataset=str(tmp_path / "few.parquet")), arguments(tmp_path / "out"))


def test_refuses_rates_that_are_no_numbers(tmp_path):
    with pytest.raises(ValueError, match="`tower_rates`='text' must look like"):
        clip.main(clip.Recipe(tower_rates="text"), arguments(tmp_path))


@pytest.mark.slow
def test_classes_are_measured_in_every_way():
    recipe = clip.Recipe(dataset="easy-vqa")
    rows = clip.load(recipe)
    by_class = {}
    for number, label in enumerate(rows.train["label"]):
        by_class.setdefault(label, []).append(number)
    train = rows.train.select([number for members in by_class.values() for number in members[:16]])
    rows = clip.Rows(train, rows.test.select(range(48)), rows.classes)
    model, processor = clip.build(recipe, rows)
    measured = clip.alignment(model, processor, rows, 64)
    more, table = clip.class_results(model, processor, rows, measured)
    assert len(rows.classes) == 24
    assert [row["shots"] for row in more["few_shot"]] == [1, 2, 4, 8, 16]
    assert {row["corruption"] for row in more["robustness"]} > {"jpeg", "contrast", "mean"}
    assert more["linear_probe"]["accuracy"] > 3 / 24  # even of an untrained tower, colours can be read
    assert more["clip_vqa"]["questions"] == 9673
    assert more["clip_vqa"]["prior"] == pytest.approx(0.67, abs=0.005)
    assert all(0 <= row["accuracy"] <= 1 for row in table)


def test_retrieval_ranks_by_the_similarity_of_the_model(pictures):
    recipe = clip.Recipe(dataset=str(pictures), text_model="bag_of_words")
    rows = clip.load(recipe)
    rows = clip.Rows(rows.train, rows.train, [])
    model, processor = clip.build(recipe, rows)
    model.config.similarity = "euclidean"
    embeds = (
        encode_images(model, processor, rows.test["image"], progress=False),
        encode_texts(model, processor, rows.test["caption"], progress=False),
    )
    measured = clip.alignment(model, processor, rows, 64)
    assert measured == retrieval_metrics(*embeds, similarity="euclidean")
    assert measured != retrieval_metrics(*embeds)
