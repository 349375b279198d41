"""Keys and values of a prefix and of the text behind it, kept while the text goes on.

The prefix is a picture and the beginning of a text. What was read before does not see what follows, so its
keys and values stay as they are; see `row_mask`.

Shapes: B rows, K places that are kept, L places of a text.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache

__all__ = ["PrefixCache", "check_own_cache", "keeps_cache", "next_inputs", "read_prompts"]


class PrefixCache(DynamicCache):
    """Keys and values of each block, which of them are padding, and where each text goes on.

    Args:
        positions: Most tokens of a text.
        prompts: Rows that are read first, each of which may be continued several times.
        **kwargs: Of `DynamicCache`.

    Attributes:
        real: (B, K) bool, true where a place has a token; `None` before anything is read.
        ends: (B,) tokens of each text so far.
        length: L, of the text so far with its padding.
    """

    def __init__(self, positions: int, prompts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompts = prompts
        self.most, self.length = positions, 0
        self.real: Tensor | None = None
        self.ends: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether a prefix was read."""
        return self.real is not None

    def begin(self, real: Tensor, length: int) -> None:
        """Note which places of the first pass, (B, K) bool, have a token; the text has the first `length`."""
        self.real, self.ends, self.length = real, real[:, :length].sum(dim=1), length

    def go_on(self, count: int) -> tuple[Tensor, Tensor]:
        """Note so many more tokens of every text: their (B, count) positions, and what is real then.

        Raises:
            ValueError: The text becomes longer than the position table.
        """
        assert self.real is not None
        assert self.ends is not None
        positions = self.ends.unsqueeze(1) + torch.arange(count, device=self.ends.device)
        self.length += count
        if self.length > self.most:
            raise ValueError(
                f"The text goes on to {self.length} tokens but the position table ends at {self.most}; ask "
                "for fewer."
            )
        self.real = torch.cat((self.real, self.real.new_ones(len(self.real), count)), dim=1)
        self.ends = self.ends + count
        return positions, self.real

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._choose(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.real is not None:
            self._choose(torch.arange(len(self.real), device=self.real.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._choose(indices)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.real is not None and self.ends is not None:
            self.real, self.ends = self.real[:, :tokens_to_remove], self.ends + tokens_to_remove
            self.length += tokens_to_remove

    def _choose(self, rows: Any) -> None:
        if self.real is not None and self.ends is not None:
            self.real, self.ends = self.real[rows], self.ends[rows]


def read_prompts(encode: Callable[..., Any], inputs: Mapping[str, Any], kept: PrefixCache | None) -> Any:
    """What an encoder makes of rows; a prompt that several rows continue is read once.

    Args:
        encode: Takes `inputs` and fills `kept`.
        inputs: Columns of the rows, `input_ids` among them.
        kept: Where keys and values are kept, if they are.

    Returns:
        What `encode` returns, `last_hidden_state` of all rows.
    """
    copies = len(inputs["input_ids"]) // kept.prompts if kept is not None and not kept.filled else 1
    if copies > 1:
        inputs = {name: part[::copies] if isinstance(part, Tensor) else part for name, part in inputs.items()}
    encoded = encode(**inputs)
    if kept is not None and copies > 1:
        kept.batch_repeat_interleave(copies)
        encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(copies, dim=0)
    return encoded


def next_inputs(
    input_ids: Tensor,
    new: int | None,
    kept: PrefixCache | None,
    prefix_mask: Tensor | None,
    beside: Mapping[str, Any],
) -> dict[str, Any]:
    """What `forward` is given next: the text so far, with the prompt as its prefix, or what is new of it.

    Args:
        input_ids: (B, L) the text so far.
        new: Tokens at its end that were not read yet, where others were; by default 1.
        kept: Keys and values, if they are kept.
        prefix_mask: (B, P), 1 on what all tokens may see; what was written since is not among it.
        beside: What goes with the whole text, `token_type_ids` (B, L) and the picture; `None` is left out.
    """
    given = {name: value for name, value in beside.items() if value is not None} | {"input_ids": input_ids}
    if kept is not None and kept.filled:
        text = {
            name: given[name][:, -(new or 1) :] for name in ("input_ids", "token_type_ids") if name in given
        }
        return {**text, "past_key_values": kept}
    if prefix_mask is not None:
        given["prefix_mask"] = pad(prefix_mask, (0, input_ids.shape[1] - prefix_mask.shape[1]))
    return {**given, "past_key_values": kept}


def keeps_cache(options: Mapping[str, Any], config: GenerationConfig | None) -> bool:
    """Whether keys and values are kept, as they are unless something says no.

    Args:
        options: Of `generate`.
        config: The model's own, which one of `options` may replace.
    """
    given = options.get("use_cache")
    config = options.get("generation_config") or config
    return bool(given) if given is not None else config is None or config.use_cache is not False


def check_own_cache(options: Mapping[str, Any]) -> None:
    """Refuse caches of another kind among the options of `generate`.

    Raises:
        ValueError: There is one.
    """
    for name in ("past_key_values", "cache_implementation"):
        if options.get(name) is not None:
            raise ValueError(
                f"`{name}` is given as {options[name]!r:.80}; this model makes the cache itself. Leave it "
                "out, or pass `use_cache=False` for none."
            )
