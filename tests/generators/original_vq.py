"""VQGAN as taming and LlamaGen name its weights: names, shapes and arithmetic, written from the paper.

Independent of hf_mm: what reads and writes such checkpoints is compared with this.
"""

import math

import torch
from torch.nn.functional import conv2d, group_norm, interpolate, normalize, pad, silu

LAYOUTS = {
    "taming": {"down": "down", "up": "up", "block": "block", "mid": ("block_1", "attn_1", "block_2")},
    "llamagen": {"down": "conv_blocks", "up": "conv_blocks", "block": "res", "mid": ("0", "1", "2")},
}
# What the repositories' configs say of the released models.
GRID_16 = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "blocks": 2, "z": 256, "codes": 16384, "attention": (4,)}
RELEASED = {
    "taming": GRID_16 | {"width": 256},  # ImageNet, f = 16
    "llamagen": GRID_16 | {"width": 8},  # VQ-16
}
TINY = {"ch": 32, "ch_mult": (1, 2, 2), "blocks": 1, "z": 8, "codes": 24, "width": 6, "attention": (2,)}


def shapes(layout, ch, ch_mult, blocks, z, codes, width, attention):
    """Every weight of the model by its released name, with its shape; not those of the training losses."""
    names, found, last = LAYOUTS[layout], {}, len(ch_mult) - 1

    def conv(name, out, into, size=3):
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, into, size, size), (out,)

    def norm(name, into):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (into,)

    def residual(name, out, into):
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if out != into:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attend(name, into):
        norm(f"{name}.norm", into)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", into, into, 1)

    top = ch * ch_mult[-1]
    into = ch
    conv("encoder.conv_in", ch, 3)
    for level, multiple in enumerate(ch_mult):
        place = f"encoder.{names['down']}.{level}"
        for block in range(blocks):
            residual(f"{place}.{names['block']}.{block}", ch * multiple, into)
            into = ch * multiple
            if level in attention:
                attend(f"{place}.attn.{block}", into)
        if level != last:
            conv(f"{place}.downsample.conv", into, into)
    conv("decoder.conv_in", top, z)
    for level in reversed(range(len(ch_mult))):
        place = f"decoder.{names['up']}.{level if layout == 'taming' else last - level}"
        for block in range(blocks + 1):
            residual(f"{place}.{names['block']}.{block}", ch * ch_mult[level], into)
            into = ch * ch_mult[level]
            if level in attention:
                attend(f"{place}.attn.{block}", into)
        if level:
            conv(f"{place}.upsample.conv", into, into)
    for part, out, end in (("encoder", z, top), ("decoder", 3, ch)):
        residual(f"{part}.mid.{names['mid'][0]}", top, top)
        attend(f"{part}.mid.{names['mid'][1]}", top)
        residual(f"{part}.mid.{names['mid'][2]}", top, top)
        norm(f"{part}.norm_out", end)
        conv(f"{part}.conv_out", out, end)
    conv("quant_conv", width, z, 1)
    conv("post_quant_conv", z, width, 1)
    found["quantize.embedding.weight"] = (codes, width)
    if layout == "llamagen":
        found["quantize.codebook_used"] = (65536,)
    return found


def random_weights(layout, **sizes):
    """Weights of these shapes, of about the size that keeps signals alive."""
    torch.manual_seed(0)
    weights = {}
    for name, shape in shapes(layout, **TINY | sizes).items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 10
        weights[name] = torch.randn(shape) / fan**0.5 + ("norm" in name and "weight" in name)
    weights["quantize.embedding.weight"] = torch.randn(weights["quantize.embedding.weight"].shape)
    return weights


class OriginalVQ:
    """The forward pass on weights under released names."""

    def __init__(self, layout, weights, levels=3, blocks=1):
        self.layout, self.weights, self.levels, self.blocks = layout, weights, levels, blocks
        self.names = LAYOUTS[layout]

    def __call__(self, pictures):
        """Indices of the codes, and the reconstruction."""
        features = self.conv("quant_conv", self.encoder(pictures), padding=0).permute(0, 2, 3, 1)
        codes = self.weights["quantize.embedding.weight"]
        if self.layout == "llamagen":
            features, codes = normalize(features, dim=-1), normalize(codes, dim=-1)
        distances = (features[..., None, :] - codes).square().sum(dim=-1)
        indices = distances.argmin(dim=-1)
        quantised = codes[indices].permute(0, 3, 1, 2)
        return indices, self.decoder(self.conv("post_quant_conv", quantised, padding=0))

    def encoder(self, h):
        h = self.conv("encoder.conv_in", h)
        for level in range(self.levels):
            place = f"encoder.{self.names['down']}.{level}"
            h = self.level(place, h, self.blocks)
            if level < self.levels - 1:
                h = self.conv(f"{place}.downsample.conv", pad(h, (0, 1, 0, 1)), padding=0, stride=2)
        return self.end("encoder", self.middle("encoder", h))

    def decoder(self, h):
        h = self.middle("decoder", self.conv("decoder.conv_in", h))
        for level in reversed(range(self.levels)):
            place = (
                f"decoder.{self.names['up']}.{level if self.layout == 'taming' else self.levels - 1 - level}"
            )
            h = self.level(place, h, self.blocks + 1)
            if level:
                h = self.conv(f"{place}.upsample.conv", interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.end("decoder", h)

    def level(self, place, h, blocks):
        for block in range(blocks):
            h = self.residual(f"{place}.{self.names['block']}.{block}", h)
            if f"{place}.attn.{block}.q.weight" in self.weights:
                h = self.attend(f"{place}.attn.{block}", h)
        return h

    def middle(self, part, h):
        first, attention, second = (f"{part}.mid.{name}" for name in self.names["mid"])
        return self.residual(second, self.attend(attention, self.residual(first, h)))

    def end(self, part, h):
        return self.conv(f"{part}.conv_out", silu(self.norm(f"{part}.norm_out", h)))

    def residual(self, name, h):
        changed = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", h)))
        changed = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", changed)))
        if f"{name}.nin_shortcut.weight" in self.weights:
            h = self.conv(f"{name}.nin_shortcut", h, padding=0)
        return h + changed

    def attend(self, name, h):
        normed = self.norm(f"{name}.norm", h)
        q, k, v = (self.conv(f"{name}.{part}", normed, padding=0).flatten(2) for part in "qkv")
        shares = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(dim=-1)
        return h + self.conv(
            f"{name}.proj_out", (v @ shares.transpose(1, 2)).unflatten(2, h.shape[2:]), padding=0
        )

    def conv(self, name, h, padding=1, stride=1):
        return conv2d(h, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)

    def norm(self, name, h):
        return group_norm(h, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6)
