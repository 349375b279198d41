"""LXMERT in the layout of its authors' own code.

Tan and Bansal 2019, "LXMERT" (https://arxiv.org/abs/1908.07490); names as in `src/lxrt/modeling.py` of
https://github.com/airsplay/lxmert, which transformers' are all but the prefix. It saves `*_LXRT.pth`, every
name behind `module.` when it was trained on several devices, and no config: heads are 64 wide. Fine-tuned
models hold the encoder as `lxrt_encoder.model.bert`. Names and shapes were read in that code; no released
weights could be loaded to verify them.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .convert_region_bert_lxmert import LXMERT_CHECKPOINT
from .original_layout_region_bert import BASE, OriginalLayout

__all__ = ["LXMERT_LAYOUT"]

ENCODER = ("embeddings.", "encoder.", "pooler.")  # their parts without a head
ANSWERS, TWO_IMAGES = "answer_classifier.", "images_classifier."


class LxmertLayout(OriginalLayout):
    """See `OriginalLayout`. Answers and pairs of images are classified under one name there."""

    model_type = "airsplay/lxmert"
    preset = "lxmert"
    marks = ("bert.encoder.visn_fc.visn_fc.weight",)
    names = (
        *(
            (BASE + ours, *(f"bert.{name}" for name in names))
            for ours, *names in LXMERT_CHECKPOINT.names
            if names[0].startswith(ENCODER)
        ),
        *(
            row
            for row in LXMERT_CHECKPOINT.names
            if not row[1].startswith(ENCODER) and row[0] != f"{ANSWERS}*"
        ),
        (f"{ANSWERS}*", "logit_fc.*"),
        (f"{TWO_IMAGES}*", "logit_fc.*"),
    )

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. The classifier of two images is no wider inside than what it gets."""
        weights = super().weights_from(theirs)
        first = weights.get(f"{ANSWERS}0.weight")
        if first is None or first.shape[0] != first.shape[1]:
            return weights
        return {name.replace(ANSWERS, TWO_IMAGES): weight for name, weight in weights.items()}

    def layers_from(self, theirs: Mapping[str, Any], counts: Mapping[str, int]) -> list[str]:
        """See `OriginalLayout`."""
        return [kind for kind in ("text", "region", "cross") for _ in range(counts[kind])]


LXMERT_LAYOUT = LxmertLayout()
