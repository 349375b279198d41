"""What a model that continues a prompt is given next: the whole text, or what is new of it."""

import pytest
import torch
from torch.testing import assert_close

from hf_mm.layers.prefix_cache import PrefixCache, next_inputs

TEXT = torch.arange(10).view(2, 5)
BESIDE = {"pixel_values": torch.ones(2, 3), "token_type_ids": TEXT + 1, "pixel_mask": None}


def test_before_anything_is_read_the_whole_text_is_given_and_what_was_written_is_no_prefix():
    mask, kept = torch.ones(2, 3, dtype=torch.long), PrefixCache(9, 2)
    given = next_inputs(TEXT, None, kept, mask, BESIDE)
    assert given.pop("past_key_values") is kept
    assert given.pop("pixel_values") is BESIDE["pixel_values"]
    expected = {"input_ids": TEXT, "token_type_ids": TEXT + 1}
    assert_close(given, expected | {"prefix_mask": torch.tensor([[1, 1, 1, 0, 0]] * 2)})
    assert "prefix_mask" not in next_inputs(TEXT, None, None, None, BESIDE)


@pytest.mark.parametrize(("new", "count"), [(None, 1), (2, 2)])
def test_behind_what_is_kept_only_new_tokens_are_given(new, count):
    kept = PrefixCache(9, 2)
    kept.begin(torch.ones(2, 4, dtype=torch.bool), 3)
    given = next_inputs(TEXT, new, kept, torch.ones(2, 3, dtype=torch.long), BESIDE)
    assert given.pop("past_key_values") is kept
    assert_close(given, {"input_ids": TEXT[:, -count:], "token_type_ids": TEXT[:, -count:] + 1})
