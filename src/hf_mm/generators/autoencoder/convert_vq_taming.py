"""VQGAN in the layout of its authors' own code, https://github.com/CompVis/taming-transformers.

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis"
(https://arxiv.org/abs/2012.09841). Checkpoints are those of PyTorch Lightning, such as `last.ckpt`: weights
under `state_dict`, with those of the discriminator and the perceptual net. The levels of its decoder are
counted from the largest grid, ours from the smallest.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .convert_vq_layout import VQLayout, vq_names

__all__ = ["TAMING", "TamingCheckpoint", "taming_config"]


class TamingCheckpoint(VQLayout):
    """The weights of `taming.models.vqgan.VQModel`."""

    model_type = "taming"
    mark = "encoder.down.0.block.0.conv1.weight"
    names = vq_names(
        "encoder.down.{}", "decoder.up.{}", "block", ("mid.block_1", "mid.attn_1", "mid.block_2")
    )
    unused = ("loss.*",)

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return super().weights_from(_with_levels_reversed(theirs))

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return _with_levels_reversed(super().weights_to(ours))


def taming_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What taming's `instantiate_from_config` builds the model from, without the losses of training.

    Args:
        config: Of a model that `check_config` lets pass.

    Returns:
        The content of a `model.yaml`.
    """
    widths, size = config["block_out_channels"], config["sample_size"]
    attention = [size >> level for level, name in enumerate(config["down_block_types"]) if "Attn" in name]
    network = {
        "double_z": False,
        "z_channels": config["latent_channels"],
        "resolution": size,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": attention,
        "dropout": 0.0,
    }
    params = {
        "embed_dim": config["vq_embed_dim"],
        "n_embed": config["num_vq_embeddings"],
        "ddconfig": network,
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}


def _with_levels_reversed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their `decoder.up` counted from the other end."""
    levels = [int(match[1]) for name in weights if (match := re.match(r"decoder\.up\.(\d+)\.", name))]
    last = max(levels, default=0)
    return {
        re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{last - int(match[1])}.", name): weight
        for name, weight in weights.items()
    }


TAMING = TamingCheckpoint()
