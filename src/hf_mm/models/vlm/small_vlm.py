"""A vision-language model small enough to be trained from nothing on a CPU, in minutes."""

from typing import Any

from transformers import LlamaConfig, PreTrainedTokenizerBase

from ..vit.configuration_vit import MMViTConfig
from .configuration_vlm import MMVLMConfig
from .image_processing_vlm import MMVLMImageProcessor
from .modeling_vlm import MMVLMForConditionalGeneration
from .processing_vlm import MMVLMProcessor

__all__ = ["small_vlm"]

# 64 px behind a stem of four stages are 4x4 patches, 16 tokens.
WIDTH = 128
SMALL_VISION: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "stem_channels": [32, 64, WIDTH, WIDTH],
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "initializer_range": 0.05,
}
SMALL_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
SMALL_CONNECTOR: dict[str, Any] = {
    "vision_feature_layer": None,
    "connector": "mlp",
    "initializer_range": 0.05,
}


def small_vlm(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[MMVLMForConditionalGeneration, MMVLMProcessor]:
    """Two blocks that see pictures of 64 px, three that read and write, all 128 wide; untrained.

    Args:
        tokenizer: Knows the token `<image>`, as `train_tokenizer(texts, special_tokens=["<image>"])` does.

    Returns:
        The model, its weights drawn from torch's generator, and its processor.
    """
    vision = MMViTConfig(**SMALL_VISION)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SMALL_TEXT,
    )
    image_token: Any = tokenizer.convert_tokens_to_ids("<image>")
    config = MMVLMConfig(
        vision_config=vision, text_config=text, image_token_id=image_token, **SMALL_CONNECTOR
    )
    images = MMVLMImageProcessor(
        size=vision.image_size,
        patch_size=vision.patch_size,
        pooling_size=config.pooling_size,
        fit="stretch",
        image_mean=0.5,
        image_std=0.5,
    )
    return MMVLMForConditionalGeneration(config), MMVLMProcessor(images, tokenizer)
