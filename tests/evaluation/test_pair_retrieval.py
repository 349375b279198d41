"""Ranks from scores of pairs equal those counted by hand; re-ranking moves what is scored, nothing else."""

import numpy as np
import pytest
import torch
from evaluation.contrastive_tiny import clip_processor, own_clip
from evaluation.pairs_tiny import (
    TEXTS,
    own_processor,
    own_vilt,
    pictures,
    transformers_processor,
    transformers_vilt,
)
from torch.testing import assert_close

from hf_mm import (
    encode_images,
    encode_texts,
    pair_metrics,
    pair_retrieval,
    rerank,
    retrieval_metrics,
    score_pairs,
)
from hf_mm.evaluation.features import compare

CAPTIONS = [TEXTS[:2], TEXTS[2], [TEXTS[3]], TEXTS[4:6]]  # of four pictures
OWNER = [0, 0, 1, 2, 3, 3]


def table(rows, columns, seed=0, scale=1.0):
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def counted(scores, right):
    """Best rank by sorting, for scores without ties."""
    order = np.argsort(-scores.numpy(), axis=1)
    return np.array([min(np.flatnonzero(right[row][order[row]])) + 1 for row in range(len(scores))])


def test_several_texts_per_image_are_counted_as_by_hand():
    owner = np.concatenate([np.arange(17), np.random.default_rng(0).integers(0, 17, 23)])
    forth, back = table(17, 40), table(40, 17, seed=1)
    belongs = owner[None] == np.arange(17)[:, None]
    for other in (None, back):
        found = pair_metrics(forth, owner, other)
        backward = forth.T if other is None else back
        for way, ranks in (
            ("image_to_text", counted(forth, belongs)),
            ("text_to_image", counted(backward, belongs.T)),
        ):
            assert found[f"{way}_median_rank"] == np.median(ranks)
            for k in (1, 5, 10):
                assert found[f"{way}_R@{k}"] == pytest.approx((ranks <= k).mean())


@pytest.mark.parametrize("ties", ["worst", "mean"])
def test_scores_of_vectors_give_the_metrics_of_the_vectors(ties):
    """Ties among them: text 4 is text 0."""
    images, texts = table(5, 8), table(9, 8, seed=1)
    texts[4] = texts[0]
    owner = [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert pair_metrics(images @ texts.T, owner, ties=ties) == retrieval_metrics(
        images, texts, owner, ties=ties
    )


def test_a_model_that_scores_all_pairs_alike_finds_nothing():
    model = own_vilt()
    model.rank_output.weight.data.zero_()
    found = pair_retrieval(model, own_processor(), pictures(4), CAPTIONS, progress=False)
    assert found["image_to_text_R@1"] == found["text_to_image_R@1"] == 0.0
    assert found["text_to_image_median_rank"] == 4.0


@pytest.mark.parametrize("k", [1, 3, 7, 100])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_k_best_come_in_the_order_of_the_scorer_and_the_rest_as_before(k, scale):
    similarity, scores = table(6, 7), table(6, 7, seed=1, scale=scale)
    asked = []

    def scorer(pairs):
        asked.append(pairs)
        return scores.where(pairs, torch.nan)  # what was not asked for is not read

    found = rerank(similarity, k, scorer)
    for row in range(6):
        before = sorted(range(7), key=lambda column: -float(similarity[row, column]))
        chosen = before[:k]
        assert asked[0][row].nonzero().flatten().tolist() == sorted(chosen)
        expected = sorted(chosen, key=lambda column: -float(scores[row, column])) + before[k:]
        assert found[row].argsort(descending=True).tolist() == expected
        assert_close(found[row, chosen], scores[row, chosen])


def test_what_is_not_scored_again_keeps_small_differences_and_ties():
    """One part in ten thousand of the span apart beside scores of 50; equal ones stay equal."""
    similarity = torch.tensor([[0.9, 0.8, 0.3001, 0.3, 0.3, 0.0]])
    scores = torch.tensor([[-50.0, 50.0, 0.0, 0.0, 0.0, 0.0]])
    images = torch.cat([similarity, similarity.flip(1)])
    found = rerank(images, 2, lambda pairs: torch.cat([scores, scores.flip(1)]))
    assert found[0, 1] > found[0, 0] > found[0, 2] > found[0, 3] == found[0, 4] > found[0, 5]
    ranks = pair_metrics(found, [1, 1, 0, 1, 1, 1], recall_at=[2, 3])
    assert (ranks["image_to_text_R@2"], ranks["image_to_text_R@3"]) == (0.5, 1.0)
    behind = pair_metrics(found, [1, 1, 1, 0, 1, 1], recall_at=[3, 4, 5])
    assert [behind[f"image_to_text_R@{k}"] for k in (3, 4, 5)] == [0.5, 0.5, 1.0]  # after its equal


@pytest.mark.parametrize(
    ("build", "processor"), [(own_vilt, own_processor), (transformers_vilt, transformers_processor)]
)
def test_among_all_pairs_the_metrics_are_those_of_the_scores(build, processor):
    model = build()
    found = pair_retrieval(model, processor(), pictures(4), CAPTIONS, progress=False)
    scores = score_pairs(model, processor(), pictures(4), TEXTS, progress=False)
    assert found == pair_metrics(scores, OWNER)


def clip_similarity(images):
    clip, processor = own_clip(), clip_processor()
    texts = encode_texts(clip, processor, TEXTS, progress=False)
    return compare(clip, encode_images(clip, processor, images, progress=False), texts)


def test_clip_chooses_and_vilt_orders_both_ways():
    """Each way its own k; the pairs of both are scored once."""
    model, processor, images = own_vilt(), own_processor(), pictures(4)
    similarity, rows = clip_similarity(images), []
    scores = score_pairs(model, processor, images, TEXTS, progress=False)
    model.register_forward_hook(lambda module, args, outputs: rows.append(len(outputs.logits)))
    options = {"progress": False, "similarity": similarity, "recall_at": [1, 2, 3, 4]}
    found = pair_retrieval(model, processor, images, CAPTIONS, k=2, **options)
    assert 8 <= sum(rows) < 4 * 5  # 2 for each picture, and what the texts ask for beyond that
    forth = rerank(similarity, 2, lambda pairs: scores)
    back = rerank(similarity.T, 2, lambda pairs: scores.T)
    assert found == pair_metrics(forth, OWNER, back, recall_at=[1, 2, 3, 4])
    assert found != pair_metrics(scores, OWNER, recall_at=[1, 2, 3, 4])


def test_with_one_candidate_nothing_moves_and_with_all_the_scores_decide():
    model, processor, images = own_vilt(), own_processor(), pictures(4)
    options = {"progress": False, "similarity": clip_similarity(images)}
    one = pair_retrieval(model, processor, images, CAPTIONS, k=1, **options)
    assert one == pair_metrics(options["similarity"], OWNER)
    every = pair_retrieval(model, processor, images, CAPTIONS, k=6, **options)
    assert every == pair_retrieval(model, processor, images, CAPTIONS, progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_metrics(torch.zeros(2)), r"`image_to_text` must be a table .* got \(2,\)"),
        (
            lambda: pair_metrics(torch.zeros(2, 3)),
            "3 texts for 2 images; say in `image_of_text` which is whose",
        ),
        (
            lambda: pair_metrics(torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])),
            "`image_to_text` is -inf in row 0, column 1; every pair needs a number .* `rerank`",
        ),
        (
            lambda: pair_metrics(torch.zeros(2, 2), text_to_image=torch.zeros(2, 3)),
            r"`text_to_image` must be \(2, 2\), a row for each text, got \(2, 3\)",
        ),
        (lambda: pair_metrics(torch.zeros(2, 2), ties="best"), "`ties` is 'best'; it is 'worst' or 'mean'"),
        (lambda: rerank(torch.zeros(2, 2), 0, lambda pairs: pairs), "`k` is 0; at least one answer"),
        (
            lambda: rerank(torch.full((1, 2), torch.nan), 1, lambda pairs: pairs),
            "`similarity` is nan in row 0",
        ),
        (
            lambda: rerank(torch.zeros(2, 3), 1, lambda pairs: torch.zeros(2, 2)),
            r"The scorer must return \(2, 3\) scores, one for each pair, got \(2, 2\)",
        ),
        (
            lambda: rerank(torch.zeros(2, 3), 3, lambda pairs: torch.full((2, 3), torch.inf)),
            "The score in row 0, column 0 is inf; is the model's loss finite",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3}, "`similarity` is not given and `k` is 3; give both"),
        ({"similarity": torch.zeros(4, 6)}, "`similarity` is given and `k` is None; give both"),
        ({"similarity": torch.zeros(6, 4), "k": 1}, r"must be \(4, 6\), images by captions, got \(6, 4\)"),
        ({"images": pictures(3)}, "4 captions for 3 images; give one or a list for each"),
        ({"images": iter(pictures(3))}, "4 captions for 3 images; give one or a list for each"),
        ({"captions": ["a", [], "a", "a"]}, "image 1 has no caption; leave it out"),
        ({"ties": "best"}, "`ties` is 'best'; it is 'worst' or 'mean'"),
    ],
)
def test_what_does_not_fit_the_pictures_is_named(options, message):
    options = {"images": pictures(4), "captions": CAPTIONS, "progress": False} | options
    with pytest.raises(ValueError, match=message):
        pair_retrieval(own_vilt(), own_processor(), **options)
