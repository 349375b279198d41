"""Packed weights give the same answers, come back bit for bit, and refuse what they cannot do."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from hf_mm import MMViTConfig, MMViTForImageClassification, pack_for_inference, unpack_for_training
from hf_mm.layers.packed_linear import PackedLinear

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def ours(**changes):
    torch.manual_seed(0)
    return MMViTForImageClassification(MMViTConfig(**(SIZES | changes))).eval()


def pictures(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def kinds(model):
    return [type(module).__name__ for module in model.modules()]


@torch.no_grad()
def answer(model, images=None):
    return model(pictures() if images is None else images)[0]


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu"])
def test_a_packed_model_gives_the_same_answers(act):
    model = ours(hidden_act=act, pooling="tanh")
    expected = answer(model)
    assert pack_for_inference(model) is model
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)
    fused = [module.gelu for module in model.modules() if isinstance(module, PackedLinear) and module.gelu]
    assert fused == {"gelu": ["none"] * 2, "gelu_pytorch_tanh": ["tanh"] * 2}.get(act, [])


def test_bfloat16_is_as_near_to_float32_as_without_packing():
    exact = answer(ours())
    plain = answer(ours().bfloat16(), pictures().bfloat16()).float()
    packed = answer(pack_for_inference(ours().bfloat16()), pictures().bfloat16())
    assert packed.dtype == torch.bfloat16
    assert (packed.float() - exact).abs().max() < 2 * (plain - exact).abs().max() + 1e-3


@pytest.mark.parametrize("shape", [(32,), (5, 32), (2, 5, 32), (2, 3, 5, 32), (0, 32)])
def test_any_number_of_dimensions_fits(shape):
    linear = nn.Linear(32, 7)
    states = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(PackedLinear(linear.eval())(states), linear(states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (ViTModel(ViTConfig(**SIZES)), 2),
        (CLIPVisionModel(CLIPVisionConfig(**SIZES, hidden_act="gelu")), 2),
        (CLIPVisionModel(CLIPVisionConfig(**SIZES, hidden_act="quick_gelu")), 0),
    ],
    ids=["vit", "clip", "clip-quick-gelu"],
)
def test_models_of_transformers_are_packed_too(model, fused):
    expected = answer(model.eval())
    pack_for_inference(model)
    assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)
    assert kinds(model).count("_Fused") == fused
    assert "Linear" not in kinds(model)


def test_a_head_tied_to_the_embeddings_stays_tied():
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
    )
    model = BertForMaskedLM(config).eval()
    ids = torch.arange(12).view(2, 6)
    expected = answer(model, ids)
    pack_for_inference(model)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert_close(answer(model, ids), expected, rtol=1e-5, atol=1e-5)
    assert model.bert.encoder.layer[0].intermediate.dense.gelu == "none"


def test_unpacking_gives_every_weight_back_bit_for_bit(tmp_path):
    model = ours(qkv_bias=False)
    model.vit.blocks[0].mlp.fc1.weight.requires_grad_(False)
    weights, structure = copy.deepcopy(model.state_dict()), kinds(model)
    trainable = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert unpack_for_training(pack_for_inference(model)) is model
    assert kinds(model) == structure
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == trainable
    model.train()(pictures(), labels=torch.tensor([0, 1])).loss.backward()
    model.save_pretrained(tmp_path)


def test_a_layer_that_serves_twice_stays_one():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    pack_for_inference(model)
    assert model[0] is model[2]
    unpack_for_training(model)
    assert model[0] is model[2]
    assert_close(model[0].weight, layer.weight, rtol=0, atol=0)


def test_a_layer_of_two_mlps_is_not_fused_with_the_activation_of_one():
    first, second = (block.mlp for block in ours().vit.blocks)
    second.fc1 = first.fc1
    model, states = nn.Sequential(first, second).eval(), torch.randn(3, 32)
    with torch.no_grad():
        expected = model(states)
        assert_close(pack_for_inference(model)(states), expected, rtol=1e-5, atol=1e-5)


def test_layers_with_hooks_and_of_other_classes_stay():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2)).eval()
    model[0].register_forward_hook(lambda module, args, out: None)
    pack_for_inference(model)
    assert kinds(model)[1:] == [
        "Linear",
        "PackedLinear",
        "MultiheadAttention",
        "NonDynamicallyQuantizableLinear",
    ]


def test_an_activation_that_is_no_mlp_of_two_layers_is_not_fused():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.gate = (nn.Linear(8, 8) for _ in range(3))
            self.act = ours().vit.blocks[0].mlp.act

        def forward(self, states):
            return self.fc2(self.act(self.gate(states)) * self.fc1(states))

    model, states = nn.Sequential(Gated()).eval(), torch.randn(3, 8)
    with torch.no_grad():
        expected = model(states)
        assert_close(pack_for_inference(model)(states), expected, rtol=1e-5, atol=1e-5)


def test_gradients_and_training_are_refused():
    model = pack_for_inference(ours())
    with pytest.raises(RuntimeError, match=r"have no gradient: call the model in `eval\(\)` mode under"):
        model(pictures())
    with torch.no_grad(), pytest.raises(RuntimeError, match="Packed weights have no gradient"):
        model.train()(pictures())
    with pytest.raises(RuntimeError, match=r"are for inference; call `model.eval\(\)` first"):
        pack_for_inference(ours().train())


def test_saving_loading_and_copying_are_refused_and_harm_no_folder(tmp_path):
    ours().save_pretrained(tmp_path)
    before = sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir())
    model, weights = pack_for_inference(ours()), ours().state_dict()
    works = (
        lambda: model.save_pretrained(tmp_path),
        lambda: model.state_dict(),
        lambda: model.load_state_dict(weights),
        lambda: copy.deepcopy(model),
        lambda: torch.save(model, tmp_path / "model.pt"),
    )
    for work in works[:4]:
        with pytest.raises(RuntimeError, match="packed model cannot be saved, loaded into or copied; call"):
            work()
    assert sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir()) == before
    with pytest.raises(RuntimeError, match="packed model cannot be saved"):
        works[4]()


def test_conversion_is_refused_unless_it_changes_nothing():
    model = pack_for_inference(ours()).to("cpu").float()
    with pytest.raises(RuntimeError, match=r"packed in torch.float32 .* cannot go to torch.bfloat16 on cpu"):
        model.bfloat16()
    with pytest.raises(RuntimeError, match=r"for the CPU cannot go to torch.float32 on meta"):
        pack_for_inference(ours()).to("meta")


def test_other_inputs_than_those_packed_for_are_named():
    layer = PackedLinear(nn.Linear(32, 7).eval())
    for given, message in [
        (torch.zeros(2, 31), r"packed for \(..., 32\) of torch.float32 on the CPU, got \(2, 31\)"),
        (torch.zeros(2, 32).bfloat16(), "got .* of torch.bfloat16 on cpu"),
        (torch.zeros(2, 32, device="meta"), "got .* of torch.float32 on meta"),
    ]:
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            layer(given)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 4), "Linear has no `nn.Linear` below it that can be packed"),
        (nn.Sequential(nn.Linear(4, 4)).half(), "Weights of torch.float16 cannot be packed; convert"),
        (nn.Sequential(nn.Linear(4, 4)).to("meta"), "are for CPUs, the model is on meta; move it there"),
        (nn.Sequential(PackedLinear(nn.Linear(4, 4))), "Sequential is packed already; call `unpack_for_tr"),
    ],
)
def test_models_that_cannot_be_packed_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        pack_for_inference(model.eval())


def test_builds_without_the_kernels_are_told_so(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(
        RuntimeError, match="no oneDNN kernels to pack weights for; leave `pack_for_inference`"
    ):
        pack_for_inference(ours())


def test_a_processor_without_bfloat16_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    with pytest.raises(RuntimeError, match="no bfloat16 kernels in oneDNN; pack the model in float32"):
        pack_for_inference(ours().bfloat16())
