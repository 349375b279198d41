"""Object detectors of transformers with random weights, one of each kind that regions are taken from."""

import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessorPil,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

QUERIES, CLASSES, WIDTH = 7, 5, 16
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
DETR = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}
SQUARE = {"height": 64, "width": 64}


def detr():
    config = DetrConfig(backbone_config=ResNetConfig(**RESNET, out_features=["stage4"]), **DETR)
    model = DetrForObjectDetection(config)
    processor = DetrImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 64})
    return model, processor, model.class_labels_classifier


def conditional_detr():
    config = ConditionalDetrConfig(backbone_config=ResNetConfig(**RESNET, out_features=["stage4"]), **DETR)
    model = ConditionalDetrForObjectDetection(config)
    return model, ConditionalDetrImageProcessorPil(size=SQUARE), model.class_labels_classifier


def rt_detr():
    stages = ["stage2", "stage3", "stage4"]
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(**RESNET, out_features=stages),
        encoder_hidden_dim=WIDTH,
        encoder_in_channels=RESNET["hidden_sizes"][1:],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=WIDTH,
        num_queries=QUERIES,
        decoder_in_channels=[WIDTH] * 3,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=2,
        num_denoising=0,
        hidden_expansion=0.5,
        num_labels=CLASSES,
    )
    model = RTDetrForObjectDetection(config)
    return model, RTDetrImageProcessorPil(size=SQUARE), model.model.decoder.class_embed[-1]


def yolos():
    config = YolosConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=QUERIES,
        num_labels=CLASSES,
    )
    model = YolosForObjectDetection(config)
    return model, YolosImageProcessorPil(size=SQUARE, do_pad=False), model.class_labels_classifier


def tiny_detector(kind):
    """A detector in evaluation mode, its image processor, and its head of classes."""
    torch.manual_seed(0)
    model, processor, head = {
        "detr": detr,
        "conditional_detr": conditional_detr,
        "rt_detr": rt_detr,
        "yolos": yolos,
    }[kind]()
    return model.eval(), processor, head
