"""ViLT's encoder and its heads of words: the common contract, packed rows, drawn patches, and errors."""

import pytest
import torch
from contract import ModelContract
from huggingface_hub.errors import StrictDataclassError
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from vilt_tiny import MIXED, VOCAB, images, mixed, texts, tiny_config

from hf_mm.models.vilt.modeling_vilt import MMViltModel
from hf_mm.models.vilt.text_heads_vilt import MMViltForMaskedLM, MMViltForTokenClassification

LENGTHS, GRIDS = MIXED


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return MMViltModel(tiny_config(**changes)).eval()


class TestMaskedLM(ModelContract):
    model_class = MMViltForMaskedLM

    def config(self, **changes):
        return tiny_config(**changes)

    def inputs(self):
        labels = torch.full((2, 9), -100)
        labels[0, 1], labels[0, 3], labels[1, 2] = 7, 9, 30
        return {**mixed(2), "labels": labels}


class TestTokenClassification(ModelContract):
    model_class = MMViltForTokenClassification

    def config(self, **changes):
        return tiny_config(num_labels=5, **changes)

    def inputs(self):
        batch = mixed(2)
        labels = (batch["input_ids"] % 5).masked_fill(batch["attention_mask"] == 0, -100)
        return {**batch, "labels": labels}


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_tokens_equal_padded_rows(kernel):
    """Values and gradients; the padded run is the one that records hidden states."""
    model, batch = tiny().train(), mixed()
    model.set_attn_implementation("eager")
    padded = model(**batch, output_hidden_states=True)
    weights = torch.randn_like(padded.last_hidden_state)
    expected = torch.autograd.grad((padded.last_hidden_state * weights).sum(), weights_of(model))
    model.set_attn_implementation(kernel)
    packed = model(**batch)
    assert_close(packed.pooler_output, padded.pooler_output)
    assert_close(packed.last_hidden_state, padded.last_hidden_state)
    got = torch.autograd.grad((packed.last_hidden_state * weights).sum(), weights_of(model))
    assert_close(got, expected, rtol=1e-5, atol=1e-5)


def weights_of(model):
    return [weight for name, weight in model.named_parameters() if "pooler" not in name]


def test_every_row_equals_the_row_without_any_padding():
    model, batch = tiny(), mixed()
    together = model(**batch)
    for row, (length, grid) in enumerate(zip(LENGTHS, GRIDS, strict=True)):
        count, (height, width) = grid[0] * grid[1], (8 * side for side in grid)
        alone = model(
            batch["input_ids"][row : row + 1, :length],
            pixel_values=batch["pixel_values"][row : row + 1, :, :height, :width],
        )
        states = together.last_hidden_state[row]
        assert_close(together.pooler_output[row], alone.pooler_output[0])
        assert_close(states[:length], alone.last_hidden_state[0, :length])
        assert_close(states[9 : 10 + count], alone.last_hidden_state[0, length:])
        assert not states[length:9].any()
        assert not states[10 + count :].any()


def test_padding_is_not_computed():
    model, seen = tiny(), []
    model.blocks[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model(**mixed())
    assert seen == [(sum(LENGTHS) + 3 + sum(rows * columns for rows, columns in GRIDS), 32)]


def test_padding_in_front_of_a_text_changes_nothing():
    model, batch = tiny(), mixed()
    right = model(**batch)
    left = {name: batch[name].clone() for name in ("input_ids", "attention_mask")}
    for name, values in left.items():
        for row, length in enumerate(LENGTHS):
            values[row] = values[row].roll(9 - length)
        batch[name] = values
    out = model(**batch)
    assert_close(out.pooler_output, right.pooler_output)
    assert_close(out.last_hidden_state[:, 9:], right.last_hidden_state[:, 9:])


def test_texts_that_share_an_image_name_it():
    model, words, pixels = tiny(), texts(LENGTHS), images(GRIDS[:2])
    index = torch.tensor([1, 0, 1])
    repeated = {name: values[index] for name, values in pixels.items()}
    expected = model(**words, **repeated)
    assert_close(model(**words, **pixels, image_index=index).pooler_output, expected.pooler_output)
    patches = model.embed_patches(pixels["pixel_values"])
    out = model(**words, patch_embeds=patches, pixel_mask=pixels["pixel_mask"], image_index=index)
    assert_close(out.pooler_output, expected.pooler_output)


def test_vectors_stand_for_words():
    model, batch = tiny(), mixed()
    vectors = model.get_input_embeddings()(batch["input_ids"])
    expected = model(**batch).pooler_output
    del batch["input_ids"]
    assert_close(model(inputs_embeds=vectors, **batch).pooler_output, expected)


def test_segments_of_a_text_have_vectors_of_their_own():
    model, batch = tiny(), mixed()
    zeros = torch.zeros_like(batch["input_ids"])
    plain = model(**batch).pooler_output
    assert_close(model(**batch, token_type_ids=zeros).pooler_output, plain)
    assert not torch.allclose(model(**batch, token_type_ids=zeros + 1).pooler_output, plain)


def counts_of(model, batch):
    """How many tokens the blocks get, and what comes out."""
    seen = []
    hook = model.blocks[0].register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    out = model(**batch)
    hook.remove()
    return seen[0], out


def test_patches_are_drawn_in_training_only():
    model, batch = tiny(max_patches=6), mixed()
    words = sum(LENGTHS) + 3
    count, out = counts_of(model, batch)
    assert count == words + 15 + 4 + 4
    assert_close(out.pooler_output, tiny()(**batch).pooler_output)
    count, out = counts_of(model.train(), batch)
    assert count == words + 6 + 4 + 4
    assert out.last_hidden_state.shape == (3, 9 + 1 + 6, 32)


def test_a_seed_reproduces_the_drawn_patches():
    model, batch = tiny(max_patches=6).train(), mixed()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model(**batch).last_hidden_state)
    assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.allclose(drawn[0][0], drawn[2][0])
    assert_close(drawn[0][1:], drawn[2][1:])  # these have no more than six


def test_drawn_patches_keep_their_order_and_their_places():
    """One block without a mix of tokens: what comes out of a patch is what it is without drawing."""
    model, batch = tiny(max_patches=6, num_hidden_layers=0), mixed()
    whole = model(**batch).last_hidden_state[0, 10:]
    torch.manual_seed(3)
    kept = model.train()(**batch).last_hidden_state[0, 10:]
    same = (kept.unsqueeze(1) - whole).abs().amax(dim=-1) < 1e-6  # (6, 15)
    places = same.int().argmax(dim=1).tolist()
    assert same.any(dim=1).all()
    assert places == sorted(places)
    assert len(set(places)) == 6


def test_every_patch_is_drawn_as_often():
    model, batch = tiny(max_patches=5, num_hidden_layers=0), mixed(1)
    whole = model(**batch).last_hidden_state[0, 6:]
    torch.manual_seed(0)
    counts = torch.zeros(15)
    for _ in range(300):
        kept = model.train()(**batch).last_hidden_state[0, 6:]
        counts += ((kept.unsqueeze(1) - whole).abs().amax(dim=-1) < 1e-6).any(dim=0)
    assert counts.min() > 65  # of 100 expected, deviation 8
    assert counts.max() < 135


@pytest.mark.slow
def test_compiled_the_same_patches_are_drawn():
    torch.compiler.reset()
    model, batch = tiny(max_patches=6).train(), mixed()
    drawn = []
    for run in (model, torch.compile(model, fullgraph=True, backend="eager")):
        torch.manual_seed(1)
        drawn.append(run(**batch).last_hidden_state)
    assert_close(drawn[1], drawn[0])
    assert drawn[0].shape == (3, 9 + 1 + 6, 32)


def test_shared_words_of_a_masked_model_are_one_table():
    model = MMViltForMaskedLM(tiny_config())
    assert model.mlm_head.decoder.weight is model.vilt.embeddings.text.tokens.weight
    model.resize_token_embeddings(VOCAB + 2)
    assert model(**mixed()).logits.shape == (3, 9, VOCAB + 2)
    apart = MMViltForMaskedLM(tiny_config(tie_word_embeddings=False))
    assert apart.mlm_head.decoder.weight is not apart.vilt.embeddings.text.tokens.weight


def test_the_head_of_words_runs_at_hidden_places_only():
    torch.manual_seed(0)
    model, case, seen = MMViltForMaskedLM(tiny_config()), TestMaskedLM().inputs(), []
    model.mlm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    out = model.train()(**case)
    assert seen == [(3, VOCAB)]
    assert out.logits is None
    assert_close(out.loss, model.eval()(**case).loss)


def test_a_batch_in_which_nothing_is_hidden_costs_exactly_nothing():
    model, case = MMViltForMaskedLM(tiny_config()), TestMaskedLM().inputs()
    case["labels"].fill_(-100)
    for training in (True, False):
        model.zero_grad()
        loss = model.train(training)(**case).loss
        loss.backward()
        assert loss.item() == 0.0
        assert not any(weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_more_modalities_begin_as_the_last():
    model, batch = tiny(modality_type_vocab_size=2), mixed()
    before = model(**batch).pooler_output
    with pytest.raises(
        ValueError, match=r"`image_token_type_idx`=2 is not below `modality_type_vocab_size`=2"
    ):
        model(**batch, image_token_type_idx=2)
    model.resize_modality_types(4)
    assert model.config.modality_type_vocab_size == 4
    assert_close(model(**batch, image_token_type_idx=3).pooler_output, before)
    assert model.embeddings.modalities.weight.requires_grad
    with pytest.raises(ValueError, match="`count`=3 is less than the 4 modalities that there are"):
        model.resize_modality_types(3)


class Waits(TorchDispatchMode):
    """Notes the operations for whose result a program waits: what asks for numbers, or for how many."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        by_bool = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_bool or name in {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("max_patches", [None, 6])
def test_a_forward_pass_waits_for_the_device_once_for_all_images(max_patches, monkeypatch):
    model, tolist, lists = tiny(max_patches=max_patches).train(), torch.Tensor.tolist, []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(1) or tolist(self))
    with Waits() as waits:
        model(**mixed())
    assert waits.seen == []
    assert len(lists) == 1


def change(name, place, value):
    batch = mixed()
    batch[name][place] = value
    return batch


def without(name, **more):
    return {key: values for key, values in mixed().items() if key != name} | more


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (change("attention_mask", 1, 0), "Row 1 of `input_ids` has no token at all"),
        (change("attention_mask", (1, 4), 0), "Row 1 of `input_ids` has padding between its tokens"),
        (change("pixel_mask", 2, 0), "Row 2 of `pixel_mask` shows no patch"),
        (change("pixel_mask", (0, 0), 0), "Row 0 of `pixel_mask` is not 1 on a rectangle"),
        ({**texts([13]), **images([(2, 2)])}, "rows of 13 tokens but the position table has room for 12"),
        (without("input_ids"), "Give either `input_ids` or `inputs_embeds`"),
        (without("pixel_values"), "Give either `pixel_values` or `patch_embeds`"),
        (without("input_ids", input_ids=torch.ones(3).long()), r"must be \(batch, length\), got \(3,\)"),
        (
            without("input_ids", inputs_embeds=torch.ones(3, 9)),
            r"`inputs_embeds` must be \(batch, length, 32\), got \(3, 9\)",
        ),
        (
            without("attention_mask", attention_mask=torch.ones(3, 8)),
            r"`attention_mask` must be \(3, 9\) as `input_ids`, got \(3, 8\)",
        ),
        (mixed() | {"token_type_ids": torch.ones(3, 8).long()}, r"`token_type_ids` must be \(3, 9\)"),
        (
            without("pixel_mask", pixel_mask=torch.ones(3, 32, 32)),
            r"`pixel_mask` must be \(3, 32, 40\) as the images are, got \(3, 32, 32\)",
        ),
        (without("pixel_values", pixel_values=torch.ones(3, 8, 8)), r"must be \(images, 3, height, width\)"),
        (without("pixel_values", patch_embeds=torch.ones(3, 6, 32)), r"\(images, rows, columns, 32\), got"),
        ({name: values[:0] for name, values in mixed().items()}, r"`input_ids` must be .* got \(0, 9\)"),
        ({**texts(LENGTHS), **images(GRIDS[:2])}, "3 texts and 2 images: give one image for each text"),
        (
            {**mixed(), "image_index": torch.zeros(3)},
            r"`image_index` must be \(3,\) numbers of images, got \(3,\) of torch.float32",
        ),
        (
            {**mixed(), "bool_masked_patches": torch.zeros(3, 15).bool()},
            "`bool_masked_patches` needs a mask token",
        ),
        (
            {**mixed(), "bool_masked_patches": torch.zeros(3, 14).bool()},
            r"`bool_masked_patches` must be \(3, 15\), true where a patch is hidden, got \(3, 14\)",
        ),
    ],
)
def test_what_does_not_go_together_is_named(batch, words):
    with pytest.raises(ValueError, match=words):
        tiny()(**batch)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_class", [MMViltForMaskedLM, MMViltForTokenClassification])
def test_labels_that_are_not_one_for_each_place_are_named(model_class, training):
    model = model_class(tiny_config()).train(training)
    with pytest.raises(ValueError, match=r"`labels` must be \(3, 9\) .* got \(3, 8\)"):
        model(**mixed(), labels=torch.zeros(3, 8).long())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 33}, "`image_size`=33 must be a multiple of `patch_size`=8"),
        ({"hidden_size": 30}, "`hidden_size`=30 must be a multiple of `num_attention_heads`=4"),
        ({"max_patches": 0}, "`max_patches`=0 must be at least 1"),
        ({"num_images": 0}, "`num_images`=0 must be at least 1"),
        ({"modality_type_vocab_size": 1}, "`modality_type_vocab_size`=1 must be at least 2"),
        ({"image_mean": [0.5]}, r"`image_mean`=\[0.5\] must have one number for each of `num_channels`=3"),
        ({"task_weights": {"wpa": 1.0}}, 'has "wpa" without "itm", whose pairs it needs; name both'),
        ({"task_weights": {"mim": 1.0}}, r"`task_weights` names \['mim'\]; the tasks are"),
    ],
)
def test_bad_configs_are_named(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**changes)
