"""VL-BERT in the layout of its authors' own code.

Su et al. 2020, "VL-BERT" (https://arxiv.org/abs/1908.08530); names as in
`common/visual_linguistic_bert.py`, `common/fast_rcnn.py` and `pretrain/modules` of
https://github.com/jackroos/VL-BERT, whose files hold the weights as `state_dict`, every name behind
`module.`, and whose sizes stand in YAML files: what shapes do not tell is told by the caller. Names and
shapes were read in that code; no released weights could be loaded to verify them.

Of the classifiers of answers the one of the released configs (`CLASSIFIER_TYPE: mlm`) is known here. Left
out are the detector that some models train on (`image_feature_extractor.backbone`,
`roi_head_feature_extractor`; its features are given here) and the vector that stands for the image in text
of no image (`aux_text_visual_embedding`). The large models have a layer more between features and tokens
(`visual_1x1_text`, `visual_1x1_object`), which has no place here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .original_layout_region_bert import BASE, OriginalLayout, block_rows, word_head_rows, word_rows

__all__ = ["VL_BERT_LAYOUT"]

REGIONS = f"{BASE}region_embeddings"
PROJECTION = f"{REGIONS}.feature_projection.weight"
FREQUENCIES = 256  # of each of four numbers, a sine and a cosine
LOCATION_SIZE = 8 * FREQUENCIES
TABLES_OF_ONE = (
    f"{REGIONS}.token",
    f"{REGIONS}.end_token",
    f"{REGIONS}.mask_feature",
    f"{REGIONS}.mask_token",
)


class VlBertLayout(OriginalLayout):
    """See `OriginalLayout`. There the numbers of the location stand before the feature, here behind it."""

    model_type = "jackroos/VL-BERT"
    preset = "vl-bert"
    marks = ("vlbert.word_embeddings.weight", "vlbert.end_embedding.weight")
    names = (
        *word_rows("vlbert", "embedding_LayerNorm"),
        (f"{REGIONS}.feature_projection.*", "image_feature_extractor.obj_downsample.1.*"),
        (f"{REGIONS}.text_norm.*", "vlbert.visual_ln_text.*"),
        (f"{REGIONS}.feature_norm.*", "vlbert.visual_ln_object.*"),
        (f"{REGIONS}.token", "object_linguistic_embeddings.weight"),
        (f"{REGIONS}.mask_token", "object_mask_word_embedding.weight"),
        (f"{REGIONS}.mask_feature", "object_mask_visual_embedding.weight"),
        (f"{REGIONS}.end_token", "vlbert.end_embedding.weight"),
        *block_rows(f"{BASE}joint_blocks.{{}}", "vlbert.encoder.layer.{}"),
        (f"{BASE}pooler.text.*", "vlbert.pooler.dense.*"),
        *word_head_rows("vlbert.mlm_head.predictions"),
        ("itm_head.*", "vlbert.relationsip_head.caption_image_relationship.*"),
        ("region_classifier.transform.dense.*", "vlbert.mvrc_head.transform.dense.*"),
        ("region_classifier.decoder.*", "vlbert.mvrc_head.region_cls_pred.*"),
        ("answer_classifier.0.dense.*", "final_mlp.0.dense.*"),
        ("answer_classifier.0.norm.*", "final_mlp.0.LayerNorm.*"),
        ("answer_classifier.2.*", "final_mlp.2.*"),
    )
    unused = (
        "aux_text_visual_embedding.weight",
        "image_feature_extractor.backbone.*",
        "image_feature_extractor.head.*",
        "image_feature_extractor.roi_head_feature_extractor.*",
    )

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights = super().weights_from(theirs)
        if PROJECTION in weights:
            weights[PROJECTION] = weights[PROJECTION].roll(-LOCATION_SIZE, dims=1)
        return weights | {name: weights[name][0] for name in TABLES_OF_ONE if name in weights}

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        tables = {name: ours[name].unsqueeze(0) for name in TABLES_OF_ONE if name in ours}
        rolled = {PROJECTION: torch.roll(ours[PROJECTION], LOCATION_SIZE, dims=1)}
        return super().weights_to({**ours, **tables, **rolled})

    def fields_from(self, theirs: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `OriginalLayout`."""
        fields = super().fields_from(theirs, weights)
        return fields | {
            "region_feature_size": fields["region_feature_size"] - LOCATION_SIZE,
            "region_sinusoids": FREQUENCIES,
            "region_mask_token": f"{REGIONS}.mask_feature" in weights,
        }


VL_BERT_LAYOUT = VlBertLayout()
