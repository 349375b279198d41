"""LoRA on denoiser and text encoder: diffusers' files, the same effect everywhere, other bases refused."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from generators.diffusion_tiny import clip_text, dit, kl_autoencoder, text_unet, unet, words
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_mm import DiffusionObjective, ImageDiffusionPipeline, add_diffusion_lora
from hf_mm.generators.diffusion.lora_loading import LORA_FILE

PROMPTS = ["a red apple", "a green pear"]


def pipeline(**parts) -> ImageDiffusionPipeline:
    own = {"denoiser": text_unet(), "vae": kl_autoencoder(channels=3)}
    own |= {"scheduler": DDIMScheduler(clip_sample=False, steps_offset=1)}
    own |= {"text_encoder": clip_text(), "tokenizer": words()}
    pipe = ImageDiffusionPipeline(**own | parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flow_pipeline() -> ImageDiffusionPipeline:
    """Of a transformer, which diffusers' own pipeline does not have."""
    parts = {"denoiser": dit(channels=4, text_dim=12), "scheduler": FlowMatchEulerDiscreteScheduler()}
    return pipeline(**parts, prediction_type="flow_velocity")


def adapted(pipe, text_encoder=True, **options):
    """With adapters that do something: the second factor begins with zeros."""
    torch.manual_seed(5)
    add_diffusion_lora(pipe.denoiser, pipe.text_encoder if text_encoder else None, rank=2, **options)
    for model in (pipe.denoiser, pipe.text_encoder):
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
    return pipe


def drawn(pipe):
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "generator": noise}
    return pipe(PROMPTS, **options, output_type="pt").images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a LoRA on UNet and text encoder, and what is drawn with it."""
    folder = tmp_path_factory.mktemp("lora")
    pipe = adapted(pipeline(), alpha=6)
    pipe.save_lora_weights(folder)
    return folder, drawn(pipe)


def test_a_saved_lora_is_in_the_format_of_diffusers(saved):
    names = load_file(saved[0] / LORA_FILE)
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
    assert all(".lora" in name for name in names)


def test_it_has_the_same_effect_on_our_pipeline_and_on_stable_diffusion(saved):
    folder, expected = saved
    plain = drawn(pipeline())
    assert (plain - expected).abs().max() > 0.01
    ours, stock = pipeline(), pipeline().to_pipeline()
    assert type(stock) is StableDiffusionPipeline
    for pipe in (ours, stock):
        pipe.load_lora_weights(folder)
        assert_close(drawn(pipe), expected, rtol=0, atol=1e-5)
        pipe.unload_lora_weights()
        assert_close(drawn(pipe), plain, rtol=0, atol=1e-5)


def test_a_lora_that_diffusers_saved_is_loaded(tmp_path):
    stock = adapted(pipeline(), text_encoder=False).to_pipeline()
    stock.unet.save_lora_adapter(tmp_path)
    names = {f"unet.{name}": weight for name, weight in load_file(tmp_path / LORA_FILE).items()}
    ours = pipeline()
    ours.load_lora_weights(names, adapter_name="style")
    assert ours.get_list_adapters() == {"denoiser": ["style"]}
    assert_close(drawn(ours), drawn(stock), rtol=0, atol=1e-5)


def test_a_transformer_takes_one_too_and_half_of_it(tmp_path):
    pipe = adapted(flow_pipeline(), text_encoder=False)
    pipe.save_lora_weights(tmp_path)
    assert {name.split(".")[0] for name in load_file(tmp_path / LORA_FILE)} == {"transformer"}
    again = flow_pipeline()
    again.load_lora_weights(tmp_path, adapter_name="style")
    assert_close(drawn(again), drawn(pipe), rtol=0, atol=1e-5)
    again.set_adapters("style", 0.5)
    assert (drawn(again) - drawn(pipe)).abs().max() > 1e-3
    again.disable_lora()
    assert_close(drawn(again), drawn(flow_pipeline()), rtol=0, atol=1e-5)


def test_adapters_are_melted_in_before_the_pipeline_is_saved(tmp_path):
    pipe = adapted(pipeline())
    expected = drawn(pipe)
    with pytest.raises(
        ValueError, match=r"has the adapters \['default'\]; write them by `save_lora_weights`"
    ):
        pipe.save_pretrained(tmp_path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    again = ImageDiffusionPipeline.from_pretrained(tmp_path)
    assert_close(drawn(again), expected, rtol=0, atol=1e-5)


def test_only_the_adapters_learn():
    pipe = adapted(pipeline())
    learner = DiffusionObjective(
        pipe.denoiser,
        pipe.scheduler,
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        train_text_encoder=True,
    )
    learning = {id(weight) for weight in learner.phase_parameters("denoiser")}
    names = [name for name, weight in learner.named_parameters() if id(weight) in learning]
    assert all(".lora_" in name for name in names)
    assert {name.split(".")[0] for name in names} == {"denoiser", "text_encoder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 16}, r"the input of `\S+attn2.to_k` is 16 wide, in the LoRA 12"),
        (
            {
                "down_block_types": ("DownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            },
            r"it has no layer `down_blocks.1.attentions.0\S+`",
        ),
    ],
)
def test_a_lora_of_another_base_is_refused_by_name(saved, changes, message):
    denoiser = text_unet(**changes)
    encoder = clip_text(hidden_size=denoiser.config["cross_attention_dim"])
    pipe = pipeline(denoiser=denoiser, text_encoder=encoder)
    with pytest.raises(ValueError, match=rf"{saved[0]} is a LoRA, another base than this UNet.*{message}"):
        pipe.load_lora_weights(saved[0])
    assert not pipe.get_list_adapters()


def test_a_lora_tells_the_base_it_was_trained_on(tmp_path):
    pipe = pipeline()
    pipe.denoiser.register_to_config(_name_or_path="me/base")
    adapted(pipe, text_encoder=False).save_lora_weights(tmp_path)
    with pytest.raises(
        ValueError, match=r"is a LoRA of me/base for `unet`, this pipeline takes .*MMDiTModel"
    ):
        flow_pipeline().load_lora_weights(tmp_path)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (text_unet, {"rank": 0}, ValueError, r"`rank`=0 must be at least 1"),
        (text_unet, {"targets": ["query"]}, ValueError, r"matches `targets`=\['query'\]; .* end in .*to_q"),
        (unet, {}, TypeError, r"UNet2DModel takes no adapters; take UNet2DConditionModel"),
    ],
)
def test_faulty_adapters_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        add_diffusion_lora(model(), **options)


def test_an_adapter_that_is_not_there_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"`adapter_name`='style' is no adapter .* there are \['default'\]"):
        adapted(pipeline()).save_lora_weights(tmp_path, "style")
