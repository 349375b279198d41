"""What an object detector of transformers finds in pictures: boxes, classes, and a state of each.

Carion et al. 2020, "End-to-End Object Detection with Transformers" (https://arxiv.org/abs/2005.12872), and
all that came after it: a detector has Q queries; of each the last decoder state tells a box and the logits of
its classes. Those states are the features of the regions.

Shapes: B pictures, Q queries, C classes, D width of a state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..imaging.boxes import non_maximum_suppression

__all__ = ["Detections", "best_regions", "detect"]


@dataclass(frozen=True)
class Detections:
    """The regions of one picture, one per query, on the CPU in float32.

    Attributes:
        boxes: (Q, 4), x1, y1, x2, y2 as shares of the picture.
        scores: (Q,), the probability of the best class.
        labels: (Q,), the best class.
        class_scores: (Q, C), a distribution; its last column is "no object" where the detector has such.
        states: (Q, D), or `None` where the detector gives none.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_scores: Tensor
    states: Tensor | None

    def __getitem__(self, chosen: Tensor) -> "Detections":
        states = None if self.states is None else self.states[chosen]
        return Detections(
            self.boxes[chosen], self.scores[chosen], self.labels[chosen], self.class_scores[chosen], states
        )


def detect(detector: Any, image_processor: Any, pictures: Sequence[Any]) -> list[Detections]:
    """Run a detector.

    Those with a logit more than classes (DETR, YOLOS, Table Transformer) have a softmax, and "no object" as
    the last class. The others (RT-DETR, conditional, deformable, ...) have a sigmoid for each class; their
    `class_scores` are these, scaled to a sum of 1.

    Args:
        detector: An `AutoModelForObjectDetection`, in evaluation mode.
        image_processor: Its image processor.
        pictures: What that reads.

    Returns:
        The regions of each picture.

    Raises:
        ValueError: The model gives no boxes.
    """
    inputs = image_processor(images=list(pictures), return_tensors="pt")
    given = {
        name: inputs[name].to(detector.device, detector.dtype if name == "pixel_values" else None)
        for name in ("pixel_values", "pixel_mask")
        if name in inputs
    }
    outputs = detector(**given)
    logits, boxes = outputs.get("logits"), outputs.get("pred_boxes")
    if logits is None or boxes is None:
        raise ValueError(
            f"The detector {type(detector).__name__} gives {list(outputs)}, no `logits` and `pred_boxes`; "
            "open it by `AutoModelForObjectDetection`."
        )
    logits, boxes = logits.float().cpu(), boxes.float().cpu()  # (B, Q, C), (B, Q, 4)
    if logits.shape[-1] == detector.config.num_labels + 1:
        class_scores = logits.softmax(-1)
        scores, labels = class_scores[..., :-1].max(-1)  # (B, Q) each
    else:
        chances = logits.sigmoid()
        scores, labels = chances.max(-1)
        class_scores = chances / chances.sum(-1, keepdim=True)
    middle, size = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([middle - size / 2, middle + size / 2], dim=-1).clamp(0, 1)  # (B, Q, 4)
    states = _states(outputs, logits.shape[1])
    return [
        Detections(corners[i], scores[i], labels[i], class_scores[i], None if states is None else states[i])
        for i in range(len(boxes))
    ]


def best_regions(
    detections: Detections,
    max_regions: int,
    min_regions: int = 1,
    min_score: float = 0.0,
    max_overlap: float | None = None,
) -> Tensor:
    """Numbers of the regions that are worth keeping, the best first.

    Args:
        detections: Of one picture.
        max_regions: Keep no more.
        min_regions: Keep so many even if their scores are too low.
        min_score: Leave out regions with lower scores.
        max_overlap: Leave out regions that overlap a better one by more, see `non_maximum_suppression`.

    Returns:
        (kept,).
    """
    areas = (detections.boxes[:, 2:] - detections.boxes[:, :2]).amin(1)
    order = detections.scores.argsort(descending=True, stable=True)
    order = order[areas[order] > 0]  # cut at the edge, nothing is left of some
    if max_overlap is not None:
        order = order[non_maximum_suppression(detections.boxes[order], detections.scores[order], max_overlap)]
    good = int((detections.scores[order] >= min_score).sum())
    return order[: min(max_regions, max(min_regions, good))]


def _states(outputs: Any, queries: int) -> Tensor | None:
    """(B, Q, D): the last of a sequence are the queries, also where patches stand before them (YOLOS)."""
    states = outputs.get("last_hidden_state")
    if states is None or states.ndim != 3 or states.shape[1] < queries:
        return None
    return states[:, -queries:].float().cpu()
