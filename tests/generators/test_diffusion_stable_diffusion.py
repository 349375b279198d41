"""To plain Stable Diffusion and back: the same pixels, and each part that does not fit is named."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from diffusers import UniPCMultistepScheduler as UniPC
from generators.diffusion_tiny import clip_text, dit, kl_autoencoder, text_unet, words
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline, MMCLIPTextConfig, MMCLIPTextModel

CALL = {"num_inference_steps": 3, "guidance_scale": 2.0}
PROMPTS = ["a red apple", "a green pear"]


def pipeline(prediction_type="epsilon", **parts) -> ImageDiffusionPipeline:
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, steps_offset=1)
    own = {"denoiser": text_unet(), "scheduler": scheduler, "vae": kl_autoencoder(channels=3)}
    own |= {"text_encoder": clip_text(), "tokenizer": words(), "prediction_type": prediction_type}
    pipe = ImageDiffusionPipeline(**own | parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own_tower() -> MMCLIPTextModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    config = MMCLIPTextConfig(vocab_size=8, max_position_embeddings=6, **sizes, **ids)
    return MMCLIPTextModel(config).eval()


def drawn(pipe, prompts=None):
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe(prompts or PROMPTS, **CALL, generator=noise, output_type="pt").images


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_plain_folder_is_drawn_with_by_who_has_diffusers_alone(stranger, tmp_path, prediction_type):
    pipe = pipeline(prediction_type, text_encoder=own_tower())
    pipe.to_pipeline().save_pretrained(tmp_path / "plain")
    torch.save(drawn(pipe), tmp_path / "expected.pt")
    index = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["safety_checker"] == [None, None]
    stranger.run(f"""
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({str(tmp_path / "plain")!r})
expected = torch.load({str(tmp_path / "expected.pt")!r})
found = pictures(pipe, {dict(CALL, prompt=PROMPTS)!r})
assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
assert "hf_mm" not in sys.modules
""")


def test_a_published_folder_is_opened_and_drawn_with_alike(tmp_path):
    stock = pipeline("v_prediction").to_pipeline()
    stock.save_pretrained(tmp_path)
    again = ImageDiffusionPipeline.from_stable_diffusion(tmp_path)
    assert again.prediction_type == "v_prediction"
    assert_close(drawn(again), drawn(stock), rtol=0, atol=1e-5)


def test_a_flow_is_drawn_by_diffusers_alone_with_a_scheduler_of_flows():
    scheduler = UniPC(use_flow_sigmas=True, prediction_type="flow_prediction", steps_offset=1)
    pipe = pipeline("flow_velocity", scheduler=scheduler)
    plain = pipe.to_pipeline()
    assert isinstance(plain, StableDiffusionPipeline)
    assert_close(drawn(plain), drawn(pipe), rtol=0, atol=1e-5)


def test_the_way_there_copies_no_weight():
    pipe = pipeline()
    plain = pipe.to_pipeline()
    assert plain.unet is pipe.denoiser
    assert plain.vae is pipe.vae
    assert plain.text_encoder is pipe.text_encoder


def shifted():
    return kl_autoencoder(channels=3, shift_factor=0.5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            lambda: {"denoiser": dit(channels=4, text_dim=12)},
            r"`denoiser` is MMDiTModel; Stable Diffusion has UNet",
        ),
        (lambda: {"denoiser": text_unet(num_class_embeds=3)}, r"has classes \(`num_class_embeds`=3\)"),
        (lambda: {"vae": shifted()}, r"`shift_factor`=0.5, which Stable Diffusion ignores"),
        (lambda: {"vae": None, "denoiser": text_unet(channels=3)}, r"`vae` is NoneType; .* AutoencoderKL"),
        (
            lambda: {
                "scheduler": FlowMatchEulerDiscreteScheduler(),
                "prediction_type": "flow_velocity",
            },
            r"cannot draw by FlowMatchEuler.*UniPCMultistepScheduler\(use_flow_sigmas=True",
        ),
        (
            lambda: {"scheduler": DDIMScheduler(clip_sample=False)},
            r"DDIMScheduler has \{'steps_offset': 0\}; .*from_config\(.*config, steps_offset=1\)",
        ),
        (
            lambda: {
                "scheduler": UniPC(use_flow_sigmas=True, prediction_type="flow_prediction"),
                "prediction_type": "flow_sample",
            },
            r"predicts 'flow_sample'; Stable Diffusion draws by epsilon",
        ),
    ],
)
def test_a_part_that_stable_diffusion_does_not_have_is_named(parts, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**parts()).to_pipeline()


def test_a_tokenizer_without_a_length_is_refused():
    pipe = pipeline()
    length, pipe.tokenizer.model_max_length = pipe.tokenizer.model_max_length, int(1e30)
    try:
        with pytest.raises(ValueError, match=r"`model_max_length`=10+\d*; Stable Diffusion pads every text"):
            pipe.to_pipeline()
    finally:
        pipe.tokenizer.model_max_length = length


def test_another_pipeline_is_not_opened_as_stable_diffusion(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    with pytest.raises(ValueError, match=r"holds a DDPMPipeline, not a StableDiffusionPipeline"):
        ImageDiffusionPipeline.from_stable_diffusion(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no model_index.json"):
        ImageDiffusionPipeline.from_stable_diffusion(tmp_path / "empty")
