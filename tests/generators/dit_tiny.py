"""The smallest diffusion transformers: 8 px, two layers, all kinds of conditions."""

import torch
from torch import Tensor, nn

from hf_mm import MMDiTModel

__all__ = ["KINDS", "SIZES", "asked", "dit", "moved", "noisy"]

SIZES = {"sample_size": 8, "in_channels": 3, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
WORDS = 6  # width of the states of a text
# What each kind is built with.
KINDS = {
    "none": {},
    "classes": {"num_classes": 3},
    "cross": {"text_dim": WORDS, "text_mode": "cross"},
    "joint": {"text_dim": WORDS, "text_mode": "joint"},
    "pooled": {"text_dim": WORDS, "text_pooling": True},
    "all": {
        "num_classes": 3,
        "text_dim": WORDS,
        "text_mode": "joint",
        "qk_norm": True,
        "second_time": True,
        "out_channels": 6,
    },
}


def moved(model: nn.Module) -> nn.Module:
    """With layers that do something: they begin as the identity."""
    for weight in model.parameters():
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3)
    return model.eval()


def dit(**options) -> MMDiTModel:
    torch.manual_seed(0)
    return moved(MMDiTModel(**SIZES | options))


def noisy(seed: int = 0, rows: int = 2, side: int = 8) -> Tensor:
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def asked(kind: str) -> dict[str, Tensor]:
    """Two rows of all that such a model is called with."""
    options = KINDS[kind]
    inputs = {"sample": noisy(), "timestep": torch.tensor([3.0, 700.0])}
    if "num_classes" in options:
        inputs["class_labels"] = torch.tensor([1, 3])
    if "text_dim" in options:
        states = torch.randn(2, 5, WORDS, generator=torch.Generator().manual_seed(1))
        inputs["encoder_hidden_states"] = states
        inputs["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    if "second_time" in options:
        inputs["second_timestep"] = torch.tensor([1.0, 200.0])
    return inputs
