"""VisualBERT in the layout of its authors' own code.

Li et al. 2019, "VisualBERT" (https://arxiv.org/abs/1908.03557); names as in
`visualbert/pytorch_pretrained_bert/modeling.py` of https://github.com/uclanlp/visualbert, whose AllenNLP
model holds that code's model as `bert`, and saves `*.th` files without a config: heads are 64 wide. Regions
get the first row of their own table of segments there, the second in transformers' conversions of the same
files. Names and shapes were read in that code; no released weights could be loaded to verify them.
"""

from .original_layout_region_bert import BASE, OriginalLayout, block_rows, word_head_rows, word_rows

__all__ = ["VISUALBERT_LAYOUT"]

REGIONS, WORDS = f"{BASE}region_embeddings", "bert.bert.embeddings"


class VisualBertLayout(OriginalLayout):
    """See `OriginalLayout`. Their alignment label 1 means that text and image do not match."""

    model_type = "uclanlp/visualbert"
    preset = "visualbert"
    marks = (f"{WORDS}.projection.weight", f"{WORDS}.token_type_embeddings_visual.weight")
    swapped = ("itm_head.weight", "itm_head.bias")
    names = (
        *word_rows(WORDS),
        (f"{REGIONS}.feature_projection.*", f"{WORDS}.projection.*"),
        (f"{REGIONS}.token_types.weight", f"{WORDS}.token_type_embeddings_visual.weight"),
        (f"{REGIONS}.positions.weight", f"{WORDS}.position_embeddings_visual.weight"),
        *block_rows(f"{BASE}joint_blocks.{{}}", "bert.bert.encoder.layer.{}"),
        (f"{BASE}pooler.text.*", "bert.bert.pooler.dense.*"),
        *word_head_rows("bert.cls.predictions"),
        ("itm_head.*", "bert.cls.seq_relationship.*"),
        ("answer_classifier.1.*", "bert.classifier.*"),
    )
    unused = ("*position_ids",)
    told = {"region_type": 0}


VISUALBERT_LAYOUT = VisualBertLayout()
