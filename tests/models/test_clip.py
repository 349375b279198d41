import math

import pytest
import torch
from clip_tiny import (
    VOCAB,
    bag_config,
    bert_config,
    pairs,
    pictures,
    resnet_config,
    text_config,
    texts,
    tiny_config,
    tiny_model,
    vision_config,
)
from contract import ModelContract
from huggingface_hub.errors import StrictDataclassClassValidationError as Invalid
from torch.testing import assert_close
from transformers import AutoModel, BertModel, CLIPModel, ResNetModel

from hf_mm import (
    MMCLIPConfig,
    MMCLIPForImageClassification,
    MMCLIPModel,
    MMCLIPTextModelWithProjection,
    MMCLIPVisionModelWithProjection,
    train_only,
)

TOWERS = [
    pytest.param({"vision_config": image(), "text_config": text()}, id=f"{image.__name__}-{text.__name__}")
    for image in (vision_config, resnet_config)
    for text in (text_config, bag_config, bert_config)
]


class TestClassifier(ModelContract):
    model_class = MMCLIPForImageClassification

    def config(self, **changes):
        return tiny_config(**({"num_labels": 3} | changes))

    def inputs(self):
        return {"pixel_values": pictures(2), "labels": torch.tensor([0, 2])}

    def test_records_hidden_states_and_attentions(self):
        model = self.model()
        model.set_attn_implementation("eager")
        out = self.run(model, output_hidden_states=True, output_attentions=True)
        assert (len(out.hidden_states), len(out.attentions)) == (3, 2)

    def test_refuses_labels_of_another_shape(self):
        with pytest.raises(ValueError, match=r"`labels` must be \(2,\) class indices, got \(3,\)"):
            self.model()(pictures(2), labels=torch.tensor([0, 1, 2]))

    def test_takes_the_tower_of_a_trained_pair(self, tmp_path):
        model = tiny_model()
        model.save_pretrained(tmp_path)
        head, report = MMCLIPForImageClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
        assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
        assert not report["unexpected_keys"]
        assert_close(head.vision_model.state_dict(), model.vision_model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("towers", TOWERS)
def test_every_pairing_of_towers_trains(towers):
    model = tiny_model(**towers).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model(**pairs(), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("towers", TOWERS)
def test_save_and_load_keeps_every_bit(towers, tmp_path):
    model = tiny_model(**towers)
    model.save_pretrained(tmp_path)
    again, report = MMCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        expected, got = model(**pairs()), again(**pairs())
    assert_close(got.logits_per_image, expected.logits_per_image, rtol=0, atol=0)
    assert isinstance(AutoModel.from_pretrained(tmp_path), MMCLIPModel)


@pytest.mark.parametrize("changes", [{}, {"objective": "sigmoid"}, {"similarity": "euclidean"}], ids=str)
def test_every_parameter_gets_a_gradient(changes):
    model = tiny_model(**changes).train()
    model(**pairs(), return_loss=True).loss.backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]


def test_loss_is_the_papers_pseudo_code():
    model = tiny_model(label_smoothing=0.1)
    out = model(**pairs(), return_loss=True)
    image = torch.nn.functional.normalize(model.get_image_features(pairs()["pixel_values"]).pooler_output)
    words = {name: pairs()[name] for name in ("input_ids", "attention_mask")}
    text = torch.nn.functional.normalize(model.get_text_features(**words).pooler_output)
    logits = image @ text.T * model.logit_scale.exp()
    target = torch.arange(4)
    both = [torch.nn.functional.cross_entropy(x, target, label_smoothing=0.1) for x in (logits, logits.T)]
    assert_close(out.logits_per_image, logits)
    assert_close(out.logits_per_text, logits.T)
    assert_close(out.loss, sum(both) / 2)


def test_euclidean_logits_are_minus_the_scaled_distance():
    model = tiny_model(similarity="euclidean")
    out = model(**pairs())
    expected = -torch.cdist(out.image_embeds, out.text_embeds) * model.logit_scale.exp()
    assert_close(out.logits_per_image, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out.image_embeds.norm(dim=-1), torch.ones(4))


def test_sigmoid_starts_with_the_scale_and_bias_of_its_paper():
    model = tiny_model(objective="sigmoid")
    assert_close(model.logit_scale.exp().item(), 10.0)
    assert model.logit_bias.item() == -10.0


def test_scale_starts_at_the_inverse_temperature_and_survives_loading(tmp_path):
    model = tiny_model()
    assert_close(model.logit_scale.exp().item(), 1 / 0.07)
    model.logit_scale.data.fill_(3.0)
    model.save_pretrained(tmp_path)
    assert MMCLIPModel.from_pretrained(tmp_path).logit_scale.item() == 3.0


def test_clamp_keeps_the_scale_between_one_and_the_maximum():
    model = tiny_model()
    for value, expected in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        model.logit_scale.data.fill_(value)
        model.clamp_temperature()
        assert_close(model.logit_scale.item(), expected)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_leaves_padding_out_and_freezes_the_unused_pooler(pooling):
    model = tiny_model(text_config=bert_config(), text_pooling=pooling)
    short = texts([5], seed=3)
    padded = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in short.items()}
    with torch.no_grad():
        assert_close(model.embed_texts(**padded), model.embed_texts(**short))
    assert not any(weight.requires_grad for weight in model.text_model.pooler.parameters())
    train_only(model, ["text", "temperature"])
    assert not any(weight.requires_grad for weight in model.text_model.pooler.parameters())
    assert model.text_projection.weight.requires_grad


def test_mean_of_a_cnn_is_over_all_positions():
    model = tiny_model(vision_config=resnet_config(), vision_pooling="mean")
    with torch.no_grad():
        states = model.vision_model(pictures(2)).last_hidden_state
        expected = model.visual_projection(states.mean((2, 3)))
        assert_close(model.get_image_features(pictures(2)).pooler_output, expected)


def test_half_models_load_from_the_whole(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    words = texts([4, 9])
    with torch.no_grad():
        vision, seen = MMCLIPVisionModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
        text, read = MMCLIPTextModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
        assert not seen["missing_keys"] | seen["unexpected_keys"]
        assert not read["missing_keys"] | read["unexpected_keys"]
        image_embeds, text_embeds = vision(pictures(2)).image_embeds, text(**words).text_embeds
        assert_close(image_embeds, model.get_image_features(pictures(2)).pooler_output, rtol=0, atol=0)
        assert_close(text_embeds, model.get_text_features(**words).pooler_output, rtol=0, atol=0)
    text.save_pretrained(tmp_path / "text")
    again = MMCLIPTextModelWithProjection.from_pretrained(tmp_path / "text")
    assert_close(again.state_dict(), text.state_dict(), rtol=0, atol=0)


def test_pretrained_towers_are_joined_with_their_weights_and_kernels():
    vision, text = ResNetModel(resnet_config()), BertModel(bert_config())
    model = MMCLIPModel.from_towers(vision, text, projection_dim=8)
    assert model.vision_model is vision
    assert model.text_model is text
    assert model.text_model.config._attn_implementation == "sdpa"
    assert model(**pairs()).image_embeds.shape == (4, 8)


def test_only_a_pair_for_each_image_has_a_loss():
    batch = pairs() | {"pixel_values": pictures(3)}
    model = tiny_model()
    assert model(**batch).logits_per_image.shape == (3, 4)
    with pytest.raises(ValueError, match=r"one text per image, got 3 images .* and 4 texts"):
        model(**batch, return_loss=True)


def test_hidden_states_of_both_towers_come_on_request():
    out = tiny_model()(**pairs(), output_hidden_states=True)
    assert len(out.vision_model_output.hidden_states) == len(out.text_model_output.hidden_states) == 3
    assert out.text_model_output.hidden_states[0].shape == (*pairs()["input_ids"].shape, 32)


def test_eager_and_sdpa_agree():
    model = tiny_model()
    with torch.no_grad():
        sdpa = model(**pairs()).logits_per_image
        model.set_attn_implementation("eager")
        assert_close(model(**pairs()).logits_per_image, sdpa)


def test_compiles_as_one_graph():
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_close(compiled(**pairs()).logits_per_image, model(**pairs()).logits_per_image)


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**pairs(), return_loss=True).loss.backward()
        grads.append([weight.grad for weight in model.parameters()])
    assert_close(grads[0], grads[1])


def test_a_tuple_comes_on_request():
    loss, per_image, per_text, *_ = tiny_model()(**pairs(), return_loss=True, return_dict=False)
    assert loss.ndim == 0
    assert_close(per_image.T, per_text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype):
    batch = pairs()
    with torch.no_grad():
        expected = tiny_model()(**batch).image_embeds
        batch["pixel_values"] = batch["pixel_values"].to(dtype)
        assert_close(tiny_model().to(dtype)(**batch).image_embeds.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logit_scale_init_value": 14.3}, "is the logarithm of the initial scale and must be from 0"),
        ({"logit_bias_init_value": -10.0}, "does nothing in a softmax"),
        ({"objective": "sigmoid", "label_smoothing": 0.1}, "`label_smoothing`=0.1 needs"),
        ({"label_smoothing": 1.0}, "at least 0 and below 1"),
        ({"projection_dim": 0}, "`projection_dim`=0 must be at least 1"),
        ({"max_logit_scale": 0.5}, "`max_logit_scale`=0.5 must be at least 1"),
    ],
)
def test_config_refuses(changes, words):
    with pytest.raises(Invalid, match=words):
        tiny_config(**changes)


def test_config_takes_one_tower_of_a_config_of_two():
    config = MMCLIPConfig(vision_config=CLIPModel.config_class(), text_config=CLIPModel.config_class())
    assert config.vision_config.model_type == "clip_vision_model"
    assert config.text_config.model_type == "clip_text_model"


def test_input_embeddings_are_the_word_vectors():
    assert tiny_model().get_input_embeddings().weight.shape == (VOCAB, 32)
