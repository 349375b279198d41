"""What a report must tell: floor below noise below blur, and a collapse that one distance would hide."""

import json

import pytest
import torch
from evaluation.nets_tiny import blurred, collapsed, digits, digits_net, noisy

from hf_mm import (
    frechet_distance,
    generation_report,
    generation_table,
    kernel_distance,
    nearest_neighbours,
    pixel_levels,
    precision_recall_density_coverage,
    psnr,
    reconstruction_report,
)
from hf_mm.evaluation.feature_nets import FeatureNet, PictureFeatures

DISTANCES = ("Frechet distance", "kernel distance")
MANIFOLDS = ("precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def net(data):
    return digits_net(*data[:2])


@pytest.fixture(scope="module")
def report(data, net):
    """Of pictures; all reports share what the net says of the real ones."""
    train, _, test, _ = data
    known, real = net(train), net(test)

    def made(samples, **options):
        options = {"kernel_subsets": 20} | options
        return generation_report(samples, test=real, train=known, net=net, **options)

    return made


def values(found):
    return {name: entry["value"] for name, entry in found["measures"].items()}


def test_floor_is_below_noise_and_noise_below_blur(data, report):
    drawn = data[0][:500]  # as good as a generator can be, then spoilt
    noise, blur = report(noisy(drawn, 0.4)), report(blurred(drawn))
    for name in DISTANCES:
        floor = noise["measures"][name]["floor"]
        assert floor < values(noise)[name] < values(blur)[name]
        assert floor == blur["measures"][name]["floor"]
    for name in ("precision", "density", "coverage"):
        assert noise["measures"][name]["floor"] > values(noise)[name] > values(blur)[name]


def test_a_collapse_shows_in_coverage_and_recall_where_the_distance_looks_good(data, report):
    drawn = data[0][:500]
    blur, collapse = report(blurred(drawn)), report(collapsed(drawn, data[1][:500]))
    assert values(collapse)["Frechet distance"] < values(blur)["Frechet distance"]  # better than a blur
    assert values(collapse)["precision"] > 0.9
    assert values(collapse)["recall"] < 0.05
    assert values(collapse)["coverage"] < 0.2 < 0.8 < collapse["measures"]["coverage"]["floor"]


def test_the_test_pictures_themselves_have_no_distance(data, report):
    found = values(report(data[2]))
    assert found["Frechet distance"] == pytest.approx(0, abs=1e-6)
    assert [found[name] for name in MANIFOLDS] == [1, 1, 1, 1]


def test_copies_of_training_pictures_lie_nearer_to_them_than_test_pictures_do(data, report):
    found = report(data[0][:500])["measures"]["nearest training distance"]
    assert found["value"] < 1e-3 < found["floor"]
    assert report(noisy(data[2]))["measures"]["nearest training distance"]["value"] > found["floor"]


def test_class_accuracy_stands_beside_that_of_real_pictures(data, report):
    labels = data[3]
    right = report(noisy(data[2]), labels=labels, test_labels=labels)["measures"]["class accuracy"]
    assert 0.7 < right["value"] < right["floor"] < 1
    wrong = report(data[2], labels=(labels + 1) % 10, test_labels=labels)["measures"]["class accuracy"]
    assert wrong["value"] < 0.1
    assert wrong["floor"] == right["floor"]


def test_each_number_is_the_measure_of_all_pictures(data, net, report):
    samples = noisy(data[2])
    made, real, known = (net(part).features for part in (samples, data[2], data[0]))
    found = values(report(samples))
    assert found["Frechet distance"] == frechet_distance(real, made)
    assert found["kernel distance"] == kernel_distance(real, made, 20).mean
    assert [found[name] for name in MANIFOLDS] == list(precision_recall_density_coverage(real, made))
    away = nearest_neighbours(made, known).distances.median().item()
    assert found["nearest training distance"] == away


def test_deviations_over_halves_are_about_those_of_new_pictures():
    """Two means 2 apart, whose error is known: the distance is about the square of their difference."""
    net = FeatureNet("mean", lambda pixels: pixels.flatten(1)[:, :1], channels=1)
    draw = torch.Generator().manual_seed(0)
    real, known, made = (PictureFeatures(torch.randn(400, 1, generator=draw) + x, None) for x in (0, 0, 2))
    options = {"test": real, "train": known, "net": net, "kernel_subsets": 1}
    reports = [generation_report(made, seed=seed, **options) for seed in range(8)]
    entries = [found["measures"]["Frechet distance"] for found in reports]
    error = 2 * 2 * (2 / 400) ** 0.5
    assert entries[0]["value"] == pytest.approx(4, abs=4 * error)
    deviation = (sum(entry["std"] ** 2 for entry in entries) / len(entries)) ** 0.5
    assert deviation == pytest.approx(error, rel=0.4)  # 32 degrees of freedom


def test_a_report_is_plain_and_the_same_each_time(data, report):
    found = report(noisy(data[2]))
    assert found == json.loads(json.dumps(found)) == report(noisy(data[2]))
    assert found["net"] == "digits-cnn"
    assert (found["pictures"], found["training_pictures"], found["k"]) == (500, 1200, 5)
    table = generation_table(found)
    assert table.startswith("500 pictures, features of digits-cnn; 'real pictures' is what as many")
    heads = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert heads == ["measure", "value", "±", "real pictures", "better"]
    assert len(table.splitlines()) == 4 + len(found["measures"])
    better = {name: entry["better"] for name, entry in found["measures"].items()}
    assert [better[name] for name in (*DISTANCES, *MANIFOLDS)] == ["lower"] * 2 + ["higher"] * 4


def test_too_few_pictures_for_a_covariance_leave_the_distance_out_and_say_why(data, net):
    found = generation_report(data[2][:20], test=data[2][20:40], train=data[0], net=net)
    assert "Frechet distance" not in found["measures"]
    assert found["left_out"]["Frechet distance"].startswith("left out, the covariance of 32 features needs")
    assert "Frechet distance: left out" in generation_table(found)
    assert "kernel distance" in found["measures"]


def test_a_reconstruction_is_compared_with_its_original(data, net):
    train, _, test, _ = data
    codes = torch.arange(500) % 7
    options = {"originals": test, "train": train, "net": net}
    noise = reconstruction_report(noisy(test, 0.05), indices=codes, num_codes=16, **options)
    blur = reconstruction_report(blurred(test), **options)
    assert list(noise["measures"]) == ["rFD", "PSNR", "squared error", "perplexity", "used codes"]
    for name, sign in (("rFD", 1), ("PSNR", -1), ("squared error", 1)):
        assert sign * values(noise)[name] < sign * values(blur)[name]
    assert noise["measures"]["rFD"]["floor"] > values(noise)["rFD"]  # nearer than other real pictures
    assert values(noise)["used codes"] == 7
    assert [noise["measures"][name]["better"] for name in ("rFD", "PSNR")] == ["lower", "higher"]
    assert "| used codes" in generation_table(noise)
    expected = psnr(pixel_levels(blurred(test)), pixel_levels(test))
    assert values(blur)["PSNR"] == pytest.approx(expected.mean().item())


def test_faults_are_named(data, net):
    train, _, test, labels = data
    options = {"test": test, "train": train, "net": net}
    with pytest.raises(ValueError, match=r"499 pictures against 500 test pictures; .* so give 499 of each"):
        generation_report(test[:499], **options)
    with pytest.raises(ValueError, match="`train` has 400 pictures for the floor of 500"):
        generation_report(test, test=test, train=train[:400], net=net)
    with pytest.raises(ValueError, match=r"height, width\) \[\(1, 16, 16\), \(1, 8, 8\), \(1, 8, 8\)\]"):
        generation_report(torch.zeros(500, 1, 16, 16), **options)
    with pytest.raises(ValueError, match=r"10 pictures are too few for `k`=5: .* give 12 at least"):
        generation_report(test[:10], test=test[:10], train=train, net=net)
    with pytest.raises(ValueError, match="`labels` and `test_labels` belong together"):
        generation_report(test, labels=labels, **options)
    with pytest.raises(ValueError, match=r"`test_labels` must be \(500,\), one for each picture, got \(499,"):
        generation_report(test, labels=labels, test_labels=labels[1:], **options)
    bare = FeatureNet("pixels", lambda pixels: pixels.flatten(1), channels=1)
    with pytest.raises(ValueError, match="pixels has no classes; leave out `labels`"):
        generation_report(test, test=test, train=train, net=bare, labels=labels, test_labels=labels)
    with pytest.raises(ValueError, match="`indices` and `num_codes` belong together"):
        reconstruction_report(test, originals=test, train=train, net=net, num_codes=3)
