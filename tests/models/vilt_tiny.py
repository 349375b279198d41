"""Tiny ViLT models of real classes, shared by the tests of the family."""

import torch
from transformers import ViltConfig

from hf_mm.models.vilt.configuration_vilt import MMViltConfig

VOCAB, CLS, SEP, MASK = 40, 36, 37, 38
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 12,
    "image_size": 32,
    "patch_size": 8,
}


def tiny_config(**changes):
    ids = {"bos_token_id": CLS, "eos_token_id": SEP, "mask_token_id": MASK, "modality_type_vocab_size": 3}
    return MMViltConfig(**(SIZES | ids | changes))


def peer_config(**changes):
    """The same sizes for transformers' own classes."""
    return ViltConfig(**(SIZES | {"modality_type_vocab_size": 3, "pad_token_id": 0} | changes))


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


def images(grids, seed=0, side=8):
    """Images of these grids of patches, padded on the right and below to the largest."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(grid[axis] for grid in grids) * side for axis in (0, 1))
    pixels, mask = torch.zeros(len(grids), 3, height, width), torch.zeros(len(grids), height, width).long()
    for row, (rows, columns) in enumerate(grids):
        shape = (3, rows * side, columns * side)
        pixels[row, :, : shape[1], : shape[2]] = torch.randn(shape, generator=generator)
        mask[row, : shape[1], : shape[2]] = 1
    return {"pixel_values": pixels, "pixel_mask": mask}


MIXED = ((5, 9, 3), ((3, 5), (2, 2), (4, 1)))  # lengths of texts, grids of images


def mixed(rows=3):
    """Texts and images none of which is like another."""
    lengths, grids = MIXED
    return {**texts(lengths[:rows]), **images(grids[:rows])}


def scrambled(model, seed=0):
    """Every weight drawn anew, biases and norms too: a swap of two weights then shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model.eval()
