"""RoIAlign: what a feature map holds inside of a box, whatever the box's size, as a grid of fixed size.

He et al. 2017, "Mask R-CNN", section 3, "RoIAlign" (https://arxiv.org/abs/1703.06870): a box is cut into bins
without rounding its edges; in each bin the map is read at regular places, bilinearly, and averaged. A sum
over places is a sum over rows of a table, the map's cells, so that all boxes of all images are one call of
`embedding_bag`.

Shapes: B images, C channels, H x W cells, N boxes, h x w bins, S places per bin and side.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["roi_align"]


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    output_size: int | tuple[int, int] = 7,
    sampling_ratio: int | None = 2,
    aligned: bool = True,
) -> Tensor:
    """Read boxes out of feature maps; gradients reach the maps and the boxes.

    The middle of the first cell is (0.5, 0.5), and the map ends at (W, H): boxes as shares of the image are
    multiplied by W and H. Places up to one cell outside of the map read its edge, those beyond read 0.

    Args:
        features: (B, C, H, W), floats.
        boxes: (N, 4), x1, y1, x2, y2 in cells.
        image_index: (N,), which of the B maps each box lies on.
        output_size: Bins per box: one number, or h and w.
        sampling_ratio: Places per bin and side; `None` takes as many as the bin has cells, rounded up.
        aligned: False is the older form, half a cell off and with boxes of at least one cell, which
            detectors before Detectron2 were trained with.

    Returns:
        (N, C, h, w), in the type of `features`.

    Raises:
        ValueError: Shapes do not fit, a number is out of its range, or a box lies on no image.
    """
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    _check(features, boxes, image_index, bins, sampling_ratio)
    height, width = features.shape[2:]
    x1, y1, x2, y2 = boxes.to(torch.promote_types(features.dtype, torch.float32)).unbind(dim=1)  # (N,) each
    rows, row_weights = _read_line(y1, y2, bins[0], height, sampling_ratio, aligned)  # (N, h, 2S)
    columns, column_weights = _read_line(x1, x2, bins[1], width, sampling_ratio, aligned)  # (N, w, 2S)
    first = image_index.to(rows)[:, None, None] * height  # (N, 1, 1)
    cells = ((rows + first) * width)[:, :, None, :, None] + columns[:, None, :, None, :]  # (N, h, w, 2S, 2S)
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]  # (N, h, w, 2S, 2S)
    table = features.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, C)
    found = embedding_bag(
        cells.flatten(3).flatten(0, 2),
        table,
        mode="sum",
        per_sample_weights=weights.flatten(3).flatten(0, 2).to(table),
    )  # (N h w, C)
    return found.unflatten(0, (len(boxes), *bins)).permute(0, 3, 1, 2)


def _read_line(
    low: Tensor, high: Tensor, bins: int, cells: int, samples: int | None, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Which cells along one side each bin reads, and with what weight: (N, bins, 2S) each."""
    size = high - low if aligned else (high - low).clamp(min=1)
    if samples is None:
        counts = (size.detach() / bins).ceil().clamp(min=1)  # (N,)
        most = int(counts.max()) if len(counts) else 1
    else:
        counts, most = torch.full_like(size.detach(), samples), samples
    steps = torch.arange(most, device=low.device)  # (S,)
    in_bin = (steps + 0.5) / counts[:, None]  # (N, S)
    bin_starts = torch.arange(bins, device=low.device)[:, None]  # (bins, 1)
    places = (bin_starts + in_bin[:, None]) * (size / bins)[:, None, None] + low[
        :, None, None
    ]  # (N, bins, S)
    places = places - 0.5 if aligned else places
    counted = (steps < counts[:, None])[:, None] & (places >= -1) & (places <= cells)  # (N, bins, S)
    places = places.clamp(0, cells - 1)
    below = places.detach().floor()
    share = places - below  # of the cell above
    weights = torch.stack([1 - share, share], dim=-1) * (counted / counts[:, None, None])[..., None]
    indices = torch.stack([below, (below + 1).clamp(max=cells - 1)], dim=-1).long()  # (N, bins, S, 2)
    return indices.flatten(2), weights.flatten(2)


def _check(
    features: Tensor, boxes: Tensor, image_index: Tensor, bins: tuple[int, ...], sampling_ratio: int | None
) -> None:
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            f"`features` must be floats (images, channels, height, width), got {features.dtype} "
            f"{tuple(features.shape)}."
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4 or image_index.shape != boxes.shape[:1]:
        raise ValueError(
            f"`boxes` must be (boxes, 4) and `image_index` (boxes,), got {tuple(boxes.shape)} and "
            f"{tuple(image_index.shape)}."
        )
    if len(bins) != 2 or min(bins) < 1:
        raise ValueError(f"`output_size`={bins} must be two numbers of at least 1.")
    if sampling_ratio is not None and sampling_ratio < 1:
        raise ValueError(f"`sampling_ratio`={sampling_ratio} must be at least 1, or None.")
    if len(boxes) and not (image_index.min() >= 0 and image_index.max() < len(features)):
        raise ValueError(
            f"`image_index` goes from {int(image_index.min())} to {int(image_index.max())}, there are "
            f"{len(features)} maps, from 0."
        )
