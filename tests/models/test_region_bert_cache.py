"""Region BERTs write with keys and values kept: the same words as without, from less work."""

import pytest
import torch
from layers import row_kernel
from region_bert_tiny import CLS, regions, texts, tiny_config
from torch.testing import assert_close
from transformers import GenerationConfig

from hf_mm.models.region_bert.cache_region_bert import RegionBertCache
from hf_mm.models.region_bert.generation_region_bert import MMRegionBertForImageToText

LENGTHS, COUNTS = (3, 6, 4), (4, 2, 6)
NEAR = {"rtol": 1e-5, "atol": 1e-5}
KEEPING = ("uniter", "lxmert", "vilbert", "oscar", "visualbert")
MODES = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
}


def tiny(name="uniter", **changes):
    torch.manual_seed(0)
    model = MMRegionBertForImageToText(tiny_config(name, **({"initializer_range": 0.3} | changes))).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts():
    """Of unequal length, padded in front, about images with several numbers of regions."""
    batch = {**texts(LENGTHS), **regions(COUNTS)}
    for name in ("input_ids", "attention_mask"):
        for row, length in enumerate(LENGTHS):
            batch[name][row] = batch[name][row].roll(max(LENGTHS) - length)
    return batch | {"token_type_ids": batch["attention_mask"] * torch.tensor([[0], [1], [0]])}


def written(model, use_cache, batch=None, **options):
    torch.manual_seed(3)
    asked = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**(batch or prompts()), **(asked | {"use_cache": use_cache} | options))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", KEEPING)
def test_the_words_are_those_that_are_found_without_a_cache(name, mode):
    model = tiny(name)
    got, expected = (written(model, use_cache, **MODES[mode]) for use_cache in (True, False))
    assert torch.equal(got.sequences, expected.sequences)
    assert_close(got.logits, expected.logits, **NEAR)


def test_a_mixture_of_all_kinds_of_blocks_writes_the_same_too():
    model = tiny("lxmert", layers=["text", "region", "co", "cross", "joint", "co", "text", "joint"])
    got, expected = (written(model, use_cache) for use_cache in (True, False))
    assert torch.equal(got.sequences, expected.sequences)
    assert_close(got.logits, expected.logits, **NEAR)


def test_blocks_that_share_weights_keep_each_their_own():
    model = tiny("lxmert", layers=["text", "region", "cross", "cross"], layer_groups=[0, 1, 2, 2])
    assert len(model.region_bert.cross_blocks) == 1
    got, expected = (written(model, use_cache) for use_cache in (True, False))
    assert_close(got.logits, expected.logits, **NEAR)


@pytest.mark.parametrize("name", ["uniter", "lxmert"])
def test_regions_and_prompt_are_read_once_for_all_beams(name):
    model, seen = tiny(name), []
    model.region_bert.embeddings.register_forward_hook(lambda *args: seen.append(len(args[2])))
    model.region_bert.region_embeddings.register_forward_hook(lambda *args: seen.append("regions"))
    model.generate(**prompts(), max_new_tokens=3, num_beams=3)
    assert seen == ["regions", sum(LENGTHS), 9, 9]
    seen.clear()
    model.generation_config.use_cache = False
    model.generate(**prompts(), max_new_tokens=3)
    assert seen == ["regions", 13, "regions", 16, "regions", 19]


@pytest.mark.parametrize("name", ["uniter", "vilbert"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_text_read_in_pieces_has_the_states_of_the_whole(name, kernel):
    model, batch = tiny(name), prompts()
    model.set_attn_implementation(kernel)
    ids = torch.cat((batch["input_ids"], torch.tensor([[5, 6, 7, 8], [9, 1, 2, 3], [4, 4, 30, 31]])), dim=1)
    more = torch.ones(3, 4, dtype=torch.long)
    whole = {**batch, "input_ids": ids, "attention_mask": torch.cat((batch["attention_mask"], more), dim=1)}
    whole["token_type_ids"] = torch.cat((batch["token_type_ids"], more), dim=1)
    prefix = (torch.arange(10) < 6).long().expand(3, -1)
    cache = RegionBertCache(model.config, 3)
    with torch.no_grad():
        expected = model(**whole, prefix_mask=prefix).logits[:, 5:]
        parts = [model(**batch, past_key_values=cache, logits_to_keep=1).logits]
        for piece in ((6, 7), (7, 10)):
            new = {column: whole[column][:, slice(*piece)] for column in ("input_ids", "token_type_ids")}
            parts.append(model(**new, past_key_values=cache).logits)
    assert_close(torch.cat(parts, dim=1), expected, **NEAR)


@pytest.mark.parametrize("name", ["uniter", "lxmert", "vilbert"])
def test_kernels_of_flash_attention_write_the_same_words(name, monkeypatch):
    """In two streams where no image has more regions than another, else they refuse."""
    full = {**texts((4, 4, 4)), **regions((4, 4, 4))}
    expected = [written(tiny(name), True, batch) for batch in (prompts(), full)]
    row_kernel.install(monkeypatch)
    model = tiny(name)
    model.config._attn_implementation = row_kernel.KERNEL
    if name == "uniter":
        assert torch.equal(written(model, True).sequences, expected[0].sequences)
    else:
        with pytest.raises(
            ValueError, match=r"keys are kept .* need another kernel than 'flash_attention_2'"
        ):
            written(model, True)
    got = written(model, True, full)
    assert torch.equal(got.sequences, expected[1].sequences)
    assert_close(got.logits, expected[1].logits, **NEAR)


@pytest.mark.parametrize("name", ["uniter", "lxmert"])
def test_what_is_kept_follows_the_rows_that_are_chosen(name):
    model = tiny(name)
    cache, again = RegionBertCache(model.config, 3), RegionBertCache(model.config, 4)
    rows, batch = torch.tensor([2, 2, 0, 1]), prompts()
    with torch.no_grad():
        model(**batch, past_key_values=cache)
        model(**{column: values[rows] for column, values in batch.items()}, past_key_values=again)
        cache.batch_select_indices(torch.tensor([0, 2, 1]))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([2, 3, 0, 4]))
        word = torch.tensor([[5], [6], [7], [8]])
        got, expected = (model(word, past_key_values=kept).logits for kept in (cache, again))
    assert_close(got, expected, **NEAR)


@pytest.mark.parametrize("name", ["uniter", "lxmert"])
def test_what_is_cut_off_a_text_can_be_written_anew(name):
    """As when guessed words are taken back."""
    model = tiny(name)
    cache, words = RegionBertCache(model.config, 3), torch.tensor([[5, 6], [7, 8], [9, 10]])
    with torch.no_grad():
        model(**prompts(), past_key_values=cache)
        first = model(words, past_key_values=cache).logits
        model(words.flip(1), past_key_values=cache)
        cache.crop(-4)
        again = model(words, past_key_values=cache).logits
    assert_close(again, first, **NEAR)


@pytest.mark.parametrize(
    ("use_cache", "message"),
    [
        (True, "The text goes on to 15 tokens but the position table ends at 14; ask for fewer"),
        (False, "`input_ids` has rows of 15 tokens but the position table has room for 14"),
    ],
)
def test_a_text_that_goes_on_behind_the_positions_is_named(use_cache, message):
    """Where the length stands in a configuration of generation, and so is seen only on the way."""
    asked = GenerationConfig(max_new_tokens=10, use_cache=use_cache, pad_token_id=0)
    with pytest.raises(ValueError, match=message):
        tiny().generate(**prompts(), generation_config=asked)


def test_a_model_whose_regions_know_the_length_of_the_text_reads_all_anew():
    model, seen = tiny("vl-bert", region_norm_init=1.0), []
    model.region_bert.embeddings.register_forward_hook(lambda *args: seen.append(len(args[2])))
    batch = {**texts((4, 4, 4)), **regions(COUNTS)}
    ids = model.generate(**batch, max_new_tokens=2)
    assert seen == [12, 15]
    assert ids[:, 0].tolist() == [CLS] * 3
    with pytest.raises(
        ValueError, match="`use_cache`=True: the regions of this model change with the length"
    ):
        model.generate(**batch, max_new_tokens=2, use_cache=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"past_key_values": RegionBertCache(tiny_config(), 3)},
            "`past_key_values` is given as .*makes the cache",
        ),
        ({"cache_implementation": "static"}, "`cache_implementation` is given as 'static'; this model makes"),
    ],
)
def test_caches_of_another_kind_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(**prompts(), **options)
