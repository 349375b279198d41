"""Words by occlusion, patches by gradient: against the models' own logits and finite differences."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors
from torch.testing import assert_close
from transformers import AttentionInterface
from visualization.seen_tiny import WORDS, clip, mm_clip, mm_vit, pixels, processor

import hf_mm
from hf_mm.models.clip.processing_clip import MMCLIPProcessor
from hf_mm.visualization.words import gradient_rollout

TEXT = "a red circle on blue"
PICTURE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)


def ours(both):
    """The same processor in our class."""
    return MMCLIPProcessor(both.image_processor, both.tokenizer)


def cosine(model, text):
    """Similarity without temperature, by the model's own forward."""
    inputs = processor()(text=[text], images=PICTURE, return_tensors="pt")
    with torch.no_grad():
        return (model(**inputs).logits_per_image / model.logit_scale.exp()).item()


@pytest.mark.parametrize("model", [clip, mm_clip, lambda: mm_clip(similarity="euclidean")])
def test_a_word_matters_as_much_as_the_similarity_falls_without_it(model):
    model = model()
    found = hf_mm.word_relevance(model, processor(), PICTURE, TEXT)
    assert found.words == TEXT.split()
    assert found.similarity == pytest.approx(cosine(model, TEXT), abs=1e-5)
    without = [
        "red circle on blue",
        "a circle on blue",
        "a red on blue",
        "a red circle blue",
        "a red circle on",
    ]
    expected = torch.tensor([found.similarity - cosine(model, text) for text in without])
    assert_close(found.importance, expected, rtol=1e-4, atol=1e-5)
    assert found.importance.abs().max() > 1e-2


@pytest.mark.parametrize("wrap", [lambda both: both, ours], ids=["CLIPProcessor", "MMCLIPProcessor"])
@pytest.mark.parametrize("model", [clip, mm_clip])
def test_a_single_word_is_measured_against_no_text(model, wrap):
    model = model()
    found = hf_mm.word_relevance(model, wrap(processor()), PICTURE, "circle")
    assert found.importance.item() == pytest.approx(cosine(model, "circle") - cosine(model, ""), abs=1e-5)
    assert found.patches.shape == (1, 4, 4)


def test_a_single_word_of_a_text_tower_without_a_frame_is_refused():
    words = {"model_type": "mm_bag_of_words", "vocab_size": len(WORDS), "hidden_size": 16, "pad_token_id": 0}
    model, both = mm_clip(text_config=words), processor()
    both.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    assert len(hf_mm.word_relevance(model, both, PICTURE, "red circle").words) == 2
    with pytest.raises(
        ValueError, match="`text`='circle' is one word, and without it the text tower has nothing"
    ):
        hf_mm.word_relevance(model, both, PICTURE, "circle")


def nudged(place, amount):
    """Eager attention whose weight at one place of one block is changed by so much."""
    seen = []

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1)
        if len(seen) == place[0]:
            weights[0, place[1], place[2], place[3]] += amount
        seen.append(module)
        return (weights @ value).transpose(1, 2), weights

    return attend


@pytest.mark.parametrize("place", [(1, 0, 0, 5), (1, 1, 0, 9), (0, 1, 0, 3), (0, 0, 7, 2)])
def test_the_gradient_by_an_attention_weight_is_the_change_of_the_similarity(place):
    """What `gradient_rollout` multiplies the weights by, from finite differences in double precision."""
    model = clip().double()
    text = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def similarity():
        output = model.get_image_features(pixels(1).double(), output_attentions=True)
        return torch.cosine_similarity(output.pooler_output, text), output.attentions

    model.vision_model.set_attn_implementation("eager")
    score, attentions = similarity()
    found = torch.autograd.grad(score, attentions)[place[0]][0, place[1], place[2], place[3]]
    scores = []
    for amount in (1e-4, -1e-4):
        AttentionInterface.register("nudged", nudged(place, amount))
        model.vision_model.set_attn_implementation("nudged")
        scores.append(similarity()[0].item())
    assert found.item() == pytest.approx((scores[0] - scores[1]) / 2e-4, rel=1e-4, abs=1e-9)


def test_gradient_rollout_equals_its_definition():
    attentions = [torch.rand(1, 3, 4, 4, requires_grad=True) for _ in range(2)]
    gradients = [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)]
    target = sum((weights * gradient).sum() for weights, gradient in zip(attentions, gradients, strict=True))
    expected = np.eye(4)
    for weights, gradient in zip(attentions, gradients, strict=True):
        product = (weights[0].detach() * gradient[0]).numpy()
        expected = expected + np.maximum(product, 0).mean(axis=0) @ expected
    found = gradient_rollout(attentions, target)
    assert_close(found[0], torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("model", [clip, mm_clip])
def test_patches_are_those_that_carry_the_difference(model, frozen):
    """The same through transformers' outputs and lines of its own, also of weights that take no gradient."""
    model = model().requires_grad_(not frozen)
    with torch.no_grad():
        found = hf_mm.word_relevance(model, processor(), PICTURE, TEXT)
    model.requires_grad_(True).vision_model.set_attn_implementation("eager")
    whole, part = (
        processor()(text=[text], images=PICTURE, return_tensors="pt") for text in (TEXT, "a red on blue")
    )
    image = model.get_image_features(whole["pixel_values"], output_attentions=True)
    with_word, without = (
        model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        for inputs in (whole, part)
    )
    vector = image.pooler_output
    difference = torch.cosine_similarity(vector, with_word) - torch.cosine_similarity(vector, without)
    gradients = torch.autograd.grad(difference, image.attentions)
    relevance = torch.eye(17)
    for weights, gradient in zip(image.attentions, gradients, strict=True):
        relevance = relevance + (weights[0] * gradient[0]).clamp(min=0).mean(dim=0) @ relevance
    assert found.patches.shape == (5, 4, 4)
    assert_close(found.patches[2], relevance[0, 1:].detach().view(4, 4), rtol=1e-3, atol=1e-6)
    assert found.patches[2].max() > 1e-4
    assert found.whole.shape == (4, 4)


def test_the_model_is_as_before():
    model = mm_clip().train()
    hf_mm.word_relevance(model, processor(), PICTURE, TEXT)
    assert model.vision_model.config._attn_implementation == "sdpa"
    assert all(part.training for part in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


def test_without_a_word_there_is_nothing_to_measure():
    with pytest.raises(ValueError, match="`text`='  ' has no word; give at least one"):
        hf_mm.word_relevance(clip(), processor(), PICTURE, "  ")


def test_a_model_without_texts_is_refused():
    with pytest.raises(
        ValueError, match="MMViTModel compares no image with a text; words need a model of type clip"
    ):
        hf_mm.word_relevance(mm_vit(), processor(), PICTURE, TEXT)


@pytest.mark.parametrize("text", ["$5 on", "a red circle on blue $5"])
def test_the_figure_has_the_picture_the_bars_and_a_map_for_each_word(text, tmp_path):
    found = hf_mm.word_relevance(clip(), processor(), Image.fromarray(PICTURE), text)
    figure = hf_mm.word_figure(PICTURE, found)
    figure.savefig(tmp_path / "words.png")
    assert len(figure.axes) == 2 + len(found.words)
    assert [axes.get_title() for axes in figure.axes[2:]] == text.split()
    assert [bar.get_height() for bar in figure.axes[1].patches] == pytest.approx(found.importance.tolist())
    most = found.patches.max().item()
    assert [axes.images[1].get_clim() for axes in figure.axes[2:]] == [(0, most)] * len(found.words)
