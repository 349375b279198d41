"""Vectors are the model's own, whatever the batches; what cannot be encoded is named."""

import io

import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from evaluation.contrastive_tiny import (
    LONGEST,
    clip_processor,
    own_clip,
    own_processor,
    pictures,
    transformers_clip,
)
from models.clip_tiny import resnet_config
from torch.nn.functional import normalize
from transformers import ResNetModel, ViTConfig, ViTForImageClassification, ViTModel

from hf_mm import encode_images, encode_texts, vision_features
from hf_mm.evaluation.features import compare, evaluating

TEXTS = ["a red circle", "blue", "what is it? a triangle.", "the gray one, far away", "yes"]


@pytest.fixture(scope="module", params=["transformers", "own"])
def processor(request):
    return clip_processor() if request.param == "transformers" else own_processor()


@pytest.fixture(scope="module", params=["transformers", "own"])
def model(request):
    return transformers_clip() if request.param == "transformers" else own_clip()


def test_vectors_are_those_of_the_whole_model(model, processor):
    images = pictures(5)
    inputs = processor(text=TEXTS, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    image_embeds = encode_images(model, processor, images, batch_size=2, progress=False)
    text_embeds = encode_texts(model, processor, TEXTS, batch_size=2, progress=False)
    torch.testing.assert_close(image_embeds, expected.image_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text_embeds, expected.text_embeds, rtol=1e-5, atol=1e-6)
    logits = compare(model, image_embeds, text_embeds)
    torch.testing.assert_close(logits, expected.logits_per_image, rtol=1e-5, atol=1e-5)


def test_a_model_that_compares_distances_keeps_lengths_and_its_logits(processor):
    model, images = own_clip(similarity="euclidean"), pictures(3)
    inputs = processor(text=TEXTS, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    image_embeds = encode_images(model, processor, images, progress=False)
    text_embeds = encode_texts(model, processor, TEXTS, progress=False)
    torch.testing.assert_close(image_embeds, model.embed_images(inputs["pixel_values"]).detach())
    assert (image_embeds.norm(dim=-1) - 1).abs().min() > 0.01
    torch.testing.assert_close(
        compare(model, image_embeds, text_embeds), expected.logits_per_image, rtol=1e-5, atol=1e-5
    )


def test_half_precision_models_give_float32_of_length_one(processor):
    vectors = encode_images(transformers_clip().bfloat16(), processor, pictures(2), progress=False)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_texts_beyond_the_context_are_cut(model, processor):
    long, longer = encode_texts(model, processor, ["a" * 2 * LONGEST, "a" * 3 * LONGEST], progress=False)
    torch.testing.assert_close(long, longer)


def test_image_processor_and_tokenizer_serve_alone(model, processor):
    for encode, part, rows in (
        (encode_images, processor.image_processor, pictures(2)),
        (encode_texts, processor.tokenizer, TEXTS),
    ):
        torch.testing.assert_close(
            encode(model, part, rows, progress=False), encode(model, processor, rows, progress=False)
        )


def test_generators_and_columns_of_data_sets_are_read(model, processor):
    images = pictures(3)
    expected = encode_images(model, processor, images, progress=False)
    column = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))["image"]
    for rows in (iter(images), column):
        torch.testing.assert_close(encode_images(model, processor, rows, 2, progress=False), expected)


def test_modes_and_gradients_are_as_before(processor):
    model = own_clip().train()
    model.vision_model.eval()  # a locked tower
    assert not encode_images(model, processor, pictures(1), progress=False).requires_grad
    assert model.training
    assert model.text_model.training
    assert not any(module.training for module in model.vision_model.modules())
    with evaluating(model):
        assert not model.text_model.training
    with pytest.raises(ValueError, match="image 0"):
        encode_images(model, processor, [b"broken"], progress=False)
    assert model.text_model.training


def test_a_broken_picture_is_named(model, processor):
    images = [*pictures(2), b"no picture"]
    with pytest.raises(ValueError, match="image 2 cannot be read as an image: 10 bytes"):
        encode_images(model, processor, images, batch_size=1, progress=False)


def test_a_picture_that_a_data_set_cannot_decode_is_named(model, processor):
    file = io.BytesIO()
    pictures(1)[0].save(file, "PNG")
    rows = [{"bytes": file.getvalue(), "path": None}] * 3 + [{"bytes": b"GIF89a", "path": None}]
    column = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))["image"]
    with pytest.raises(ValueError, match="image 3 cannot be read"):
        encode_images(model, processor, column, progress=False)


@pytest.mark.parametrize(
    ("encode", "rows", "error", "message"),
    [
        (encode_images, [], ValueError, "`images` is empty"),
        (encode_images, iter(()), ValueError, "`images` is empty"),
        (encode_texts, [], ValueError, "`texts` is empty"),
        (encode_images, "me.png", TypeError, "`images` is one picture, a str; give a list"),
        (encode_texts, "a cat", TypeError, "`texts` is the text 'a cat'; give a list"),
        (encode_texts, ["a cat", " "], ValueError, "text 1 is ' '; there is nothing in it to compare"),
        (encode_texts, ["a cat", None], TypeError, "text 1 is a NoneType, not a string"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(processor, encode, rows, error, message):
    with pytest.raises(error, match=message):
        encode(transformers_clip(), processor, rows, progress=False)


def test_batches_below_one_are_refused(model, processor):
    with pytest.raises(ValueError, match="`batch_size` is 0; it must be at least 1"):
        encode_images(model, processor, pictures(1), batch_size=0, progress=False)


def test_a_model_without_texts_is_refused(processor):
    tower = ResNetModel(resnet_config())
    with pytest.raises(TypeError, match="ResNetModel has neither `embed_images` nor `get_image_features`"):
        encode_images(tower, processor, pictures(1), progress=False)
    with pytest.raises(TypeError, match="ResNetModel has neither `embed_texts` nor `get_text_features`"):
        encode_texts(tower, processor, TEXTS, progress=False)


def tiny_vit():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTConfig(**sizes, image_size=32, patch_size=8)


def test_towers_pool_by_themselves_where_they_can(model, processor):
    images = pictures(3)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    for tower in (model.vision_model, ViTModel(tiny_vit()), ResNetModel(resnet_config())):
        with torch.no_grad():
            expected = tower.eval()(pixels).pooler_output.flatten(1)
        features = vision_features(tower, processor, images, batch_size=2, progress=False)
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_the_mean_over_positions_stands_in_for_a_missing_pooler(processor):
    images, tower = pictures(2), ViTModel(tiny_vit(), add_pooling_layer=False).eval()
    with torch.no_grad():
        states = tower(processor(images=images, return_tensors="pt")["pixel_values"]).last_hidden_state
    for pooling, expected in (("pooler", states.mean(1)), ("mean", states.mean(1)), ("cls", states[:, 0])):
        features = vision_features(tower, processor, images, progress=False, pooling=pooling)
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_the_mean_over_the_places_of_a_cnn_is_its_pooler(processor):
    images, tower = pictures(2), ResNetModel(resnet_config()).eval()
    mean = vision_features(tower, processor, images, progress=False, pooling="mean")
    torch.testing.assert_close(mean, vision_features(tower, processor, images, progress=False))
    with pytest.raises(ValueError, match="ResNetModel is convolutional and has no first token"):
        vision_features(tower, processor, images, progress=False, pooling="cls")


def test_heads_and_unknown_poolings_are_refused(processor):
    with pytest.raises(TypeError, match=r"ViTForImageClassification returns \['logits'\], no vector"):
        vision_features(ViTForImageClassification(tiny_vit()), processor, pictures(1), progress=False)
    with pytest.raises(ValueError, match="`pooling` is 'max'; it is 'pooler', 'cls' or 'mean'"):
        vision_features(ViTModel(tiny_vit()), processor, pictures(1), progress=False, pooling="max")


def test_equal_vectors_for_pictures_alone_and_in_company(model, processor):
    images = pictures(4)
    together = encode_images(model, processor, images, progress=False)
    alone = torch.cat([encode_images(model, processor, [image], progress=False) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, normalize(together, dim=-1))
