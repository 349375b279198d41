"""The post-norm block against torch's own encoder layer with the same weights."""

import torch
from torch import nn
from torch.testing import assert_close

from hf_mm.layers.post_norm import PostNormBlock
from hf_mm.models.region_bert.configuration_region_bert import MMRegionBertConfig


def block_and_peer():
    """Ours, 24 wide whatever the configuration says, and torch's."""
    torch.manual_seed(0)
    config = MMRegionBertConfig(hidden_dropout=0.0, attention_dropout=0.0, layer_norm_eps=1e-5)
    config._attn_implementation = "sdpa"
    block = PostNormBlock(config, 24, 3, 40)
    peer = nn.TransformerEncoderLayer(24, 3, 40, dropout=0.0, activation="gelu", batch_first=True)
    for weight in (*block.parameters(), *peer.parameters()):
        nn.init.normal_(weight, std=0.3)
    own = block.attention
    with torch.no_grad():
        attention = peer.self_attn
        attention.in_proj_weight.copy_(
            torch.cat([part.weight for part in (own.q_proj, own.k_proj, own.v_proj)])
        )
        attention.in_proj_bias.copy_(torch.cat([part.bias for part in (own.q_proj, own.k_proj, own.v_proj)]))
    pairs = (
        (attention.out_proj, own.o_proj),
        (peer.linear1, block.mlp.fc1),
        (peer.linear2, block.mlp.fc2),
        (peer.norm1, block.attention_norm),
        (peer.norm2, block.mlp_norm),
    )
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return block, peer


def test_the_block_is_torchs_encoder_layer():
    """Values and gradients; torch takes its fused path in evaluation."""
    block, peer = block_and_peer()
    states = torch.randn(2, 5, 24, requires_grad=True)
    expected, got = peer(states), block(states)
    assert_close(got, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(got)
    gradients = (torch.autograd.grad((part * weight).sum(), states)[0] for part in (got, expected))
    assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_some_tokens_can_read_the_row_of_which_they_are_a_part():
    block, _ = block_and_peer()
    states = torch.randn(2, 5, 24)
    assert_close(block(states[:, 1:3], states), block(states)[:, 1:3])
