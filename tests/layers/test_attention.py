"""Attention over one sequence and from one to another, against torch's own, with both kernels."""

import pytest
import torch
from layers import row_kernel
from torch.testing import assert_close
from transformers.cache_utils import DynamicLayer

from hf_mm.layers.attention import Attention
from hf_mm.layers.packing import PackedRows
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


LENGTHS = torch.tensor([3, 7, 1])


def packed(states, rows):
    return rows.pack(states).detach().requires_grad_()


@pytest.mark.parametrize("is_causal", [False, True])
def test_flash_kernels_get_packed_rows_as_they_are(is_causal, monkeypatch):
    """No padding is made for them: the tokens, and where rows begin; values and gradients."""
    calls, rows = row_kernel.install(monkeypatch), PackedRows.of_lengths(LENGTHS)
    states = packed(torch.randn(3, 7, 32), rows)
    attention = layer(row_kernel.KERNEL, is_causal=is_causal)
    mixed, _ = attention(states, packed_rows=rows)
    assert [shape for shape, _ in calls] == [(11, 4, 8)]
    assert calls[0][1]["cu_seqlens_q"].tolist() == [0, 3, 10, 11]
    alone = torch.cat([attend_alone(is_causal, row) for row in states.split(LENGTHS.tolist())])
    assert_close(mixed, alone, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(mixed)
    got, expected = (torch.autograd.grad((part * weight).sum(), states) for part in (mixed, alone))
    assert_close(got, expected, rtol=1e-5, atol=1e-5)


def attend_alone(is_causal, row):
    """One row by the kernel of torch."""
    later = torch.ones(len(row), len(row)).triu(1).bool() & is_causal
    mask = torch.zeros(later.shape).masked_fill(later, -torch.inf)
    return layer("sdpa")(row[None], attention_mask=mask[None, None])[0][0]


def test_the_bounds_of_rows_may_have_gaps_between_them():
    """Places of a row need not be its first ones."""
    rows = PackedRows(torch.tensor([1, 2, 5, 10, 11, 12]), 3, 5)
    assert rows.bounds.tolist() == [0, 2, 3, 6]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_what_was_kept_need_not_be_computed_again(kernel):
    attention, states, kept = layer(kernel, is_causal=True), torch.randn(2, 7, 32), DynamicLayer()
    past = torch.zeros(7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    whole, _ = attention(states, attention_mask=past[None, None])
    start, _ = attention(states[:, :4], attention_mask=past[None, None, :4, :4], kept=kept)
    ends = [
        attention(states[:, i : i + 1], attention_mask=past[None, None, i : i + 1, : i + 1], kept=kept)[0]
        for i in range(4, 7)
    ]
    assert kept.get_seq_length() == 7
    assert_close(torch.cat([start, *ends], dim=1), whole, rtol=1e-5, atol=1e-5)
