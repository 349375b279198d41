"""Fifty pictures, fifty texts: each pair as by itself, some re-ranked behind CLIP, few held in memory."""

import weakref
from itertools import product

import pytest
import torch
from evaluation.contrastive_tiny import clip_processor, own_clip
from evaluation.pairs_tiny import own_processor, own_vilt, pictures
from torch.testing import assert_close

from hf_mm import encode_images, encode_texts, pair_metrics, pair_retrieval, rerank, score_pairs
from hf_mm.evaluation.features import compare

COUNT = 50
WORDS = ("a", "red", "blue", "circle", "circles", "on", "is", "no", "?")
TEXTS = [
    " ".join(words) + " no" * (number % 5)
    for number, words in enumerate(list(product(WORDS, repeat=3))[:: 9**3 // COUNT][:COUNT])
]


@pytest.fixture(scope="module")
def alone():
    """(50, 50) scores, each of a pass of its own."""
    model, processor = own_vilt(), own_processor()
    texts = [processor(text=text) for text in TEXTS]
    images = [processor(images=image) for image in pictures(COUNT)]
    with torch.no_grad():
        scores = [[model(**image, **text).logits.item() for text in texts] for image in images]
    return torch.tensor(scores)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [64, 7])
def test_all_pairs_have_the_scores_of_each_by_itself(alone, batch_size):
    assert len(set(TEXTS)) == COUNT
    found = score_pairs(own_vilt(), own_processor(), pictures(COUNT), TEXTS, None, batch_size, progress=False)
    assert_close(found, alone, rtol=1e-5, atol=1e-5)
    assert found.std(dim=1).min() > 0.05


@pytest.mark.slow
def test_behind_clip_a_fifth_is_scored_and_the_order_is_that_of_all_scores(alone):
    model, images, rows = own_vilt(), pictures(COUNT), []
    clip, processor = own_clip(), clip_processor()
    texts = encode_texts(clip, processor, TEXTS, progress=False)
    similarity = compare(clip, encode_images(clip, processor, images, progress=False), texts)
    model.register_forward_hook(lambda module, args, outputs: rows.append(len(outputs.logits)))
    options = {"similarity": similarity, "k": 5, "progress": False}
    found = pair_retrieval(model, own_processor(), images, TEXTS, **options)
    assert COUNT * 5 <= sum(rows) <= 2 * COUNT * 5
    forth = rerank(similarity, 5, lambda pairs: alone)
    back = rerank(similarity.T, 5, lambda pairs: alone.T)
    assert found == pair_metrics(forth, None, back)


@pytest.mark.parametrize(
    ("batch_size", "per_picture", "held"), [(16, 10, 3), (4, 1, 5)], ids=["all pairs", "one text each"]
)
def test_pictures_are_held_only_while_their_pairs_are_scored(batch_size, per_picture, held, monkeypatch):
    """Those of a batch, and the one that is read next."""
    model, kept, alive = own_vilt(), [], []
    embed = model.vilt.embed_patches

    def noted(pixels):
        kept.append(weakref.ref(patches := embed(pixels)))
        return patches

    monkeypatch.setattr(model.vilt, "embed_patches", noted)
    model.register_forward_hook(lambda *_: alive.append(sum(one() is not None for one in kept)))
    candidates = torch.zeros(20, 10, dtype=torch.bool)
    candidates[:, :per_picture] = True
    score_pairs(
        model, own_processor(), iter(pictures(20)), TEXTS[:10], candidates, batch_size, progress=False
    )
    assert len(kept) == 20
    assert max(alive) <= held
