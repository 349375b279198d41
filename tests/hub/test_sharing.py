"""Push and pull a classifier with the real client: who has not installed hf_mm gets the same numbers."""

import json

import pytest

TRUST = "trust_remote_code=True"
LOAD = "model = AutoModelForImageClassification.from_pretrained({!r}, {})\nprint(classify(model))"


@pytest.fixture(scope="module")
def vit(member) -> list:
    """The logits of a classifier that was pushed as me/vit."""
    return member.value("model = tiny_vit()\nmodel.push_to_hub('vit')\nprint(classify(model))")


def test_a_push_brings_the_code_along(hub, vit):
    files = hub.repositories["me/vit"].files()
    assert set(files) == {".gitattributes", "README.md", "config.json", "hf_mm_vit.py", "model.safetensors"}
    assert json.loads(files["config.json"])["auto_map"] == {
        "AutoConfig": "hf_mm_vit.MMViTConfig",
        "AutoModel": "hf_mm_vit.MMViTModel",
        "AutoModelForImageClassification": "hf_mm_vit.MMViTForImageClassification",
        "AutoModelForMaskedImageModeling": "hf_mm_vit.MMViTForMaskedImageModeling",
    }


def test_a_stranger_gets_the_same_logits(stranger, vit):
    assert stranger.value(LOAD.format("me/vit", TRUST)) == vit


def test_every_auto_class_opens_the_checkpoint(stranger, vit):
    stranger.run(f"""
model = AutoModelForImageClassification.from_pretrained("me/vit", {TRUST})
assert type(model).__module__.startswith("transformers_modules.me.vit.")
assert type(AutoConfig.from_pretrained("me/vit", {TRUST})) is type(model.config)
assert type(AutoModel.from_pretrained("me/vit", {TRUST})).__name__ == "MMViTModel"
""")


def test_a_stranger_is_asked_for_trust(stranger, vit):
    stranger.run("""
try:
    AutoModel.from_pretrained("me/vit")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("code of the Hub ran without a yes")
""")


@pytest.mark.parametrize("flag", ["", TRUST])
def test_a_member_gets_the_installed_classes_with_and_without_the_flag(member, vit, flag):
    check = "\nassert type(model) is hf_mm.MMViTForImageClassification\nprint(classify(model))"
    assert member.value(LOAD.format("me/vit", flag) + check) == vit


def test_what_a_stranger_saves_or_pushes_again_loads_for_everyone(member, stranger, vit, tmp_path):
    again = f"\nmodel.save_pretrained({str(tmp_path)!r})\nmodel.push_to_hub('vit-again')"
    stranger.run(LOAD.format("me/vit", TRUST) + again)
    for place in (str(tmp_path), "me/vit-again"):
        assert stranger.value(LOAD.format(place, TRUST)) == vit
        assert member.value(LOAD.format(place, "")) == vit


def test_an_older_revision_stays_what_it_was(member, stranger, vit):
    new = member.value("""
from huggingface_hub import HfApi

tiny_vit().push_to_hub("vit-versions")
HfApi().create_tag("me/vit-versions", tag="v1")
model = tiny_vit(seed=1)
model.push_to_hub("vit-versions")
print(classify(model))
""")
    assert stranger.value(LOAD.format("me/vit-versions", f"{TRUST}, revision='v1'")) == vit
    assert stranger.value(LOAD.format("me/vit-versions", TRUST)) == new != vit


def test_a_second_load_needs_no_hub(hub, stranger, vit):
    stranger.run(LOAD.format("me/vit", TRUST))
    before = len(hub.requests)
    offline = "import huggingface_hub\nhuggingface_hub.constants.HF_HUB_OFFLINE = True\n"
    assert stranger.value(offline + LOAD.format("me/vit", TRUST)) == vit
    assert not hub.requests[before:]


def test_saving_and_pushing_in_one_call(hub, member, vit, tmp_path):
    member.run(f"""
tiny_vit().save_pretrained({str(tmp_path / "vit-saved")!r}, push_to_hub=True, commit_message="All at once")
processor = tiny_vlm()[1]
processor.save_pretrained({str(tmp_path / "processor")!r}, push_to_hub=True, repo_id="me/processor-saved")
""")
    repository = hub.repositories["me/vit-saved"]
    assert set(repository.files()) == {".gitattributes", "config.json", "hf_mm_vit.py", "model.safetensors"}
    assert repository.titles[repository.refs["main"]] == "All at once"
    assert "hf_mm_vlm.py" in hub.repositories["me/processor-saved"].files()
    assert member.value(LOAD.format("me/vit-saved", "")) == vit


def test_a_failed_push_keeps_what_was_saved(member, vit, tmp_path):
    member.run(f"""
from huggingface_hub.errors import HfHubHTTPError

try:
    tiny_vit().save_pretrained({str(tmp_path)!r}, push_to_hub=True, repo_id="me/refused", token=False)
except HfHubHTTPError as error:
    assert error.response.status_code == 401
else:
    raise AssertionError("pushed without a token")
""")
    assert member.value(LOAD.format(str(tmp_path), "")) == vit


def test_what_is_on_the_hub_can_be_inspected(hub, member, vit):
    before = len(hub.requests)
    lines = member.run("from hf_mm.cli import main\nassert main(['inspect', 'me/vit']) == 0").splitlines()
    assert lines[:2] == ["type: mm_vit", "saved as: MMViTForImageClassification"]
    assert lines[2].startswith("weights: ")
    assert len(hub.requests) > before
