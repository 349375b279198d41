"""All codes in a few rounds: the schedule, what is fixed and what is left, and what training hides."""

import math
from itertools import pairwise

import pytest
import torch
from generators.codes_tiny import CODES, LENGTH, VOCABULARY, bert, masked_pipeline
from torch.testing import assert_close

from hf_mm.generators.autoregressive.masked_decoding import (
    MEAN_SHARE,
    draw_masks,
    masked_logits,
    masks_left,
)


def rounds(**call):
    """The codes (B, L) after each round."""
    seen = []
    pipe = masked_pipeline()
    final = pipe(
        class_labels=[0, 1, 2],
        seed=3,
        output_type="codes",
        callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append(tensors["codes"].clone()),
        **call,
    ).images
    assert_close(seen[-1], final.flatten(1), rtol=0, atol=0)
    return seen


@pytest.mark.parametrize("steps", [1, 5, LENGTH])
def test_every_place_is_filled_and_what_is_fixed_is_kept(steps):
    seen = rounds(num_inference_steps=steps)
    assert len(seen) == steps
    for before, after in pairwise(seen):
        fixed = before >= 0
        assert torch.equal(after[fixed], before[fixed])
    assert ((seen[-1] >= 0) & (seen[-1] < CODES)).all()


def test_each_round_leaves_what_the_cosine_says():
    left = [(codes < 0).sum(-1).tolist() for codes in rounds(num_inference_steps=4)]
    expected = [int(math.cos(math.pi / 2 * share) * LENGTH) for share in (0.25, 0.5, 0.75)]
    assert left == [[count] * 3 for count in (*expected, 0)]


@pytest.mark.parametrize("length", [1, 7, 64])
def test_every_round_fixes_a_code_and_the_last_one_all(length):
    for steps in range(1, length + 1):
        left = [length, *(masks_left(step, steps, length) for step in range(steps))]
        assert all(after < before for before, after in pairwise(left)), (steps, left)
        assert left[-1] == 0


def test_without_noise_the_surest_codes_are_kept():
    pipe = masked_pipeline()
    prefixes = VOCABULARY.class_prefixes([1])
    with torch.no_grad():
        masks = torch.full((1, LENGTH), VOCABULARY.mask_id)
        chances = masked_logits(pipe.transformer, prefixes, masks, CODES).softmax(-1)[0]
    first = []
    pipe(
        class_labels=1,
        seed=0,
        output_type="codes",
        callback_on_step_end=lambda pipe, step, timestep, tensors: first.append(tensors["codes"][0].clone()),
        guidance_scale=1.0,
        temperature=1e-4,
        choice_temperature=0.0,
    )
    kept = first[0] >= 0
    assert_close(first[0][kept], chances.argmax(-1)[kept], rtol=0, atol=0)


def test_guidance_of_one_is_one_forward_pass():
    pipe = masked_pipeline()
    for scale, rows in ((1.0, 2), (2.0, 4)):
        seen = []
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        pipe(class_labels=[0, 1], guidance_scale=scale, num_inference_steps=3, output_type="codes", seed=0)
        hook.remove()
        assert seen == [rows] * 3


def test_codes_that_a_callback_changes_are_read_on_and_stay():
    """The first round alone is changed."""
    pipe, seen, read = masked_pipeline(), [], []

    def change(pipe, step, timestep, tensors):
        seen.append(tensors["codes"].clone())
        changed = (seen[0] + 1) % CODES
        return {"codes": torch.where(seen[0] >= 0, changed, seen[0])} if step == 0 else None

    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"][:2, 1:]), with_kwargs=True
    )
    call = {"class_labels": [0, 1], "seed": 3, "num_inference_steps": 4, "output_type": "codes"}
    drawn = pipe(**call, callback_on_step_end=change).images.flatten(1)
    hook.remove()
    fixed = seen[0] >= 0
    assert fixed.any()
    for tokens in (*read[1:], drawn):
        assert torch.equal(tokens[fixed], (seen[0][fixed] + 1) % CODES)


def test_a_picture_that_a_callback_completes_stays():
    full = torch.arange(LENGTH).expand(2, -1) % CODES
    drawn = masked_pipeline()(
        class_labels=[0, 1],
        seed=3,
        num_inference_steps=4,
        output_type="codes",
        callback_on_step_end=lambda pipe, step, timestep, tensors: {"codes": full} if step == 0 else None,
    ).images
    assert torch.equal(drawn.flatten(1), full)


@torch.no_grad()
def test_a_code_depends_on_those_after_it_too():
    model, prefixes = bert(), VOCABULARY.class_prefixes([0])
    codes = torch.zeros(1, LENGTH, dtype=torch.long)
    before = masked_logits(model, prefixes, codes, CODES)
    codes[0, -1] = 5
    assert not torch.allclose(masked_logits(model, prefixes, codes, CODES)[0, 0], before[0, 0], atol=1e-3)


def test_training_hides_a_cosine_share_one_code_at_least():
    torch.manual_seed(0)
    masks = draw_masks(20_000, 64, torch.device("cpu"))
    counts = masks.sum(-1)
    assert counts.min() >= 1
    assert counts.max() == 64
    assert counts.double().mean() / 64 == pytest.approx(MEAN_SHARE, abs=0.01)
    # The share of rows with less than half of their codes hidden: P(cos(pi u / 2) < 1 / 2) = 1 / 3.
    assert (counts < 32).double().mean() == pytest.approx(1 / 3, abs=0.02)
    assert masks.double().mean(0).std() < 0.01  # no place is preferred


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_inference_steps": 0}, "`num_inference_steps`=0 must be 1 to 16"),
        ({"num_inference_steps": 17}, "`num_inference_steps`=17 must be 1 to 16: each round fixes a code"),
        ({"choice_temperature": -1.0}, "`choice_temperature`=-1.0 must be 0 or more"),
    ],
)
def test_impossible_rounds_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        masked_pipeline()(class_labels=0, **call)
