"""Tiny models and processors to push."""

import torch
from diffusers import AutoencoderKL, ModelMixin
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from hf_mm.data.tokenizer import train_caption_tokenizer, train_tokenizer
from hf_mm.generators.autoencoder.modeling_vq_autoencoder import MMVQAutoencoder
from hf_mm.generators.autoencoder.pipeline_autoencoder import AutoencoderPipeline
from hf_mm.models.clip.configuration_clip import MMCLIPConfig
from hf_mm.models.clip.image_processing_clip import MMCLIPImageProcessor
from hf_mm.models.clip.modeling_clip import MMCLIPModel
from hf_mm.models.clip.processing_clip import MMCLIPProcessor
from hf_mm.models.clip_text.configuration_clip_text import MMCLIPTextConfig
from hf_mm.models.vit.configuration_vit import MMViTConfig
from hf_mm.models.vit.modeling_vit import MMViTForImageClassification
from hf_mm.models.vlm.configuration_vlm import MMVLMConfig
from hf_mm.models.vlm.image_processing_vlm import MMVLMImageProcessor
from hf_mm.models.vlm.modeling_vlm import MMVLMForConditionalGeneration
from hf_mm.models.vlm.processing_vlm import MMVLMProcessor

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BLOCKS = {"block_out_channels": (4, 8), "norm_num_groups": 2, "sample_size": 8}
BLOCKS |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
SIDE = {"image_size": 16, "patch_size": 4}


def tiny_vit(seed: int = 0) -> MMViTForImageClassification:
    torch.manual_seed(seed)
    return MMViTForImageClassification(MMViTConfig(**WIDTHS, **SIDE, num_labels=3)).eval()


def tiny_clip() -> tuple[MMCLIPModel, MMCLIPProcessor]:
    """Two towers of ours, and their processor."""
    tokenizer = train_caption_tokenizer(["a red dog", "a cat"], 300, max_length=12)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text = MMCLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **WIDTHS, **special)
    torch.manual_seed(0)
    model = MMCLIPModel(
        MMCLIPConfig(vision_config=MMViTConfig(**WIDTHS, **SIDE), text_config=text, projection_dim=8)
    )
    return model.eval(), MMCLIPProcessor(MMCLIPImageProcessor(size=16), tokenizer)


def tiny_vlm(tower: str = "mm_vit", crops: int = 0) -> tuple[MMVLMForConditionalGeneration, MMVLMProcessor]:
    """A model around our tower or a stock one ("clip_vision_model"), and its processor."""
    tokenizer = train_tokenizer(["a red circle", "a blue circle"], 300)
    MMVLMProcessor.add_image_tokens(tokenizer, crops=crops > 0)
    images = MMVLMImageProcessor(
        size=16, patch_size=4, pooling_size=2, max_crops=crops, crop_margin_patches=0
    )
    processor = MMVLMProcessor(images, tokenizer)
    vision: PreTrainedConfig = (MMViTConfig if tower == "mm_vit" else CLIPVisionConfig)(**WIDTHS, **SIDE)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = MMVLMConfig(
        vision_config=vision,
        text_config=LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **WIDTHS, **special),
        image_token_id=processor.image_token_id,
        pooling_size=2,
        crop_margin_patches=0,
    )
    torch.manual_seed(0)
    return MMVLMForConditionalGeneration(config).eval(), processor


def tiny_vq(seed: int = 0) -> MMVQAutoencoder:
    """A component of ours for diffusers."""
    torch.manual_seed(seed)
    return MMVQAutoencoder(num_vq_embeddings=8, **BLOCKS).eval()


def tiny_kl() -> AutoencoderKL:
    """One of diffusers' own."""
    torch.manual_seed(0)
    return AutoencoderKL(latent_channels=2, **BLOCKS).eval()


def tiny_pipeline(vae: ModelMixin | None = None) -> AutoencoderPipeline:
    """A pipeline of ours around either."""
    pipe = AutoencoderPipeline(vae or tiny_vq())
    pipe.set_progress_bar_config(disable=True)
    return pipe
