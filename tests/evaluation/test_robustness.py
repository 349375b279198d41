"""The table of robustness counts right answers on the very pictures that `corrupt` makes."""

import numpy as np
import pytest
from evaluation.contrastive_tiny import clip_processor, own_clip, pictures

from hf_mm import ZeroShotClassifier, corrupt, markdown_table, robustness_table, write_results
from hf_mm.imaging.corruptions import CORRUPTIONS, SEVERITIES


def brightest(images):
    """The channel that is brightest in a picture: 0, 1 or 2."""
    return [int(np.asarray(image, float).mean(axis=(0, 1)).argmax()) for image in images]


def by_variance(images):
    return [int(np.asarray(image, float).std() > 73.2) for image in images]


def test_rows_hold_the_share_of_right_answers(tmp_path):
    images = pictures(7)
    labels = by_variance(images)
    rows = robustness_table(by_variance, images, labels, seed=5, batch_size=3, progress=False)
    assert [row["corruption"] for row in rows] == [*CORRUPTIONS, "mean"]
    for row in rows[:-1]:
        expected = [
            np.mean(
                [
                    by_variance([corrupt(image, row["corruption"], severity, 5 + number)])[0] == label
                    for number, (image, label) in enumerate(zip(images, labels, strict=True))
                ]
            )
            for severity in SEVERITIES
        ]
        assert [row[str(severity)] for severity in SEVERITIES] == pytest.approx(expected)
        assert row["mean"] == pytest.approx(np.mean(expected))
        assert row["clean"] == 1.0
    assert rows[-1]["3"] == pytest.approx(np.mean([row["3"] for row in rows[:-1]]))
    assert any(row["mean"] < 1 for row in rows)
    write_results(tmp_path / "robustness.json", {"rows": rows})
    assert "gaussian_noise" in markdown_table(rows, shares=["clean", *map(str, SEVERITIES), "mean"])


def test_every_picture_has_its_own_noise_and_batches_do_not_matter():
    def pixels(batch_size):
        shown = []
        robustness_table(
            lambda batch: shown.extend(map(np.asarray, batch)) or [0] * len(batch),
            pictures(1) * 3,
            [0, 0, 0],
            kinds=["gaussian_noise"],
            batch_size=batch_size,
            progress=False,
        )
        return {picture.tobytes() for picture in shown}

    assert len(pixels(1)) == 1 + 5 * 3  # the clean one, and all others
    assert pixels(1) == pixels(2)


def test_what_does_not_depend_on_contrast_withstands_it():
    images = pictures(4)
    rows = robustness_table(brightest, images, brightest(images), kinds=["contrast"], progress=False)
    assert rows[0]["1"] == rows[1]["mean"] == 1.0


def test_a_zero_shot_classifier_fits_in():
    classifier = ZeroShotClassifier(own_clip(), clip_processor(), ["a", "b"], ["{}"], progress=False)
    images = pictures(3)
    labels = classifier.predict(images).tolist()
    rows = robustness_table(classifier.predict, images, labels, kinds=["jpeg"], progress=False)
    assert rows[0]["clean"] == 1.0


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (pictures(2), [0], {}, "1 labels for 2 images; give one for each, and at least one"),
        ([], [], {}, "0 labels for 0 images"),
        (pictures(1), [0], {"kinds": ["fog"]}, r"`kinds` is \['fog'\]; give some of: gaussian_noise"),
        (pictures(1), [0], {"kinds": []}, r"`kinds` is \[\]; give some of"),
        ([*pictures(1), b"broken"], [0, 0], {}, "image 1 cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(images, labels, options, message):
    with pytest.raises(ValueError, match=message):
        robustness_table(brightest, images, labels, progress=False, **options)


def test_a_classifier_that_loses_pictures_is_refused():
    with pytest.raises(ValueError, match="`classify` returned 1 classes for 2 images"):
        robustness_table(lambda images: [0], pictures(2), [0, 0], progress=False)
