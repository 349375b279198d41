"""What a generator draws for prompts that it never saw, beside the training pictures nearest to that.

A generator of few pictures may have learnt them by heart. So each drawn picture stands beside the real ones
that it is nearest to, with what those are called: a copy is seen, and so is a mixture.

Shapes: N prompts, P training pictures, D features, k neighbours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.pixel_rows import PixelRows
from ..evaluation.feature_nets import FeatureNet
from ..evaluation.generation_manifolds import nearest_neighbours
from ..imaging.pixel_levels import pixel_levels
from ..visualization.sample_grids import neighbour_grid

__all__ = ["unseen_prompt_page", "unseen_prompts"]

NAMED_PX = 112  # of a picture at least, so that there is room for words below it


def unseen_prompts(train: PixelRows, test: PixelRows, count: int, seed: int = 0) -> list[str]:
    """Texts of test pictures that no training picture has.

    Args:
        train: With texts.
        test: With texts, of which the first of each picture is taken.
        count: N, at most.
        seed: Of the draw.

    Raises:
        ValueError: There are no texts, or all of them are those of training pictures.
    """
    if train.texts is None or test.texts is None:
        raise ValueError("The rows have no texts; take pictures with captions.")
    known = {text for texts in train.texts for text in texts}
    unseen = [texts[0] for texts in test.texts if texts[0] not in known]
    unseen = list(dict.fromkeys(unseen))
    if not unseen:
        raise ValueError("Every text of a test picture is that of a training picture; there is none unseen.")
    drawn = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(seed))[:count]
    return [unseen[number] for number in drawn.tolist()]


def unseen_prompt_page(
    pipeline: Any,
    prompts: Sequence[str],
    train: PixelRows,
    net: FeatureNet | None = None,
    train_features: Tensor | None = None,
    k: int = 5,
    seed: int | Sequence[int] = 0,
    **call: Any,
) -> Image.Image:
    """Draw prompts, one picture of each, and lay the nearest training pictures beside them.

        unseen_prompt_page(pipeline, unseen_prompts(train, test, 8), train, net).save("unseen.png")

    Args:
        pipeline: Any that takes `prompt` and `seed`.
        prompts: N texts.
        train: The P pictures that it learnt from; their first texts are written below, if they have any.
        net: In whose features pictures are near; `None`: by pixels.
        train_features: (P, D) of `net`, where they are known already.
        k: Neighbours.
        seed: Of the first picture, the next ones count on; or one for each.
        **call: What else the pipeline is called with, such as `guidance_scale`.

    Raises:
        ValueError: Features without a net, pictures of another size than those of training, or fewer than `k`
            of those.
    """
    if net is None and train_features is not None:
        raise ValueError("`train_features` are of a net; pass `net` too, or leave them out.")
    images = pipeline(prompt=list(prompts), seed=seed, output_type="pt", **call).images
    samples = pixel_levels(images.float().cpu() * 2 - 1, "samples")
    if samples.shape[1:] != train.pixels.shape[1:]:
        raise ValueError(
            f"The pipeline draws (channels, height, width) {tuple(samples.shape[1:])}, `train` has "
            f"{tuple(train.pixels.shape[1:])}; take the pictures that it learnt from."
        )
    if net is None:
        found = nearest_neighbours(samples, train.pixels, k)
    else:
        known = net(train.pixels).features if train_features is None else train_features
        found = nearest_neighbours(net(samples).features, known, k)
    texts = None
    if train.texts is not None:
        texts = [[train.texts[place][0] for place in row] for row in found.indices.tolist()]
    beside = train.pixels[found.indices]  # (N, k, C, H, W)
    return neighbour_grid(
        samples, beside, found.distances, labels=list(prompts), texts=texts, least_px=NAMED_PX
    )
