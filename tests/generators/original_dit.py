"""DiT as https://github.com/facebookresearch/DiT names its weights: names, shapes and arithmetic.

Independent of hf_mm: what reads and writes such checkpoints is compared with this.
"""

import math

import numpy as np
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, silu

# Sizes of the models that were released, for latents of 32 x 32.
RELEASED = {
    "DiT-S/2": {"width": 384, "layers": 12, "heads": 6},
    "DiT-B/2": {"width": 768, "layers": 12, "heads": 12},
    "DiT-L/2": {"width": 1024, "layers": 24, "heads": 16},
    "DiT-XL/2": {"width": 1152, "layers": 28, "heads": 16},
}
TINY = {"width": 16, "layers": 2, "channels": 4, "side": 8, "patch": 2, "classes": 3}


def shapes(width, layers, channels=4, side=32, patch=2, classes=1000):
    """Every weight by its released name, with its shape; the model has a learnt variance."""
    found = {
        "pos_embed": (1, (side // patch) ** 2, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
    }

    def dense(name, out, into):
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, into), (out,)

    dense("t_embedder.mlp.0", width, 256)
    dense("t_embedder.mlp.2", width, width)
    for layer in range(layers):
        dense(f"blocks.{layer}.attn.qkv", 3 * width, width)
        dense(f"blocks.{layer}.attn.proj", width, width)
        dense(f"blocks.{layer}.mlp.fc1", 4 * width, width)
        dense(f"blocks.{layer}.mlp.fc2", width, 4 * width)
        dense(f"blocks.{layer}.adaLN_modulation.1", 6 * width, width)
    dense("final_layer.linear", patch * patch * 2 * channels, width)
    dense("final_layer.adaLN_modulation.1", 2 * width, width)
    return found


def random_weights(**sizes):
    generator = torch.Generator().manual_seed(0)
    sizes = TINY | sizes
    weights = {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1] if len(shape) == 2 else 10)
        for name, shape in shapes(**sizes).items()
    }
    weights["pos_embed"] = positions(sizes["width"], sizes["side"] // sizes["patch"])
    return weights


def positions(width, grid):
    """The column first: `np.meshgrid(columns, rows)` of the repository."""
    columns, rows = np.meshgrid(np.arange(grid), np.arange(grid))
    waves = 1 / 10000 ** (np.arange(width // 4) / (width / 4.0))

    def embedded(places):
        turns = np.einsum("m,d->md", places.reshape(-1), waves)
        return np.concatenate([np.sin(turns), np.cos(turns)], axis=1)

    table = np.concatenate([embedded(columns), embedded(rows)], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


def original_dit(weights, x, t, y, heads):
    """The forward pass of `models.DiT`, without class dropout."""

    def dense(name, h):
        return linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def normed(h, shift, scale):
        return layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    patch = weights["x_embedder.proj.weight"].shape[-1]
    h = conv2d(x, weights["x_embedder.proj.weight"], weights["x_embedder.proj.bias"], stride=patch)
    h = h.flatten(2).transpose(1, 2) + weights["pos_embed"]
    waves = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    turns = t[:, None].float() * waves[None]
    c = dense("t_embedder.mlp.0", torch.cat([torch.cos(turns), torch.sin(turns)], dim=-1))
    c = dense("t_embedder.mlp.2", silu(c)) + weights["y_embedder.embedding_table.weight"][y]
    layers = sum(name.endswith("attn.qkv.weight") for name in weights)
    for layer in range(layers):
        name = f"blocks.{layer}"
        changes = dense(f"{name}.adaLN_modulation.1", silu(c)).chunk(6, dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = changes
        qkv = dense(f"{name}.attn.qkv", normed(h, shift, scale)).unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        mixed = dense(f"{name}.attn.proj", (shares @ v).transpose(1, 2).flatten(2))
        h = h + gate.unsqueeze(1) * mixed
        inner = gelu(dense(f"{name}.mlp.fc1", normed(h, mlp_shift, mlp_scale)), approximate="tanh")
        h = h + mlp_gate.unsqueeze(1) * dense(f"{name}.mlp.fc2", inner)
    shift, scale = dense("final_layer.adaLN_modulation.1", silu(c)).chunk(2, dim=1)
    h = dense("final_layer.linear", normed(h, shift, scale))
    grid = x.shape[-1] // patch
    h = h.reshape(len(x), grid, grid, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, *x.shape[2:])
