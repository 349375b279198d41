"""What figures share: no global state, the picture that the model saw, a clear word without matplotlib."""

import sys

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil
from visualization.seen_tiny import processor

import hf_mm
from hf_mm.models.clip.image_processing_clip import MMCLIPImageProcessor
from hf_mm.visualization.figures import blank_figure


def test_figures_leave_no_trace_in_pyplot():
    figure = blank_figure(2, 1)
    assert figure.get_size_inches().tolist() == [2, 1]
    assert figure.canvas.manager is None
    assert pyplot.get_fignums() == []


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"Figures need matplotlib: pip install 'hf-mm\[visualize\]'"):
        blank_figure(1, 1)


@pytest.mark.parametrize(
    "images",
    [
        ViTImageProcessorPil(size={"height": 8, "width": 8}),
        ViTImageProcessorPil(size={"height": 8, "width": 8}, do_normalize=False),
        CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        MMCLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
    ],
)
def test_the_picture_that_the_model_saw_comes_back(images):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    seen = hf_mm.seen_images(
        images(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"], images
    )
    assert seen.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(seen[0], picture)


def test_a_processor_of_images_and_texts_will_do():
    picture = np.full((16, 16, 3), 200, np.uint8)
    both = processor()
    seen = hf_mm.seen_images(both(images=picture, return_tensors="pt")["pixel_values"], both)
    np.testing.assert_array_equal(seen[0], picture)
