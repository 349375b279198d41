"""Codes one after the other: causal, cached, guided, drawn as transformers does, fast for one picture."""

import pytest
import torch
from generators.codes_tiny import CODES, LENGTH, VOCABULARY, llama, raster_pipeline
from torch.testing import assert_close

from hf_mm.generators.autoregressive.choosing_codes import code_warpers, guided_logits
from hf_mm.generators.autoregressive.raster_decoding import raster_codes, raster_logits

OTHERS = list(range(CODES, VOCABULARY.size))  # tokens that are no codes


def some_codes(rows=2, seed=0):
    return torch.randint(CODES, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def written(model, prefixes, guidance_scale=1.0):
    """Codes, and the logits by which each was chosen (B, L, K)."""
    seen = []

    def warp(logits):
        seen.append(logits)
        return logits

    draws = torch.Generator().manual_seed(0)

    def noise(size):
        return torch.empty(len(prefixes), size).exponential_(generator=draws)

    with torch.no_grad():
        codes = list(raster_codes(model, VOCABULARY, prefixes, LENGTH, guidance_scale, warp, noise))[-1]
    return codes, torch.stack(seen, 1)


def rows_read(pipe, **call):
    """Rows of every forward pass of the transformer."""
    rows = []
    hook = pipe.transformer.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    pipe(class_labels=[0, 1], seed=0, output_type="codes", **call)
    hook.remove()
    return rows


@torch.no_grad()
def test_a_code_depends_on_those_before_it_alone():
    model, prefixes, codes = llama(), VOCABULARY.class_prefixes([0, 2]), some_codes()
    before = raster_logits(model, prefixes, codes, CODES)
    codes[:, 5] = (codes[:, 5] + 1) % CODES
    after = raster_logits(model, prefixes, codes, CODES)
    assert_close(after[:, :6], before[:, :6], rtol=0, atol=0)
    assert not torch.allclose(after[:, 6], before[:, 6], atol=1e-3)


@torch.no_grad()
def test_cached_equals_uncached():
    model, prefixes = llama(), VOCABULARY.class_prefixes([0, 2])
    codes, logits = written(model, prefixes)
    assert_close(raster_logits(model, prefixes, codes, CODES), logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_guidance_goes_from_the_empty_condition_through_what_was_asked_for():
    model, prefixes = llama(), VOCABULARY.class_prefixes([0, 2])
    codes, logits = written(model, prefixes, guidance_scale=3.0)
    asked = raster_logits(model, prefixes, codes, CODES)
    nothing = raster_logits(model, VOCABULARY.null_prefixes(2), codes, CODES)
    assert_close(logits, nothing + 3 * (asked - nothing), rtol=1e-5, atol=1e-4)


def test_guidance_by_hand():
    asked, nothing = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert guided_logits(asked, nothing, 2.0).tolist() == [3.0, -1.0]
    assert guided_logits(asked, nothing, 0.0).tolist() == [1.0, 1.0]


def test_guidance_of_one_is_one_forward_pass():
    pipe = raster_pipeline()
    assert rows_read(pipe, guidance_scale=1.0) == [2] * LENGTH
    assert rows_read(pipe, guidance_scale=2.0) == [4] * LENGTH


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7}, {"top_k": 4}, {"top_p": 0.6}, {"temperature": 1.3, "top_k": 9, "top_p": 0.8}],
)
def test_a_seed_gives_the_codes_of_generate(settings):
    pipe = raster_pipeline()
    options = {"do_sample": True, "max_new_tokens": LENGTH, "suppress_tokens": OTHERS, "top_k": 0}
    torch.manual_seed(7)
    expected = pipe.transformer.generate(VOCABULARY.class_prefixes([1]), **options | settings)[:, 1:]
    codes = pipe(class_labels=1, guidance_scale=1.0, seed=7, output_type="codes", **settings).images
    assert_close(codes.flatten(1), expected, rtol=0, atol=0)


def test_a_temperature_of_zero_gives_the_greedy_codes_of_generate():
    pipe = raster_pipeline()
    options = {"do_sample": False, "max_new_tokens": LENGTH, "suppress_tokens": OTHERS}
    expected = pipe.transformer.generate(VOCABULARY.class_prefixes([0, 1]), **options)[:, 1:]
    codes = pipe(class_labels=[0, 1], guidance_scale=1.0, temperature=0.0, output_type="codes").images
    assert_close(codes.flatten(1), expected, rtol=0, atol=0)


def test_what_is_cut_off_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    left = {
        "top_k": (code_warpers(1.0, 2, 1.0)(logits) > -torch.inf).tolist(),
        "top_p": (code_warpers(1.0, 0, 0.75)(logits) > -torch.inf).tolist(),
    }
    assert left == {"top_k": [[True, True, False, False]], "top_p": [[True, True, False, False]]}
    assert_close(code_warpers(2.0, 0, 1.0)(logits), logits / 2)
    assert_close(code_warpers(1.0, 0, 1.0)(logits), logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "`temperature`=-1.0 must be 0 or more"),
        ({"top_k": -1}, r"`top_k`=-1 must be 0 \(all codes\) or more"),
        ({"top_p": 0.0}, "`top_p`=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "`top_p`=1.5 must be above 0 and at most 1"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        raster_pipeline()(class_labels=0, **settings)


@pytest.mark.parametrize(("scale", "pictures", "rows"), [(1.0, 1, 1), (2.0, 1, 2), (2.0, 3, 6)])
def test_every_code_takes_the_fast_step(monkeypatch, scale, pictures, rows):
    pipe = raster_pipeline().optimize_for_inference()
    step, slow = pipe.transformer.model.forward, []

    def counted(**call):
        slow.append(call["input_ids"].shape)
        return otherwise(**call)

    otherwise = step.otherwise
    monkeypatch.setattr(step, "otherwise", counted)
    pipe(class_labels=[1] * pictures, guidance_scale=scale, seed=0, output_type="codes")
    assert slow == [(rows, 1)]  # the condition alone


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_fast_path_writes_the_same_codes(scale):
    pipe = raster_pipeline()
    call = {"guidance_scale": scale, "output_type": "codes"}
    plain = [pipe(class_labels=number, seed=number, **call).images for number in range(3)]
    assert pipe.optimize_for_inference() is pipe
    fast = [pipe(class_labels=number, seed=number, **call).images for number in range(3)]
    assert_close(fast, plain, rtol=0, atol=0)
    several = pipe(class_labels=[0, 1, 2], seed=0, **call).images
    assert_close(several, torch.cat(plain), rtol=0, atol=0)


def test_the_fast_path_is_undone_bit_for_bit(tmp_path):
    pipe = raster_pipeline()
    weights = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    pipe.optimize_for_inference().optimize_for_inference().save_pretrained(tmp_path)
    assert pipe.restore_for_training() is pipe
    assert_close(pipe.transformer.state_dict(), weights, rtol=0, atol=0)
    again = type(pipe).from_pretrained(tmp_path)
    assert_close(again.transformer.state_dict(), weights, rtol=0, atol=0)
    assert all(weight.requires_grad for weight in pipe.transformer.parameters())


def test_a_model_in_training_or_half_precision_is_not_laid_out():
    pipe = raster_pipeline()
    pipe.transformer.train()
    with pytest.raises(ValueError, match=r"torch\.float32 on cpu, in training mode"):
        pipe.optimize_for_inference()
    pipe.transformer.eval().half()
    with pytest.raises(ValueError, match=r"the transformer is in torch\.float16 on cpu\."):
        pipe.optimize_for_inference()
