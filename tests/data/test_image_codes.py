"""Codes on the disk: of the right tokenizer and pictures, whole, and taken up where a run stopped."""

import json

import numpy as np
import pytest
import torch
from generators.codes_tiny import BLOCKS, CODES, LENGTH, own_vq, stock_vq, words
from torch.testing import assert_close

from hf_mm import (
    CodeCollator,
    CodeRows,
    CodeVocabulary,
    ImageCodes,
    MMVQAutoencoder,
    PixelRows,
    extract_codes,
    picture_views,
)
from hf_mm.data.shard_folder import model_fingerprint

QUIET = {"progress": False, "shard_size": 4}


def some_rows(count=10, seed=0):
    pixels = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 3
    texts = tuple(("a red apple", "a bag") if number % 2 else ("a green pear",) for number in range(count))
    return PixelRows(pixels.byte(), labels, ("bag", "boot", "coat"), texts)


@pytest.fixture
def store(tmp_path):
    extract_codes(own_vq(), some_rows(), tmp_path / "codes", **QUIET)
    return tmp_path / "codes"


@torch.no_grad()
def test_a_store_holds_what_the_tokenizer_gives(tmp_path):
    vqvae, rows = own_vq(), some_rows()
    codes = extract_codes(vqvae, rows, tmp_path, **QUIET)
    expected = vqvae.encode(rows.pixel_values()).indices.flatten(1)
    assert_close(codes[:][:, 0], expected, rtol=0, atol=0)
    assert (len(codes), codes.num_codes, codes.code_size) == (10, CODES, (4, 4))
    assert np.load(tmp_path / "codes-00000.npy").dtype == np.uint16
    assert_close(ImageCodes(tmp_path, vqvae)[3], codes[3], rtol=0, atol=0)


@torch.no_grad()
def test_a_tokenizer_of_diffusers_gives_the_same_codes(tmp_path):
    torch.manual_seed(0)
    vqvae = MMVQAutoencoder(**BLOCKS, quantizer="plain").eval()
    own = extract_codes(vqvae, some_rows(), tmp_path / "own", **QUIET)
    stock = extract_codes(vqvae.to_vq_model(), some_rows(), tmp_path / "stock", **QUIET)
    assert_close(stock[:], own[:], rtol=0, atol=0)


@torch.no_grad()
def test_views_are_moved_with_their_edges_repeated_and_mirrored(tmp_path):
    vqvae, rows = stock_vq(), some_rows(2)
    views = picture_views(flip=True, shift_px=2)
    assert len(views) == 10
    assert views[0] == (False, 0, 0)
    codes = extract_codes(vqvae, rows, tmp_path, views, **QUIET)
    assert codes[0].shape == (10, LENGTH)
    wide = torch.nn.functional.pad(rows.pixel_values(), (2, 2, 2, 2), mode="replicate")
    for place, (mirrored, down, right) in enumerate(views):
        seen = wide[:, :, 2 - down : 10 - down, 2 - right : 10 - right]
        alone = PixelRows((((seen.flip(-1) if mirrored else seen) + 1) * 127.5).round().byte())
        expected = extract_codes(vqvae, alone, tmp_path / str(place), **QUIET)
        assert_close(codes[:][:, place], expected[:][:, 0], rtol=0, atol=0)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    vqvae, rows = own_vq(), some_rows()
    encode, given = vqvae.encode, []

    def killed(pixels):
        given.append(len(pixels))
        if len(given) == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    vqvae.encode = killed
    with pytest.raises(KeyboardInterrupt):
        extract_codes(vqvae, rows, tmp_path, **QUIET)
    assert given == [4, 4, 2]
    with pytest.raises(ValueError, match="has 2 of 3 shards: it was not finished"):
        ImageCodes(tmp_path)
    codes = extract_codes(vqvae, rows, tmp_path, **QUIET)
    assert given == [4, 4, 2, 2]
    assert_close(codes[:], extract_codes(own_vq(), rows, tmp_path / "whole", **QUIET)[:], rtol=0, atol=0)
    extract_codes(vqvae, rows, tmp_path, **QUIET)
    assert given == [4, 4, 2, 2]


def test_a_tokenizer_in_training_learns_nothing_from_it(tmp_path):
    vqvae = own_vq().train()
    before = {name: weight.clone() for name, weight in vqvae.state_dict().items()}
    codes = extract_codes(vqvae, some_rows(), tmp_path / "codes", **QUIET)
    assert vqvae.training
    assert_close(vqvae.state_dict(), before, rtol=0, atol=0)
    assert_close(codes[:], extract_codes(own_vq(), some_rows(), tmp_path / "again", **QUIET)[:])


def test_codes_of_another_tokenizer_are_refused(store):
    with pytest.raises(ValueError, match="has codes of another tokenizer"):
        ImageCodes(store, own_vq(seed=1))
    with pytest.raises(ValueError, match="has codes of another tokenizer"):
        extract_codes(own_vq(seed=1), some_rows(), store, **QUIET)


def test_weights_and_settings_make_the_fingerprint():
    vqvae = own_vq()
    first = model_fingerprint(vqvae)
    assert model_fingerprint(own_vq()) == first
    with torch.no_grad():
        vqvae.quant_conv.bias[0].add_(1e-6)
    assert model_fingerprint(vqvae) != first
    torch.manual_seed(0)
    assert model_fingerprint(MMVQAutoencoder(**BLOCKS, l2_normalized=True).eval()) != first


@pytest.mark.parametrize(
    ("rows", "views", "shard_size", "message"),
    [
        (some_rows(seed=1), picture_views(), 4, "has codes of other pictures"),
        (some_rows(), picture_views(flip=True), 4, "has codes of other views"),
        (some_rows(), picture_views(), 5, r"has codes of other shard_size \(4, not 5\)"),
        (some_rows(), [], 4, "`views` is empty"),
        (some_rows(), picture_views(), 0, "`shard_size`=0 must be at least 1"),
    ],
)
def test_a_store_of_something_else_is_refused(store, rows, views, shard_size, message):
    with pytest.raises(ValueError, match=message):
        extract_codes(own_vq(), rows, store, views, shard_size=shard_size, progress=False)


def test_damage_is_named(store):
    shard = store / "codes-00001.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"codes-00001\.npy is damaged: its checksum"):
        ImageCodes(store)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"codes-00001\.npy is missing"):
        ImageCodes(store)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no index of codes"), (json.dumps({"format": 7}), "has the format 7, this version reads 1")],
)
def test_an_index_that_is_none_is_named(store, content, message):
    (store / "index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageCodes(store)


def test_a_folder_without_codes_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no codes: it has no index\.json"):
        ImageCodes(tmp_path)


def test_codes_outside_the_codebook_are_refused(tmp_path):
    vqvae = stock_vq()
    vqvae.quantize.n_e = 4  # what the config says, and the weights do not
    with pytest.raises(ValueError, match="but its codebook ends at 3"):
        extract_codes(vqvae, some_rows(), tmp_path, **QUIET)


def test_a_move_below_nothing_is_named():
    with pytest.raises(ValueError, match="`shift_px`=-1 must be 0 or more"):
        picture_views(shift_px=-1)


@pytest.fixture
def code_rows(tmp_path):
    codes = extract_codes(own_vq(), some_rows(), tmp_path, picture_views(shift_px=2), **QUIET)
    return CodeRows(codes, some_rows())


def test_a_batch_holds_one_view_and_the_class_of_each_row(code_rows):
    vocabulary = CodeVocabulary(CODES, 3)
    batch = CodeCollator(vocabulary)([code_rows[number] for number in range(10)])
    assert batch["prefixes"].flatten().tolist() == [CODES + number % 3 for number in range(10)]
    views = [
        (code_rows[number]["codes"] == batch["codes"][number]).all(-1).nonzero()[0].item()
        for number in range(10)
    ]
    assert len(set(views)) > 1
    first = CodeCollator(vocabulary, draw=False)([code_rows[number] for number in range(10)])
    assert_close(first["codes"], code_rows.codes[:][:, 0], rtol=0, atol=0)


def test_draws_follow_from_the_seed_and_the_rows(code_rows):
    rows = [code_rows[number] for number in (4, 7, 1, 2)]
    collators = [CodeCollator(CodeVocabulary(CODES, 3), seed=seed) for seed in (0, 0, 1)]
    first, again, other = (collator(rows)["codes"] for collator in collators)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_texts_become_prefixes(code_rows):
    tokenizer = words()
    vocabulary = CodeVocabulary(CODES, 0, len(tokenizer), 5)
    collator = CodeCollator(vocabulary, "text", tokenizer, draw=False)
    batch = collator([code_rows[number] for number in (0, 1)])
    ids = tokenizer(["a green pear", "a red apple"], add_special_tokens=False)["input_ids"]
    assert torch.equal(batch["prefixes"], vocabulary.word_prefixes(ids))
    empty = CodeCollator(CodeVocabulary(CODES), "none")([code_rows[0]])
    assert empty["prefixes"].tolist() == [[CODES]]


@pytest.mark.parametrize(
    ("condition", "row", "message"),
    [
        ("class", {"label": 3}, r"`class_labels`\[0\] is 3, but the model knows the classes 0 to 2"),
        ("class", {}, "Row 8 has no 'label', which `condition`='class' asks for"),
        (
            "text",
            {"texts": ("a red bag and a pear",)},
            "Row 8: the text 'a red bag and a pear' has 6 tokens, ",
        ),
    ],
)
def test_faulty_rows_are_named(condition, row, message):
    tokenizer = words()
    collator = CodeCollator(CodeVocabulary(CODES, 3, len(tokenizer), 5), condition, tokenizer)
    with pytest.raises(ValueError, match=message):
        collator([{"codes": torch.zeros(1, LENGTH, dtype=torch.long), "number": 8, **row}])


def test_impossible_collators_are_named(code_rows):
    with pytest.raises(ValueError, match="`condition`='colour' is none of class, text, none"):
        CodeCollator(CodeVocabulary(CODES), "colour")
    with pytest.raises(ValueError, match="`condition`='text' needs a `tokenizer`"):
        CodeCollator(CodeVocabulary(CODES), "text")
    with pytest.raises(ValueError, match="`codes` are of 10 pictures, `rows` has 3"):
        CodeRows(code_rows.codes, some_rows(3))
