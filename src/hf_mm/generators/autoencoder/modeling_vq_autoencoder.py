"""An autoencoder whose latents are codes of a codebook, for pictures as words of a sequence model.

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1
(https://arxiv.org/abs/2012.09841), with the encoder and decoder of diffusers' `VQModel` under its names: a
checkpoint of either loads as the other where the quantiser allows.

Shapes: B images, C channels, Y x X pixels (rows x columns), D width of a code, h x w = Y x X / `downscale`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput, Encoder
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from ...hub.diffusers_code import RemoteModelMixin
from .quantisers import CodebookQuantiser, FiniteScalarQuantiser, MMVQEncoderOutput, MovingAverageQuantiser

__all__ = ["MMVQAutoencoder", "MMVQAutoencoderOutput"]

DEFAULT_CODES = 256  # as in `VQModel`
# What a config of ours says that `VQModel` has a word for.
VQ_MODEL_FIELDS = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "latent_channels",
    "sample_size",
    "num_vq_embeddings",
    "norm_num_groups",
    "vq_embed_dim",
    "scaling_factor",
    "mid_block_add_attention",
)


@dataclass
class MMVQAutoencoderOutput(MMVQEncoderOutput):
    """A picture after encoding and decoding, and what `MMVQEncoderOutput` says of the codes between.

    Args:
        sample: (B, C, Y, X) the reconstruction, of pictures in [-1, 1].
    """

    sample: Tensor


class MMVQAutoencoder(RemoteModelMixin, ModelMixin, ConfigMixin):
    """Encoder, quantiser, decoder.

    Args:
        in_channels: Channels of the pictures.
        out_channels: Channels of the reconstructions.
        down_block_types: Of the encoder: "DownEncoderBlock2D", or "AttnDownEncoderBlock2D" with attention.
        up_block_types: Of the decoder, from the smallest grid on: "UpDecoderBlock2D", "AttnUpDecoderBlock2D".
        block_out_channels: Width of each block; each but the last halves height and width.
        layers_per_block: Residual layers of each block of the encoder; the decoder has one more.
        act_fn: Activation.
        latent_channels: Width between encoder and quantiser, and between quantiser and decoder.
        sample_size: Height and width in pixels of the pictures it was trained on.
        num_vq_embeddings: Number of codes, 256 by default; `None` for "fsq", whose levels say it.
        norm_num_groups: Groups of the norms.
        vq_embed_dim: Width of a code, `latent_channels` by default; that of "fsq" is the number of levels.
        scaling_factor: 1 / deviation of the latents on training pictures, for models of latents. Latents
            here are not scaled by it.
        mid_block_add_attention: Attention in the middle of encoder and decoder.
        quantizer: "ema": a codebook of moving averages; "plain": one learnt by gradients, as in `VQModel`;
            "fsq": rounded dimensions, no codebook.
        l2_normalized: Compare and use vectors and codes at length 1. Not of "fsq".
        fsq_levels: Levels of each dimension, of "fsq" only; [8, 5, 5, 5] makes 1000 codes.
        codebook_weight: Of the codebook loss, of "plain".
        commitment_weight: Of the commitment loss, of "ema" and "plain".
        ema_decay: Of "ema": share of the averages that a batch leaves as it is.
        restart_threshold: Of "ema": a code starts again at a vector of the batch when its average count is
            below this share of that of an average code; 0.0: never.
        kmeans_iterations: Of "ema": the first batch in training sets the codebook by that many steps of
            k-means; 0 keeps the one that is there, to train on with a loaded one.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["quantize"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int | None = None,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 1.0,
        mid_block_add_attention: bool = True,
        quantizer: str = "ema",
        l2_normalized: bool = False,
        fsq_levels: Sequence[int] | None = None,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        restart_threshold: float = 0.02,
        kmeans_iterations: int = 10,
    ) -> None:
        super().__init__()
        num_codes, width = self._codes_of_config()
        blocks: dict[str, Any] = {
            "block_out_channels": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            "act_fn": act_fn,
            "norm_num_groups": norm_num_groups,
            "mid_block_add_attention": mid_block_add_attention,
        }
        self.encoder = Encoder(
            in_channels, latent_channels, tuple(down_block_types), double_z=False, **blocks
        )
        self.quant_conv = nn.Conv2d(latent_channels, width, 1)
        self.quantize: CodebookQuantiser | FiniteScalarQuantiser = self._build_quantiser(num_codes, width)
        self.post_quant_conv = nn.Conv2d(width, latent_channels, 1)
        self.decoder = Decoder(latent_channels, out_channels, tuple(up_block_types), **blocks)

    @property
    def num_codes(self) -> int:
        """How many codes there are."""
        return self.quantize.num_codes

    @property
    def downscale(self) -> int:
        """Pixels per place of the grid of codes, in each direction."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    @apply_forward_hook
    def encode(self, x: Tensor) -> MMVQEncoderOutput:
        """(B, C, Y, X) pictures in [-1, 1] to codes.

        Raises:
            ValueError: Pictures of other channels, or of a size that is no multiple of `downscale`.
            TypeError: They are whole numbers.
        """
        self._check_pictures(x)
        return self.quantize(self.quant_conv(self.encoder(x)))

    @apply_forward_hook
    def decode(self, latents: Tensor) -> DecoderOutput:
        """(B, D, h, w) latents, as `encode` gives them, to pictures in `sample` (B, C, Y, X).

        Unlike `VQModel.decode` it quantises nothing: latents are used as they are.

        Raises:
            ValueError: Latents of another shape.
        """
        if latents.ndim != 4 or latents.shape[1] != self.quantize.width:
            raise ValueError(
                f"`latents` must be (batch, {self.quantize.width}, height, width), got "
                f"{tuple(latents.shape)}; for indices there is `decode_indices`."
            )
        return DecoderOutput(sample=self.decoder(self.post_quant_conv(latents)))

    def decode_indices(self, indices: Tensor) -> DecoderOutput:
        """(B, h, w) indices of codes to pictures in `sample` (B, C, Y, X).

        Raises:
            ValueError: Indices outside the codebook, or of another shape.
            TypeError: They are no whole numbers.
        """
        return self.decode(self.lookup(indices))

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to the latents (B, D, h, w) of these codes.

        Raises:
            ValueError: Indices outside the codebook, or of another shape.
            TypeError: They are no whole numbers.
        """
        self._check_indices(indices)
        return self.quantize.lookup(indices.long()).to(self.post_quant_conv.weight.dtype)

    def forward(self, sample: Tensor) -> MMVQAutoencoderOutput:
        """(B, C, Y, X) pictures in [-1, 1] to their reconstructions, with what the codes cost."""
        codes = self.encode(sample)
        return MMVQAutoencoderOutput(sample=self.decode(codes.latents).sample, **codes)

    @classmethod
    def from_original(cls, path: str | Path, **options: Any) -> "MMVQAutoencoder":
        """Load a checkpoint of taming VQGAN or of a LlamaGen tokenizer, see `load_original_vq`.

        Args:
            path: The file, or the folder it is in.
            **options: As `load_original_vq` takes them.
        """
        # By name: this file travels with every model, the converters do not.
        return import_module("hf_mm.generators.autoencoder.convert_vq_original").load_original_vq(
            path, **options
        )

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs: Any) -> tuple[dict, dict, dict]:
        """What of a saved config is for `__init__`; a config of diffusers' `VQModel` has a plain codebook."""
        if config_dict.get("_class_name") == "VQModel":
            if config_dict.get("norm_type", "group") != "group":
                raise ValueError(
                    f"`norm_type`={config_dict['norm_type']!r} of this VQModel is not built here, only "
                    "'group'; load it with diffusers."
                )
            known = {name: config_dict[name] for name in VQ_MODEL_FIELDS if name in config_dict}
            config_dict = {"quantizer": "plain"} | known
        return super().extract_init_dict(config_dict, **kwargs)

    @wraps(RemoteModelMixin.save_pretrained, assigned=())  # pipelines pass on what the signature has, no more
    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as the parent class does; codes that are used at length 1 are saved at length 1.

        So `VQModel` finds the same codes, which knows nothing of lengths. The model itself is left as it is.

        Args:
            save_directory: Folder, created when absent; its earlier files stay until the new ones are whole.
            *args: All else that the parent's method takes.
            **kwargs: By name.
        """
        quantiser = self.quantize
        if not isinstance(quantiser, CodebookQuantiser) or not quantiser.l2_normalized:
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        table = quantiser.embedding.weight
        learnt, table.data = table.data, quantiser.codes().detach().to(table.dtype)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            table.data = learnt

    def to_vq_model(self) -> VQModel:
        """The same as diffusers' own class, with copies of the weights.

        Raises:
            ValueError: The quantiser is none that `VQModel` has.
        """
        if self.config["quantizer"] == "fsq":
            raise ValueError(
                f"`quantizer`='fsq' with `fsq_levels`={self.config['fsq_levels']} has no codebook, which "
                "diffusers' `VQModel` needs; use MMVQAutoencoder itself."
            )
        config = {name: value for name, value in self.config.items() if name in VQ_MODEL_FIELDS}
        model: Any = VQModel.from_config(config)
        weights = {name: weight for name, weight in self.state_dict().items() if "cluster_" not in name}
        weights["quantize.embedding.weight"] = self.quantize.codes()
        model.load_state_dict(weights)
        return model.to(self.device, self.dtype).train(self.training)

    def _codes_of_config(self) -> tuple[int, int]:
        """Number and width of the codes; the config then says both, as `VQModel` wants it.

        Raises:
            ValueError: Fields that do not go together.
        """
        config: Any = self.config
        if config.quantizer not in ("ema", "plain", "fsq"):
            raise ValueError(f"`quantizer` must be 'ema', 'plain' or 'fsq', got {config.quantizer!r}.")
        if config.quantizer == "fsq":
            levels = _checked_levels(config)
            self.register_to_config(fsq_levels=levels, vq_embed_dim=len(levels))
            return math.prod(levels), len(levels)
        if config.fsq_levels is not None:
            raise ValueError(
                f"`fsq_levels`={list(config.fsq_levels)} is of `quantizer`='fsq' only, got "
                f"{config.quantizer!r}."
            )
        codes = DEFAULT_CODES if config.num_vq_embeddings is None else config.num_vq_embeddings
        width = config.latent_channels if config.vq_embed_dim is None else config.vq_embed_dim
        if codes < 2 or width < 1:
            raise ValueError(
                f"`num_vq_embeddings`={codes} and `vq_embed_dim`={width}: a codebook has at least 2 codes of "
                "width 1."
            )
        if not 0 <= config.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be from 0 to below 1, got {config.ema_decay}.")
        if not 0 <= config.restart_threshold < 1:
            raise ValueError(
                f"`restart_threshold` must be from 0 to below 1, got {config.restart_threshold}; it is a "
                "share of the count of an average code."
            )
        self.register_to_config(num_vq_embeddings=codes, vq_embed_dim=width)
        return codes, width

    def _build_quantiser(self, num_codes: int, width: int) -> CodebookQuantiser | FiniteScalarQuantiser:
        config: Any = self.config
        if config.quantizer == "fsq":
            return FiniteScalarQuantiser(config.fsq_levels)
        if config.quantizer == "plain":
            weights = config.codebook_weight, config.commitment_weight
            return CodebookQuantiser(num_codes, width, config.l2_normalized, *weights)
        return MovingAverageQuantiser(
            num_codes,
            width,
            config.l2_normalized,
            config.commitment_weight,
            config.ema_decay,
            config.restart_threshold,
            config.kmeans_iterations,
        )

    def _check_pictures(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"Pictures must be floating point numbers in [-1, 1], got {x.dtype}.")
        channels = self.config["in_channels"]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"Pictures must be (batch, {channels}, height, width), got {tuple(x.shape)}.")
        height, width = x.shape[2:]
        if height % self.downscale or width % self.downscale or not height or not width:
            raise ValueError(
                f"Pictures of {height}x{width} px are no multiple of `downscale`={self.downscale}; resize or "
                "pad them first."
            )

    def _check_indices(self, indices: Tensor) -> None:
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise TypeError(f"`indices` must be whole numbers, got {indices.dtype}.")
        if indices.ndim != 3 or not indices.numel():
            raise ValueError(f"`indices` must be (batch, height, width), got {tuple(indices.shape)}.")
        lowest, highest = torch.stack(indices.aminmax()).tolist()  # one wait for the GPU, not two
        if lowest < 0 or highest >= self.num_codes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"`indices` has {wrong} but the codebook is 0 to {self.num_codes - 1}; take class and text "
                "tokens out, and offsets off, first."
            )


def _checked_levels(config: Mapping[str, Any]) -> list[int]:
    """The levels of an FSQ config.

    Raises:
        ValueError: They are missing or wrong, or another field contradicts them.
    """
    levels = [int(level) for level in config["fsq_levels"] or ()]
    if not levels or min(levels) < 2:
        raise ValueError(
            "`quantizer`='fsq' needs `fsq_levels` of at least 2 each, such as [8, 5, 5, 5] for 1000 codes; "
            f"got {config['fsq_levels']}."
        )
    if config["num_vq_embeddings"] is not None:
        raise ValueError(
            f"`num_vq_embeddings`={config['num_vq_embeddings']} must be None with `quantizer`='fsq': "
            f"`fsq_levels`={levels} make {math.prod(levels)} codes."
        )
    if config["vq_embed_dim"] not in (None, len(levels)):
        raise ValueError(
            f"`vq_embed_dim`={config['vq_embed_dim']} but `fsq_levels`={levels} has {len(levels)} "
            "dimensions; leave it None."
        )
    if config["l2_normalized"]:
        raise ValueError("`l2_normalized` is of codebooks, not of `quantizer`='fsq'; leave it False.")
    return levels
