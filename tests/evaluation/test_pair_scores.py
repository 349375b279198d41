"""Scores of pairs in batches are those of single pairs, and what can be done once is done once."""

import pytest
import torch
from evaluation.pairs_tiny import (
    TEXTS,
    one_by_one,
    own_processor,
    own_vilt,
    pictures,
    transformers_processor,
    transformers_vilt,
)
from models.vilt_tiny import tiny_config
from torch.testing import assert_close

from hf_mm import score_pairs
from hf_mm.models.vilt.heads_vilt import MMViltForQuestionAnswering

BOTH = pytest.mark.parametrize(
    ("build", "processor"),
    [(own_vilt, own_processor), (transformers_vilt, transformers_processor)],
    ids=["own", "transformers"],
)


def scored(model, processor, images, texts, **options):
    return score_pairs(model, processor, images, texts, progress=False, **options)


@BOTH
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_are_those_of_each_pair_by_itself(build, processor, batch_size):
    """Pictures of several sizes, texts of several lengths; pairs of one picture in two batches."""
    model, images = build(), pictures(4)
    found = scored(model, processor(), images, TEXTS, batch_size=batch_size)
    expected = one_by_one(model, processor(), images, TEXTS)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.std(dim=1).min() > 0.05


@BOTH
def test_candidates_alone_are_scored(build, processor):
    model, images = build(), pictures(3)
    candidates = torch.zeros(3, 6, dtype=torch.bool)
    candidates[0, [0, 5]] = candidates[2, [2, 3, 1]] = True  # none of picture 1
    whole = scored(model, processor(), images, TEXTS)
    found = scored(model, processor(), images, TEXTS, candidates=candidates, batch_size=2)
    assert_close(found[candidates], whole[candidates], rtol=1e-5, atol=1e-5)
    assert (found[~candidates] == -torch.inf).all()


@BOTH
def test_a_text_that_occurs_twice_is_scored_once_and_ties_exactly(build, processor):
    model, rows = build(), []
    model.register_forward_hook(lambda module, args, outputs: rows.append(len(outputs.logits)))
    found = scored(model, processor(), pictures(3), TEXTS, batch_size=4)
    assert sum(rows) == 3 * 5
    assert torch.equal(found[:, 1], found[:, 5])


def test_each_picture_is_processed_and_its_patches_embedded_once():
    model, processor, seen = own_vilt(), own_processor(), []
    model.vilt.embeddings.patches.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    candidates = torch.ones(3, 6, dtype=torch.bool)
    candidates[1] = False
    scored(model, processor, pictures(3), TEXTS, candidates=candidates, batch_size=2)
    assert seen == [1, 1]


def test_pictures_may_come_from_a_generator():
    model, processor = own_vilt(), own_processor()
    found = scored(model, processor, (image for image in pictures(2)), TEXTS)
    assert_close(found, scored(model, processor, pictures(2), TEXTS))


@BOTH
def test_a_text_that_is_too_long_is_cut(build, processor):
    model, long = build(), "a red circle " * 5
    cut = " ".join(long.split()[:10])  # 12 positions, two of them special
    found = scored(model, processor(), pictures(2), [long, cut])
    assert_close(found[:, 0], found[:, 1], rtol=1e-5, atol=1e-5)


def test_padding_may_stand_in_front():
    model, left = own_vilt(), own_processor()
    left.tokenizer.padding_side = "left"
    found = scored(model, left, pictures(2), TEXTS)
    assert_close(found, scored(model, own_processor(), pictures(2), TEXTS), rtol=1e-5, atol=1e-5)


def test_dropout_and_patch_sampling_are_off_and_the_mode_is_as_before():
    model = own_vilt(hidden_dropout=0.5, attention_dropout=0.5, max_patches=2).train()
    found = scored(model, own_processor(), pictures(2), TEXTS)
    assert model.training
    assert not found.requires_grad
    expected = scored(model.eval(), own_processor(), pictures(2), TEXTS, batch_size=5)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_half_precision_model_gives_float32():
    model = own_vilt()
    whole = scored(model, own_processor(), pictures(2), TEXTS)
    found = scored(model.bfloat16(), own_processor(), pictures(2), TEXTS)
    assert found.dtype == torch.float32
    assert_close(found, whole, rtol=0.0, atol=0.1)  # bfloat16 keeps three digits; they spread over 3


def test_a_model_without_a_score_for_each_pair_is_refused():
    torch.manual_seed(0)
    model = MMViltForQuestionAnswering(tiny_config(num_labels=3))
    message = r"MMViltForQuestionAnswering gives logits \(6, 3\) for 6 pairs, one score for each is needed"
    with pytest.raises(ValueError, match=message):
        scored(model, own_processor(), pictures(1), [*TEXTS[:5], "a"])


def test_a_broken_model_is_named():
    model = own_vilt()
    model.rank_output.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="The score in row 0, column 0 is nan; is the model's loss finite"):
        scored(model, own_processor(), pictures(1), TEXTS)


def booleans(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("images", "texts", "options", "error", "message"),
    [
        ([], TEXTS, {}, ValueError, "`images` is empty; give at least one"),
        ("me.png", TEXTS, {}, TypeError, "`images` is one picture, a str; give a list of pictures"),
        (2, [], {}, ValueError, "`texts` is empty; give at least one"),
        (2, "a cat", {}, TypeError, "`texts` is the text 'a cat'; give a list of texts"),
        (2, ["a", " "], {}, ValueError, "text 1 is ' '; there is nothing in it to compare"),
        (2, TEXTS, {"batch_size": 0}, ValueError, "`batch_size` is 0; it must be at least 1"),
        (2, TEXTS, {"candidates": booleans(2, 5)}, ValueError, r"\(images, 6\) booleans, got \(2, 5\) of"),
        (2, TEXTS, {"candidates": torch.ones(2, 6)}, ValueError, r"got \(2, 6\) of torch.float32"),
        (2, TEXTS, {"candidates": ~booleans(2, 6)}, ValueError, "`candidates` is false everywhere"),
        (
            2,
            TEXTS,
            {"candidates": booleans(3, 6)},
            ValueError,
            "`candidates` has 3 rows for 2 images; give a",
        ),
    ],
)
def test_what_cannot_be_scored_is_named(images, texts, options, error, message):
    images = pictures(images) if isinstance(images, int) else images
    with pytest.raises(error, match=message):
        scored(own_vilt(), own_processor(), images, texts, **options)


@pytest.mark.parametrize(
    ("rows", "message"), [(1, "has 1 rows, but there are more images"), (3, "has 3 rows for 2 images")]
)
def test_candidates_must_fit_a_generator_too(rows, message):
    with pytest.raises(ValueError, match=f"`candidates` {message}; give a row for each"):
        scored(
            own_vilt(),
            own_processor(),
            iter(pictures(2)),
            TEXTS,
            candidates=booleans(rows, 6),
            batch_size=100,
        )
