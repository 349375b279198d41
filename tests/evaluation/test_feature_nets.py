"""Nets by name: what they read of pictures, what may be called FID, faults named."""

import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

import hf_mm.layers.inception as inception
from hf_mm import FeatureNet, efficientnet_lite0, feature_net, lite_image_processor, pixel_levels

SIDE = {"height": 16, "width": 16}


def pictures(count=3, channels=1, side_px=8):
    levels = torch.randint(
        0, 256, (count, channels, side_px, side_px), generator=torch.Generator().manual_seed(0)
    )
    return levels.to(torch.uint8)


def tiny_vit(**options):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTConfig(image_size=16, patch_size=8, **sizes, **options)


def saved(model, folder):
    model.save_pretrained(folder)
    ViTImageProcessorPil(size=SIDE).save_pretrained(folder)
    return model.eval()


def shown(levels, folder):
    """What a user of transformers gives the model."""
    images = [Image.fromarray(part.expand(3, -1, -1).permute(1, 2, 0).numpy()) for part in levels]
    return AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]


def test_efficientnet_gives_its_pooled_map_of_pictures_as_its_own_processor_shows_them():
    levels = pictures(2, 3, 64)
    net = feature_net("efficientnet-lite0@64")  # as large as the pictures: nothing to resize
    images = [part.permute(1, 2, 0).numpy() for part in levels]
    pixels = lite_image_processor(64)(images=images, return_tensors="pt")["pixel_values"]
    found = net(levels)
    assert_close(found.features, efficientnet_lite0()(pixels).mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert (net.name, found.logits) == ("efficientnet-lite0@64", None)
    grey = net(pictures(2, 1, 64)).features
    assert_close(grey, net(pictures(2, 1, 64).expand(-1, 3, -1, -1)).features)


def test_efficientnet_tells_small_pictures_apart():
    features = feature_net("efficientnet-lite0@32")(pictures(4, 1, 28)).features
    assert features.shape == (4, 1280)
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 0.1


def test_a_classifier_gives_its_logits_and_what_they_are_made_of(tmp_path):
    model = saved(ViTForImageClassification(tiny_vit(num_labels=5)), tmp_path)
    found = feature_net(tmp_path)(pictures())
    with torch.no_grad():
        expected = model(shown(pictures(), tmp_path), output_hidden_states=True)
    assert_close(found.logits, expected.logits)
    assert_close(model.classifier(found.features), expected.logits)
    assert found.features.shape == (3, 8)


def test_a_convolutional_classifier_will_do(tmp_path):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "num_labels": 4}
    model = saved(ResNetForImageClassification(ResNetConfig(**sizes)), tmp_path)
    found = feature_net(tmp_path)(pictures())
    assert_close(model.classifier[-1](found.features), found.logits)


def test_a_bare_model_gives_its_pooled_states(tmp_path):
    model = saved(ViTModel(tiny_vit()), tmp_path)
    found = feature_net(tmp_path)(pictures())
    with torch.no_grad():
        expected = model(shown(pictures(), tmp_path)).pooler_output
    assert_close(found.features, expected)
    assert found.logits is None


def test_a_module_sees_pictures_from_minus_1_to_1_without_dropout():
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, pixels):
            return self.dropout(pixels.flatten(1)), pixels.mean((2, 3))

    module = Seen().train()
    found = FeatureNet("pixels", module, channels=1)(pictures(5), batch_size=2)
    assert_close(found.features, pictures(5).flatten(1) / 127.5 - 1)
    assert found.logits.shape == (5, 1)
    assert module.training


def test_floats_are_rounded_as_files_are():
    net = FeatureNet("pixels", lambda pixels: pixels.flatten(1), channels=1)
    floats = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert_close(net(floats).features, net(pixel_levels(floats)).features, rtol=0, atol=0)


def test_only_inceptions_distance_is_called_fid(monkeypatch, tmp_path):
    pretender = FeatureNet("inception", nn.Flatten())
    assert (pretender.frechet, pretender.kernel) == ("Frechet distance", "kernel distance")
    monkeypatch.setattr(inception, "INCEPTION_WEIGHTS", (tmp_path / "inception-0123abcd.pth").as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"FID needs Inception's weights, and .* cannot be reached"):
        feature_net("inception")


def test_faults_are_named(tmp_path):
    grey = FeatureNet("grey", lambda pixels: pixels.flatten(1), channels=1)
    with pytest.raises(ValueError, match="`pictures` have 3 channels, grey takes 1; make them grey"):
        grey(pictures(2, 3))
    with pytest.raises(ValueError, match=r"`pictures` must be \(pictures, 1 or 3 channels, height, width\)"):
        grey(pictures()[0])
    with pytest.raises(ValueError, match="`batch_size`=0 must be at least 1"):
        grey(pictures(), batch_size=0)
    with pytest.raises(ValueError, match="maps gives NaN or infinity; look at its weights"):
        FeatureNet("maps", lambda pixels: pixels.flatten(1) / 0)(pictures())
    with pytest.raises(ValueError, match=r"maps gives \(3, 3, 8, 8\) for 3 pictures"):
        FeatureNet("maps", lambda pixels: pixels)(pictures())
    with pytest.raises(ValueError, match="`channels`=4 must be 1 or 3"):
        FeatureNet("four", nn.Flatten(), channels=4)
    with pytest.raises(ValueError, match=r"@100: the size in pixels must be a multiple of 32"):
        feature_net("efficientnet-lite0@100")
    with pytest.raises(OSError, match="nowhere"):
        feature_net(tmp_path / "nowhere")
    saved(ViTForImageClassification(tiny_vit(num_labels=0)), tmp_path)
    with pytest.raises(ValueError, match=r"has no linear layer of its 0 classes, .* give its bare model"):
        feature_net(tmp_path)
