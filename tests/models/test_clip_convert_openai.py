"""OpenAI's and open_clip's files: against transformers' weights and a forward pass that is not ours."""

import json

import pytest
import torch
from clip_openai import openai_logits, openai_weights
from clip_tiny import bert_config, pictures, text_config, tiny_model, vision_config
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel

from hf_mm import (
    MMCLIPImageProcessor,
    MMCLIPModel,
    load_open_clip,
    load_openai_clip,
    to_open_clip,
    to_openai_state_dict,
)
from hf_mm.models.clip.convert_openai import OPENAI_CHECKPOINT

TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
VISION = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = {"vocab_size": 50, "max_position_embeddings": 12}
VIEW = {"image_size": 32, "patch_size": 8}
# As open_clip describes it.
MODEL_CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 64, "heads": 1, "layers": 2},
}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def theirs(act="quick_gelu"):
    """transformers' model with every weight drawn anew; it reads texts at their highest id."""
    torch.manual_seed(0)
    towers = {
        "text_config": {**TEXT, **WORDS, "hidden_act": act, "eos_token_id": 2},
        "vision_config": {**VISION, **VIEW, "hidden_act": act},
    }
    model = CLIPModel(CLIPConfig(**towers, projection_dim=24))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1)
    return model.eval()


def captions():
    """As OpenAI's tokenizer makes them: zeros behind the end, which has the highest id."""
    ids = torch.randint(1, 48, (3, 12), generator=torch.Generator().manual_seed(2))
    for row, length in enumerate((12, 5, 8)):
        ids[row, length - 1], ids[row, length:] = 49, 0
    return ids


def logits_of(model, **options):
    return model(captions(), pictures(2), **options).logits_per_image


def ours_as_in_clip(**changes):
    """A model of ours of OpenAI's architecture."""
    clip = {"embedding_norm": True, "patch_bias": False, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    fields = {
        "vision_config": vision_config(**VISION, **VIEW, **clip),
        "text_config": text_config(**TEXT, **WORDS, bos_token_id=48, eos_token_id=49),
        "projection_dim": 24,
    }
    return tiny_model(**(fields | changes))


class Archived(torch.nn.Module):
    """Weights under their names, for a TorchScript archive as OpenAI gives them out."""

    def __init__(self, weights):
        super().__init__()
        for name, weight in weights.items():
            *path, last = name.split(".")
            home = self
            for part in path:
                if part not in dict(home.named_children()):
                    home.add_module(part, torch.nn.Module())
                home = home.get_submodule(part)
            home.register_parameter(last, torch.nn.Parameter(weight, requires_grad=False))
        for name, value in {"input_resolution": 32, "context_length": 12, "vocab_size": 50}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class TestOpenAI:
    def test_a_state_dict_has_the_numbers_of_two_other_implementations(self, tmp_path):
        weights = openai_weights(theirs())
        torch.save(weights, tmp_path / "clip.pt")
        ours = load_openai_clip(tmp_path / "clip.pt")
        assert not ours.training
        assert ours.config.text_config.end_of_text == "highest_id"
        assert_close(logits_of(ours), logits_of(theirs()), **EXACT)
        assert_close(logits_of(ours), openai_logits(weights, pictures(2), captions()), **EXACT)

    def test_every_gradient_finds_its_place(self, tmp_path):
        weights = {name: weight.requires_grad_() for name, weight in openai_weights(theirs()).items()}
        torch.save({name: weight.detach() for name, weight in weights.items()}, tmp_path / "clip.pt")
        ours = load_openai_clip(tmp_path / "clip.pt")
        logits_of(ours).square().mean().backward()
        openai_logits(weights, pictures(2), captions()).square().mean().backward()
        assert_close(
            {name: weight.grad for name, weight in ours.named_parameters()},
            OPENAI_CHECKPOINT.weights_from({name: weight.grad for name, weight in weights.items()}),
            **EXACT,
        )

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    def test_a_torchscript_archive_in_float16_loads_in_the_dtype_asked_for(self, tmp_path):
        model = theirs()
        weights = openai_weights(model)
        mixed = {name: w.half() if w.ndim > 1 else w for name, w in weights.items()}  # as OpenAI's are
        torch.jit.save(torch.jit.script(Archived(mixed)), tmp_path / "ViT-B-32.pt")
        ours = load_openai_clip(tmp_path / "ViT-B-32.pt")
        assert {weight.dtype for weight in ours.parameters()} == {torch.float32}
        rounded = {name: weight.float() for name, weight in mixed.items()}
        assert_close(logits_of(ours), openai_logits(rounded, pictures(2), captions()), **EXACT)
        assert load_openai_clip(tmp_path / "ViT-B-32.pt", torch.bfloat16).dtype is torch.bfloat16

    def test_our_weights_leave_in_their_layout_and_come_back_bit_for_bit(self, tmp_path):
        ours = ours_as_in_clip()
        weights = to_openai_state_dict(ours)
        assert {name: w.shape for name, w in weights.items()} == {
            name: w.shape for name, w in openai_weights(theirs()).items()
        }
        assert_close(openai_logits(weights, pictures(2), captions()), logits_of(ours), **EXACT)
        torch.save(weights, tmp_path / "clip.pt")
        assert_close(load_openai_clip(tmp_path / "clip.pt").state_dict(), ours.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"text_config": bert_config()},
                "`text_config` of type 'bert' cannot be exported, OpenAI's CLIP has",
            ),
            (
                {"similarity": "euclidean"},
                "`similarity`='euclidean' cannot be exported, OpenAI's CLIP has 'cos",
            ),
            (
                {"objective": "sigmoid"},
                "`objective`='sigmoid' cannot be exported, OpenAI's CLIP has 'softmax'",
            ),
            (
                {"text_config": text_config(**TEXT, hidden_act="gelu")},
                "`hidden_act`='gelu' cannot be exported, OpenAI's CLIP has 'quick_gelu' only",
            ),
            (
                {"text_config": text_config(**(TEXT | {"num_attention_heads": 4}))},
                "`num_attention_heads`=4 cannot be exported, OpenAI's CLIP has 1 only",
            ),
            (
                {"text_config": text_config(**TEXT, eos_token_id=7)},
                "`end_of_text`='first_eos' cannot be exported, OpenAI's CLIP has 'highest_id' only",
            ),
            (
                {"vision_config": vision_config()},
                "`patch_bias`=True cannot be exported, OpenAI's CLIP has False",
            ),
        ],
    )
    def test_what_their_code_cannot_express_is_named(self, changes, message):
        with pytest.raises(ValueError, match=message):
            to_openai_state_dict(ours_as_in_clip(**changes))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"visual.layer1.0.conv1.weight": torch.zeros(1)},
                r"holds a ModifiedResNet .*; use a ViT checkpoint",
            ),
            (
                {"visual.trunk.cls_token": torch.zeros(1)},
                "holds an image tower of timm, mm_clip reads CLIP's own",
            ),
            (
                {},
                r"has no weight that means `vision_model.embeddings.cls_token`; wanted the names of OpenAI's",
            ),
        ],
    )
    def test_another_image_tower_is_named(self, change, message, tmp_path):
        weights = openai_weights(theirs())
        del weights["visual.class_embedding"]
        torch.save(weights | change, tmp_path / "clip.pt")
        with pytest.raises(ValueError, match=message):
            load_openai_clip(tmp_path / "clip.pt")

    @pytest.mark.parametrize(
        ("drop", "add", "message"),
        [
            ("ln_final.bias", {}, r"`text_model.norm.bias` is missing \(1 weights in all"),
            (None, {"visual.ls.gamma": torch.ones(1)}, r"`visual.ls.gamma` is unexpected \(1 weights in all"),
        ],
    )
    def test_a_missing_and_a_left_over_weight_is_named(self, drop, add, message, tmp_path):
        weights = openai_weights(theirs()) | add
        weights.pop(drop, None)
        torch.save(weights, tmp_path / "clip.pt")
        with pytest.raises(ValueError, match=message):
            load_openai_clip(tmp_path / "clip.pt")

    def test_heads_that_are_not_theirs_are_refused(self, tmp_path):
        text = text_config(**(TEXT | {"hidden_size": 32, "num_attention_heads": 2}))
        to_open_clip(ours_as_in_clip(text_config=text), tmp_path)
        with pytest.raises(
            ValueError, match=r"a tower 32 wide, OpenAI's code has heads of 64; read it with `load_"
        ):
            load_openai_clip(tmp_path / "open_clip_model.safetensors")

    def test_a_file_without_weights_is_named(self, tmp_path):
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(
            ValueError, match=r"list.pt holds no weights by name; save `model.state_dict\(\)`"
        ):
            load_openai_clip(tmp_path / "list.pt")
        with pytest.raises(FileNotFoundError, match=r"absent.pt is not there; wanted a file of weights"):
            load_openai_clip(tmp_path / "absent.pt")


class TestOpenCLIP:
    @staticmethod
    def write(folder, weights, model_cfg=MODEL_CFG, name="open_clip_pytorch_model.bin"):
        folder.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({key: weight.contiguous() for key, weight in weights.items()}, folder / name)
        else:
            torch.save(weights, folder / name)
        if model_cfg is not None:
            config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3}}
            (folder / "open_clip_config.json").write_text(json.dumps(config))
        return folder / name

    @pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
    @pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
    def test_a_folder_says_its_activation(self, act, name, tmp_path):
        model = theirs(act)
        config = MODEL_CFG | ({"quick_gelu": True} if act == "quick_gelu" else {})  # off by default there
        self.write(tmp_path, openai_weights(model), config, name)
        ours = load_open_clip(tmp_path)
        assert ours.config.text_config.hidden_act == ours.config.vision_config.hidden_act == act
        assert_close(logits_of(ours), logits_of(model), **EXACT)
        expected = openai_logits(openai_weights(model), pictures(2), captions(), act=act)
        assert_close(logits_of(ours), expected, **EXACT)
        assert_close(logits_of(load_open_clip(tmp_path / name)), expected, **EXACT)

    def test_a_training_checkpoint_and_a_text_tower_of_its_own_load(self, tmp_path):
        model = theirs("gelu")
        moved = {
            name if name.startswith(("visual.", "logit_")) else f"text.{name}": weight
            for name, weight in openai_weights(model).items()
        }
        moved["logit_scale"] = moved["logit_scale"].reshape(1)
        saved = {f"module.{name}": weight for name, weight in moved.items()}
        torch.save({"epoch": 3, "state_dict": saved}, tmp_path / "epoch_3.pt")
        ours = load_open_clip(tmp_path / "epoch_3.pt", config=MODEL_CFG | {"quick_gelu": False})
        assert_close(logits_of(ours), logits_of(model), **EXACT)

    def test_heads_eps_and_the_end_of_text_come_from_the_config(self, tmp_path):
        config = MODEL_CFG | {
            "quick_gelu": True,
            "vision_cfg": MODEL_CFG["vision_cfg"] | {"head_width": 32, "norm_kwargs": {"eps": 1e-3}},
            "text_cfg": MODEL_CFG["text_cfg"] | {"heads": 4, "pool_type": "eos", "eos_id": 7, "pad_id": 1},
        }
        path = self.write(tmp_path, openai_weights(theirs()), None)
        (tmp_path / "given.json").write_text(json.dumps(config))
        ours = load_open_clip(path, config=tmp_path / "given.json").config
        assert ours.vision_config.num_attention_heads == ours.text_config.num_attention_heads == 4
        assert (ours.vision_config.layer_norm_eps, ours.text_config.layer_norm_eps) == (1e-3, 1e-5)
        assert (ours.text_config.end_of_text, ours.text_config.eos_token_id) == ("first_eos", 7)

    @pytest.mark.parametrize(
        ("text", "fields"),
        [
            ({"hidden_act": "gelu", "layer_norm_eps": 1e-6}, {}),
            ({"hidden_act": "gelu", "eos_token_id": 30, "intermediate_size": 100}, {}),
            ({"hidden_act": "gelu"}, {"objective": "sigmoid", "logit_bias_init_value": -5.0}),
        ],
    )
    def test_our_model_leaves_and_comes_back_bit_for_bit(self, text, fields, tmp_path):
        clip = {"embedding_norm": True, "patch_bias": False, "hidden_act": "gelu", "image_size": 32}
        ours = ours_as_in_clip(
            vision_config=vision_config(**VISION, **clip),
            text_config=text_config(**({**TEXT, **WORDS, "eos_token_id": 49} | text)),
            **fields,
        )
        to_open_clip(ours, tmp_path)
        again = load_open_clip(tmp_path)
        assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)
        ids = captions()
        ids[:, 3] = ours.config.text_config.eos_token_id
        got, expected = again(ids, pictures(2)), ours(ids, pictures(2))
        assert_close(got.logits_per_image, expected.logits_per_image, rtol=0, atol=0)
        assert again.config.objective == ours.config.objective

    def test_what_is_written_is_what_open_clip_reads(self, tmp_path):
        ours = ours_as_in_clip()
        to_open_clip(ours, tmp_path, MMCLIPImageProcessor(size={"height": 32, "width": 32}, image_mean=0.5))
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "open_clip_config.json",
            "open_clip_model.safetensors",
        ]
        weights = load_file(tmp_path / "open_clip_model.safetensors")
        assert_close(openai_logits(weights, pictures(2), captions()), logits_of(ours), **EXACT)
        config = json.loads((tmp_path / "open_clip_config.json").read_text())
        mlp = {"mlp_ratio": 4.0}
        assert config["model_cfg"] == {
            "embed_dim": 24,
            "quick_gelu": True,
            "vision_cfg": MODEL_CFG["vision_cfg"] | mlp | {"head_width": 64},
            "text_cfg": MODEL_CFG["text_cfg"] | mlp,
        }
        assert config["preprocess_cfg"] == {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        }

    def test_a_ratio_never_rounds_the_width_of_an_mlp_down(self, tmp_path):
        width, hidden = 49, 54
        assert int(width * (hidden / width)) == hidden - 1  # as open_clip computes it
        text = text_config(
            hidden_size=width, num_attention_heads=7, intermediate_size=hidden, hidden_act="quick_gelu"
        )
        to_open_clip(ours_as_in_clip(text_config=text), tmp_path)
        config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
        assert int(width * config["text_cfg"]["mlp_ratio"]) == hidden

    def test_an_activation_is_never_guessed(self, tmp_path):
        path = self.write(tmp_path, openai_weights(theirs()), None)
        with pytest.raises(
            ValueError, match=r"no open_clip_config.json beside it, and weights do not tell their act"
        ):
            load_open_clip(path)
        with pytest.raises(
            ValueError, match=r"`config` does not say `quick_gelu`; set it to True for OpenAI's"
        ):
            load_open_clip(path, config=MODEL_CFG)
        with pytest.raises(
            ValueError, match=r"`config` has \['quick_gelu'\] but no `vision_cfg`; wanted the cont"
        ):
            load_open_clip(path, config={"quick_gelu": True})

    @pytest.mark.parametrize(
        ("part", "field", "message"),
        [
            (
                "vision_cfg",
                {"layers": 12},
                "`vision_cfg.layers`=12 of the config is 2 by the shapes of the wei",
            ),
            (
                "vision_cfg",
                {"pool_type": "avg"},
                "`vision_cfg.pool_type`='avg' has no counterpart in mm_clip; run",
            ),
            (
                "text_cfg",
                {"embed_cls": True},
                "`text_cfg.embed_cls`=True has no counterpart in mm_clip; run this",
            ),
            (
                "text_cfg",
                {"pool_type": "last"},
                "`text_cfg.pool_type`='last' .* which has argmax and eos; run this",
            ),
            (
                "text_cfg",
                {"norm_kwargs": {"elementwise_affine": False}},
                r"`text_cfg.norm_kwargs` has \['element",
            ),
        ],
    )
    def test_a_config_of_another_architecture_is_named(self, part, field, message, tmp_path):
        config = MODEL_CFG | {part: MODEL_CFG[part] | field}
        self.write(tmp_path, openai_weights(theirs()), config)
        with pytest.raises(ValueError, match=message):
            load_open_clip(tmp_path)

    def test_what_is_off_may_be_said(self, tmp_path):
        words = {
            "pool_type": "tok",
            "pos_embed_type": "learnable",
            "no_ln_pre": False,
            "timm_model_name": None,
        }
        config = MODEL_CFG | {"vision_cfg": MODEL_CFG["vision_cfg"] | words, "custom_text": True}
        self.write(tmp_path, openai_weights(theirs("gelu")), config)
        assert isinstance(load_open_clip(tmp_path), MMCLIPModel)

    def test_a_folder_without_weights_is_named(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"holds no weights of open_clip; wanted one of open_clip_model"
        ):
            load_open_clip(tmp_path)

    def test_what_open_clip_cannot_express_is_named(self, tmp_path):
        mixed = ours_as_in_clip(text_config=text_config(**TEXT, hidden_act="gelu"))
        with pytest.raises(
            ValueError, match=r"`hidden_act` 'quick_gelu' of the image tower and 'gelu' of the text"
        ):
            to_open_clip(mixed, tmp_path / "out")
        with pytest.raises(
            ValueError, match=r"`similarity`='euclidean' cannot be exported, open_clip has 'cosine'"
        ):
            to_open_clip(ours_as_in_clip(similarity="euclidean"), tmp_path / "out")
        with pytest.raises(
            ValueError, match=r"`resample`=0 cannot be exported, open_clip has 2 \(bilinear\) and 3"
        ):
            to_open_clip(ours_as_in_clip(), tmp_path / "out", MMCLIPImageProcessor(resample=0))
        assert not (tmp_path / "out").exists()
