"""Ranks equal those counted one by one, however they are cut into pieces; chance is what chance gets."""

from math import comb

import numpy as np
import pytest
import torch
from evaluation.contrastive_tiny import clip_processor, own_clip, pictures, transformers_clip
from torch.nn.functional import normalize

from hf_mm import encode_images, encode_texts, image_text_retrieval, retrieval_chance, retrieval_metrics
from hf_mm.evaluation import retrieval


def vectors(rows, width=6, seed=0):
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def counted(scores, right):
    """Best rank by sorting, for scores without ties."""
    order = np.argsort(-scores, axis=1)
    return np.array([min(np.flatnonzero(right[row][order[row]])) + 1 for row in range(len(scores))])


def owners(images, texts, seed=0):
    extra = np.random.default_rng(seed).integers(0, images, texts - images)
    return np.concatenate([np.arange(images), extra])


@pytest.mark.parametrize("chunk", [1, 100, 10_000])
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_several_texts_per_image_are_counted_as_by_hand(monkeypatch, chunk, similarity):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    images, texts, owner = 3 * vectors(17), 2 * vectors(40, seed=1), owners(17, 40)
    texts *= torch.linspace(0.5, 1.5, 40)[:, None]
    metrics = retrieval_metrics(images, texts, owner, similarity)
    scores = (images @ texts.T if similarity == "dot" else -torch.cdist(images, texts)).numpy()
    belongs = owner[None] == np.arange(17)[:, None]
    ways = {"image_to_text": counted(scores, belongs), "text_to_image": counted(scores.T, belongs.T)}
    for way, ranks in ways.items():
        for k in (1, 5, 10):
            assert metrics[f"{way}_R@{k}"] == pytest.approx((ranks <= k).mean())
        assert metrics[f"{way}_median_rank"] == np.median(ranks)


def test_other_texts_of_an_image_do_not_stand_in_its_way():
    """Both right texts of image 0 are nearer than all wrong ones: ranks 1, not 1 and 2."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    metrics = retrieval_metrics(images, texts, [0, 0, 1])
    assert {value for name, value in metrics.items()} == {1.0}


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_a_model_that_tells_nothing_apart_finds_nothing(similarity):
    same = vectors(1).expand(9, -1)
    worst = retrieval_metrics(same, same, similarity=similarity)
    assert worst["image_to_text_R@1"] == worst["text_to_image_R@5"] == 0.0
    assert worst["image_to_text_median_rank"] == 9.0
    mean = retrieval_metrics(same, same, similarity=similarity, ties="mean")
    assert mean["text_to_image_median_rank"] == retrieval_chance(9)["text_to_image_median_rank"] == 5.0


def test_the_mean_of_ties_is_the_mean_over_shuffles():
    """Two right texts among three wrong ones, all alike."""
    image, texts = torch.eye(2)[:1], torch.eye(2)[:1].expand(5, -1)
    images = torch.cat([image, -image])
    found = retrieval_metrics(images, texts, [0, 0, 1, 1, 1], ties="mean", recall_at=[1])
    random = np.random.default_rng(0)
    shuffled = [random.permutation(5).argsort()[:2].min() + 1 for _ in range(20_000)]
    ranks = {0: np.mean(shuffled), 1: 1 + 2 / 4}  # image 1: three right ones among two wrong ones
    assert found["image_to_text_median_rank"] == pytest.approx((ranks[0] + ranks[1]) / 2, abs=0.02)


def test_rounding_makes_no_ties_and_breaks_none():
    images = torch.eye(3)
    texts = torch.eye(3) + 1e-7 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    assert retrieval_metrics(images, texts)["image_to_text_R@1"] == 1.0
    twins = torch.cat([texts[:2], texts[:1] * (1 - 1e-7)])  # text 2 is text 0, encoded in another batch
    assert retrieval_metrics(images[:2], twins, [0, 1, 1])["image_to_text_R@1"] == pytest.approx(0.5)
    twins = torch.cat([texts[:1], texts[:1] * (1 + 1e-7)])  # and stands ahead by rounding
    assert retrieval_metrics(torch.eye(3)[[0, 0]], twins)["image_to_text_median_rank"] == 2.0
    near = torch.cat([texts[:2], texts[:1] * (1 - 1e-4)])
    assert retrieval_metrics(images[:2], near, [0, 1, 1])["image_to_text_R@1"] == 1.0


def test_chance_is_that_of_drawing_without_replacement():
    owner = [0, 0, 0, 1, 2, 2, 3]
    chance = retrieval_chance(4, owner)
    sizes, texts = [3, 1, 2, 1], 7
    for k in (1, 5):
        expected = np.mean([1 - comb(texts - size, k) / comb(texts, k) for size in sizes])
        assert chance[f"image_to_text_R@{k}"] == pytest.approx(expected)
    assert chance["text_to_image_R@1"] == pytest.approx(1 / 4)
    assert chance["text_to_image_median_rank"] == 2.5
    assert chance["image_to_text_median_rank"] == 3.0  # 0.45 are within 2
    assert chance["text_to_image_R@5"] == chance["image_to_text_R@10"] == pytest.approx(1.0)


def test_random_vectors_come_out_at_chance():
    owner = owners(150, 400)
    runs = [
        retrieval_metrics(vectors(150, 64, seed), vectors(400, 64, 99 - seed), owner) for seed in range(8)
    ]
    chance = retrieval_chance(150, owner)
    assert set(chance) == set(runs[0])
    for name, expected in chance.items():
        found = np.mean([run[name] for run in runs])
        assert found == pytest.approx(expected, rel=0.1 if "median" in name else 0.5, abs=0.006), name


@pytest.mark.parametrize("build", [transformers_clip, own_clip, lambda: own_clip(similarity="euclidean")])
def test_a_model_is_measured_by_its_own_similarity(build):
    model, processor, images = build(), clip_processor(), pictures(3)
    captions = [["a red circle", "circle"], "blue", ["what is it?"]]
    found = image_text_retrieval(model, processor, images, captions, batch_size=2, progress=False)
    texts = encode_texts(model, processor, ["a red circle", "circle", "blue", "what is it?"], progress=False)
    similarity = "euclidean" if getattr(model.config, "similarity", "") == "euclidean" else "dot"
    embeds = encode_images(model, processor, images, progress=False)
    assert found == retrieval_metrics(embeds, texts, [0, 0, 1, 2], similarity)


def test_captions_must_fit_images():
    model, processor = own_clip(), clip_processor()
    with pytest.raises(ValueError, match="image 1 has no caption; leave it out"):
        image_text_retrieval(model, processor, pictures(2), ["a", []], progress=False)
    with pytest.raises(ValueError, match="3 captions for 2 images; give one or a list for each"):
        image_text_retrieval(model, processor, pictures(2), ["a", "b", "c"], progress=False)


@pytest.mark.parametrize(
    ("images", "texts", "options", "message"),
    [
        (vectors(2), vectors(3), {}, "3 texts for 2 images; say in `image_of_text` which is whose"),
        (vectors(2), vectors(3), {"image_of_text": [0, 1]}, r"must be \(3,\), one for each text, got \(2,\)"),
        (vectors(2), vectors(2), {"image_of_text": [0, 2]}, r"text 1 belongs to image 2, not in 0..1"),
        (vectors(2), vectors(2), {"image_of_text": [0, 0]}, "image 1 has no text; leave it out"),
        (vectors(2), vectors(2, 5), {}, "`image_embeds` are 6 wide and `text_embeds` 5"),
        (
            vectors(2)[0],
            vectors(2),
            {},
            r"`image_embeds` must be \(rows, width\) with a row at least, got \(6,\)",
        ),
        (vectors(2), vectors(2)[:0], {}, r"`text_embeds` must be .* got \(0, 6\)"),
        (vectors(2), vectors(2).log(), {}, "`text_embeds` holds NaN or infinity in row 0"),
        (
            vectors(2),
            vectors(2),
            {"similarity": "cosine"},
            "`similarity` is 'cosine'; it is 'dot' or 'euclid",
        ),
        (vectors(2), vectors(2), {"ties": "best"}, "`ties` is 'best'; it is 'worst' or 'mean'"),
    ],
)
def test_what_does_not_fit_is_named(images, texts, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(images, texts, **options)
