"""Distances while a generator learns, and the seconds it needs to come near."""

import json

import pytest
import torch

from hf_mm import FeatureNet, distance_measure, frechet_distance, kernel_distance, time_to


@pytest.fixture
def net():
    return FeatureNet("means", lambda pixels: pixels.flatten(1)[:, :3], channels=1)


def pictures(count, seed, least=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(least, 256, (count, 1, 2, 2), generator=draw, dtype=torch.uint8)


def test_the_same_test_pictures_are_compared_each_time_beside_their_floor(net):
    test, train, asked = pictures(50, 0), pictures(80, 1), []

    def draw(pipeline, rows):
        asked.append(rows)
        return pipeline[rows]

    measure = distance_measure(test, train, net, 30, draw)
    near, far, again = (measure(pipeline) for pipeline in (test, pictures(50, 2, least=120), test))
    assert len(asked[0].unique()) == 30
    assert all(torch.equal(rows, asked[0]) for rows in asked)
    assert near == again
    assert near["Frechet distance"] == pytest.approx(0, abs=1e-6)
    assert 0 < near["floor"] == far["floor"] < far["Frechet distance"]
    real, drawn = (net(part[asked[0]]).features for part in (test, pictures(50, 2, least=120)))
    assert far["Frechet distance"] == pytest.approx(frechet_distance(real, drawn), rel=1e-9)


def test_few_pictures_have_a_kernel_distance(net):
    test = pictures(8, 0)
    wide = FeatureNet("pixels", lambda pixels: pixels.flatten(1).repeat(1, 3), channels=1)
    measure = distance_measure(test, test, wide, 99, lambda pipeline, rows: pipeline[rows])
    found, rows = measure(pictures(8, 1)), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    real, drawn = (wide(part[rows]).features for part in (test, pictures(8, 1)))
    assert found["kernel distance"] == kernel_distance(real, drawn).mean
    assert found.keys() == {"kernel distance", "floor"}


def test_pictures_that_cannot_be_compared_are_named(net):
    test = pictures(8, 0)
    with pytest.raises(ValueError, match="`draw` gives 1 pictures for 8 rows; give one for each"):
        distance_measure(test, test, net, 8, lambda pipeline, rows: test[:1])(None)
    with pytest.raises(ValueError, match="`count`=8 pictures out of 8 test pictures and 7 training pictures"):
        distance_measure(test, test[:7], net, 8, lambda pipeline, rows: test)


def test_the_first_measurement_that_is_near_tells_the_time(tmp_path):
    entries = [
        {"step": step, "train_seconds": 2.0 * step, "Frechet distance": distance, "floor": 1.0}
        for step, distance in ((10, 9.0), (20, 4.0), (30, 5.0))
    ]
    assert time_to(entries, 5.0) == 40.0
    assert time_to(entries, 3.9) is None
    path = tmp_path / "measures.jsonl"
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    assert time_to(path, 9.0, "Frechet distance") == 20.0
    two = [{**entries[0], "loss": 3.0}]
    assert time_to(two, 3.0, "loss") == 20.0
    with pytest.raises(
        ValueError, match="`name`=None is none of the measures; name one of Frechet distance, loss"
    ):
        time_to(two, 3.0)
    with pytest.raises(ValueError, match="`measures` is empty; measure while the generator learns"):
        time_to([], 3.0)
