"""Tokenizers in the layout of https://github.com/FoundationVision/LlamaGen.

Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation", section 2.1
(https://arxiv.org/abs/2406.06525): VQGAN with codes of width 8 and length 1. Checkpoints, such as
`vq_ds16_c2i.pt`, hold the weights under `model`, some also their moving averages under `ema`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .convert_vq_layout import VQLayout, vq_names

__all__ = ["LLAMAGEN", "LlamaGenCheckpoint"]

USAGE_LENGTH = 65536  # of the record of used codes, which their code expects to find
# What `tokenizer/tokenizer_image/vq_model.py` has no argument for.
LLAMAGEN_FIXED = {"in_channels": 3, "out_channels": 3, "layers_per_block": 2}
LLAMAGEN_WIDTH = 128  # of the first level


class LlamaGenCheckpoint(VQLayout):
    """The weights of its `VQModel`."""

    model_type = "llamagen"
    mark = "encoder.conv_blocks.0.res.0.conv1.weight"
    names = vq_names("encoder.conv_blocks.{}", "decoder.conv_blocks.{}", "res", ("mid.0", "mid.1", "mid.2"))
    unused = ("quantize.codebook_used",)
    holders = ("ema", "model", "state_dict")
    told = {"l2_normalized": True}

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return super().weights_to(ours) | {"quantize.codebook_used": torch.zeros(USAGE_LENGTH)}

    def check_config(self, config: Mapping[str, Any]) -> None:
        """See `VQLayout`."""
        super().check_config(config)
        plain = ["DownEncoderBlock2D"] * (len(config["down_block_types"]) - 1)
        wanted = LLAMAGEN_FIXED | {"down_block_types": [*plain, "AttnDownEncoderBlock2D"]}
        for name, value in wanted.items():
            given = list(config[name]) if isinstance(config[name], list | tuple) else config[name]
            if given != value:
                raise ValueError(f"`{name}`={given!r} cannot be written, llamagen has {value!r} only.")
        if config["block_out_channels"][0] != LLAMAGEN_WIDTH:
            raise ValueError(
                f"`block_out_channels`={list(config['block_out_channels'])} cannot be written, llamagen "
                f"begins with {LLAMAGEN_WIDTH}."
            )


LLAMAGEN = LlamaGenCheckpoint()
