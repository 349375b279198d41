"""OSCAR and OSCAR+ in the layout of their authors' own code.

Li et al. 2020, "Oscar" (https://arxiv.org/abs/2004.06165), and Zhang et al. 2021, "VinVL"
(https://arxiv.org/abs/2101.00529); names as in `oscar/modeling/modeling_bert.py` of
https://github.com/microsoft/Oscar, sizes from the `config.json` beside the weights. Its files hold features
of 2054 numbers: 2048 of the detector, then left, top, right and bottom, width and height as shares of the
image. Names and shapes were read in that code; no released weights could be loaded to verify them.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .original_layout_region_bert import BASE, OriginalLayout, block_rows, word_head_rows, word_rows

__all__ = ["OSCAR_LAYOUT"]

LOCATION_SIZE = 6
REGIONS = f"{BASE}region_embeddings"


class OscarLayout(OriginalLayout):
    """See `OriginalLayout`."""

    model_type = "microsoft/Oscar"
    preset = "oscar"
    marks = ("bert.img_embedding.weight",)
    names = (
        *word_rows("bert.embeddings"),
        (f"{REGIONS}.feature_projection.*", "bert.img_embedding.*"),
        (f"{REGIONS}.norm.*", "bert.LayerNorm.*"),
        *block_rows(f"{BASE}joint_blocks.{{}}", "bert.encoder.layer.{}"),
        (f"{BASE}pooler.text.*", "bert.pooler.dense.*"),
        *word_head_rows("cls.predictions"),
        ("tag_head.*", "cls.seq_relationship.*"),
        ("answer_classifier.1.*", "classifier.*"),
    )
    unused = ("*position_ids",)

    def fields_from(self, theirs: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `OriginalLayout`.

        Raises:
            ValueError: The norm of regions has an eps of its own.
        """
        fields = super().fields_from(theirs, weights)
        fields["region_feature_size"] -= LOCATION_SIZE
        fields["layer_norm_eps"] = theirs.get("layer_norm_eps", 1e-12)
        if f"{REGIONS}.norm.weight" in weights:
            fields["region_norm"] = "own"
            eps = theirs.get("img_layer_norm_eps", fields["layer_norm_eps"])
            if eps != fields["layer_norm_eps"]:
                raise ValueError(
                    f"`img_layer_norm_eps`={eps} is not `layer_norm_eps`={fields['layer_norm_eps']}; layer "
                    "norms have one eps here, and no released model has two."
                )
        return fields


OSCAR_LAYOUT = OscarLayout()
