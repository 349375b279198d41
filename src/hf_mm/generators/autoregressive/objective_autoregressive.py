"""What models over codes learn: the next code, or the masked ones.

Sun et al. 2024 (https://arxiv.org/abs/2406.06525), section 2; Chang et al. 2022, "MaskGIT"
(https://arxiv.org/abs/2202.04200), section 3.1. Conditions become empty in a tenth of the rows, so that the
model also learns pictures of anything, which guidance subtracts.

Shapes: B rows, T tokens of a condition, L codes of a picture, K codes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...objectives.phased import PhasedObjective
from .code_pipeline import CodePipeline
from .masked_decoding import MEAN_SHARE, draw_masks, masked_logits
from .pipeline_autoregressive import VQAutoregressivePipeline
from .pipeline_masked_codes import VQMaskedPipeline
from .raster_decoding import code_nats

__all__ = ["AutoregressiveObjective", "MaskedCodesObjective"]


class _CodesObjective(PhasedObjective):
    """Train the transformer of a pipeline on batches of `codes` (B, L) and `prefixes` (B, T).

    Args:
        pipeline: Its transformer is trained, in place.
        condition_dropout: Share of rows whose condition is empty, in 0..1.
        preview_prompts: What previews show; by default each class in turn, or pictures of anything.
    """

    phases = ("transformer",)
    averaged = ("transformer",)
    frozen = ("vqvae",)

    def __init__(
        self,
        pipeline: CodePipeline,
        condition_dropout: float = 0.1,
        preview_prompts: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"`condition_dropout`={condition_dropout} must be at least 0 and below 1.")
        self.transformer: Any = pipeline.transformer
        self.vqvae: Any = pipeline.vqvae
        self.vocabulary = pipeline.vocabulary
        self.condition_dropout = condition_dropout
        self.preview_prompts = preview_prompts
        # Not a module: what of it is trained is a submodule above.
        self.kind, self.settings = type(pipeline), dict(pipeline.config)
        self.words: Any = pipeline.tokenizer

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """All weights of the transformer."""
        return list(self.transformer.parameters())

    def conditions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The conditions (B, T) of a batch, in training some of them empty."""
        prefixes = batch["prefixes"]
        return self.vocabulary.drop(prefixes, self.condition_dropout) if self.training else prefixes

    def preview(self, noise_generator: torch.Generator, count: int) -> Tensor:
        """Pictures of every class in turn, or of the prompts, or of anything."""
        pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        asked: dict[str, Any] = {"num_images_per_prompt": count}
        if self.preview_prompts:
            asked = {"prompt": [self.preview_prompts[i % len(self.preview_prompts)] for i in range(count)]}
        elif pipe.classes:
            asked = {"class_labels": [i % len(pipe.classes) for i in range(count)]}
        return pipe(**asked, generator=noise_generator, output_type="pt").images * 2 - 1

    def pipeline(self) -> Any:
        """The transformer as it is, with what it needs to make pictures."""
        names = ("id2label", "code_height", "code_width", "prompt_length")
        return self.kind(
            self.vqvae,
            self.transformer,
            self.words,
            **{name: self.settings[name] for name in names},
        )


class AutoregressiveObjective(_CodesObjective):
    """The next code: mean cross-entropy over all codes of a picture.

    Args:
        pipeline: Its transformer is trained, in place.
        condition_dropout: Share of rows whose condition is empty, in 0..1.
        preview_prompts: What previews show; by default each class in turn, or pictures of anything.
    """

    def __init__(
        self,
        pipeline: VQAutoregressivePipeline,
        condition_dropout: float = 0.1,
        preview_prompts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(pipeline, condition_dropout, preview_prompts)

    def loss(self, batch: Mapping[str, Tensor], phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """In nats per code."""
        nats = code_nats(self.transformer, self.conditions(batch), batch["codes"], self.vocabulary.num_codes)
        return nats.mean(), {}


class MaskedCodesObjective(_CodesObjective):
    """Masked codes from the others: cross-entropy of a random share of each picture's codes.

    The sum is divided by the codes that are masked on average, not by those of this batch, so that a batch in
    parts has the gradient of a whole one.

    Args:
        pipeline: Its transformer is trained, in place.
        condition_dropout: Share of rows whose condition is empty, in 0..1.
        preview_prompts: What previews show; by default each class in turn, or pictures of anything.
        label_smoothing: Share of the target that is spread over all codes.
    """

    def __init__(
        self,
        pipeline: VQMaskedPipeline,
        condition_dropout: float = 0.1,
        preview_prompts: tuple[str, ...] = (),
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__(pipeline, condition_dropout, preview_prompts)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing`={label_smoothing} must be at least 0 and below 1.")
        self.label_smoothing = label_smoothing

    def loss(self, batch: Mapping[str, Tensor], phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """In nats per masked code; `masked_nats` is without smoothing."""
        codes = batch["codes"]
        masks = draw_masks(*codes.shape, codes.device)  # (B, L)
        shown = codes.masked_fill(masks, self.vocabulary.mask_id)
        logits = masked_logits(self.transformer, self.conditions(batch), shown, self.vocabulary.num_codes)
        logits, labels = logits[masks].float(), codes[masks]  # (M, K), (M,)
        total = nn.functional.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=self.label_smoothing
        )
        with torch.no_grad():
            nats = nn.functional.cross_entropy(logits, labels)
        return total / (codes.numel() * MEAN_SHARE), {"masked_nats": nats}
