"""transformers' CLIP and ours: the same numbers from the same weights, read and written both ways."""

import json

import pytest
import torch
from clip_tiny import bert_config, pictures, resnet_config, tiny_model, vision_config
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from hf_mm import (
    MMCLIPForImageClassification,
    MMCLIPImageProcessor,
    MMCLIPModel,
    MMCLIPProcessor,
    MMCLIPTextModel,
    MMCLIPTextModelWithProjection,
    MMCLIPVisionModelWithProjection,
    MMViTForImageClassification,
    MMViTModel,
    export,
)
from hf_mm.models.clip.convert_clip import CLIP_CHECKPOINTS
from hf_mm.models.clip_text.convert_clip_text import CLIP_TEXT_CHECKPOINT
from hf_mm.models.vit.convert_clip_vision import CLIP_VISION_CHECKPOINT

EOS, LAST = 30, 49  # ids above the end token tell "first end" and "highest id" apart
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 12, "eos_token_id": EOS, "bos_token_id": 48}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
PROJECTED = {"projection_dim": 16}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def scrambled(model):
    """Every weight drawn anew, biases and norms too: a swap of two weights then shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model.eval()


def clip_config(text=(), vision=(), **fields):
    towers = {
        "text_config": TEXT | PROJECTED | dict(text),
        "vision_config": VISION | PROJECTED | dict(vision),
    }
    return CLIPConfig(**towers, **PROJECTED, **fields)


def theirs(model_class=CLIPModel, **changes):
    return scrambled(model_class(clip_config(**changes)))


def captions():
    """Three texts, of which two are padded, with higher ids than the end token before it."""
    generator = torch.Generator().manual_seed(2)
    ids, mask = torch.full((3, 9), EOS), torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate((9, 5, 7)):
        ids[row, : length - 1] = torch.randint(31, LAST, (length - 1,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pairs():
    return {**captions(), "pixel_values": pictures(3)}


def load(model_class, folder, **options):
    """Load and insist that every weight found its place."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


def assert_same_gradients(ours, model, table):
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert_close(
        {name: weight.grad for name, weight in ours.named_parameters()},
        table.weights_from(gradients),
        **EXACT,
    )


def assert_same_pair(ours, model):
    """Logits, vectors, loss and every gradient, to 1e-5."""
    got, expected = ours(**pairs(), return_loss=True), model(**pairs(), return_loss=True)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds", "loss"):
        assert_close(got[name], expected[name], **EXACT)
    got.loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, model, CLIP_CHECKPOINTS[0])


def exported(model, tmp_path, model_type=None):
    model.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported", model_type)
    return tmp_path / "exported"


def read_config(folder):
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version")
    return config


@pytest.mark.parametrize("eos", [EOS, 2], ids=["first end", "highest id"])
@pytest.mark.parametrize(
    ("text_act", "vision_act"), [("quick_gelu", "quick_gelu"), ("gelu", "gelu"), ("gelu", "quick_gelu")]
)
def test_a_saved_clip_loads_with_the_same_logits_loss_and_gradients(eos, text_act, vision_act, tmp_path):
    model = theirs(
        text={"eos_token_id": eos, "hidden_act": text_act},
        vision={"hidden_act": vision_act, "layer_norm_eps": 1e-3},
    )
    model.save_pretrained(tmp_path)
    ours = load(MMCLIPModel, tmp_path)
    text, vision = ours.config.text_config, ours.config.vision_config
    assert (text.hidden_act, vision.hidden_act) == (text_act, vision_act)
    assert text.end_of_text == ("highest_id" if eos == 2 else "first_eos")
    assert_same_pair(ours, model)


@pytest.mark.parametrize("eos", [EOS, 2], ids=["first end", "highest id"])
def test_a_clip_comes_back_from_ours_bit_for_bit(eos, tmp_path):
    model = theirs(text={"eos_token_id": eos}, vision={"hidden_act": "gelu"}, logit_scale_init_value=4.7)
    model.save_pretrained(tmp_path / "theirs")
    back = exported(load(MMCLIPModel, tmp_path / "theirs"), tmp_path)
    files = [load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", back)]
    assert_close(files[1], files[0], rtol=0, atol=0)
    assert read_config(back) == read_config(tmp_path / "theirs")


def test_files_of_transformers_4_load(tmp_path):
    """They hold position ids, name the dtype otherwise, write whole numbers and each tower's config twice."""
    model = theirs(text={"hidden_act": "gelu", "eos_token_id": 2}).half()
    weights = model.state_dict()
    weights["text_model.embeddings.position_ids"] = torch.arange(12).unsqueeze(0)
    weights["vision_model.embeddings.position_ids"] = torch.arange(17).unsqueeze(0)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, tmp_path / "model.safetensors")
    text = {
        **TEXT,
        "hidden_act": "gelu",
        "model_type": "clip_text_model",
        "attention_dropout": 0,
        "top_k": 50,
    }
    vision = {**VISION, "model_type": "clip_vision_model", "torch_dtype": None, "attention_dropout": 0}
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "torch_dtype": "float16",
        "text_config": text,
        "text_config_dict": {**TEXT, "hidden_act": "gelu", "eos_token_id": 2},
        "vision_config": {**vision, "num_hidden_layers": 12},
        "vision_config_dict": VISION,
        **PROJECTED,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load(MMCLIPModel, tmp_path)
    assert ours.dtype is torch.float16
    assert ours.config.text_config.end_of_text == "highest_id"
    ours, model = ours.float(), model.float()
    assert_close(ours(**pairs()).logits_per_image, model(**pairs()).logits_per_image, **EXACT)


def test_shards_and_pickled_files_load(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for name in ("shards", "pickled"):
        ours = load(MMCLIPModel, tmp_path / name)
        assert_close(ours(**pairs()).logits_per_image, model(**pairs()).logits_per_image, **EXACT)


def test_absent_fields_mean_what_they_mean_to_transformers(tmp_path):
    empty = ({"model_type": "clip"}, (), MMCLIPModel)
    fields = CLIP_CHECKPOINTS[0].config_from(*empty)
    text, vision = fields["text_config"], fields["vision_config"]
    assert text == {**CLIP_TEXT_CHECKPOINT.config_from({}, (), MMCLIPTextModel), **text}
    assert vision == {**CLIP_VISION_CHECKPOINT.config_from({}, (), MMViTModel), **vision}
    config = MMCLIPModel.config_class(**fields)
    back = CLIPConfig(**CLIP_CHECKPOINTS[0].config_to(config, MMCLIPModel))
    assert (
        back.to_dict()
        == CLIPConfig(text_config={"projection_dim": 512}, vision_config={"projection_dim": 512}).to_dict()
    )


class TestParts:
    """A tower with its projection, a tower alone, a classifier."""

    @pytest.mark.parametrize("whole", [True, False], ids=["of a whole", "saved alone"])
    def test_a_text_tower_with_projection(self, whole, tmp_path):
        model = (
            theirs() if whole else scrambled(CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, **PROJECTED)))
        )
        model.save_pretrained(tmp_path)
        ours = load(MMCLIPTextModelWithProjection, tmp_path)
        model = CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
        got, expected = ours(**captions()), model(**captions())
        assert_close(got.text_embeds, expected.text_embeds, **EXACT)
        back = CLIPTextModelWithProjection.from_pretrained(exported(ours, tmp_path)).eval()
        assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
        assert_close(back(**captions()).text_embeds, expected.text_embeds, rtol=0, atol=0)

    @pytest.mark.parametrize("whole", [True, False], ids=["of a whole", "saved alone"])
    def test_an_image_tower_with_projection(self, whole, tmp_path):
        config = CLIPVisionConfig(**VISION, **PROJECTED)
        model = theirs() if whole else scrambled(CLIPVisionModelWithProjection(config))
        model.save_pretrained(tmp_path)
        ours = load(MMCLIPVisionModelWithProjection, tmp_path)
        model = CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()
        expected = model(pictures(3)).image_embeds
        assert_close(ours(pictures(3)).image_embeds, expected, **EXACT)
        back = CLIPVisionModelWithProjection.from_pretrained(exported(ours, tmp_path)).eval()
        assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
        assert_close(back(pictures(3)).image_embeds, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("kind", ["version 5", "version 4", "with projection", "of a whole"])
    def test_a_text_tower_alone(self, kind, tmp_path):
        model = scrambled(CLIPTextModel(CLIPTextConfig(**TEXT)))
        if kind == "of a whole":
            whole = theirs()
            whole.save_pretrained(tmp_path)
            model = whole.text_model
        elif kind == "with projection":
            projected = scrambled(CLIPTextModelWithProjection(CLIPTextConfig(**TEXT)))
            projected.save_pretrained(tmp_path)
            model = projected.text_model
        else:
            model.save_pretrained(tmp_path)
        if kind == "version 4":
            weights = load_file(tmp_path / "model.safetensors")
            named = {f"text_model.{name}": weight for name, weight in weights.items()}
            save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
        ours = load(MMCLIPTextModel, tmp_path)
        got, expected = ours(**captions()), model(**captions())
        assert_close(got.pooler_output, expected.pooler_output, **EXACT)
        real = captions()["attention_mask"].bool()
        assert_close(got.last_hidden_state[real], expected.last_hidden_state[real], **EXACT)
        back = load(CLIPTextModel, exported(ours, tmp_path))
        assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
        assert_close(back(**captions()).pooler_output, expected.pooler_output, rtol=0, atol=0)

    @pytest.mark.parametrize("kind", ["version 5", "version 4", "with projection", "of a whole"])
    def test_an_image_tower_is_a_vit(self, kind, tmp_path):
        model = scrambled(CLIPVisionModel(CLIPVisionConfig(**VISION)))
        if kind == "of a whole":
            whole = theirs()
            whole.save_pretrained(tmp_path)
            model = whole.vision_model
        elif kind == "with projection":
            projected = scrambled(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)))
            projected.save_pretrained(tmp_path)
            model = projected.vision_model
        else:
            model.save_pretrained(tmp_path)
        if kind == "version 4":
            weights = load_file(tmp_path / "model.safetensors")
            named = {f"vision_model.{name}": weight for name, weight in weights.items()}
            save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
        ours = load(MMViTModel, tmp_path)
        got, expected = ours(pictures(2)), model(pictures(2))
        assert_close(got.pooler_output, expected.pooler_output, **EXACT)
        normed = model.post_layernorm(expected.last_hidden_state)
        assert_close(got.last_hidden_state, normed, **EXACT)
        back = load(CLIPVisionModel, exported(ours, tmp_path, "clip_vision_model"))
        assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)
        assert_close(back(pictures(2)).pooler_output, expected.pooler_output, rtol=0, atol=0)

    def test_an_image_tower_starts_a_classifier(self, tmp_path):
        model = theirs()
        model.save_pretrained(tmp_path)
        for head in (MMViTForImageClassification, MMCLIPForImageClassification):
            ours, report = head.from_pretrained(tmp_path, num_labels=7, output_loading_info=True)
            assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
            assert not report["unexpected_keys"]
            vector = model.vision_model(pictures(2)).pooler_output
            assert_close(ours.eval()(pictures(2)).logits, ours.classifier(vector), **EXACT)

    def test_a_classifier_has_the_same_logits_loss_and_gradients(self, tmp_path):
        model = theirs(CLIPForImageClassification, **LABELS)
        model.save_pretrained(tmp_path / "theirs")
        ours = load(MMCLIPForImageClassification, tmp_path / "theirs")
        assert ours.config.id2label == LABELS["id2label"]
        labels = torch.tensor([0, 2, 1])
        got, expected = ours(pictures(3), labels=labels), model(pictures(3), labels=labels)
        assert_close(got.logits, expected.logits, **EXACT)
        assert_close(got.loss, expected.loss, **EXACT)
        got.loss.backward()
        expected.loss.backward()
        assert_same_gradients(ours, model, CLIP_CHECKPOINTS[0])
        back = CLIPForImageClassification.from_pretrained(exported(ours, tmp_path)).eval()
        assert_close(back(pictures(3)).logits, expected.logits, rtol=0, atol=0)
        assert back.config.label2id == LABELS["label2id"]


def test_an_exported_clip_is_transformers_own_to_the_last_gradient(tmp_path):
    """Trained here with towers of unequal width, another activation and a quirk of its own."""
    text = MMCLIPTextModel.config_class(**TEXT, hidden_act="gelu", end_of_text="highest_id")
    clip = {"pooling": "cls", "embedding_norm": True, "patch_bias": False}
    vision = vision_config(hidden_size=24, hidden_act="gelu_pytorch_tanh", **clip)
    ours = scrambled(tiny_model(text_config=text, vision_config=vision, max_logit_scale=50.0))
    model = load(CLIPModel, exported(ours, tmp_path))
    assert model.config.text_config.eos_token_id == 2
    assert model.config.vision_config.hidden_act == "gelu_pytorch_tanh"
    assert_same_pair(ours, model)


@pytest.mark.parametrize(
    "size", [{"shortest_edge": 32}, {"height": 32, "width": 32}], ids=["crop", "stretch"]
)
def test_an_exported_folder_brings_a_processor_of_transformers(size, tmp_path):
    words = {"<pad>": 0, "<s>": 48, "</s>": 49} | {f"w{number}": number for number in range(1, 48)}
    tokens = Tokenizer(WordLevel(words))
    tokens.pre_tokenizer = WhitespaceSplit()
    ends = [("<s>", 48), ("</s>", 49)]
    tokens.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    processor = MMCLIPProcessor(MMCLIPImageProcessor(size=size, image_mean=0.5), tokenizer, max_length=12)
    model = theirs(text={"eos_token_id": 49})
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "ours")
    back = exported(load(MMCLIPModel, tmp_path / "clip"), tmp_path)
    reads = CLIPProcessor.from_pretrained(back)
    assert type(reads.image_processor) is CLIPImageProcessorPil
    images = [Image.effect_noise((50, 40), 90).convert("RGB")]
    texts = ["w3 w5 " * 9, "w7"]
    got = reads(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")
    expected = processor(images=images, text=texts)
    assert_close(dict(got), dict(expected), rtol=0, atol=0)
    logits = CLIPModel.from_pretrained(back)(**got).logits_per_image
    assert_close(logits, MMCLIPModel.from_pretrained(tmp_path / "ours")(**expected).logits_per_image, **EXACT)


def test_an_adapter_on_a_foreign_clip_says_how_to_load_it(tmp_path):
    theirs().save_pretrained(tmp_path / "base")
    ours = MMCLIPModel.from_pretrained(tmp_path / "base")
    tuned = get_peft_model(ours, LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ValueError, match=r"is an adapter on .*base, a model of type 'clip'; load MMCLIPModel"
    ):
        MMCLIPModel.from_pretrained(tmp_path / "adapter")


def test_one_tower_is_too_little_for_a_pair(tmp_path):
    scrambled(CLIPTextModelWithProjection(CLIPTextConfig(**TEXT))).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds one tower of CLIP, too little for a MMCLIPModel; load it with MM"
    ):
        MMCLIPModel.from_pretrained(tmp_path)


def test_pictures_that_are_not_square_are_refused(tmp_path):
    CLIPConfig(vision_config={"image_size": [32, 48]}).save_pretrained(tmp_path)
    save_file({"logit_scale": torch.ones(())}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"`image_size`=\[32, 48\] cannot be loaded: mm_vit has square images"
    ):
        MMCLIPModel.from_pretrained(tmp_path)


CLIP_LIKE = {"embedding_norm": True, "patch_bias": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_config": bert_config()},
            "`text_config` of type 'bert' cannot be exported, transformers' CLIP has",
        ),
        ({"vision_config": resnet_config()}, "`vision_config` of type 'resnet' cannot be exported"),
        ({"similarity": "euclidean"}, "`similarity`='euclidean' cannot be .* CLIPModel has 'cosine' only"),
        (
            {"objective": "sigmoid"},
            "`objective`='sigmoid' cannot be exported, .* CLIPModel has 'softmax' only",
        ),
        ({"label_smoothing": 0.1}, "`label_smoothing`=0.1 cannot be .* 0.0 only; set it so if only training"),
        ({"text_pooling": "mean"}, "`text_pooling`='mean' cannot be exported, .* 'pooler' only"),
        (
            {"vision_config": vision_config()},
            "`patch_bias`=True cannot be .* `clip_vision_model` has False only",
        ),
        (
            {"vision_config": vision_config(**CLIP_LIKE, stem_channels=[4])},
            r"`stem_channels`=\[4\] cannot be exported, transformers' `clip_vision_model` has None only; set",
        ),
        (
            {"vision_config": vision_config(**CLIP_LIKE, pooling="mean")},
            "`pooling`='mean' cannot be exported, transformers' `clip_vision_model` has 'cls' only",
        ),
        (
            {
                "vision_config": vision_config(**CLIP_LIKE),
                "text_config": MMCLIPTextModel.config_class(**(TEXT | {"eos_token_id": 2})),
            },
            "`eos_token_id`=2 cannot be exported: transformers' CLIP then reads the text at its highest",
        ),
    ],
)
def test_what_transformers_cannot_express_is_named_and_nothing_written(changes, message, tmp_path):
    tiny_model(**changes).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_classifier_on_the_normed_vector_is_refused(tmp_path):
    config = tiny_model(vision_config=vision_config(**CLIP_LIKE)).config
    MMCLIPForImageClassification(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(
        ValueError, match=r"`final_norm`=True cannot be .* CLIPForImageClassification has False"
    ):
        export(tmp_path / "ours", tmp_path / "theirs")
