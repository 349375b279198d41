"""Cross-attention is that of the layers, is laid on the picture word by word, and looking changes nothing."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from generators import diffusion_tiny
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline, drawn_word_attention
from hf_mm.visualization.drawn_words import record_cross_attention

PROMPT = "a red apple"
CALL = {"seed": 0, "num_inference_steps": 2}
DENOISERS = {
    "unet": lambda: diffusion_tiny.text_unet(channels=3),
    "cross": lambda: diffusion_tiny.dit(channels=3, text_dim=diffusion_tiny.TEXT_DIM),
    "joint": lambda: diffusion_tiny.dit(channels=3, text_dim=diffusion_tiny.TEXT_DIM, text_mode="joint"),
}


def pipeline(kind):
    parts = {"text_encoder": diffusion_tiny.clip_text(), "tokenizer": diffusion_tiny.words()}
    pipe = ImageDiffusionPipeline(DENOISERS[kind](), DDIMScheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_words_have_maps_and_the_picture_is_that_of_the_call(kind, guidance):
    pipe = pipeline(kind)
    drawn = drawn_word_attention(pipe, PROMPT, guidance_scale=guidance, **CALL)
    assert drawn.found.words == ["a", "red", "apple"]
    assert drawn.found.maps.shape == (3, 4, 4)
    assert_close(drawn.found.maps.sum((1, 2)), torch.ones(3))
    assert drawn.found.maps.flatten(1).std(1).min() > 1e-6
    plain = pipe(PROMPT, guidance_scale=guidance, **CALL).images[0]
    assert (np.asarray(drawn.image) == np.asarray(plain)).all()


def test_maps_are_those_of_what_is_wanted_not_of_the_empty_prompt():
    pipe = pipeline("cross")
    one = {"seed": 0, "num_inference_steps": 1}  # the first inputs are the same with guidance and without
    guided = drawn_word_attention(pipe, PROMPT, guidance_scale=3.0, **one).found.maps
    assert_close(guided, drawn_word_attention(pipe, PROMPT, guidance_scale=1.0, **one).found.maps)


def test_shares_of_a_unet_are_the_softmax_of_its_queries_and_keys():
    unet = diffusion_tiny.text_unet(channels=3)
    before = dict(unet.attn_processors)
    text = torch.randn(2, 5, diffusion_tiny.TEXT_DIM)
    inputs = []
    layers = [part for name, part in unet.named_modules() if name.endswith("attn2")]
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.append((module, args[0])), with_kwargs=True
        )
    sample = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        with record_cross_attention(unet) as maps:
            seen = unet(sample, 3, encoder_hidden_states=text).sample
        assert torch.equal(seen, unet(sample, 3, encoder_hidden_states=text).sample)
        assert len(maps) == len(layers)
        for shares, (layer, states) in zip(maps, inputs, strict=False):
            query, key = (
                part.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
                for part in (layer.to_q(states), layer.to_k(text))
            )
            expected = (query @ key.transpose(-1, -2) * layer.scale).softmax(-1)
            assert_close(shares, expected)
    assert unet.attn_processors == before  # the very same objects


def test_processors_are_put_back_after_an_error():
    unet = diffusion_tiny.text_unet(channels=3)
    before = dict(unet.attn_processors)
    with pytest.raises(KeyError), record_cross_attention(unet):
        raise KeyError
    assert unet.attn_processors == before


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_maps_are_the_mean_of_layers_and_heads_at_the_tokens_of_a_word(kind):
    pipe = pipeline(kind)
    call = {"num_inference_steps": 1, "height": 8, "width": 16, "guidance_scale": 1.0}
    noise = torch.randn(1, 3, 8, 16)
    found = drawn_word_attention(pipe, PROMPT, latents=noise, **call).found
    text = pipe.text_encoder(**pipe.tokenizer(PROMPT, return_tensors="pt")).last_hidden_state
    with torch.no_grad(), pipe.denoiser.record_text_attention() as shares:
        pipe.denoiser(noise, pipe.scheduler.timesteps[0], encoder_hidden_states=text)
    mean = torch.stack([layer[0, :, -32:].mean(0) for layer in shares]).mean(0)  # 4 x 8 patches, 5 tokens
    expected = mean[:, 1:4].T.unflatten(1, (4, 8))  # between the tokens of start and end
    assert_close(found.maps, expected / expected.sum((1, 2), keepdim=True))


def test_what_has_no_words_is_said():
    pipe = pipeline("cross")
    with pytest.raises(ValueError, match=r"`prompt`=\['a', 'red'\], with \[\]: one text and one picture"):
        drawn_word_attention(pipe, ["a", "red"])
    with pytest.raises(ValueError, match="`text` has 7 tokens, special ones included, and the model reads 6"):
        drawn_word_attention(pipe, "a a a a a")
    plain = record_cross_attention(diffusion_tiny.unet())
    with pytest.raises(ValueError, match="UNet2DModel reads no texts, so nothing looks at one"), plain:
        pass
