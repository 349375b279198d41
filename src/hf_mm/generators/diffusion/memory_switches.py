"""diffusers' switches for less memory, and what to switch when there was too little."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["MemorySwitches", "memory_watch"]


class MemorySwitches:
    """For pipelines with a denoiser and, perhaps, an autoencoder: switches that work, or say why not."""

    vae: Any

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Compute attention for some heads at a time, as in diffusers; `None` for all at once.

        Raises:
            ValueError: No part of the pipeline can do that.
        """
        parts = self.components.values()  # ty: ignore[missing-attribute]
        if not any(isinstance(part, nn.Module) and hasattr(part, "set_attention_slice") for part in parts):
            raise ValueError(
                "No part of this pipeline slices its attention, which needs little memory by itself; lower "
                "`chunk_size` of the call instead."
            )
        super().enable_attention_slicing(slice_size)  # ty: ignore[missing-attribute]

    def enable_vae_slicing(self) -> None:
        """Encode and decode one picture at a time.

        Raises:
            ValueError: There is no autoencoder, or it cannot do that.
        """
        self._switch_vae("enable_slicing")

    def disable_vae_slicing(self) -> None:
        """Encode and decode all pictures at once."""
        self._switch_vae("disable_slicing")

    def enable_vae_tiling(self) -> None:
        """Encode and decode large pictures in tiles that overlap.

        Raises:
            ValueError: There is no autoencoder, or it cannot do that.
        """
        self._switch_vae("enable_tiling")

    def disable_vae_tiling(self) -> None:
        """Encode and decode pictures as a whole."""
        self._switch_vae("disable_tiling")

    def _switch_vae(self, name: str) -> None:
        if not hasattr(self.vae, name):
            what = "draws pixels, it has no `vae`" if self.vae is None else f"has a {type(self.vae).__name__}"
            raise ValueError(
                f"This pipeline {what}, which knows no `{name}`; lower `chunk_size` of the call instead."
            )
        getattr(self.vae, name)()


@contextmanager
def memory_watch(pipe: Any, together: int | None) -> Generator[None]:
    """Within it, an error of memory that ran out says what to switch.

    Args:
        pipe: An `ImageDiffusionPipeline`.
        together: How many pictures are drawn at a time; `None` where that is not known yet.

    Raises:
        torch.OutOfMemoryError: Memory ran out, that of an accelerator or that of the machine.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Allocators that have no class of errors say it: that of the CPU, Metal, cuBLAS.
        says = any(words in str(error).lower() for words in ("can't allocate memory", "out of memory"))
        if not says and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise torch.OutOfMemoryError(_memory_advice(pipe, together or 1)) from error


def _memory_advice(pipe: Any, together: int) -> str:
    """What to switch when pictures did not fit."""
    advice = []
    if together > 1:
        advice.append(f"pass `chunk_size={together // 2}` to the call")
    if any(hasattr(part, "set_attention_slice") for part in pipe.components.values()):
        advice.append("call `pipe.enable_attention_slicing()`")
    if hasattr(pipe.vae, "enable_slicing"):
        advice.append("call `pipe.enable_vae_slicing()` (and `pipe.enable_vae_tiling()` for large pictures)")
    if pipe._execution_device.type != "cpu":
        advice.append("call `pipe.enable_model_cpu_offload()` instead of `pipe.to(...)`")
    if pipe.denoiser.dtype == torch.float32:
        advice.append("load with `torch_dtype=torch.bfloat16`")
    advice.append("draw smaller pictures (`height` and `width`, or a smaller `image`)")
    return (
        f"Memory ran out while drawing {together} pictures at a time on {pipe._execution_device}; "
        f"one after the other, until it fits: {'; '.join(advice)}."
    )
