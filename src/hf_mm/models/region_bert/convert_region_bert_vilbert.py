"""ViLBERT in the layout of its authors' own code.

Lu et al. 2019, "ViLBERT" (https://arxiv.org/abs/1908.02265), and Lu et al. 2020, "12-in-1"
(https://arxiv.org/abs/1912.02315); names as in `vilbert/vilbert.py` of
https://github.com/facebookresearch/vilbert-multi-task, sizes from its
`config/bert_base_6layer_6conect.json`. Names and shapes were read in that code; no released weights could
be loaded to verify them. Models with a token for each task ("12-in-1") and those whose images gate
attention (`dynamic_attention`) have weights that have no place here.
"""

from collections.abc import Mapping
from typing import Any

from .original_layout_region_bert import (
    BASE,
    OriginalLayout,
    Rows,
    block_rows,
    check_one_activation,
    mlp_rows,
    transform_rows,
    word_head_rows,
    word_rows,
)

__all__ = ["VILBERT_LAYOUT"]

LAYER = "bert.encoder.c_layer.{}"
CO = f"{BASE}co_blocks.{{}}"
POOLINGS = {"mul": "product", "sum": "sum"}


def _co_attention_rows(stream: str, asks: str, is_asked: str) -> Rows:
    """One direction of co-attention; the streams are 1, regions, and 2, text, there."""
    ours, theirs = f"{CO}.{stream}_attention", f"{LAYER}.biattention"
    return (
        (f"{ours}.q_proj.*", f"{theirs}.query{asks}.*"),
        (f"{ours}.k_proj.*", f"{theirs}.key{is_asked}.*"),
        (f"{ours}.v_proj.*", f"{theirs}.value{is_asked}.*"),
        (f"{ours}.o_proj.*", f"{LAYER}.biOutput.dense{asks}.*"),
        (f"{ours}_norm.*", f"{LAYER}.biOutput.LayerNorm{asks}.*"),
    )


class VilbertLayout(OriginalLayout):
    """See `OriginalLayout`. Their alignment label 1 means that text and image do not match."""

    model_type = "facebookresearch/vilbert-multi-task"
    preset = "vilbert"
    marks = ("bert.v_embeddings.image_embeddings.weight", "bert.encoder.c_layer.0.biattention.query1.weight")
    swapped = ("itm_head.weight", "itm_head.bias")
    fields = {
        **OriginalLayout.fields,
        "region_num_attention_heads": "v_num_attention_heads",
        "cross_num_attention_heads": "bi_num_attention_heads",
    }
    names = (
        *word_rows("bert.embeddings"),
        (f"{BASE}region_embeddings.feature_projection.*", "bert.v_embeddings.image_embeddings.*"),
        (f"{BASE}region_embeddings.location_projection.*", "bert.v_embeddings.image_location_embeddings.*"),
        (f"{BASE}region_embeddings.norm.*", "bert.v_embeddings.LayerNorm.*"),
        *block_rows(f"{BASE}text_blocks.{{}}", "bert.encoder.layer.{}"),
        *block_rows(f"{BASE}region_blocks.{{}}", "bert.encoder.v_layer.{}"),
        *_co_attention_rows("text", asks="2", is_asked="1"),
        *_co_attention_rows("region", asks="1", is_asked="2"),
        *mlp_rows(f"{CO}.text_mlp", f"{LAYER}.t_intermediate", f"{LAYER}.t_output"),
        *mlp_rows(f"{CO}.region_mlp", f"{LAYER}.v_intermediate", f"{LAYER}.v_output"),
        (f"{BASE}pooler.text.*", "bert.t_pooler.dense.*"),
        (f"{BASE}pooler.regions.*", "bert.v_pooler.dense.*"),
        *word_head_rows("cls.predictions"),
        ("itm_head.*", "cls.bi_seq_relationship.*"),
        *transform_rows(
            "region_classifier.transform",
            "cls.imagePredictions.transform.dense",
            "cls.imagePredictions.transform.LayerNorm",
        ),
        ("region_classifier.decoder.*", "cls.imagePredictions.decoder.*"),
        ("rank_output.*", "vil_logit.*"),
        ("answer_classifier.*", "vil_prediction.logit_fc.*"),
        ("images_classifier.*", "vil_binary_prediction.logit_fc.*"),
        ("selection_output.*", "vision_logit.*"),
        ("token_classifier.*", "linguisic_logit.*"),
    )
    unused = (
        f"{LAYER}.biOutput.q_dense1.*",
        f"{LAYER}.biOutput.q_dense2.*",
    )  # made there, and used by nothing

    def fields_from(self, theirs: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
        """See `OriginalLayout`.

        Raises:
            ValueError: A value that has no counterpart here.
        """
        check_one_activation(theirs)
        fused = theirs.get("fusion_method", "mul")
        if fused not in POOLINGS:
            raise ValueError(f"`fusion_method`={fused!r} is none of {sorted(POOLINGS)}.")
        return super().fields_from(theirs, weights) | {"pooling": POOLINGS[fused]}

    def layers_from(self, theirs: Mapping[str, Any], counts: Mapping[str, int]) -> list[str]:
        """See `OriginalLayout`: before which block of each stream it asks the other."""
        meetings = counts["co"]
        texts = theirs.get("t_biattention_id", range(counts["text"] - meetings, counts["text"]))
        regions = theirs.get("v_biattention_id", range(counts["region"] - meetings, counts["region"]))
        layers: list[str] = []
        text = region = 0
        for next_text, next_region in zip(texts, regions, strict=True):
            layers += ["region"] * (next_region - region) + ["text"] * (next_text - text) + ["co"]
            text, region = next_text, next_region
        return layers + ["region"] * (counts["region"] - region) + ["text"] * (counts["text"] - text)


VILBERT_LAYOUT = VilbertLayout()
