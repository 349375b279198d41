"""ViLT writes with keys and values kept: the same words as without, from less work."""

import pytest
import torch
from layers import row_kernel
from torch.testing import assert_close
from transformers import GenerationConfig
from vilt_tiny import CLS, MIXED, images, texts, tiny_config

from hf_mm.models.vilt.cache_vilt import ViltCache
from hf_mm.models.vilt.generation_vilt import MMViltForImageToText

LENGTHS, GRIDS = (3, 6, 4), MIXED[1]
NEAR = {"rtol": 1e-5, "atol": 1e-5}
MODES = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2},
}


def tiny(**changes):
    torch.manual_seed(0)
    model = MMViltForImageToText(tiny_config(**({"initializer_range": 0.2} | changes))).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts():
    """Of unequal length, padded in front, about images of several sizes."""
    batch = {**texts(LENGTHS), **images(GRIDS)}
    for name in ("input_ids", "attention_mask"):
        for row, length in enumerate(LENGTHS):
            batch[name][row] = batch[name][row].roll(max(LENGTHS) - length)
    return batch | {"token_type_ids": batch["attention_mask"] * torch.tensor([[0], [1], [0]])}


def written(model, use_cache, batch=None, **options):
    torch.manual_seed(3)
    asked = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    asked |= {"use_cache": use_cache} | options
    return model.generate(**(batch or prompts()), **asked)


@pytest.mark.parametrize("mode", MODES)
def test_the_words_are_those_that_are_found_without_a_cache(mode):
    model = tiny()
    got, expected = (written(model, use_cache, **MODES[mode]) for use_cache in (True, False))
    assert torch.equal(got.sequences, expected.sequences)
    assert_close(got.logits, expected.logits, **NEAR)


def test_a_text_from_its_beginning_is_the_same_too():
    model, batch = tiny(), images(GRIDS)
    got, expected = (written(model, use_cache, batch).sequences for use_cache in (True, False))
    assert torch.equal(got, expected)
    assert got[:, 0].tolist() == [CLS] * 3


def test_keys_are_kept_unless_that_is_refused():
    """As a keyword, or in the configuration of generation."""
    model, seen = tiny(), []
    model.vilt.embeddings.patches.register_forward_hook(lambda *args: seen.append("image"))
    model.vilt.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(**prompts(), max_new_tokens=3)
    assert seen == ["image", 6, 1, 1]
    seen.clear()
    model.generation_config.use_cache = False
    model.generate(**prompts(), max_new_tokens=3)
    assert seen == ["image", 6, 7, 8]


def test_an_image_and_its_prompt_are_read_once_for_all_beams():
    """Three rows of text, [CLS] and patches without padding, then one token for each of nine beams."""
    model, seen = tiny(), []
    model.vilt.blocks[0].mlp.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    model.generate(**prompts(), max_new_tokens=3, num_beams=3)
    prefix = sum(LENGTHS) + 3 + sum(rows * columns for rows, columns in GRIDS)
    assert seen == [(prefix, 32), (9, 1, 32), (9, 1, 32)]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_text_read_in_pieces_has_the_states_of_the_whole(kernel):
    model, batch = tiny(), prompts()
    model.set_attn_implementation(kernel)
    ids = torch.cat((batch["input_ids"], torch.tensor([[5, 6, 7, 8], [9, 1, 2, 3], [4, 4, 30, 31]])), dim=1)
    more = torch.ones(3, 4, dtype=torch.long)
    whole = {**batch, "input_ids": ids, "attention_mask": torch.cat((batch["attention_mask"], more), dim=1)}
    whole["token_type_ids"] = torch.cat((batch["token_type_ids"], more), dim=1)
    prefix = (torch.arange(10) < 6).long().expand(3, -1)
    cache = ViltCache(model.config, 3)
    with torch.no_grad():
        expected = model(**whole, prefix_mask=prefix).logits[:, 5:]
        parts = [model(**batch, past_key_values=cache, logits_to_keep=1).logits]
        for piece in ((6, 7), (7, 10)):
            new = {name: whole[name][:, slice(*piece)] for name in ("input_ids", "token_type_ids")}
            parts.append(model(**new, past_key_values=cache).logits)
    assert_close(torch.cat(parts, dim=1), expected, **NEAR)


def test_states_that_are_recorded_are_those_of_a_run_without_a_cache():
    model, options = tiny(), {"output_hidden_states": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    got, expected = (written(model, use_cache, **options) for use_cache in (True, False))
    assert torch.equal(got.sequences, expected.sequences)
    for place, (mine, other) in enumerate(zip(got.hidden_states, expected.hidden_states, strict=True)):
        mine, other = mine[-1][:, 0 if place else max(LENGTHS) - 1], other[-1][:, max(LENGTHS) + place - 1]
        assert_close(mine, other, **NEAR)
    assert got.attentions[1][0].shape == (3, 4, 1, max(LENGTHS) + 1 + 15 + 1)


def test_kernels_of_flash_attention_write_the_same_words(monkeypatch):
    expected = written(tiny(), True)
    calls, model = row_kernel.install(monkeypatch), tiny()
    model.config._attn_implementation = row_kernel.KERNEL
    got = written(model, True)
    assert torch.equal(got.sequences, expected.sequences)
    assert_close(got.logits, expected.logits, **NEAR)
    assert len(calls) == 2 * 5


def test_what_is_kept_follows_the_rows_that_are_chosen():
    model = tiny()
    cache, again = ViltCache(model.config, 3), ViltCache(model.config, 4)
    rows, batch = torch.tensor([2, 2, 0, 1]), prompts()
    with torch.no_grad():
        model(**batch, past_key_values=cache)
        model(**{name: values[rows] for name, values in batch.items()}, past_key_values=again)
        cache.batch_select_indices(torch.tensor([0, 2, 1]))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([2, 3, 0, 4]))
        word = torch.tensor([[5], [6], [7], [8]])
        got, expected = (model(word, past_key_values=kept).logits for kept in (cache, again))
    assert_close(got, expected, **NEAR)


@pytest.mark.parametrize(
    ("use_cache", "message"),
    [
        (True, "The text goes on to 13 tokens but the position table ends at 12; ask for fewer"),
        (False, "`input_ids` has rows of 13 tokens but the position table has room for 12"),
    ],
)
def test_a_text_that_goes_on_behind_the_positions_is_named(use_cache, message):
    """Where the length stands in a configuration of generation, and so is seen only on the way."""
    asked = GenerationConfig(max_new_tokens=8, use_cache=use_cache, pad_token_id=0)
    with pytest.raises(ValueError, match=message):
        tiny().generate(**prompts(), generation_config=asked)


def test_what_is_cut_off_a_text_can_be_written_anew():
    """As when guessed words are taken back."""
    model = tiny()
    cache, words = ViltCache(model.config, 3), torch.tensor([[5, 6], [7, 8], [9, 10]])
    with torch.no_grad():
        model(**prompts(), past_key_values=cache)
        first = model(words, past_key_values=cache).logits
        model(words.flip(1), past_key_values=cache)
        cache.crop(-4)
        again = model(words, past_key_values=cache).logits
    assert_close(again, first, **NEAR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"past_key_values": ViltCache(tiny_config(), 3)}, "`past_key_values` is given as .*makes the cache"),
        ({"cache_implementation": "static"}, "`cache_implementation` is given as 'static'; this model makes"),
    ],
)
def test_caches_of_another_kind_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(**prompts(), **options)
