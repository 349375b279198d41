"""UNITER in the layout of its authors' own code.

Chen et al. 2020, "UNITER" (https://arxiv.org/abs/1909.11740); names as in `model` of
https://github.com/ChenRocks/UNITER, sizes from the JSON file that its scripts call `model_config`. Names
and shapes were read in that code; no released weights could be loaded to verify them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .original_layout_region_bert import (
    BASE,
    OriginalLayout,
    block_rows,
    transform_rows,
    word_head_rows,
    word_rows,
)

__all__ = ["UNITER_LAYOUT"]

REGIONS = f"{BASE}region_embeddings"
MASK = f"{REGIONS}.mask_feature"


class UniterLayout(OriginalLayout):
    """See `OriginalLayout`."""

    model_type = "ChenRocks/UNITER"
    preset = "uniter"
    marks = ("uniter.img_embeddings.img_linear.weight",)
    names = (
        *word_rows("uniter.embeddings"),
        (f"{REGIONS}.feature_projection.*", "uniter.img_embeddings.img_linear.*"),
        (f"{REGIONS}.feature_norm.*", "uniter.img_embeddings.img_layer_norm.*"),
        (f"{REGIONS}.location_projection.*", "uniter.img_embeddings.pos_linear.*"),
        (f"{REGIONS}.location_norm.*", "uniter.img_embeddings.pos_layer_norm.*"),
        (f"{REGIONS}.norm.*", "uniter.img_embeddings.LayerNorm.*"),
        (MASK, "uniter.img_embeddings.mask_embedding.weight"),
        *block_rows(f"{BASE}joint_blocks.{{}}", "uniter.encoder.layer.{}"),
        (f"{BASE}pooler.text.*", "uniter.pooler.dense.*"),
        *word_head_rows("cls.predictions"),
        *transform_rows("feature_head.transform", "feat_regress.net.0", "feat_regress.net.2"),
        ("feature_head.bias", "feat_regress.bias"),
        *transform_rows("region_classifier.transform", "region_classifier.net.0", "region_classifier.net.2"),
        ("region_classifier.decoder.*", "region_classifier.net.3.*"),
        ("itm_head.*", "itm_output.*"),
        ("rank_output.*", "rank_output.*"),
        ("answer_classifier.*", "vqa_output.*"),
        ("selection_output.*", "re_output.*"),
    )
    unused = ("feat_regress.weight",)  # the projection of features, a second time

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`.

        Their table of hidden regions has a first row of zeros for all others. What ranks began as the head of
        matching, which is saved beside it.
        """
        weights = super().weights_from(theirs)
        if "rank_output.weight" in weights:
            weights = {name: weight for name, weight in weights.items() if not name.startswith("itm_head.")}
        return weights | ({MASK: weights[MASK][1]} if MASK in weights else {})

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        rows = {MASK: torch.stack((torch.zeros_like(ours[MASK]), ours[MASK]))} if MASK in ours else {}
        weights = super().weights_to({**ours, **rows})
        if "feat_regress.bias" in weights:
            weights["feat_regress.weight"] = weights["uniter.img_embeddings.img_linear.weight"]
        return weights


UNITER_LAYOUT = UniterLayout()
