"""Tiny region BERTs of real classes, shared by the tests of the family."""

import torch

from hf_mm.models.region_bert.configuration_region_bert import MMRegionBertConfig
from hf_mm.models.region_bert.presets_region_bert import PRESETS

NAMES = tuple(PRESETS)
VOCAB, CLS, SEP, MASK, WIDTH = 40, 36, 37, 38, 16
SIZES = {
    "vocab_size": VOCAB,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
    "mask_token_id": MASK,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 14,
    "region_feature_size": WIDTH,
    "region_sinusoids": 2,
    "num_region_classes": 7,
    "num_object_classes": 6,
    "num_attribute_classes": 5,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "region_input_dropout": 0.0,
}


def tiny_config(name="uniter", depth=2, **changes):
    """A preset with two blocks, without dropout; ViLBERT's regions keep a width of their own."""
    wide = {"region_hidden_size": 24, "cross_hidden_size": 40} if name == "vilbert" else {}
    depth = None if "layers" in changes else depth
    return MMRegionBertConfig.preset(name, depth, **(SIZES | wide | changes))


def texts(lengths, length=None, seed=0):
    """Texts of these numbers of tokens, padded on the right to the longest or to `length`."""
    generator = torch.Generator().manual_seed(seed)
    length = max(lengths) if length is None else length
    ids, mask = torch.zeros(len(lengths), length, dtype=torch.long), torch.zeros(len(lengths), length).long()
    for row, count in enumerate(lengths):
        words = torch.randint(1, CLS, (count - 2,), generator=generator)
        ids[row, :count] = torch.cat((torch.tensor([CLS]), words, torch.tensor([SEP])))
        mask[row, :count] = 1
    return {"input_ids": ids, "attention_mask": mask}


def regions(counts, most=None, seed=0):
    """Regions of these numbers of images, padded behind to the most or to `most`."""
    generator = torch.Generator().manual_seed(seed)
    most = max(counts) if most is None else most
    features, boxes = torch.zeros(len(counts), most, WIDTH), torch.zeros(len(counts), most, 4)
    mask = torch.zeros(len(counts), most).long()
    for row, count in enumerate(counts):
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values  # (r, low or high, x or y)
        boxes[row, :count] = corners.flatten(1)
        features[row, :count] = torch.randn(count, WIDTH, generator=generator)
        mask[row, :count] = 1
    return {"region_features": features, "region_boxes": boxes, "region_mask": mask}


MIXED = ((5, 9, 3), (4, 2, 6))  # lengths of texts, numbers of regions


def mixed(rows=3):
    """Texts and regions none of which is like another."""
    lengths, counts = MIXED
    return {**texts(lengths[:rows]), **regions(counts[:rows])}


def scrambled(model, seed=0):
    """Every weight drawn anew, biases and norms too: a swap of two weights then shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model.eval()
