import pytest
import torch
from torch.testing import assert_close

from hf_mm import RandomViews

STILL = {"shift": 0.0, "scale": (1.0, 1.0), "degrees": 0.0, "mirror": 0.0}
PLAIN = {"contrast": 0.0, "brightness": 0.0, "saturation": 0.0}


def pictures(count=4):
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_nothing_to_change_changes_nothing():
    assert_close(RandomViews(**STILL, **PLAIN)(pictures()), pictures(), rtol=1e-5, atol=1e-5)


def test_mirrored_pictures_are_flipped():
    views = RandomViews(**(STILL | {"mirror": 1.0}), **PLAIN)(pictures())
    assert_close(views, pictures().flip(-1), rtol=1e-5, atol=1e-5)


def test_colours_change_by_no_more_than_allowed():
    grey = torch.full((64, 3, 2, 2), 0.5)
    views = RandomViews(**STILL, contrast=0.2, brightness=0.1, saturation=0.9)(grey)
    assert views.min() >= 0.5 * 0.8 - 0.1 - 1e-6
    assert views.max() <= 0.5 * 1.2 + 0.1 + 1e-6
    assert_close(views[:, 0], views[:, 2])  # grey has no saturation


def test_a_shift_moves_by_no_more_than_its_share():
    spot = torch.zeros(200, 1, 32, 32)
    spot[:, :, 16, 16] = 1.0
    views = RandomViews(**(STILL | {"shift": 0.25}), **PLAIN)(spot)
    rows = (views.sum((1, 3)) * torch.arange(32.0)).sum(1) / views.sum((1, 2, 3))
    assert 7 < (rows - 16).abs().max() <= 8.01


def test_the_generator_decides():
    views = RandomViews()
    first, again = (views(pictures(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, views(pictures(), torch.Generator().manual_seed(6)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"scale": (1.2, 0.8)}, "the smaller first"), ({"mirror": 2.0}, "`mirror`=2.0 is a share")],
)
def test_refuses_fields(fields, words):
    with pytest.raises(ValueError, match=words):
        RandomViews(**fields)


def test_refuses_bytes():
    with pytest.raises(ValueError, match=r"must be floats \(batch, .* got \(2, 3, 4, 4\) of torch.uint8"):
        RandomViews()(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
