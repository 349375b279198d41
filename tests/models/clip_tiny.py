"""Tiny CLIP models of real classes, shared by the tests of the family."""

import torch
from transformers import BertConfig, ResNetConfig

from hf_mm.models.bag_of_words.configuration_bag_of_words import MMBagOfWordsConfig
from hf_mm.models.clip.configuration_clip import MMCLIPConfig
from hf_mm.models.clip.modeling_clip import MMCLIPModel
from hf_mm.models.clip_text.configuration_clip_text import MMCLIPTextConfig
from hf_mm.models.vit.configuration_vit import MMViTConfig

VOCAB, BOS, EOS = 40, 38, 39


def vision_config(**changes):
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    return MMViTConfig(**(sizes | {"num_attention_heads": 4, "intermediate_size": 64} | changes))


def text_config(**changes):
    sizes = {"vocab_size": VOCAB, "max_position_embeddings": 12, "hidden_size": 32, "num_hidden_layers": 2}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    return MMCLIPTextConfig(**(sizes | ids | {"num_attention_heads": 4, "intermediate_size": 64} | changes))


def resnet_config(**changes):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetConfig(**(sizes | changes))


def bag_config(**changes):
    return MMBagOfWordsConfig(**({"vocab_size": VOCAB, "hidden_size": 24} | changes))


def bert_config(**changes):
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertConfig(**(sizes | {"intermediate_size": 64, "max_position_embeddings": 16} | changes))


def tiny_config(**changes):
    fields = {"vision_config": vision_config(), "text_config": text_config(), "projection_dim": 16}
    return MMCLIPConfig(**(fields | changes))


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    return MMCLIPModel(tiny_config(**changes)).eval()


def pictures(count, seed=0, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def texts(lengths, seed=0, length=None):
    """Texts of these numbers of tokens, start and end included, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    length = max(lengths) if length is None else length
    ids, mask = torch.full((len(lengths), length), EOS), torch.zeros(len(lengths), length, dtype=torch.long)
    for row, count in enumerate(lengths):
        words = torch.randint(1, BOS, (count - 2,), generator=generator)
        ids[row, :count] = torch.cat((torch.tensor([BOS]), words, torch.tensor([EOS])))
        mask[row, :count] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pairs(count=4, seed=0):
    """A batch of pairs with texts of unequal length."""
    lengths = [4 + (3 * row) % 7 for row in range(count)]
    return {"pixel_values": pictures(count, seed), **texts(lengths, seed)}
