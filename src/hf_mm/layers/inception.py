"""Inception v3 as the FID has it: the network of December 2015, with its weights.

Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", table 1
(https://arxiv.org/abs/1512.00567). The FID (Heusel et al. 2017, https://arxiv.org/abs/1706.08500) is defined
by one TensorFlow graph of it. That differs from the later v3: pictures are resized without centring pixels,
averages leave the padding out, the last block takes a maximum where others average, and there are 1,008
classes. The weights are those that pytorch-fid publishes, under the same names.

Shapes: B pictures, C channels, H x W pixels.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

__all__ = ["INCEPTION_WEIGHTS", "FIDInception", "fid_inception", "resize_as_tensorflow"]

INCEPTION_WEIGHTS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
"""The name ends with the beginning of the file's SHA-256."""
SIDE_PX, FEATURES, CLASSES = 299, 2048, 1008
NORM_EPS = 1e-3

Layer = tuple[Any, ...]
"""A convolution: name, channels, kernel, and stride if it is 2; or the name of a pooling."""
AVERAGE, MAXIMUM, HALVE = ("average",), ("maximum",), ("halve",)


def _mixed_5(pooled: int) -> tuple[tuple[Layer, ...], ...]:
    double = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
    return (
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        double,
        (AVERAGE, ("branch_pool", pooled, 1)),
    )


def _mixed_6(narrow: int) -> tuple[tuple[Layer, ...], ...]:
    wide, high = (1, 7), (7, 1)
    double = tuple(("branch7x7dbl_" + str(n), narrow, (high, wide)[n % 2]) for n in (2, 3, 4))
    return (
        (("branch1x1", 192, 1),),
        (("branch7x7_1", narrow, 1), ("branch7x7_2", narrow, wide), ("branch7x7_3", 192, high)),
        (("branch7x7dbl_1", narrow, 1), *double, ("branch7x7dbl_5", 192, wide)),
        (AVERAGE, ("branch_pool", 192, 1)),
    )


def _mixed_7(pooling: Layer) -> tuple[tuple[Layer, ...], ...]:
    double = (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    return (
        (("branch1x1", 320, 1),),
        (("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3))),
        (("branch3x3_1", 384, 1), ("branch3x3_2b", 384, (3, 1))),
        (*double, ("branch3x3dbl_3a", 384, (1, 3))),
        (*double, ("branch3x3dbl_3b", 384, (3, 1))),
        (pooling, ("branch_pool", 192, 1)),
    )


BLOCKS: dict[str, tuple[tuple[Layer, ...], ...]] = {
    "Mixed_5b": _mixed_5(32),
    "Mixed_5c": _mixed_5(64),
    "Mixed_5d": _mixed_5(64),
    "Mixed_6a": (
        (("branch3x3", 384, 3, 2),),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)),
        (HALVE,),
    ),
    "Mixed_6b": _mixed_6(128),
    "Mixed_6c": _mixed_6(160),
    "Mixed_6d": _mixed_6(160),
    "Mixed_6e": _mixed_6(192),
    "Mixed_7a": (
        (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
        (
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2),
        ),
        (HALVE,),
    ),
    "Mixed_7b": _mixed_7(AVERAGE),
    "Mixed_7c": _mixed_7(MAXIMUM),
}
"""Figures 5, 6, 7 and 10 of the paper: routes through each block, which is the outputs of all, side by side.
Routes that begin alike share what they have in common."""


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=NORM_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.bn(self.conv(hidden)).relu()


class Mixed(nn.Module):
    """A block of parallel routes, see `BLOCKS`."""

    def __init__(self, channels: int, routes: tuple[tuple[Layer, ...], ...]) -> None:
        super().__init__()
        self.routes = [tuple(layer[0] for layer in route) for route in routes]
        self.out_channels = 0
        for route in routes:
            width = channels
            for name, *sizes in route:
                if not sizes:
                    continue
                out_channels, kernel, stride = sizes if len(sizes) == 3 else (*sizes, 1)
                sides = (kernel, kernel) if isinstance(kernel, int) else kernel
                padding = (sides[0] // 2, sides[1] // 2) if stride == 1 else 0
                setattr(self, name, ConvNorm(width, out_channels, kernel, stride, padding))
                width = out_channels
            self.out_channels += width

    def forward(self, hidden: Tensor) -> Tensor:
        made = {(): hidden}
        for route in self.routes:
            for depth, name in enumerate(route):
                if route[: depth + 1] not in made:
                    made[route[: depth + 1]] = self._step(name, made[route[:depth]])
        return torch.cat([made[route] for route in self.routes], dim=1)

    def _step(self, name: str, hidden: Tensor) -> Tensor:
        if name == "average":
            return avg_pool2d(hidden, 3, stride=1, padding=1, count_include_pad=False)
        if name == "maximum":
            return max_pool2d(hidden, 3, stride=1, padding=1)
        return max_pool2d(hidden, 3, stride=2) if name == "halve" else getattr(self, name)(hidden)


class FIDInception(nn.Module):
    """The network up to its last pooled features and the logits of its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        channels = 192
        for name, routes in BLOCKS.items():
            block = Mixed(channels, routes)
            self.add_module(name, block)
            channels = block.out_channels
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Look at pictures.

        Args:
            levels: (B, 3, H, W) floats in 0..255, of any size.

        Returns:
            Features (B, 2048), what the FID compares; logits (B, 1008).
        """
        hidden = (resize_as_tensorflow(levels, SIDE_PX) - 128) / 128  # (B, 3, 299, 299)
        hidden = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(hidden)))
        hidden = max_pool2d(hidden, 3, stride=2)  # (B, 64, 73, 73)
        hidden = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(hidden))
        hidden = max_pool2d(hidden, 3, stride=2)  # (B, 192, 35, 35)
        for name in BLOCKS:
            hidden = self.get_submodule(name)(hidden)  # ... (B, 2048, 8, 8)
        features = hidden.mean(dim=(2, 3))
        return features, self.fc(features)


def resize_as_tensorflow(pixels: Tensor, side_px: int) -> Tensor:
    """Bilinear, as TensorFlow 1 did: pixel i of the new picture lies at i * old / new, not at its centre.

    Args:
        pixels: (B, C, H, W) floats.
        side_px: Height and width to make.
    """
    rows, columns = (_mixing(size, side_px).to(pixels) for size in pixels.shape[2:])
    return rows @ pixels @ columns.T


def fid_inception(path: str | Path | None = None) -> FIDInception:
    """The network with the weights that define the FID.

    Args:
        path: Of the file `INCEPTION_WEIGHTS`; by default it is downloaded once, into torch's cache.

    Raises:
        OSError: There is no such file, or the weights cannot be reached.
        ValueError: The file is another one.
    """
    wanted = INCEPTION_WEIGHTS.rsplit("-", 1)[1].removesuffix(".pth")
    if path is None:
        path = _downloaded(INCEPTION_WEIGHTS)
    elif not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}; get it from {INCEPTION_WEIGHTS}.")
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise ValueError(
            f"{path} has the SHA-256 {found[: len(wanted)]}..., not {wanted}...: these are not the weights "
            f"that define the FID. Get them from {INCEPTION_WEIGHTS}."
        )
    weights = torch.load(path, weights_only=True, map_location="cpu")
    with torch.device("meta"):
        model = FIDInception()
    kept = {name: weight for name, weight in weights.items() if not name.endswith("num_batches_tracked")}
    counts = {name: torch.zeros((), dtype=torch.long) for name in model.state_dict() if "num_batches" in name}
    model.load_state_dict(kept | counts, assign=True)
    return model.requires_grad_(False).eval()


def _downloaded(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise OSError(
                f"FID needs Inception's weights, and {url} cannot be reached ({error}); bring the file to "
                f"{path}, or take another net: its distance is no FID."
            ) from error
    return path


def _mixing(size: int, new: int) -> Tensor:
    """How much of each old line is in each new one, (new, old)."""
    places = torch.arange(new, dtype=torch.float32) * (size / new)
    first = places.floor()
    share = places - first
    before = first.long()
    after = (before + 1).clamp(max=size - 1)
    mixing = torch.zeros(new, size)
    mixing.scatter_add_(1, before[:, None], (1 - share)[:, None])
    return mixing.scatter_add_(1, after[:, None], share[:, None])
