"""Unseen prompts are unseen, and copies stand beside what they are copied from."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from generators import diffusion_tiny

from hf_mm import (
    FeatureNet,
    ImageDiffusionPipeline,
    PixelRows,
    nearest_neighbours,
    neighbour_grid,
    unseen_prompt_page,
    unseen_prompts,
)

TEXTS = (("red apple", "apple"), ("green pear",), ("red pear",))


def rows(texts=TEXTS, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (len(texts), channels, 8, 8), dtype=torch.uint8, generator=generator)
    return PixelRows(pixels, texts=texts)


@pytest.fixture(scope="module")
def pipeline():
    denoiser = diffusion_tiny.dit(channels=3, text_dim=diffusion_tiny.TEXT_DIM)
    parts = {"text_encoder": diffusion_tiny.clip_text(), "tokenizer": diffusion_tiny.words()}
    pipe = ImageDiffusionPipeline(denoiser, DDIMScheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_prompts_are_texts_of_test_pictures_that_training_has_not():
    test = rows((("green apple", "apple"), ("red apple",), ("a pear", "pear"), ("a pear",), ("apple",)))
    assert sorted(unseen_prompts(rows(), test, 9)) == ["a pear", "green apple"]
    assert len(unseen_prompts(rows(), test, 1)) == 1
    assert unseen_prompts(rows(), test, 9, seed=3) == unseen_prompts(rows(), test, 9, seed=3)
    with pytest.raises(ValueError, match="there is none unseen"):
        unseen_prompts(test, test, 4)
    with pytest.raises(ValueError, match="The rows have no texts"):
        unseen_prompts(PixelRows(test.pixels), test, 4)


@pytest.mark.parametrize("by_net", [False, True])
def test_a_copied_picture_stands_beside_itself(pipeline, by_net):
    prompts, call = ["red apple", "green pear"], {"num_inference_steps": 2}
    drawn = pipeline(prompts, seed=0, output_type="np", **call).images
    copies = torch.from_numpy((drawn * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
    train = PixelRows(torch.cat([rows().pixels, copies]), texts=(*TEXTS, ("copied",), ("copied too",)))
    net = FeatureNet("means", lambda pixels: pixels.flatten(2).mean(2)) if by_net else None
    features = net(train.pixels).features if net else None
    page = unseen_prompt_page(pipeline, prompts, train, net, features, k=1, **call)
    distances = nearest_neighbours(net(copies).features, features).distances if net else torch.zeros(2, 1)
    words = [["copied"], ["copied too"]]
    expected = neighbour_grid(copies, copies[:, None], distances, labels=prompts, texts=words, least_px=112)
    assert np.array_equal(page, expected)


def test_what_does_not_fit_is_said(pipeline):
    with pytest.raises(
        ValueError, match=r"draws \(channels, height, width\) \(3, 8, 8\), `train` has \(1, 8"
    ):
        unseen_prompt_page(pipeline, ["red"], rows(channels=1), num_inference_steps=1)
    with pytest.raises(ValueError, match="`train_features` are of a net; pass `net` too"):
        unseen_prompt_page(pipeline, ["red"], rows(), train_features=torch.zeros(3, 2))
