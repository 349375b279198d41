"""Tiny vision-language models of real classes, shared by the tests of the family."""

import torch
from transformers import LlamaConfig

from hf_mm.models.vit.configuration_vit import MMViTConfig
from hf_mm.models.vlm.configuration_vlm import MMVLMConfig
from hf_mm.models.vlm.modeling_vlm import MMVLMForConditionalGeneration

IMAGE, PAD, VOCAB = 60, 0, 64


def vision_config(**changes):
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    return MMViTConfig(**(sizes | {"num_attention_heads": 4, "intermediate_size": 64} | changes))


def text_config(**changes):
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    ids = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(**(sizes | ids | {"num_attention_heads": 4, "num_key_value_heads": 2} | changes))


def tiny_config(**changes):
    """16 patches of 8 px; 2x2 pooling makes 4 tokens of a picture."""
    fields = {
        "vision_config": vision_config(),
        "text_config": text_config(),
        "image_token_id": IMAGE,
        "vision_feature_layer": None,
        "connector": "attention_pool",
        "connector_hidden_act": "silu",
        "pooling_size": 2,
        "pooling_heads": 4,
        "pooling_head_dim": 8,
    }
    return MMVLMConfig(**(fields | changes))


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    return MMVLMForConditionalGeneration(tiny_config(**changes)).eval()


def pictures(count, seed=0):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def words(count, seed=0):
    """Token ids that are neither special nor image tokens."""
    return torch.randint(3, IMAGE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch_of(rows, side="right"):
    """Lists of token ids to padded `input_ids` and `attention_mask`."""
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
