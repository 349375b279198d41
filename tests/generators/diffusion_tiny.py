"""The smallest denoisers, autoencoder and reader of texts: 8 px, a few channels."""

from functools import cache

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from hf_mm import MMDiTModel

__all__ = ["NAMES", "TEXT_DIM", "clip_text", "dit", "kl_autoencoder", "text_unet", "unet", "words"]

NAMES = {0: "bag", 1: "shoe", 2: "hat"}
TEXT_DIM, CONTEXT = 12, 6
WORDS = ("<pad>", "<start>", "<end>", "a", "red", "green", "apple", "pear")
SIZES = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}


def moved(model: nn.Module) -> nn.Module:
    """With branches that do something: some of their last layers begin with zeros."""
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
    return model.eval()


def unet(seed: int = 0, channels: int = 1, **changes) -> UNet2DModel:
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    options = {"in_channels": channels, "out_channels": channels, "add_attention": False}
    return moved(UNet2DModel(**SIZES | blocks | options | changes))


def text_unet(seed: int = 0, channels: int = 4, **changes) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    options = {"in_channels": channels, "out_channels": channels, "attention_head_dim": 4}
    return moved(
        UNet2DConditionModel(**SIZES | blocks | options | {"cross_attention_dim": TEXT_DIM} | changes)
    )


def dit(seed: int = 0, channels: int = 1, **changes) -> MMDiTModel:
    torch.manual_seed(seed)
    sizes = {"sample_size": 8, "patch_size": 2, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    return moved(MMDiTModel(**sizes | {"in_channels": channels} | changes))


def kl_autoencoder(seed: int = 1, channels: int = 1, **changes) -> AutoencoderKL:
    """Half the size, four channels."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    options = {"in_channels": channels, "out_channels": channels, "latent_channels": 4, "scaling_factor": 0.7}
    return AutoencoderKL(**SIZES | blocks | options | changes).eval()


def clip_text(seed: int = 2, **changes) -> CLIPTextModel:
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": TEXT_DIM,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    options = {"vocab_size": len(WORDS), "max_position_embeddings": CONTEXT}
    return CLIPTextModel(CLIPTextConfig(**sizes | ids | options | changes)).eval()


@cache
def words() -> PreTrainedTokenizerFast:
    """A beginning, words, an end: the empty text has two tokens."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<pad>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, model_input_names=inputs, **names
    )
