"""The published vision-language BERTs as settings of one configuration.

Bugliarello et al. 2021, "Multimodal Pretraining Unmasked: A Meta-Analysis and a Unified Framework of
Vision-and-Language BERTs", table 1 and section 3 (https://arxiv.org/abs/2011.15124), and the papers and
released code of the models:

- lxmert: Tan and Bansal 2019, https://arxiv.org/abs/1908.07490
- vilbert: Lu et al. 2019, https://arxiv.org/abs/1908.02265
- vl-bert: Su et al. 2020, https://arxiv.org/abs/1908.08530
- uniter: Chen et al. 2020, https://arxiv.org/abs/1909.11740
- oscar: Li et al. 2020, https://arxiv.org/abs/2004.06165
- visualbert: Li et al. 2019, https://arxiv.org/abs/1908.03557
"""

from typing import Any

__all__ = ["PRESETS", "preset_fields"]

# What differs from the defaults of the configuration, which are those of UNITER-base (and its cased words).
PRESETS: dict[str, dict[str, Any]] = {
    "lxmert": {
        "region_location": "box4",
        "region_fusion": "mean",
        "region_norm": "none",
        "region_type": None,
        "region_mask_token": False,
        "vocab_size": 30522,
        "task_weights": {
            "mlm": 1.0,
            "itm": 1.0,
            "object": 1.0,
            "attribute": 1.0,
            "smooth": 1.0,
            "answer": 1.0,
        },
        "task_rates": {},
        "task_schedule": "sum",
        "mask_together": True,
    },
    "vilbert": {
        "region_hidden_size": 1024,
        "region_num_attention_heads": 8,
        "region_intermediate_size": 1024,
        "cross_hidden_size": 1024,
        "cross_num_attention_heads": 8,
        "region_location": "box5",
        "region_fusion": "sum",
        "region_norm_parts": False,
        "region_norm": "own",
        "region_type": None,
        "region_mask_token": False,
        "whole_image_region": True,
        "pooling": "product",
        "pooler_size": 1024,
        "pooler_act": "relu",
        "vocab_size": 30522,
        "task_weights": {"mlm": 1.0, "itm": 1.0, "mrc_kl": 1.0},
        "task_rates": {},
        "task_schedule": "sum",
        "mask_together": True,
    },
    "vl-bert": {
        "region_location": "sinusoid",
        "region_fusion": "concat",
        "region_projection_act": "relu",
        "region_input_dropout": 0.1,
        "region_norm_parts": True,
        "region_norm": "text",
        "region_norm_init": 0.0,
        "region_type": 2,
        "type_vocab_size": 3,
        "region_position": "after_text",
        "region_token": True,
        "whole_image_region": True,
        "text_sees_image": True,
        "end_token": True,
        "classifier": "transform",
        "answer_state": "before_end",
        "region_head_norm": False,
        "vocab_size": 30522,
        "task_weights": {"mlm": 1.0, "mrc_kl": 1.0},
        "task_rates": {},
        "task_schedule": "sum",
        "mask_together": True,
    },
    "uniter": {},
    "oscar": {
        "region_location": "box6",
        "region_fusion": "concat",
        "region_norm_parts": False,
        "region_norm": "none",
        "region_type": None,
        "region_mask_token": False,
        "classifier": "linear",
        "vocab_size": 30522,
        "task_weights": {"mlm": 1.0, "tags": 1.0},
        "task_rates": {},
        "task_schedule": "sum",
        "mask_together": True,
    },
    "visualbert": {
        "region_location": "none",
        "region_norm_parts": False,
        "region_norm": "text",
        "region_type": 1,
        "region_type_table": "own",
        "region_position": "own",
        "region_mask_token": False,
        "classifier": "linear",
        "answer_state": "before_end",
        "answers_as_distribution": True,
        "images_together": True,
        "vocab_size": 30522,
        "task_weights": {"mlm": 1.0, "itm": 1.0},
        "task_rates": {},
        "task_schedule": "sum",
        "mask_together": True,
    },
}

# field of the text stream: those that follow it when it alone is changed
FOLLOWERS = {
    "hidden_size": ("region_hidden_size", "cross_hidden_size", "pooler_size"),
    "num_attention_heads": ("region_num_attention_heads", "cross_num_attention_heads"),
    "intermediate_size": ("region_intermediate_size",),
}


def preset_fields(name: str, depth: int | None, changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of the configuration for a published model, or for a smaller or larger one of its kind.

    Args:
        name: A key of `PRESETS`.
        depth: Blocks of a one-stream model, 12 in the papers; the kinds of a two-stream model shrink and grow
            in the same proportion, to one block each at the least.
        changes: Fields to set, by name. A width of the text stream is also that of the regions and of
            cross-attention when these are not among the changes.

    Raises:
        ValueError: No preset has this name, `depth` is not a positive number, or `layers` are given beside
            it.
    """
    if name not in PRESETS:
        raise ValueError(f"`name`={name!r} is no preset; there are {sorted(PRESETS)}.")
    if depth is not None and depth < 1:
        raise ValueError(f"`depth`={depth} must be at least 1, or `None` for that of the paper.")
    if depth is not None and "layers" in changes:
        raise ValueError(f"Give `depth`={depth} or `layers`={changes['layers']}, not both.")
    fields = dict(PRESETS[name])
    for leader, followers in FOLLOWERS.items():
        if leader in changes:
            fields |= dict.fromkeys(followers, changes[leader])
    return fields | {"layers": _layers(name, 12 if depth is None else depth)} | changes


def _layers(name: str, depth: int) -> list[str]:
    if name == "lxmert":
        text, regions, cross = (max(1, round(count * depth / 12)) for count in (9, 5, 5))
        return ["text"] * text + ["region"] * regions + ["cross"] * cross
    if name == "vilbert":
        half = max(1, round(depth / 2))
        return ["text"] * half + ["co", "region", "text"] * half
    return ["joint"] * depth
