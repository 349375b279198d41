"""Push and pull components and pipelines of diffusers: who has not installed hf_mm draws the same pixels."""

import json

import pytest

TRUST = "trust_remote_code=True"
REMOTE = f"custom_pipeline='pipeline', {TRUST}"
CODE = "modeling_vq_autoencoder.py"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPE = "pipe = DiffusionPipeline.from_pretrained({!r}, {})\nprint(draw(pipe))"
MODEL = "model = diffusers.AutoModel.from_pretrained({!r}, {})\nprint(rebuild(model))"


@pytest.fixture(scope="module")
def pixels(member) -> list:
    """What a pipeline draws that was pushed as me/pipeline."""
    return member.value("pipe = tiny_pipeline()\npipe.push_to_hub('pipeline')\nprint(draw(pipe))")


@pytest.fixture(scope="module")
def rebuilt(member) -> list:
    """What a component makes of a picture that was pushed as me/vq."""
    return member.value("model = tiny_vq()\nmodel.push_to_hub('vq')\nprint(rebuild(model))")


def test_a_push_of_a_pipeline_brings_the_code_along(hub, pixels):
    files = hub.repositories["me/pipeline"].files()
    expected = {"model_index.json", "pipeline.py", f"vae/{CODE}", "vae/config.json", f"vae/{WEIGHTS}"}
    assert set(files) == expected | {".gitattributes", "README.md"}
    index = json.loads(files["model_index.json"])
    assert index["_class_name"] == "AutoencoderPipeline"
    assert index["vae"] == ["modeling_vq_autoencoder", "MMVQAutoencoder"]


def test_a_push_of_a_component_brings_the_code_along(hub, rebuilt):
    files = hub.repositories["me/vq"].files()
    assert set(files) == {".gitattributes", "README.md", CODE, "config.json", WEIGHTS}
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert auto_map == {"AutoModel": "modeling_vq_autoencoder.MMVQAutoencoder"}


def test_a_stranger_draws_the_same_pixels(stranger, pixels):
    assert stranger.value(PIPE.format("me/pipeline", REMOTE)) == pixels


def test_a_stranger_opens_a_component_by_itself(stranger, rebuilt):
    assert stranger.value(MODEL.format("me/vq", TRUST)) == rebuilt


@pytest.mark.parametrize(
    "load", [PIPE.format("me/pipeline", "custom_pipeline='pipeline'"), MODEL.format("me/vq", "")]
)
def test_a_stranger_is_asked_for_trust(stranger, pixels, rebuilt, load):
    stranger.run(f"""
try:
    exec({load!r})
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("code of the Hub ran without a yes")
""")


@pytest.mark.parametrize("flags", ["", TRUST, REMOTE])
def test_a_member_draws_the_same_pixels_with_and_without_flags(member, pixels, flags):
    check = "\nassert type(pipe.vae) is hf_mm.MMVQAutoencoder\nprint(draw(pipe))"
    assert member.value(PIPE.format("me/pipeline", flags) + check) == pixels


@pytest.mark.parametrize("flags", ["", TRUST])
@pytest.mark.parametrize("place", ["'me/vq'", "'me/pipeline', subfolder='vae'"])
def test_auto_model_gives_a_member_the_installed_class(member, pixels, rebuilt, place, flags):
    code = f"model = diffusers.AutoModel.from_pretrained({place}, {flags})\nprint(rebuild(model))"
    assert member.value(f"{code}\nassert type(model) is hf_mm.MMVQAutoencoder") == rebuilt


def test_the_class_itself_opens_a_component_of_a_pipeline(member, pixels, rebuilt):
    code = "print(rebuild(hf_mm.MMVQAutoencoder.from_pretrained('me/pipeline', subfolder='vae')))"
    assert member.value(code) == rebuilt


def test_auto_model_builds_the_installed_class_from_a_config(member, pixels, rebuilt):
    member.run("""
made = diffusers.AutoModel.from_config("me/pipeline", subfolder="vae", scaling_factor=2.0)
assert type(made) is hf_mm.MMVQAutoencoder
assert made.config.scaling_factor == 2.0
assert type(diffusers.AutoModel.from_config(made.config)) is hf_mm.MMVQAutoencoder
""")


def test_auto_model_opens_what_is_not_ours_as_before(member, tmp_path):
    member.run(f"""
tiny_kl().save_pretrained({str(tmp_path)!r})
model = diffusers.AutoModel.from_pretrained(pretrained_model_or_path={str(tmp_path)!r})
assert type(model) is AutoencoderKL
assert type(diffusers.AutoModel.from_config({str(tmp_path)!r})) is AutoencoderKL
try:
    diffusers.AutoModel.from_pretrained({str(tmp_path / "none")!r})
except OSError as error:
    assert "config.json" in str(error)
else:
    raise AssertionError("opened nothing")
""")


def test_around_a_component_of_diffusers_only_the_pipeline_brings_code(hub, member, stranger):
    pixels = member.value("pipe = tiny_pipeline(tiny_kl())\npipe.push_to_hub('kl')\nprint(draw(pipe))")
    files = hub.repositories["me/kl"].files()
    assert [name for name in files if name.endswith(".py")] == ["pipeline.py"]
    assert json.loads(files["model_index.json"])["vae"] == ["diffusers", "AutoencoderKL"]
    assert stranger.value(PIPE.format("me/kl", REMOTE)) == pixels
    assert member.value(PIPE.format("me/kl", "")) == pixels


def test_a_pipeline_of_diffusers_around_a_component_of_ours_opens_for_members(member, rebuilt, tmp_path):
    member.run(f"""
blocks = {{"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}}
unet = diffusers.UNet2DModel(block_out_channels=(4,), norm_num_groups=2, sample_size=4, **blocks)
pipe = diffusers.LDMPipeline(tiny_vq(), unet, diffusers.DDIMScheduler())
pipe.save_pretrained({str(tmp_path)!r})
pipe.push_to_hub("ldm")
""")
    for place in (str(tmp_path), "me/ldm"):
        code = f"pipe = DiffusionPipeline.from_pretrained({place!r})\nprint(rebuild(pipe.vqvae))"
        assert member.value(code) == rebuilt


def test_what_a_stranger_saves_or_pushes_again_draws_the_same_for_everyone(
    member, stranger, pixels, tmp_path
):
    again = f"\npipe.save_pretrained({str(tmp_path)!r})\npipe.push_to_hub('pipeline-again')"
    stranger.run(PIPE.format("me/pipeline", REMOTE) + again)
    for place in (str(tmp_path), "me/pipeline-again"):
        assert stranger.value(PIPE.format(place, REMOTE)) == pixels
        assert member.value(PIPE.format(place, "")) == pixels


def test_a_component_that_a_stranger_saves_again_opens_for_everyone(member, stranger, rebuilt, tmp_path):
    stranger.run(MODEL.format("me/vq", TRUST) + f"\nmodel.save_pretrained({str(tmp_path)!r})")
    assert stranger.value(MODEL.format(str(tmp_path), TRUST)) == rebuilt
    assert member.value(MODEL.format(str(tmp_path), "")) == rebuilt


def test_only_the_files_of_a_variant_are_loaded(hub, member, stranger):
    half = member.value("""
from huggingface_hub import HfApi

pipe = tiny_pipeline()
pipe.save_pretrained("variants")
pipe.to(torch.float16).save_pretrained("variants", variant="fp16")
HfApi().create_repo("me/variants")
HfApi().upload_folder(repo_id="me/variants", folder_path="variants")
print(draw(pipe.to(torch.float32)))
""")
    files = hub.repositories["me/variants"].files()
    assert {f"vae/{WEIGHTS}", "vae/diffusion_pytorch_model.fp16.safetensors"} <= set(files)
    before = len(hub.requests)
    load = "variant='fp16', torch_dtype=torch.float32"
    assert member.value(PIPE.format("me/variants", load)) == half
    assert stranger.value(PIPE.format("me/variants", f"{load}, {REMOTE}")) == half
    assert not [request for request in hub.requests[before:] if request.endswith(f"/vae/{WEIGHTS}")]
    member.run("""
try:
    DiffusionPipeline.from_pretrained("me/variants", variant="ema")
except ValueError as error:
    assert "variant" in str(error)
else:
    raise AssertionError("loaded a variant that is not there")
""")


def test_an_older_revision_stays_what_it_was(member, stranger, pixels):
    new = member.value("""
from huggingface_hub import HfApi

tiny_pipeline().push_to_hub("versions")
HfApi().create_tag("me/versions", tag="v1")
pipe = tiny_pipeline(tiny_vq(seed=1))
pipe.push_to_hub("versions")
print(draw(pipe))
""")
    old = f"revision='v1', {REMOTE}"
    assert stranger.value(PIPE.format("me/versions", old)) == pixels
    assert stranger.value(PIPE.format("me/versions", REMOTE)) == new != pixels


def test_a_second_load_needs_no_hub(hub, member, pixels):
    member.run(PIPE.format("me/pipeline", ""))
    before = len(hub.requests)
    assert member.value(PIPE.format("me/pipeline", "local_files_only=True")) == pixels
    assert not hub.requests[before:]


def test_saving_and_pushing_in_one_call(hub, member, pixels, rebuilt, tmp_path):
    member.run(f"""
options = {{"push_to_hub": True, "commit_message": "All at once"}}
tiny_pipeline().save_pretrained({str(tmp_path / "pipeline-saved")!r}, **options)
tiny_vq().save_pretrained({str(tmp_path / "vq")!r}, repo_id="me/vq-saved", **options)
tiny_vq().save_config({str(tmp_path / "config")!r}, push_to_hub=True, repo_id="me/vq-config")
""")
    repository = hub.repositories["me/pipeline-saved"]
    assert repository.titles[repository.refs["main"]] == "All at once"
    assert {"pipeline.py", f"vae/{CODE}"} <= set(repository.files())
    assert CODE in hub.repositories["me/vq-config"].files()
    assert member.value(PIPE.format("me/pipeline-saved", "")) == pixels
    assert member.value(MODEL.format("me/vq-saved", "")) == rebuilt


def test_a_failed_push_keeps_what_was_saved(member, pixels, tmp_path):
    member.run(f"""
from huggingface_hub.errors import HfHubHTTPError

try:
    tiny_pipeline().save_pretrained({str(tmp_path)!r}, push_to_hub=True, repo_id="me/refused", token=False)
except HfHubHTTPError as error:
    assert error.response.status_code == 401
else:
    raise AssertionError("pushed without a token")
""")
    assert member.value(PIPE.format(str(tmp_path), "")) == pixels
