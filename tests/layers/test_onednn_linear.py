"""The linear layer that multiplies with oneDNN is `nn.Linear`: values, gradients, and where it steps back."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from hf_mm import pack_for_inference, unpack_for_training
from hf_mm.layers.onednn_linear import OneDNNLinear, _Product

NEAR = {"rtol": 1e-5, "atol": 1e-5}
SIZE = 512  # 64 tokens of it are just enough


@pytest.fixture(autouse=True)
def any_machine(monkeypatch):
    """The kernels are right on every CPU, though used only where they are known to be fast."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def pair(bias=True, **options):
    """Ours and torch's with the same weights."""
    torch.manual_seed(0)
    ours, peer = OneDNNLinear(SIZE, SIZE, bias, **options), nn.Linear(SIZE, SIZE, bias, **options)
    peer.load_state_dict(ours.state_dict())
    return ours, peer


def tokens(*shape, **options):
    return torch.randn(*shape, SIZE, generator=torch.Generator().manual_seed(1), **options)


def uses_onednn(call):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return any("_linear_pointwise" in event.key for event in seen.key_averages())


def gradients(layer, states, power=2):
    """Of all that a product is made of."""
    wanted = [states, *layer.parameters()]
    return torch.autograd.grad(layer(states).pow(power).sum(), wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (67,), (2, 40), (2, 3, 12)])
def test_values_and_gradients_are_those_of_torchs_layer(shape, bias):
    ours, peer = pair(bias)
    states = tokens(*shape, requires_grad=True)
    assert uses_onednn(lambda: ours(states))
    assert_close(ours(states), peer(states), **NEAR)
    assert_close(gradients(ours, states), gradients(peer, states), rtol=1e-5, atol=1e-4)  # sums of 64 squares


@pytest.mark.parametrize("power", [1, 2])
def test_what_lies_otherwise_in_memory_is_multiplied_as_well(power):
    """Tokens that are columns or every second one, and, of a plain sum, gradients that are one number."""
    ours, peer = pair()
    for states in (tokens(SIZE)[:, :96].t(), tokens(160)[::2], tokens(80, 2).transpose(0, 1)):
        states.requires_grad_()
        assert_close(ours(states), peer(states), **NEAR)
        got, expected = gradients(ours, states, power), gradients(peer, states, power)
        assert_close(got, expected, rtol=1e-5, atol=2e-4)


def test_only_what_learns_gets_a_gradient():
    ours, peer = pair()
    ours.weight.requires_grad_(False)
    states = tokens(64, requires_grad=True)
    ours(states).pow(2).sum().backward()
    assert ours.weight.grad is None
    assert_close((states.grad, ours.bias.grad), gradients(peer, states)[::2], rtol=1e-5, atol=1e-4)


def test_gradients_have_gradients():
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(*shape, generator=draw, requires_grad=True) for shape in ((9, 5), (4, 5), (4,))]

    def slopes(product):
        out = product(*parts)
        first = torch.autograd.grad(out.pow(3).sum(), parts, create_graph=True)
        return torch.autograd.grad(sum(part.pow(2).sum() for part in first), parts)

    assert_close(slopes(_Product.apply), slopes(nn.functional.linear), rtol=1e-4, atol=1e-3)


def disabled(layer, states):
    with torch.backends.mkldnn.flags(enabled=False):
        return layer(states)


def autocast(layer, states):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(states)


def mapped(layer, states):
    return torch.func.vmap(layer)(states.unflatten(0, (2, -1)))


@pytest.mark.parametrize(
    ("call", "count", "options"),
    [
        (nn.Module.__call__, 48, {}),  # too few tokens for so small a matrix
        (nn.Module.__call__, 64, {"dtype": torch.float64}),
        (disabled, 64, {}),
        (autocast, 64, {}),
        (mapped, 64, {}),
    ],
)
def test_elsewhere_it_is_torchs_layer_bit_for_bit(call, count, options):
    ours, peer = pair(**options)
    states = tokens(count, **options)
    assert not uses_onednn(lambda: call(ours, states))
    assert torch.equal(call(ours, states), call(peer, states))


def test_compiled_it_is_part_of_the_graph():
    ours, peer = pair()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    assert torch.equal(compiled(tokens(64)), peer(tokens(64)))


def test_packed_and_unpacked_it_is_what_it_was():
    model = nn.Sequential(pair()[0]).eval()
    with torch.no_grad():
        expected = model(tokens(64))
        assert_close(pack_for_inference(model)(tokens(64)), expected, **NEAR)
    assert type(unpack_for_training(model)[0]) is OneDNNLinear
    assert torch.equal(model[0].weight, pair()[0].weight)
