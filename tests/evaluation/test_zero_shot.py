"""Zero-shot classes: prompts meet in the space of embeddings, and answers are those of the pipeline."""

import pytest
import torch
from evaluation.contrastive_tiny import clip_processor, own_clip, pictures, transformers_clip
from torch.nn.functional import normalize
from transformers import pipeline

from hf_mm import ZeroShotClassifier, encode_texts, write_results
from hf_mm.evaluation.zero_shot import PROMPTS, class_embeddings

NAMES = ["circle", "blue triangle", "square"]
PLAIN = ("a picture of a {}.",)


@pytest.fixture(scope="module")
def processor():
    return clip_processor()


@pytest.fixture(scope="module", params=["transformers", "own"])
def model(request):
    return transformers_clip() if request.param == "transformers" else own_clip()


def classifier(model, processor, names=NAMES, templates=PLAIN):
    return ZeroShotClassifier(model, processor, names, templates, progress=False)


def test_one_template_gives_the_answers_of_the_pipeline(processor):
    model, images = transformers_clip(), pictures(4)
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    ask = pipeline("zero-shot-image-classification", model=model, **parts)
    found = ask(images, candidate_labels=NAMES, hypothesis_template=PLAIN[0])
    expected = [[{a["label"]: a["score"] for a in answers}[name] for name in NAMES] for answers in found]
    zero_shot = classifier(model, processor)
    torch.testing.assert_close(zero_shot.probabilities(images), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    names = [NAMES[number] for number in zero_shot.predict(images)]
    assert names == [answers[0]["label"] for answers in found]


def test_prompts_are_ensembled_as_the_renormalised_mean(model, processor):
    embeds = class_embeddings(model, processor, NAMES, progress=False)
    prompts = [template.format(NAMES[1]) for template in PROMPTS]
    mean = encode_texts(model, processor, prompts, progress=False).mean(0)
    torch.testing.assert_close(embeds[1], normalize(mean, dim=0), rtol=1e-5, atol=1e-6)


def test_where_distances_count_the_mean_keeps_its_length(processor):
    model = own_clip(similarity="euclidean")
    embeds = class_embeddings(model, processor, NAMES, ["{}", "a {}"], progress=False)
    mean = encode_texts(model, processor, ["square", "a square"], progress=False).mean(0)
    torch.testing.assert_close(embeds[2], mean, rtol=1e-5, atol=1e-6)
    images = pictures(3)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    nearest = torch.cdist(model.embed_images(pixels).detach(), embeds).argmin(dim=1)
    assert classifier(model, processor, NAMES, ["{}", "a {}"]).predict(images).tolist() == nearest.tolist()


def test_our_templates_are_many_and_differ():
    assert len(set(PROMPTS)) == len(PROMPTS) >= 20
    assert all(template.count("{}") == 1 for template in PROMPTS)


def test_results_count_hits_and_can_be_written(model, processor, tmp_path):
    images, names = pictures(6), ["a", "b", "c", "d", "e", "f", "g"]
    zero_shot = classifier(model, processor, names)
    logits = zero_shot.logits(images)
    order = logits.argsort(dim=-1, descending=True)
    labels = [int(order[row, place]) for row, place in enumerate([0, 0, 0, 1, 4, 5])]
    results = zero_shot.results(images, labels)
    assert results["accuracy"] == zero_shot.accuracy(images, labels) == pytest.approx(3 / 6)
    assert results["accuracy_top5"] == pytest.approx(5 / 6)
    hits = {label: [] for label in labels}
    for row, label in enumerate(labels):
        hits[label].append(row < 3)
    expected = sum(sum(of) / len(of) for of in hits.values()) / len(hits)
    assert results["accuracy_per_class"] == pytest.approx(expected)
    assert results["chance"] == pytest.approx(1 / 7)
    assert (results["images"], results["classes"]) == (6, 7)
    write_results(tmp_path / "results.json", results)


def test_few_classes_have_no_top_five(processor):
    assert "accuracy_top5" not in classifier(own_clip(), processor).results(pictures(1), [0])


@pytest.mark.parametrize(
    ("names", "templates", "error", "message"),
    [
        ([], PLAIN, ValueError, "`class_names` is empty; give at least one name"),
        ("cat", PLAIN, TypeError, "`class_names` is the text 'cat'; give a list"),
        (["cat", "dog", "cat"], PLAIN, ValueError, "`class_names` has 'cat' twice, at 0 and 2"),
        (["cat", " "], PLAIN, ValueError, "`class_names` 1 is ' '; a class is found by its name only"),
        (NAMES, [], ValueError, "`templates` is empty; give at least one, such as '{}'"),
        (NAMES, "a {}", TypeError, "`templates` is the text 'a {}'; give a list"),
        (
            NAMES,
            ["{}", "a cat"],
            ValueError,
            "The template 'a cat' has no place for the name; write {} there",
        ),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(processor, names, templates, error, message):
    with pytest.raises(error, match=message):
        classifier(own_clip(), processor, names, templates)


def test_labels_must_fit_images_and_classes(processor):
    zero_shot = classifier(own_clip(), processor)
    with pytest.raises(ValueError, match="3 labels for 2 images; give one for each"):
        zero_shot.accuracy(pictures(2), [0, 1, 2])
    with pytest.raises(ValueError, match=r"image 1: label 3 is not in 0..2, the class names"):
        zero_shot.accuracy(pictures(2), [0, 3])


def test_a_broken_picture_is_named(processor):
    with pytest.raises(ValueError, match="image 1 cannot be read"):
        classifier(own_clip(), processor).predict([*pictures(1), b"broken"])
