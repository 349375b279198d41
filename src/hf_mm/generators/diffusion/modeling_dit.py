"""A transformer that says what is noise in a picture, for classes and for texts.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (https://arxiv.org/abs/2212.09748), with
one embedder of time and class for all layers; with a text also by cross-attention or by the joint attention
of Esser et al. 2024, "Scaling Rectified Flow Transformers" (https://arxiv.org/abs/2403.03206). It is called
as diffusers' `UNet2DModel`.

Shapes: B pictures, C channels, Y x X places, P patch side, G x F patches (rows x columns), N = G * F,
D width, L tokens of a text, T width of a text encoder, H heads.
"""

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn.functional import silu

from ...hub.diffusers_code import RemoteModelMixin
from ...layers.onednn_linear import OneDNNLinear
from .dit_blocks import DiTBlock, DiTCrossBlock, DiTJointBlock, DiTSizes, modulate
from .dit_embeddings import DiTTimeEmbedding, PooledTextEmbedding, grid_positions

__all__ = ["MMDiTModel"]

DIT_STD = 0.02  # of embeddings and of the layers behind them at the start


class MMDiTModel(RemoteModelMixin, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Patches, layers, patches.

    Args:
        sample_size: Height and width of the pictures or latents it is trained for; one number for squares.
        in_channels: C.
        out_channels: `in_channels` by default; twice as many for a learned variance, the second half.
        patch_size: P.
        hidden_size: D, a multiple of 4 and of `num_heads`.
        num_layers: How many layers.
        num_heads: H of each attention.
        mlp_ratio: Inner width of an MLP / D.
        num_classes: Any number of classes that `class_labels` may ask for, and one more, the null class
            for guidance, whose number this is; `None`: no classes.
        text_dim: T of the states that `encoder_hidden_states` brings; `None`: no texts.
        text_mode: "cross": the patches of each layer look at the text; "joint": the text is a second
            sequence with weights of its own, and both look at both.
        text_pooling: The mean of a text's states is also added to the time, so that every layer is told at
            once what is wanted (Esser et al. 2024, section 4).
        qk_norm: Normalise queries and keys of all attentions by their root mean square.
        second_time: It is also told where a step ends (`second_timestep`), as mean flows need it.
        freq_shift: Of the time's wave lengths, as in `UNet2DModel`: 0.0 in the original DiT, 1.0 in
            `DiTTransformer2DModel`.
        norm_eps: Of all norms but that before an MLP.
        mlp_norm_eps: Of that one: 1e-5 in `DiTTransformer2DModel`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        patch_size: int = 2,
        hidden_size: int = 384,
        num_layers: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        text_dim: int | None = None,
        text_mode: str = "cross",
        text_pooling: bool = False,
        qk_norm: bool = False,
        second_time: bool = False,
        freq_shift: float = 0.0,
        norm_eps: float = 1e-6,
        mlp_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        rows, columns = self._grid_of_config()
        self.register_to_config(out_channels=in_channels if out_channels is None else out_channels)
        self.gradient_checkpointing = False
        self.patch_embed = nn.Conv2d(in_channels, hidden_size, patch_size, patch_size)
        # Not saved, and not learnt.
        self.register_buffer(
            "positions", grid_positions((rows, columns), (rows, columns), hidden_size), persistent=False
        )
        self.time_embed = DiTTimeEmbedding(hidden_size, freq_shift)
        self.interval_embed = DiTTimeEmbedding(hidden_size, freq_shift) if second_time else None
        self.class_embed = None if num_classes is None else nn.Embedding(num_classes + 1, hidden_size)
        self.text_embed = None if text_dim is None else OneDNNLinear(text_dim, hidden_size)
        self.pooled_embed = PooledTextEmbedding(text_dim, hidden_size) if text_pooling and text_dim else None
        inner = round(hidden_size * mlp_ratio)
        sizes = DiTSizes(hidden_size, num_heads, inner, qk_norm, norm_eps, mlp_norm_eps)
        self.blocks = nn.ModuleList(self._build_block(sizes, place) for place in range(num_layers))
        self.norm_out = nn.LayerNorm(hidden_size, eps=norm_eps, elementwise_affine=False)
        self.modulation_out = OneDNNLinear(hidden_size, 2 * hidden_size)
        self.proj_out = OneDNNLinear(hidden_size, patch_size**2 * self.config["out_channels"])
        self._initialise()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        second_timestep: Tensor | float | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Noisy pictures to what the model was trained to say of them.

        Args:
            sample: (B, C, Y, X), both sides multiples of P; other sizes than that of the training stretch
                the positions.
            timestep: A number, or (B,), as the scheduler counts: 0 to 999.
            class_labels: (B,) numbers of classes; `num_classes` is the null class.
            encoder_hidden_states: (B, L, T) states of a text.
            encoder_attention_mask: (B, L), 0 on padding; `None`: none of it is padding.
            second_timestep: A number, or (B,): the time at which the step ends. `timestep` by default, which
                asks for the velocity at that moment.
            return_dict: Else a tuple.

        Returns:
            `sample` (B, C', Y, X), C' channels of `out_channels`.

        Raises:
            ValueError: A picture of another shape, a condition that is missing, or one that the model does
                not take.
        """
        self._check_sample(sample)
        self._check_conditions(class_labels, encoder_hidden_states, encoder_attention_mask, second_timestep)
        hidden_states = self.patch_embed(sample)  # (B, D, G, F)
        grid = hidden_states.shape[2:]
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, N, D)
        hidden_states = hidden_states + self._positions_of(grid).to(hidden_states)
        condition = self._condition(sample, timestep, second_timestep, class_labels)  # (B, D)
        if self.pooled_embed is not None:
            condition = condition + self.pooled_embed(encoder_hidden_states, encoder_attention_mask)
        condition = silu(condition).unsqueeze(1)  # (B, 1, D), the same for all layers
        text, mask = self._text(encoder_hidden_states, encoder_attention_mask, hidden_states.shape[1])
        checkpoint: Any = self._gradient_checkpointing_func
        for block in self.blocks:
            arguments = hidden_states, condition, text, mask
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states, text = checkpoint(block, *arguments)
            else:
                hidden_states, text = block(*arguments)
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        patches = self.proj_out(modulate(self.norm_out(hidden_states), shift, scale))  # (B, N, P * P * C')
        made = self._join(patches, grid)
        return UNet2DOutput(sample=made) if return_dict else (made,)

    @contextmanager
    def record_text_attention(self) -> Generator[list[Tensor]]:
        """Within it, each call adds what patches look at in the text, a tensor for each layer in order.

        Yields:
            A list that grows by (B, H, N, L) shares of attention; in joint attention, where patches look at
            patches too, those of the text add up to less than 1.

        Raises:
            ValueError: The model reads no texts.
        """
        parts: list[Any] = [block.text_attention for block in self.blocks]
        if self.text_embed is None:
            raise ValueError("The model reads no text, so nothing looks at one; build it with `text_dim`.")
        maps: list[Tensor] = []
        for part in parts:
            part.record = maps
        try:
            yield maps
        finally:
            for part in parts:
                part.record = None

    @classmethod
    def from_original(cls, path: str | Path, **options: Any) -> "MMDiTModel":
        """Load a checkpoint of the original DiT, see `load_original_dit`.

        Args:
            path: The file.
            **options: As `load_original_dit` takes them.
        """
        # By name: this file travels with every model, the converters do not.
        module = import_module("hf_mm.generators.diffusion.convert_dit_original")
        return module.load_original_dit(path, **options)

    def _build_block(self, sizes: DiTSizes, place: int) -> DiTBlock:
        config: Any = self.config
        if config.text_dim is None:
            return DiTBlock(sizes)
        if config.text_mode == "cross":
            return DiTCrossBlock(sizes)
        return DiTJointBlock(sizes, is_last=place == config.num_layers - 1)

    def _initialise(self) -> None:
        """As the original: every layer begins as the identity, the whole as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        embedders: list[Any] = [part for part in (self.time_embed, self.interval_embed) if part is not None]
        embedders += [] if self.pooled_embed is None else [self.pooled_embed]
        drawn = [layer for part in embedders for layer in (part.linear_1, part.linear_2)]
        for part in [*drawn, *(() if self.class_embed is None else (self.class_embed,))]:
            nn.init.normal_(part.weight, std=DIT_STD)
        for block in self.blocks:
            if isinstance(block, DiTBlock):
                block.zero()
        for part in (self.modulation_out, self.proj_out):
            nn.init.zeros_(part.weight)

    def _condition(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        second_timestep: Tensor | float | None,
        class_labels: Tensor | None,
    ) -> Tensor:
        """(B, D): time and class in one vector."""
        times = _times(timestep, sample)
        condition = self.time_embed(times, sample.dtype)  # (B, D)
        if self.interval_embed is not None:
            ends = times if second_timestep is None else _times(second_timestep, sample)
            condition = condition + self.interval_embed(times - ends, sample.dtype)
        if self.class_embed is not None:
            condition = condition + self.class_embed(class_labels)
        return condition

    def _text(
        self, states: Tensor | None, mask: Tensor | None, patches: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """The text (B, L, D), and the mask of what may be seen, if anything may not."""
        if self.text_embed is None:
            return None, None
        text = self.text_embed(states)
        if mask is None:
            return text, None
        seen = mask.bool()
        text = text.masked_fill(~seen.unsqueeze(-1), 0)
        if self.config["text_mode"] == "joint":
            seen = torch.cat((seen, seen.new_ones(len(seen), patches)), dim=1)  # (B, L + N)
        else:
            # Where a row has no word, attention would be none; its padding is zeros, and any number of
            # equal values is the same as one.
            seen = seen | ~seen.any(dim=1, keepdim=True)
        return text, seen[:, None, None]

    def _positions_of(self, grid: tuple[int, int]) -> Tensor:
        trained = self._grid_of_config()
        if tuple(grid) == trained:
            return self.positions
        return grid_positions((grid[0], grid[1]), trained, self.config["hidden_size"])

    def _join(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, P * P * C') to (B, C', Y, X)."""
        side = self.config["patch_size"]
        patches = patches.unflatten(1, tuple(grid)).unflatten(-1, (side, side, -1))  # (B, G, F, P, P, C')
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _grid_of_config(self) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ValueError: Fields that do not go together.
        """
        config: Any = self.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(
                f"`sample_size`={size} must be a multiple of `patch_size`={config.patch_size}; pad the "
                "pictures or choose another patch."
            )
        if config.hidden_size % config.num_heads or config.hidden_size % 4:
            raise ValueError(
                f"`hidden_size`={config.hidden_size} must be a multiple of `num_heads`={config.num_heads}, "
                "and of 4: sine and cosine of row and of column."
            )
        if config.text_mode not in ("cross", "joint"):
            raise ValueError(f"`text_mode` must be 'cross' or 'joint', got {config.text_mode!r}.")
        if config.text_pooling and config.text_dim is None:
            raise ValueError("`text_pooling` needs a text; give `text_dim`, the width of its states.")
        return height // config.patch_size, width // config.patch_size

    def _check_sample(self, sample: Tensor) -> None:
        channels, side = self.config["in_channels"], self.config["patch_size"]
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(
                f"`sample` must be (batch, {channels}, height, width), got {tuple(sample.shape)}."
            )
        height, width = sample.shape[2:]
        if height % side or width % side or not height * width:
            raise ValueError(
                f"`sample` is {height}x{width}, not a multiple of `patch_size`={side}; resize or pad it "
                "first."
            )

    def _check_conditions(
        self,
        class_labels: Tensor | None,
        states: Tensor | None,
        mask: Tensor | None,
        second_timestep: Tensor | float | None,
    ) -> None:
        config: Any = self.config
        if (class_labels is None) != (self.class_embed is None):
            raise ValueError(
                f"`num_classes`={config.num_classes}, but `class_labels` are "
                + ("missing; the null class is `num_classes`." if class_labels is None else "given.")
            )
        if (states is None) != (self.text_embed is None):
            raise ValueError(
                f"`text_dim`={config.text_dim}, but `encoder_hidden_states` are "
                + ("missing; for no text pass those of the empty text." if states is None else "given.")
            )
        if states is not None and (states.ndim != 3 or states.shape[-1] != config.text_dim):
            raise ValueError(
                f"`encoder_hidden_states` must be (batch, tokens, {config.text_dim}), got "
                f"{tuple(states.shape)}; use the text encoder of the training."
            )
        if mask is not None and (states is None or mask.shape != states.shape[:2]):
            wanted = None if states is None else tuple(states.shape[:2])
            raise ValueError(
                f"`encoder_attention_mask` is {tuple(mask.shape)}, but the text is {wanted} (batch, tokens)."
            )
        if second_timestep is not None and self.interval_embed is None:
            raise ValueError(
                "`second_timestep` is given to a model without one; build it with `second_time`."
            )


def _times(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """(B,) float32."""
    return torch.as_tensor(timestep, device=sample.device).float().expand(len(sample))
