"""What a phased run pushes: the averaged pipeline with its card and samples, not its checkpoints."""

import pytest
from huggingface_hub import ModelCard

RUN = """
from hf_mm import AutoencoderObjective, GeneratorCard, PhasedTrainer, PixelRows
pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
rows = PixelRows(pixels)
objective = AutoencoderObjective(tiny_vq(), preview_images=rows.pixel_values()[:2])
options = dict(max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=4, use_cpu=True)
options |= dict(disable_tqdm=True, report_to="none", push_to_hub=True, learning_rate=0.01, warmup_steps=0)
args = TrainingArguments("run", hub_model_id="me/{name}", hub_strategy="{strategy}", **options)
card = GeneratorCard("{name}", "Small.", "me/noise")
run = PhasedTrainer(objective, args, rows, ema_decay=0.5, preview_steps=2, preview_count=4, card=card)
from pathlib import Path
Path("run/latents").mkdir(parents=True, exist_ok=True)
Path("run/latents/latents-0.npy").write_bytes(b"0")
Path("run/neighbours.png").write_bytes(b"0")
run.train()
"""
FINISH = """
run.save_model(metrics={"psnr": 12.5})
with run.averages_applied():
    print(draw(objective.pipeline()))
"""


@pytest.fixture(scope="module")
def pixels(member):
    """What the averaged pipeline draws that a run pushed as me/phased."""
    return member.value(RUN.format(name="phased", strategy="end") + FINISH)


def test_the_pipeline_is_pushed_with_card_and_samples_and_no_checkpoints(hub, pixels):
    repository = hub.repositories["me/phased"]
    files = repository.files()
    expected = {
        "README.md",
        "samples.png",
        "previews/step-2.png",
        "previews/step-4.png",
        "trainer_state.json",
    }
    assert {*expected, "model_index.json", "pipeline.py", "vae/config.json"} <= set(files)
    assert not [path for path in files if path.startswith(("checkpoint", "latents", "neighbours", "_"))]
    assert files["samples.png"] == files["previews/step-4.png"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.eval_results[0].metric_value == 12.5
    assert 'from_pretrained("me/phased")' in card.text
    assert repository.titles[repository.refs["main"]] == "Weights after step 4"


def test_a_stranger_draws_the_same_with_the_averaged_weights(stranger, pixels):
    load = (
        "DiffusionPipeline.from_pretrained('me/phased', custom_pipeline='pipeline', trust_remote_code=True)"
    )
    assert stranger.value(f"print(draw({load}))") == pixels


RECIPES = {
    "gan": "--dataset digits",
    "diffusion": "--dataset digits --system flow-dit --inference_steps 2",
    "autoencoder": "--dataset digits --model fsq",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_pushes_what_it_measured_and_drew(hub, member, name):
    flags = f"{RECIPES[name]} --rows 16 --max_steps 1 --per_device_train_batch_size 4 --report_to none"
    flags += f" --disable_tqdm true --output_dir {name} --push_to_hub --hub_model_id me/made-{name}"
    member.run(f"from hf_mm.recipes import {name}\n{name}.run({flags.split()!r})")
    files = hub.repositories[f"me/made-{name}"].files()
    page = "reconstructions.png" if name == "autoencoder" else "grid.png"
    assert {"results.json", page, "README.md"} <= set(files)


def test_every_save_is_pushed_when_asked(hub, member):
    member.run(RUN.format(name="often", strategy="every_save"))
    repository = hub.repositories["me/often"]
    titles = list(repository.titles.values())
    assert [title for title in titles if "after" in title] == ["Weights after step 2", "Weights after step 4"]
    assert "previews/step-4.png" in repository.files()
