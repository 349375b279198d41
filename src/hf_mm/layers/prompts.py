"""What encoders that write texts ask of a prompt: room behind it, and nothing but padding before it.

Shapes: B rows, L places of a prompt.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["check_prompts"]


def check_prompts(ids: Tensor, attention_mask: Tensor, positions: int, options: Mapping[str, Any]) -> None:
    """Refuse prompts that cannot be continued.

    Args:
        ids: (B, L).
        attention_mask: (B, L).
        positions: Most tokens of a text.
        options: Of `generate`: `max_new_tokens` or `max_length`, if any.

    Raises:
        ValueError: More tokens are asked for than there are positions, or a prompt ends with padding.
    """
    asked = ids.shape[1] + options["max_new_tokens"] if "max_new_tokens" in options else None
    asked = options.get("max_length", 0) if asked is None else asked
    if asked > positions:
        raise ValueError(
            f"{asked} tokens are asked for, prompt included, but the position table ends at {positions}; "
            "give a smaller `max_new_tokens` or `max_length`."
        )
    if not attention_mask[:, -1].all():
        raise ValueError(
            'A prompt ends with padding, where its continuation belongs; set `padding_side="left"` on the '
            "tokenizer."
        )
