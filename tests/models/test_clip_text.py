import pytest
import torch
from clip_tiny import EOS, bag_config, text_config, texts
from huggingface_hub.errors import StrictDataclassClassValidationError as Invalid
from torch.testing import assert_close
from transformers import AttentionInterface

from hf_mm import MMBagOfWordsModel, MMCLIPTextModel
from hf_mm.layers.packing import PackedRows

LENGTHS = [4, 12, 7, 2, 9]


def tiny_text(seed=0, **changes):
    torch.manual_seed(seed)
    return MMCLIPTextModel(text_config(**changes)).eval()


def my_kernel(module, query, key, value, attention_mask, scaling, **kwargs):
    """A kernel that the library has not heard of; a function of transformers' signature."""
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, scale=scaling, is_causal=attention_mask is None
    )
    return mixed.transpose(1, 2), None


AttentionInterface.register("my_kernel", my_kernel)


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "my_kernel"])
@pytest.mark.parametrize("longest", [12, None])
def test_packed_texts_equal_padded_ones(kernel, longest):
    """Values and gradients; the padded run is the one that records hidden states.

    In float64, but for the softmax of "eager": the gradients are differences of far larger numbers.
    """
    model, batch = tiny_text().double().train(), texts(LENGTHS if longest else LENGTHS[2:], length=longest)
    model.set_attn_implementation("eager")
    padded = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    weights = torch.randn_like(padded.pooler_output)
    expected = torch.autograd.grad((padded.pooler_output * weights).sum(), list(model.parameters()))
    model.set_attn_implementation(kernel)
    packed = model(**batch)
    assert packed.pooler_output.dtype == torch.float64
    single = {"rtol": 1.3e-6, "atol": 1e-5}  # as torch holds float32 to
    assert_close(packed.pooler_output, padded.pooler_output, **single)
    assert_close(packed.last_hidden_state[real], padded.last_hidden_state[real], **single)
    assert not packed.last_hidden_state[~real].any()
    got = torch.autograd.grad((packed.pooler_output * weights).sum(), list(model.parameters()))
    assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_padding_is_not_computed():
    model, batch, seen = tiny_text(), texts(LENGTHS), []
    model.blocks[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model(**batch)
    assert seen == [(sum(LENGTHS), 32)]


def test_without_a_mask_every_place_is_computed():
    model, batch = tiny_text(), texts(LENGTHS)
    out = model(batch["input_ids"])
    assert out.last_hidden_state[3, -1].abs().sum() > 0
    assert_close(out.pooler_output, model(**batch).pooler_output)


def test_what_follows_the_end_changes_nothing():
    model, batch = tiny_text(), texts([6, 9])
    other = batch["input_ids"].clone()
    other[0, 6:] = 3
    assert_close(model(other).pooler_output, model(batch["input_ids"]).pooler_output)


def test_highest_id_ends_the_text_where_the_quirk_says_so():
    model = tiny_text(end_of_text="highest_id", eos_token_id=2)
    batch = texts([6, 9])
    out = model(**batch)
    assert_close(out.pooler_output, out.last_hidden_state[torch.arange(2), torch.tensor([5, 8])])


def test_first_of_several_ends_counts():
    model = tiny_text()
    ids = texts([8])["input_ids"]
    ids[0, 4] = EOS
    out = model(ids, torch.ones_like(ids))
    assert_close(out.pooler_output, out.last_hidden_state[:, 4])


def test_compiles_as_one_graph():
    model, batch = tiny_text(), texts(LENGTHS)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(**batch).pooler_output, model(**batch).pooler_output)


def change(batch, row, place, name, value):
    batch[name][row, place] = value
    return batch


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (change(texts([4, 7]), 1, 0, "attention_mask", 0), "Row 1 .* padding before its last token"),
        (change(texts([4, 7]), 0, slice(None), "attention_mask", 0), "Row 0 .* no token at all"),
        (change(texts([4, 7]), 1, 6, "input_ids", 5), "Row 1 .* no end-of-text token"),
        (texts([13]), "rows of 13 tokens but the position table ends at 12"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"must be \(batch, length\), got \(3,\)"),
        (texts([4]) | {"attention_mask": torch.ones(1, 3)}, r"shape of `input_ids`, \(1, 4\), got \(1, 3\)"),
    ],
)
def test_refuses(batch, words):
    with pytest.raises(ValueError, match=words):
        tiny_text()(**batch)


def test_config_needs_an_end_token():
    with pytest.raises(Invalid, match="needs an `eos_token_id`"):
        text_config(eos_token_id=None)


@pytest.mark.parametrize("model_class", [MMCLIPTextModel, MMBagOfWordsModel])
def test_save_and_load_keeps_every_bit(model_class, tmp_path):
    config = text_config() if model_class is MMCLIPTextModel else bag_config()
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    again, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert_close(again(**texts([5])).pooler_output, model(**texts([5])).pooler_output, rtol=0, atol=0)


def test_bag_of_words_is_the_mean_of_its_words_in_any_order():
    model = MMBagOfWordsModel(bag_config()).eval()
    ids = torch.tensor([[3, 5, 7, 0], [7, 3, 5, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
    out = model(ids).pooler_output
    table = model.embeddings.weight
    assert_close(out[0], table[[3, 5, 7]].mean(0))
    assert_close(out[0], out[1])
    assert_close(out[2], table[2])
    assert not out[3].any()
    assert_close(model(ids, (ids != 0).long()).pooler_output, out)


def test_bag_of_words_refuses_a_padding_outside_its_vocabulary():
    with pytest.raises(Invalid, match="`pad_token_id`=99 is not in the vocabulary of 40"):
        bag_config(pad_token_id=99)


def test_packing_and_unpacking_are_inverse():
    rows = PackedRows.of_lengths(torch.tensor([2, 5, 1]))
    values = torch.randn(3, 5, 4)
    packed = rows.pack(values)
    assert packed.shape == (8, 4)
    real = torch.arange(5) < torch.tensor([2, 5, 1]).unsqueeze(1)
    assert_close(rows.unpack(packed), values * real.unsqueeze(-1), rtol=0, atol=0)
