"""Attention over one sequence and from one to another, against torch's own, with both kernels."""

import pytest
import torch
from torch.testing import assert_close

from hf_mm.layers.attention import Attention
from hf_mm.models.vit.configuration_vit import MMViTConfig


def layer(kernel, **options):
    torch.manual_seed(0)
    config = MMViTConfig(hidden_size=32, num_attention_heads=4, attn_implementation=kernel)
    return Attention(config, **options).eval()


def reference(attention, context_size=32):
    """torch.nn.MultiheadAttention with the weights of `attention`."""
    peer = torch.nn.MultiheadAttention(32, 4, kdim=context_size, vdim=context_size, batch_first=True).eval()
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    with torch.no_grad():
        if context_size == 32:
            peer.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        else:
            for name, part in zip(("q", "k", "v"), parts, strict=True):
                getattr(peer, f"{name}_proj_weight").copy_(part.weight)
        peer.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        peer.out_proj.load_state_dict(attention.o_proj.state_dict())
    return peer


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_self_attention_is_torchs_and_sees_later_positions(kernel):
    attention, states = layer(kernel), torch.randn(2, 7, 32)
    mixed, weights = attention(states)
    expected, shares = reference(attention)(states, states, states, average_attn_weights=False)
    assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    if kernel == "eager":
        assert_close(weights, shares, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_cross_attention_is_torchs(kernel):
    attention, states, context = layer(kernel, context_size=20), torch.randn(2, 3, 32), torch.randn(2, 9, 20)
    mixed, _ = attention(states, context)
    expected, _ = reference(attention, 20)(states, context, context)
    assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_mask_hides_positions(kernel):
    attention, states = layer(kernel), torch.randn(2, 7, 32)
    mask = torch.zeros(2, 1, 7, 7)
    mask[..., 5:] = -torch.inf
    mixed, _ = attention(states, attention_mask=mask)
    alone, _ = attention(states[:, :5])
    assert_close(mixed[:, :5], alone, rtol=1e-5, atol=1e-5)


def test_dropout_falls_on_the_weights_in_training_only():
    attention, states = layer("eager"), torch.randn(1, 64, 32)
    attention.config.attention_dropout = 0.5
    assert (attention(states)[1] > 0).all()
    dropped = (attention.train()(states)[1] == 0).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.05)
