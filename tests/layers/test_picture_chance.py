"""One source of chance for each picture: from seeds and generators, and what is neither."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hf_mm.layers.picture_chance import picture_generators


def drawn(generators):
    return torch.stack([torch.randn(3, generator=generator) for generator in generators])


@pytest.mark.parametrize("seed", [7, np.int64(7), torch.tensor(7), [7, 8], np.array([7, 8])], ids=repr)
def test_a_seed_is_that_of_the_first_picture_or_one_for_each(seed):
    expected = drawn([torch.Generator().manual_seed(number) for number in (7, 8)])
    assert_close(drawn(picture_generators(None, seed, 2)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("seed", [1.5, [0, 1.5], "7"], ids=repr)
def test_what_is_no_whole_number_is_refused_by_its_name(seed):
    with pytest.raises(TypeError, match=r"`seed`=.* must be a whole number, or a list of them"):
        picture_generators(None, seed, 2)


def test_a_list_has_one_entry_for_each_picture():
    with pytest.raises(ValueError, match="`seed` has 3 entries for 2 pictures"):
        picture_generators(None, [1, 2, 3], 2)
