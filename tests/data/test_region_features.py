"""Regions of detectors, of backbones and of given boxes: the numbers that the models themselves tell."""

import numpy as np
import pytest
import torch
from detectors_tiny import CLASSES, QUERIES, WIDTH, tiny_detector
from PIL import Image
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close
from transformers import (
    DetrImageProcessorPil,
    ResNetBackbone,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from hf_mm import (
    MMCLIPImageProcessor,
    RegionFeatureExtractor,
    RegionStore,
    RegionStoreWriter,
    roi_align,
    sliding_grid,
)
from hf_mm.data.region_detections import Detections, best_regions

KINDS = ("detr", "conditional_detr", "rt_detr", "yolos")
RESNET = ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, out_features=["stage2", "stage4"]
)
BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 1.0]])


def pictures(count=2, height=48, width=64):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def square(size_px=64):
    """The whole picture, in 0..1."""
    size = {"height": size_px, "width": size_px}
    return MMCLIPImageProcessor(size=size, do_center_crop=False, do_normalize=False)


def averages(pixel_values):
    """A backbone whose map has cells of 8 px with their mean colours."""
    return avg_pool2d(pixel_values, 8)


def halves(height=32, width=64):
    """Red on the left, blue on the right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2, 0] = picture[:, width // 2 :, 2] = 255
    return picture


def raw_outputs(model, processor, images):
    with torch.no_grad():
        return model(**processor(images=images, return_tensors="pt"))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_states_of_which_the_classes_are_told(kind):
    model, processor, head = tiny_detector(kind)
    for regions in RegionFeatureExtractor(model, processor, max_regions=QUERIES)(pictures()):
        assert regions["features"].shape == (QUERIES, WIDTH)
        logits = head(regions["features"]).detach()
        if logits.shape[1] == CLASSES:
            expected = logits.sigmoid() / logits.sigmoid().sum(1, keepdim=True)
        else:
            expected = logits.softmax(1)  # the last column is no object
        assert_close(regions["class_scores"], expected)
        assert_close(regions["class_scores"].sum(1), torch.ones(QUERIES))


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_region_is_that_of_transformers_own_decoding(kind):
    model, processor, _ = tiny_detector(kind)
    images = [*pictures(1, 32, 64), *pictures(1, 64, 32)]  # DETR's processor pads them, and says where
    outputs = raw_outputs(model, processor, images)
    decoded = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(1, 1)] * 2)
    for regions, expected in zip(RegionFeatureExtractor(model, processor)(images), decoded, strict=True):
        best = expected["scores"].argmax()
        assert_close(regions["scores"][0], expected["scores"][best])
        assert_close(regions["boxes"][0], expected["boxes"][best].clamp(0, 1))
        assert regions["labels"][0] == expected["labels"][best]
        assert regions["tags"][0] == model.config.id2label[int(expected["labels"][best])]
        assert (regions["scores"].diff() <= 0).all()
    assert regions["image_size"] == (32, 64)


def detections(scores, boxes):
    count = len(scores)
    return Detections(
        torch.tensor(boxes), torch.tensor(scores), torch.zeros(count).long(), torch.ones(count, 1), None
    )


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"max_regions": 2}, [1, 0]),
        ({"max_regions": 9}, [1, 0, 3]),  # the third has no area
        ({"max_regions": 9, "min_score": 0.6}, [1, 0]),
        ({"max_regions": 9, "min_score": 0.95}, [1]),
        ({"max_regions": 9, "min_score": 0.95, "min_regions": 2}, [1, 0]),
        ({"max_regions": 9, "max_overlap": 0.3}, [1, 3]),  # the first overlaps the second by a third
    ],
)
def test_the_best_regions_are_kept(options, kept):
    boxes = [[0.0, 0.0, 0.2, 0.2], [0.1, 0.0, 0.3, 0.2], [0.5, 0.5, 0.5, 0.6], [0.7, 0.7, 0.9, 0.9]]
    assert best_regions(detections([0.8, 0.9, 0.7, 0.5], boxes), **options).tolist() == kept


def test_a_box_holds_what_the_picture_shows_there():
    extract = RegionFeatureExtractor(backbone=averages, backbone_processor=square(), bins=1)
    boxes = [[[0.1, 0.2, 0.4, 0.9], [0.6, 0.1, 0.9, 0.5], [0.0, 0.0, 1.0, 1.0]]]
    (regions,) = extract([halves()], boxes)
    assert_close(regions["features"], torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0.5, 0, 0.5]]))
    assert_close(regions["boxes"], torch.tensor(boxes[0]))
    assert sorted(regions) == ["boxes", "features", "image_size"]


def test_on_a_padded_map_a_box_holds_the_same():
    padding = DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}, do_normalize=False)
    extract = RegionFeatureExtractor(backbone=averages, backbone_processor=padding)
    high = np.full((64, 32, 3), 255, np.uint8)
    of_wide, of_high = extract([halves(), high], [[[0.6, 0.1, 0.9, 0.9]], [[0.1, 0.1, 0.9, 0.9]]])
    assert_close(of_wide["features"], torch.tensor([[0, 0, 1.0]]))
    assert_close(of_high["features"], torch.ones(1, 3))


def test_bins_lie_side_by_side_channel_by_channel():
    extract = RegionFeatureExtractor(backbone=averages, backbone_processor=square(), bins=2)
    (regions,) = extract([halves()], [[[0.0, 0.0, 1.0, 1.0]]])
    assert_close(regions["features"][0].view(3, 2, 2)[0], torch.tensor([[1.0, 0], [1, 0]]))


@pytest.mark.parametrize("layer", [-1, 0])
def test_any_layer_of_a_backbone_is_read(layer):
    backbone = ResNetBackbone(RESNET).eval()
    extract = RegionFeatureExtractor(
        backbone=backbone, backbone_processor=square(), layer=layer, bins=2, sampling_ratio=2
    )
    (regions,) = extract(pictures(1), [BOXES])
    with torch.no_grad():
        maps = backbone(square()(images=pictures(1), return_tensors="pt")["pixel_values"]).feature_maps[layer]
    expected = roi_align(maps, BOXES * maps.shape[3], torch.zeros(2, dtype=torch.long), 2)
    assert_close(regions["features"], expected.flatten(1))


@pytest.mark.parametrize("layer", [-1, 1])
def test_any_hidden_state_of_a_convolutional_model_is_read(layer):
    model = ResNetModel(RESNET).eval()
    extract = RegionFeatureExtractor(
        backbone=model, backbone_processor=square(), layer=layer, sampling_ratio=1
    )
    with torch.no_grad():
        pixels = square()(images=pictures(1), return_tensors="pt")["pixel_values"]
        maps = model(pixels, output_hidden_states=True).hidden_states[layer]
    cell = 1 / maps.shape[3]
    (regions,) = extract(pictures(1), [[[cell, 0.0, 2 * cell, cell]]])
    assert_close(regions["features"][0], maps[0, :, 0, 1])


@pytest.mark.parametrize("layer", [-1, 1])
def test_a_box_on_one_patch_of_a_vit_is_the_state_of_its_token(layer):
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    extract = RegionFeatureExtractor(
        backbone=model, backbone_processor=square(), layer=layer, sampling_ratio=1
    )
    (regions,) = extract(pictures(1), [[[0.25, 0.5, 0.5, 0.75]]])  # row 2, column 1 of 4 x 4
    with torch.no_grad():
        pixels = square()(images=pictures(1), return_tensors="pt")["pixel_values"]
        outputs = model(pixels, output_hidden_states=True)
    states = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    assert_close(regions["features"][0], states[0, 1 + 2 * 4 + 1])


def test_a_map_of_logits_becomes_classes():
    def with_classes(pixel_values):
        return averages(pixel_values), averages(pixel_values) * 4

    extract = RegionFeatureExtractor(backbone=with_classes, backbone_processor=square())
    (regions,) = extract([halves()], [[[0.6, 0.1, 0.9, 0.9]]])
    assert_close(regions["class_scores"], torch.tensor([[0.0, 0, 4]]).softmax(1))
    assert regions["labels"].tolist() == [2]
    assert_close(regions["scores"], regions["class_scores"][:, 2])


def test_boxes_of_a_detector_are_described_by_the_backbone():
    model, processor, _ = tiny_detector("rt_detr")
    plain = RegionFeatureExtractor(model, processor)(pictures(1))[0]
    both = RegionFeatureExtractor(model, processor, backbone=averages, backbone_processor=square())
    regions = both(pictures(1))[0]
    assert_close(regions["boxes"], plain["boxes"])
    assert_close(regions["class_scores"], plain["class_scores"])
    given = RegionFeatureExtractor(backbone=averages, backbone_processor=square())(
        pictures(1), [plain["boxes"]]
    )
    assert_close(regions["features"], given[0]["features"])


def test_proposals_are_described_up_to_the_limit():
    extract = RegionFeatureExtractor(
        backbone=averages, backbone_processor=square(), proposals=sliding_grid, max_regions=3
    )
    (regions,) = extract(pictures(1))
    assert_close(regions["boxes"], torch.from_numpy(sliding_grid(pictures(1)[0])[:3]))
    assert regions["features"].shape == (3, 3)


def test_boxes_may_be_in_pixels():
    extract = RegionFeatureExtractor(backbone=averages, backbone_processor=square())
    shares = extract(pictures(1), [BOXES])[0]
    pixels = extract(pictures(1), [BOXES * torch.tensor([64, 48, 64, 48])], box_format="pixels")[0]
    assert_close(pixels, shares)


def test_the_type_of_the_weights_is_used_and_float32_returned():
    backbone = ResNetBackbone(RESNET).eval()
    exact = RegionFeatureExtractor(backbone=backbone, backbone_processor=square())(pictures(1), [BOXES])[0]
    half = RegionFeatureExtractor(backbone=backbone.bfloat16(), backbone_processor=square())
    found = half(pictures(1), [BOXES])[0]
    assert found["features"].dtype == torch.float32
    assert not torch.equal(found["features"], exact["features"])
    assert_close(found["features"], exact["features"], atol=0.1, rtol=0.1)


def test_regions_go_into_a_store(tmp_path):
    model, processor, _ = tiny_detector("rt_detr")
    regions = RegionFeatureExtractor(model, processor, max_regions=3)(pictures())
    with RegionStoreWriter(tmp_path, WIDTH, "tiny") as writer:
        for number, of_one in enumerate(regions):
            writer.add(number, of_one)
    assert_close(RegionStore(tmp_path, WIDTH)[1]["features"], regions[1]["features"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Neither `detector` nor `backbone`"),
        ({"backbone": averages}, "`backbone` and `backbone_processor` belong together"),
        ({"detector": object()}, "`detector` and `image_processor` belong together"),
        (
            {"detector": object(), "image_processor": object(), "proposals": sliding_grid},
            "`detector` and `proposals` both give boxes",
        ),
        (
            {"backbone": averages, "backbone_processor": square(), "max_regions": 0},
            "`min_regions`=1 must be from 1 to `max_regions`=0",
        ),
        ({"backbone": averages, "backbone_processor": square(), "bins": 0}, "`bins`=0"),
    ],
)
def test_what_cannot_make_features_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        RegionFeatureExtractor(**options)


@pytest.mark.parametrize(
    ("boxes", "box_format", "words"),
    [
        (None, "shares", "There are no boxes: give `boxes`"),
        ([BOXES], "shares", "There are 2 images and `boxes` of 1"),
        ([BOXES, BOXES * 64], "shares", r"image 1: `boxes` must be .* maximum of 64"),
        (
            [BOXES * 32, BOXES * 65],
            "pixels",
            r"image 1, region 0: the box \[0.0, 0.0, 65.0, 65.0\] is not in",
        ),
        ([BOXES, []], "shares", "image 1 has no regions"),
    ],
)
def test_boxes_that_do_not_fit_are_named(boxes, box_format, words):
    extract = RegionFeatureExtractor(backbone=averages, backbone_processor=square())
    with pytest.raises(ValueError, match=words):
        extract(pictures(), boxes, box_format)


def test_a_detector_has_no_features_of_other_boxes():
    model, processor, _ = tiny_detector("yolos")
    with pytest.raises(ValueError, match=r"features of its own boxes only; build .* with a `backbone`"):
        RegionFeatureExtractor(model, processor)(pictures(1), [BOXES])


def test_one_picture_is_no_list():
    extract = RegionFeatureExtractor(backbone=averages, backbone_processor=square())
    with pytest.raises(TypeError, match=r"`images` is one picture, a Image; give a list"):
        extract(Image.new("RGB", (8, 8)), [BOXES])


@pytest.mark.parametrize(
    ("backbone", "options", "words"),
    [
        (lambda pixels: pixels.mean((2, 3)), {}, r"function gives no map .* but \(1, 3\); give a bare"),
        (averages, {"layer": 2}, "`layer`=2 is for models of transformers"),
        (
            ResNetBackbone(RESNET).eval(),
            {"layer": 5},
            "`layer`=5 is none of the 2 layers that ResNetBackbone",
        ),
        (
            SwinModel(
                SwinConfig(
                    embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=64, patch_size=8, window_size=4
                )
            ).eval(),
            {},
            "SwinModel gives 16 tokens for 8 x 8 patches; open it by `AutoBackbone`",
        ),
    ],
)
def test_a_backbone_without_a_map_is_named(backbone, options, words):
    extract = RegionFeatureExtractor(backbone=backbone, backbone_processor=square(), **options)
    with pytest.raises(ValueError, match=words):
        extract(pictures(1), [BOXES])


def test_a_processor_that_cuts_pictures_is_refused():
    cutting = MMCLIPImageProcessor(size={"shortest_edge": 64}, do_center_crop=True)
    extract = RegionFeatureExtractor(backbone=averages, backbone_processor=cutting)
    with pytest.raises(ValueError, match=r"cuts pictures \(`do_center_crop`\)"):
        extract(pictures(1), [BOXES])


def test_a_model_without_boxes_is_no_detector():
    _, processor, _ = tiny_detector("yolos")
    with pytest.raises(ValueError, match=r"The detector ResNetModel gives .* no `logits` and `pred_boxes`"):
        RegionFeatureExtractor(ResNetModel(RESNET).eval(), processor)(pictures(1))
