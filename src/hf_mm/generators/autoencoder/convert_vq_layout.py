"""What the checkpoints of taming VQGAN and of LlamaGen have in common: one network under two names.

Both are the encoder and decoder of Esser et al. 2021, "Taming Transformers for High-Resolution Image
Synthesis" (https://arxiv.org/abs/2012.09841), which diffusers has too. Their attention is made of
convolutions of one pixel, diffusers' of linear layers.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...hub.interop import ForeignCheckpoint

__all__ = ["VQLayout", "fields_of_vq_weights", "vq_names"]

NORM_GROUPS = 32  # in both repositories
ATTENTION_PARTS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


class VQLayout(ForeignCheckpoint):
    """Weights of a VQ autoencoder under the names of a repository.

    Attributes:
        mark: A weight that only checkpoints of this layout have.
        holders: Keys of the file under which weights are looked for, in this order.
        told: Fields of our config that every checkpoint of this layout has.
    """

    classes = {"MMVQAutoencoder": "VQModel"}
    mark: str
    holders: tuple[str, ...] = ("state_dict",)
    told: Mapping[str, Any] = {}

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights = super().weights_from(theirs).items()
        return {
            name: weight.flatten(1) if ".attentions." in name and weight.ndim == 4 else weight
            for name, weight in weights
        }

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return super().weights_to(
            {
                name: weight[:, :, None, None] if ".attentions." in name and weight.ndim == 2 else weight
                for name, weight in ours.items()
            }
        )

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Refuse to write a model that the repository's code cannot build.

        Args:
            config: Of the model.

        Raises:
            ValueError: The first field that it has no place for.
        """
        widths = list(config["block_out_channels"])
        wanted = {
            "norm_num_groups": NORM_GROUPS,
            "act_fn": "silu",
            "mid_block_add_attention": True,
            "up_block_types": [
                name.replace("Down", "Up").replace("Encoder", "Decoder")
                for name in reversed(config["down_block_types"])
            ],
            "block_out_channels": [width // widths[0] * widths[0] for width in widths],
        }
        if config["quantizer"] == "fsq":
            raise ValueError(
                f"`quantizer`='fsq' has no place in a {self.model_type} checkpoint: no codebook."
            )
        for name, value in wanted.items():
            given = list(config[name]) if isinstance(config[name], list | tuple) else config[name]
            if given != value:
                raise ValueError(
                    f"`{name}`={given!r} cannot be written, {self.model_type} has {value!r} here."
                )


def vq_names(down: str, up: str, block: str, middle: tuple[str, str, str]) -> tuple[tuple[str, str], ...]:
    """The table of names of a layout, ours first.

    Args:
        down: A level of the encoder, such as "encoder.down.{}".
        up: A level of the decoder.
        block: A residual layer in a level, such as "block".
        middle: The first residual layer, the attention and the second residual layer in the middle.
    """
    rows: list[tuple[str, str]] = []
    for ours, theirs, sample in (
        ("encoder.down_blocks.{}", down, "down"),
        ("decoder.up_blocks.{}", up, "up"),
    ):
        rows += _residual_names(f"{ours}.resnets.{{}}", f"{theirs}.{block}.{{}}")
        rows += _attention_names(f"{ours}.attentions.{{}}", f"{theirs}.attn.{{}}")
        rows.append((f"{ours}.{sample}samplers.0.conv.*", f"{theirs}.{sample}sample.conv.*"))
    for part in ("encoder", "decoder"):
        first, attention, second = (f"{part}.{name}" for name in middle)
        rows += _residual_names(f"{part}.mid_block.resnets.0", first)
        rows += _attention_names(f"{part}.mid_block.attentions.0", attention)
        rows += _residual_names(f"{part}.mid_block.resnets.1", second)
        rows += [(f"{part}.conv_in.*", f"{part}.conv_in.*"), (f"{part}.conv_out.*", f"{part}.conv_out.*")]
        rows.append((f"{part}.conv_norm_out.*", f"{part}.norm_out.*"))
    same = ("quant_conv.*", "post_quant_conv.*", "quantize.embedding.weight")
    return (*rows, *((name, name) for name in same))


def fields_of_vq_weights(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of our config that the shapes of weights tell.

    Args:
        weights: Under our names.

    Raises:
        KeyError: A weight that every such model has is missing.
    """
    levels = _count(weights, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    attention = [
        f"encoder.down_blocks.{level}.attentions.0.to_q.weight" in weights for level in range(levels)
    ]
    upwards = [f"decoder.up_blocks.{level}.attentions.0.to_q.weight" in weights for level in range(levels)]
    codes = weights["quantize.embedding.weight"]  # (K, D)
    return {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in upwards],
        "block_out_channels": [
            weights[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)
        ],
        "layers_per_block": _count(weights, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "latent_channels": weights["post_quant_conv.weight"].shape[0],
        "norm_num_groups": NORM_GROUPS,
        "num_vq_embeddings": codes.shape[0],
        "vq_embed_dim": codes.shape[1],
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in weights,
    }


def _residual_names(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(f"{ours}.conv_shortcut.*", f"{theirs}.nin_shortcut.*")] + [
        (f"{ours}.{part}.*", f"{theirs}.{part}.*") for part in ("norm1", "conv1", "norm2", "conv2")
    ]


def _attention_names(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(f"{ours}.{mine}.*", f"{theirs}.{other}.*") for mine, other in ATTENTION_PARTS.items()]


def _count(weights: Mapping[str, Tensor], name: str) -> int:
    count = 0
    while name.format(count) in weights:
        count += 1
    return count
