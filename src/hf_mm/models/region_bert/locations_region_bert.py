"""What a model is told of where a region is: four to seven numbers, or sines and cosines.

Four: Tan and Bansal 2019 (LXMERT); five, with the area: Lu et al. 2019 (ViLBERT); six, with width and height:
Li et al. 2020 (OSCAR); seven, with all of them: Chen et al. 2020 (UNITER); sines and cosines: Su et al. 2020
(VL-BERT), section 3.2, after Hu et al. 2018.

Shapes: M regions, K numbers, E frequencies.
"""

import torch
from torch import Tensor

__all__ = ["locations_of", "sinusoids_of"]


def locations_of(boxes: Tensor, kind: str, frequencies: int) -> Tensor:
    """(M, 4) boxes x1, y1, x2, y2 as shares of the image to (M, K) numbers.

    Args:
        boxes: In the order left, top, right, bottom.
        kind: A value of `region_location` but "none".
        frequencies: E, for "sinusoid".
    """
    if kind == "sinusoid":
        return sinusoids_of(boxes, frequencies)
    if kind == "box4":
        return boxes
    sides = boxes[:, 2:] - boxes[:, :2]  # (M, 2)
    area = sides.prod(dim=1, keepdim=True)
    more = {"box5": (area,), "box6": (sides,), "box7": (sides, area)}[kind]
    return torch.cat((boxes, *more), dim=1)


def sinusoids_of(boxes: Tensor, frequencies: int) -> Tensor:
    """(M, 4) boxes to (M, 8 * E): sines, then cosines, of centre x, centre y, width, height in percent.

    The wave lengths grow from 2 pi to 2000 pi.
    """
    wide = boxes.to(torch.promote_types(boxes.dtype, torch.float32))  # angles reach 100
    start, end = wide[:, :2], wide[:, 2:]
    percent = 100 * torch.cat(((start + end) / 2, end - start), dim=1)  # (M, 4)
    powers = torch.arange(frequencies, device=wide.device, dtype=wide.dtype) / frequencies
    angles = percent.unsqueeze(2) / 1000**powers  # (M, 4, E)
    return torch.cat((angles.sin(), angles.cos()), dim=2).flatten(1).to(boxes.dtype)
