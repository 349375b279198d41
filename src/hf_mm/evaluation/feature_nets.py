"""The networks in whose features generated pictures are compared with real ones, each under its name.

A distance means something only with the name of its net, and two are comparable only in the same one.
"efficientnet-lite0" needs no address: its weights come as a package. "inception" is the network of the FID,
with its own weights or not at all. For grey pictures a classifier of their kind tells more, such as what
`hf-mm train vit_classifier --dataset fashion-mnist` leaves: it also tells how many show the right class.

Shapes: N pictures, B of a batch, C channels, H x W pixels, D features, P classes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm.auto import tqdm

from ..imaging.pixel_levels import pixel_levels
from ..layers.efficientnet_lite import efficientnet_lite0
from ..layers.inception import fid_inception
from .features import encode_images, evaluating, vision_features

__all__ = ["FeatureNet", "PictureFeatures", "feature_net"]

LITE, INCEPTION = "efficientnet-lite0", "inception"
LITE_SIDE_PX = 224
EVEN = 32  # of the sides EfficientNet-Lite0 is shown, its largest stride

Embed = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""From pictures (B, C, H, W) in [-1, 1] to features (B, D), or to features and logits (B, P)."""


class PictureFeatures(NamedTuple):
    """What a net says of pictures.

    Attributes:
        features: (N, D) float32 on the CPU.
        logits: (N, P) of its classes, `None` where it has none.
    """

    features: Tensor
    logits: Tensor | None


class FeatureNet:
    """A network under the name by which its distances go.

        net = FeatureNet("digits-cnn", cnn, channels=1)
        features = net(pictures).features

    Args:
        name: Stands beside each number.
        embed: A module or function, see `Embed`; a module is called in evaluation mode.
        channels: What it takes, 1 or 3. Grey pictures are given to a net of colours as three equal
            channels.
        device: Where it is called; a module must be there.

    Attributes:
        frechet: What the Frechet distance in this net is called; only Inception's is the FID.
        kernel: What the kernel distance is called.

    Raises:
        ValueError: `channels` is neither 1 nor 3.
    """

    frechet = "Frechet distance"
    kernel = "kernel distance"

    def __init__(
        self, name: str, embed: Embed | nn.Module, channels: int = 3, device: str | torch.device = "cpu"
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"`channels`={channels} must be 1 or 3.")
        self.name, self.embed, self.channels, self.device = name, embed, channels, torch.device(device)

    def __call__(self, pictures: Tensor, batch_size: int = 64, progress: bool = False) -> PictureFeatures:
        """Features of pictures.

        Args:
            pictures: (N, C, H, W), floats in [-1, 1], which are rounded to 8 bits first as those of files
                are, or uint8.
            batch_size: Pictures at a time.
            progress: Show a progress bar.

        Raises:
            ValueError: Not pictures (see `pixel_levels`), colours for a net of grey pictures, or the net
                gives no features, or NaN.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size`={batch_size} must be at least 1.")
        levels = pixel_levels(pictures, "pictures")
        if levels.shape[1] > self.channels:
            raise ValueError(
                f"`pictures` have {levels.shape[1]} channels, {self.name} takes 1; make them grey or take "
                "another net."
            )
        features, logits = [], []
        batches = levels.split(batch_size)
        with self._evaluating():
            for batch in tqdm(batches, desc=self.name, unit="batch", disable=not progress):
                pixels = batch.to(self.device).expand(-1, self.channels, -1, -1).float() / 127.5 - 1
                found = self.embed(pixels)
                made, classes = found if isinstance(found, tuple) else (found, None)
                features.append(self._checked(made, len(batch)))
                if classes is not None:
                    logits.append(classes.float().cpu())
        return PictureFeatures(torch.cat(features), torch.cat(logits) if logits else None)

    def _evaluating(self) -> AbstractContextManager:
        return evaluating(self.embed) if isinstance(self.embed, nn.Module) else torch.no_grad()

    def _checked(self, features: Tensor, count: int) -> Tensor:
        if features.ndim != 2 or len(features) != count:
            raise ValueError(
                f"{self.name} gives {tuple(features.shape)} for {count} pictures; it must give (pictures, "
                "features)."
            )
        if not features.isfinite().all():
            raise ValueError(f"{self.name} gives NaN or infinity; look at its weights and its pictures.")
        return features.float().cpu()


class InceptionNet(FeatureNet):
    """The network of the FID, with its weights."""

    frechet = "FID"
    kernel = "KID"


def feature_net(name: str | Path, device: str | torch.device = "cpu") -> FeatureNet:
    """A net by its name.

    Args:
        name: "efficientnet-lite0", which sees pictures stretched to 224 px, or "efficientnet-lite0@96", to
            another size, faster and with other numbers. "inception", downloaded once. Otherwise a folder or
            Hub id of any model of pictures with an image processor, of ours or of transformers: features
            are what a classifier's last linear layer reads, a model of pictures and texts' embeddings, or
            else the pooled states.
        device: Where it is called.

    Raises:
        ImportError: The package with the weights of EfficientNet-Lite0 is not installed.
        FileNotFoundError: There is no such model.
        OSError: Inception's weights cannot be reached.
        ValueError: A size that is no multiple of 32, or a classifier without a linear layer of its classes.
    """
    name = str(name)
    if name.partition("@")[0] == LITE:
        return FeatureNet(name, _lite(name.partition("@")[2] or str(LITE_SIDE_PX), device), device=device)
    if name == INCEPTION:
        model = fid_inception().to(device)
        return InceptionNet(name, lambda pixels: model(pixels * 127.5 + 127.5)[0], device=device)
    return FeatureNet(name, _checkpoint(name, device), device=device)


def _lite(size: str, device: str | torch.device) -> Embed:
    if not size.isdecimal() or int(size) % EVEN or int(size) < EVEN:
        raise ValueError(f"{LITE}@{size}: the size in pixels must be a multiple of {EVEN}.")
    model, side_px = efficientnet_lite0().to(device), int(size)

    def embed(pixels: Tensor) -> Tensor:
        shown = interpolate(pixels, (side_px, side_px), mode="bicubic", antialias=True).clamp(-1, 1)
        return model((shown * 127.5 + 0.5) / 128).mean(dim=(2, 3))  # (B, 1280); levels less 127, over 128

    return embed


def _checkpoint(name: str, device: str | torch.device) -> Embed:
    """Any model of pictures, shown pictures as its own processor makes them."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

    try:
        processor = AutoImageProcessor.from_pretrained(name)
        saved_as = AutoConfig.from_pretrained(name).architectures or [""]
    except (OSError, ValueError) as error:
        there = "that folder has no model of pictures with an image processor"
        found = there if Path(name).is_dir() else "there is no such folder, and the Hub gives no such model"
        raise FileNotFoundError(
            f"No feature net {name!r}: {found}. Give {LITE}, {INCEPTION}, or a classifier or other model of "
            "pictures, such as `hf-mm train vit_classifier` saves."
        ) from error
    if saved_as[0].endswith("ForImageClassification"):
        model = AutoModelForImageClassification.from_pretrained(name).to(device)
        return _classifier(model, processor, name)
    model = AutoModel.from_pretrained(name).to(device)
    both = hasattr(model, "embed_images") or hasattr(model, "get_image_features")
    encode = encode_images if both else vision_features

    def embed(pixels: Tensor) -> Tensor:
        return encode(model, processor, _arrays(pixels), len(pixels), progress=False)

    return embed


def _classifier(model: Any, processor: Any, name: str) -> Embed:
    """Logits, and what the layer that makes them reads."""
    heads = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]
    if not heads:
        raise ValueError(
            f"{name} has no linear layer of its {model.config.num_labels} classes, in front of which "
            "features could be read; give its bare model."
        )

    def embed(pixels: Tensor) -> tuple[Tensor, Tensor]:
        read: list[Tensor] = []
        hook = heads[-1].register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
        try:
            shown = processor(images=_arrays(pixels), return_tensors="pt")["pixel_values"]
            with evaluating(model):
                logits = model(pixel_values=shown.to(model.device, model.dtype)).logits
        finally:
            hook.remove()
        return read[-1], logits

    return embed


def _arrays(pixels: Tensor) -> list[Any]:
    """(H, W, 3) uint8 each."""
    return list(pixel_levels(pixels).permute(0, 2, 3, 1).cpu().numpy())
