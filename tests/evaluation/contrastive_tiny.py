"""Small models of pictures and texts in one space, with a processor for both: transformers' CLIP and ours."""

import string

import numpy as np
import torch
from models.clip_tiny import text_config as own_text_config
from models.clip_tiny import tiny_model
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_mm import MMCLIPProcessor

LETTERS = string.ascii_lowercase + string.digits + "?:.,-"
WORDS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
IDS = {"bos_token_id": len(WORDS) - 2, "eos_token_id": len(WORDS) - 1, "pad_token_id": len(WORDS) - 1}
LONGEST = 48


def clip_processor():
    """Letters as tokens, pictures of 32 px."""
    tokenizer = CLIPTokenizer(
        {word: number for number, word in enumerate(WORDS)}, [], model_max_length=LONGEST
    )
    side = {"height": 32, "width": 32}
    return CLIPProcessor(CLIPImageProcessorPil(size=side, crop_size=side), tokenizer)


def own_processor():
    """The same, as ours."""
    theirs = clip_processor()
    return MMCLIPProcessor(theirs.image_processor, theirs.tokenizer)


def transformers_clip(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = sizes | {"vocab_size": len(WORDS), "max_position_embeddings": LONGEST} | IDS
    vision = sizes | {"image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def own_clip(seed=0, **changes):
    text = own_text_config(vocab_size=len(WORDS), max_position_embeddings=LONGEST, **IDS)
    return tiny_model(seed, text_config=text, **changes)


def pictures(count, seed=0):
    random = np.random.default_rng(seed)
    shades = random.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    return [Image.fromarray(shade).resize((40, 36), Image.Resampling.NEAREST) for shade in shades]
