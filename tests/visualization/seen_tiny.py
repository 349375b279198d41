"""Tiny models of every kind that can be looked at, and pictures for them."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)

from hf_mm.models.clip.configuration_clip import MMCLIPConfig
from hf_mm.models.clip.modeling_clip import MMCLIPModel
from hf_mm.models.vit.configuration_vit import MMViTConfig
from hf_mm.models.vit.modeling_vit import MMViTForImageClassification, MMViTModel

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIDE = {"image_size": 16, "patch_size": 4}
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "red", "circle", "on", "blue", "$5"]

TOWERS = {
    "mm_vit": MMViTConfig,
    "vit": ViTConfig,
    "deit": DeiTConfig,
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
    "dinov3_vit": DINOv3ViTConfig,
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
}


def tower(kind="mm_vit", seed=0, **changes):
    torch.manual_seed(seed)
    return spread(AutoModel.from_config(TOWERS[kind](**(WIDTHS | SIDE | changes)))).eval()


def mm_vit(**changes):
    torch.manual_seed(0)
    return spread(MMViTModel(MMViTConfig(**(WIDTHS | SIDE | changes)))).eval()


def mm_vit_classifier(**changes):
    torch.manual_seed(0)
    config = MMViTConfig(**(WIDTHS | SIDE | {"num_labels": 3} | changes))
    return spread(MMViTForImageClassification(config)).eval()


def vit_classifier():
    torch.manual_seed(0)
    return spread(ViTForImageClassification(ViTConfig(**WIDTHS, **SIDE, num_labels=3))).eval()


def tokenizer():
    """Words of the list above, between <bos> and <eos>."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=12, **names)


def processor():
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPProcessor(images, tokenizer())


def text_fields():
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return WIDTHS | ids | {"vocab_size": len(WORDS), "max_position_embeddings": 12}


def clip(seed=0):
    torch.manual_seed(seed)
    towers = {"text_config": text_fields(), "vision_config": WIDTHS | SIDE}
    return spread(CLIPModel(CLIPConfig(**towers, projection_dim=8))).eval()


def mm_clip(**changes):
    torch.manual_seed(0)
    towers = {
        "text_config": text_fields() | {"model_type": "mm_clip_text"},
        "vision_config": WIDTHS | SIDE | {"model_type": "mm_vit"},
    }
    return spread(MMCLIPModel(MMCLIPConfig(**(towers | {"projection_dim": 8} | changes)))).eval()


@torch.no_grad()
def spread(model):
    """Weights so large that attention is far from uniform and a wrong head, row or word shows."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(10)
    return model


def pixels(count=2, height=16, width=16, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
