"""The card of a trained generator: samples, measured numbers, how it was trained."""

import pytest
import torch
from huggingface_hub import ModelCard
from phased_tiny import TinyGAN, run_of
from PIL import Image

from hf_mm import GeneratorCard

CARD = GeneratorCard(
    "tiny", "Draws **nothing** you know.", "me/grey", license="mit", tags=["gan"], metadata={"language": "en"}
)
METRICS = {"frechet_distance": 12.345678, "used_codes": 7, "feature_net": "lite0"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that ended and was saved with what was measured."""
    folder = tmp_path_factory.mktemp("card")
    run = run_of(folder, options={"card": CARD}, hub_model_id="me/tiny")
    run.train()
    run.save_model(metrics=METRICS)
    return run, folder


def test_the_card_has_metadata_that_the_hub_reads(saved):
    data = ModelCard.load(saved[1] / "README.md").data
    assert (data.license, data.library_name, data.language) == ("mit", "diffusers", "en")
    assert data.tags == ["hf-mm", "gan"]
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"frechet_distance": 12.345678, "used_codes": 7}
    assert {result.dataset_type for result in data.eval_results} == {"me/grey"}


def test_the_card_tells_what_was_measured_and_how_it_was_trained(saved):
    run, folder = saved
    text = (folder / "README.md").read_text()
    assert "Draws **nothing** you know." in text
    assert "On me/grey, test split:" in text
    assert "| frechet_distance | 12.35 |" in text
    assert "| feature_net      | lite0 |" in text
    assert 'DiffusionPipeline.from_pretrained("me/tiny")' in text
    loss = f"{run.state.log_history[-1]['generator_loss']:.4g}"
    rows = {tuple(part.strip() for part in line.split("|")[1:3]) for line in text.splitlines() if "|" in line}
    expected = {("generator_loss", loss), ("step", "6"), ("learning_rate", "0.01"), ("ema_decay", "0.7")}
    assert expected <= rows


def test_the_card_shows_the_last_preview(saved):
    _, folder = saved
    assert "![Samples of the averaged weights](samples.png)" in (folder / "README.md").read_text()
    with (
        Image.open(folder / "samples.png") as samples,
        Image.open(folder / "previews" / "step-6.png") as last,
    ):
        assert samples.tobytes() == last.tobytes()


def test_the_saved_weights_are_the_averages(saved):
    run, folder = saved
    found = torch.load(folder / "weights.pt")
    with run.averages_applied():
        for name, value in run.objective.generator.state_dict().items():
            assert torch.equal(found[name], value)
    assert not torch.equal(found["0.weight"], run.objective.generator[0].weight)


class Silent(TinyGAN):
    """Has nothing to show."""

    def preview(self, noise_generator, count):
        return None


def test_a_card_without_samples_and_metrics_has_no_empty_places(tmp_path):
    run = run_of(tmp_path / "mine", Silent(), max_steps=1)
    run.train()
    run.save_model(tmp_path / "elsewhere")
    text = (tmp_path / "elsewhere" / "README.md").read_text()
    assert "# mine" in text
    assert "samples.png" not in text
    assert "## Results" not in text
    assert not (tmp_path / "mine" / "previews").exists()
    assert (tmp_path / "elsewhere" / "weights.pt").is_file()
