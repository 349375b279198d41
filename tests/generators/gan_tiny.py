"""The smallest GANs: 8 px, two stages, all kinds of conditions."""

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from hf_mm import GANObjective, GANPipeline, MMGANDiscriminator, MMGANGenerator
from hf_mm.data.tokenizer import word_tokenizer

__all__ = ["CLASSES", "SIZES", "batch", "discriminator", "generator", "objective", "pipeline", "text_encoder"]

SIZES = {
    "sample_size": 8,
    "block_out_channels": (16, 8),
    "layers_per_block": (1, 1),
    "group_size": 8,
    "patch_size": 1,
    "condition_dim": 6,
}
CLASSES = ("bag", "shoe", "hat")


def moved(model: nn.Module) -> nn.Module:
    """With branches that do something: their last layers begin with zeros."""
    for name, weight in model.named_parameters():
        if name.endswith(("conv_out.weight", "bias")):
            nn.init.normal_(weight, std=0.3)
    return model.eval()


def generator(seed: int = 0, **changes) -> MMGANGenerator:
    torch.manual_seed(seed)
    return moved(MMGANGenerator(**SIZES | {"out_channels": 1, "latent_dim": 5} | changes))


def discriminator(seed: int = 1, **changes) -> MMGANDiscriminator:
    torch.manual_seed(seed)
    return moved(MMGANDiscriminator(**SIZES | {"in_channels": 1} | changes))


def objective(models: dict | None = None, **options) -> GANObjective:
    models = {"num_classes": 3} if models is None else models
    return GANObjective(generator(**models), discriminator(**models), **options)


def batch(size: int = 4, seed: int = 0, channels: int = 1) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    pixel_values = torch.rand(size, channels, 8, 8, generator=source) * 2 - 1
    return {"pixel_values": pixel_values, "class_labels": torch.arange(size) % 3}


def pipeline(**changes) -> GANPipeline:
    """Draws classes, and without a progress bar."""
    pipe = GANPipeline(generator(**{"num_classes": 3, "class_names": CLASSES} | changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def words_pipeline() -> GANPipeline:
    tokenizer = word_tokenizer(["a", "green", "red", "apple", "pear"])
    pipe = GANPipeline(generator(vocab_size=len(tokenizer), text_context=4), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_encoder() -> CLIPTextModelWithProjection:
    torch.manual_seed(2)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = CLIPTextConfig(vocab_size=8, projection_dim=7, max_position_embeddings=6, **sizes, **ids)
    return CLIPTextModelWithProjection(config).eval()
