"""Foreign checkpoints: where their files may lie, what may be asked for, and what is refused by name."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from hf_mm.hub.interop import ForeignCheckpoint
from hf_mm.models.vit.modeling_vit import MMViTForImageClassification, MMViTModel

SIZES = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class Toy(ForeignCheckpoint):
    model_type = "toy"
    classes = {}
    fields = {"hidden_size": "width", "hidden_act": "act", "dtype": "dtype"}
    defaults = {"act": "relu"}
    fixed = {"qkv_bias": True}
    unused = ("*.position_ids",)
    prefix = "body."
    names = (
        ("blocks.{}.mix.{}.*", "layer.{}.{}.attention.*", "h.{}.{}.*"),
        ("head", "lm_head"),
    )


class Cousin(Toy):
    foreign_prefix = "trunk."


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES)).eval()


def assert_loads(model, source, **options):
    ours, report = MMViTForImageClassification.from_pretrained(source, output_loading_info=True, **options)
    assert not any(report.values()), report
    pixels = torch.randn(1, 3, 16, 16)
    assert_close(ours(pixels).logits, model(pixels).logits, rtol=1e-5, atol=1e-5)
    return ours


def as_bin(folder, variant=""):
    """Replace the safetensors of a folder by the pickled file of earlier days."""
    path = folder / "model.safetensors"
    weights = ViTForImageClassification.from_pretrained(folder).state_dict()
    torch.save(weights, folder / f"pytorch_model{variant}.bin")
    path.unlink()


class TestNames:
    def test_numbers_and_rests_carry_over_in_both_directions(self):
        ours = {"body.blocks.3.mix.11.weight": torch.zeros(1), "head": torch.ones(1)}
        theirs = Toy().weights_to(ours)
        assert list(theirs) == ["body.layer.3.11.attention.weight", "lm_head"]
        assert list(Toy().weights_from(theirs)) == list(ours)

    def test_the_part_before_the_names_may_be_another_on_each_side(self):
        ours = {"body.head": torch.zeros(1), "head": torch.ones(1)}
        theirs = Cousin().weights_to(ours)
        assert list(theirs) == ["trunk.lm_head", "lm_head"]
        assert list(Cousin().weights_from(theirs)) == list(ours)

    def test_further_names_are_read(self):
        assert list(Toy().weights_from({"h.0.1.bias": torch.zeros(1)})) == ["blocks.0.mix.1.bias"]

    def test_an_unknown_name_stays_for_the_loading_report(self):
        assert list(Toy().weights_from({"h.x.1.bias": torch.zeros(1)})) == ["h.x.1.bias"]

    def test_a_weight_without_a_place_is_named(self):
        with pytest.raises(ValueError, match=r"`stem.weight` \(1 weights in all\) has no place in a `toy`"):
            Toy().weights_to({"head": torch.zeros(1), "stem.weight": torch.zeros(1)})

    def test_two_names_for_one_weight_are_refused(self):
        twice = {"h.0.1.bias": torch.zeros(1), "layer.0.1.attention.bias": torch.zeros(1)}
        with pytest.raises(ValueError, match=r"Two weights of the checkpoint mean `blocks.0.mix.1.bias`"):
            Toy().weights_from(twice)

    def test_what_says_nothing_is_not_read(self):
        assert not Toy().weights_from({"body.position_ids": torch.arange(3)})


class TestFields:
    def test_fields_carry_over_in_both_directions(self):
        theirs = {"width": 24, "act": "gelu", "dtype": "float16", "other": 1}
        ours = Toy().config_from(theirs, (), MMViTModel)
        assert ours == {"hidden_size": 24, "hidden_act": "gelu", "dtype": "float16", "qkv_bias": True}
        back = Toy().config_to(MMViTModel.config_class(**ours), MMViTModel)
        assert back == {"width": 24, "act": "gelu", "dtype": "float16"}

    def test_an_absent_field_means_what_it_means_there(self):
        assert Toy().config_from({"width": None}, (), MMViTModel) == {"hidden_act": "relu", "qkv_bias": True}

    def test_the_dtype_of_transformers_4_is_read(self):
        assert Toy().config_from({"torch_dtype": "bfloat16"}, (), MMViTModel)["dtype"] == "bfloat16"

    def test_a_field_that_they_have_no_word_for_is_refused(self):
        config = MMViTModel.config_class(qkv_bias=False)
        with pytest.raises(ValueError, match=r"`qkv_bias`=False cannot be .* `toy` has True only; set it so"):
            Toy().config_to(config, MMViTModel)


class TestFiles:
    def test_shards(self, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        assert_loads(model, tmp_path)

    def test_pickled_weights(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        as_bin(tmp_path)
        assert_loads(model, tmp_path)
        with pytest.raises(FileNotFoundError, match=r"holds no weights; wanted one of model.safetensors"):
            MMViTModel.from_pretrained(tmp_path, use_safetensors=True)

    def test_a_variant(self, model, tmp_path):
        model.save_pretrained(tmp_path, variant="half")
        assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.half.safetensors"]
        assert_loads(model, tmp_path, variant="half")

    def test_a_subfolder_and_a_path_in_words(self, model, tmp_path):
        model.save_pretrained(tmp_path / "inner")
        assert_loads(model, str(tmp_path), subfolder="inner")

    def test_a_revision_in_the_cache_without_a_network(self, model, tmp_path):
        repository = tmp_path / "models--me--vit"
        for revision, scale in (("a" * 40, 1.0), ("b" * 40, 2.0)):
            model.save_pretrained(repository / "snapshots" / revision)
            with torch.no_grad():
                model.classifier.weight.mul_(2.0 if scale == 1.0 else 1.0)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
        (repository / "refs" / "doubled").write_text("b" * 40)
        options = {"cache_dir": tmp_path, "local_files_only": True}
        doubled = assert_loads(model, "me/vit", revision="doubled", **options)
        main = MMViTForImageClassification.from_pretrained("me/vit", **options)
        assert_close(doubled.classifier.weight, main.classifier.weight * 2)
        assert main.name_or_path == main.config.name_or_path == "me/vit"

    def test_a_folder_without_weights_is_named(self, model, tmp_path):
        model.config.save_pretrained(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"holds no weights; wanted one of model.safetensors"):
            MMViTModel.from_pretrained(tmp_path)


class TestOptions:
    def test_fields_of_the_config_may_be_changed(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        ours = MMViTForImageClassification.from_pretrained(
            tmp_path, id2label={0: "no", 1: "yes"}, hidden_dropout=0.5, attn_implementation="eager"
        )
        assert ours.config.id2label == {0: "no", 1: "yes"}
        assert ours.config.hidden_dropout == ours.vit.embeddings.dropout.p == 0.5
        assert ours.config._attn_implementation == "eager"

    @pytest.mark.parametrize("dtype", [None, "auto", torch.float32, "bfloat16"])
    def test_dtype_means_what_it_means_to_transformers(self, dtype, model, tmp_path):
        model.to(torch.bfloat16).save_pretrained(tmp_path)
        options = {} if dtype is None else {"dtype": dtype}
        ours = MMViTModel.from_pretrained(tmp_path, **options)
        assert ours.dtype == (torch.float32 if dtype is torch.float32 else torch.bfloat16)

    def test_another_number_of_classes_needs_the_stock_flag(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="mismatch"):
            MMViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
        ours = MMViTForImageClassification.from_pretrained(
            tmp_path, num_labels=7, ignore_mismatched_sizes=True
        )
        assert ours.classifier.out_features == 7

    def test_a_given_config_is_taken(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        config = MMViTModel.from_pretrained(tmp_path).config
        config.hidden_dropout = 0.25
        assert MMViTModel.from_pretrained(tmp_path, config=config).config.hidden_dropout == 0.25


class TestRefusals:
    def test_another_model_type_is_named_with_the_known_ones(self, tmp_path):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        BertModel(BertConfig(**sizes, vocab_size=8)).save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"of type 'bert'; MMViTModel reads: mm_vit, vit, clip_vision_model, clip\. L"
        ):
            MMViTModel.from_pretrained(tmp_path)

    def test_a_config_without_a_type_is_named(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))
        with pytest.raises(ValueError, match=r"of type None; MMViTModel reads: mm_vit, vit"):
            MMViTModel.from_pretrained(tmp_path)

    def test_an_absent_folder_is_the_error_of_transformers(self, tmp_path):
        with pytest.raises(OSError, match="absent"):
            MMViTModel.from_pretrained(tmp_path / "absent")

    def test_an_adapter_on_a_foreign_base_says_how_to_load_it(self, model, tmp_path):
        model.save_pretrained(tmp_path / "base")
        ours = MMViTForImageClassification.from_pretrained(tmp_path / "base")
        tuned = get_peft_model(ours, LoraConfig(r=2, target_modules=["q_proj"]))
        tuned.save_pretrained(tmp_path / "adapter")
        with pytest.raises(ValueError, match=r"is an adapter on .*base, a model of type 'vit'; load MMViT"):
            MMViTForImageClassification.from_pretrained(tmp_path / "adapter")
        shutil.rmtree(tmp_path / "base")
        ours.save_pretrained(tmp_path / "base")  # now of our own type
        assert MMViTForImageClassification.from_pretrained(tmp_path / "adapter").active_adapters() == [
            "default"
        ]
