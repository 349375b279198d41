"""Contrastive batches of any size in the memory of a small one: gradients of the features are cached.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3
(https://arxiv.org/abs/2101.06983). All small batches are encoded without a graph, the loss over all of
them gives the gradient of each feature, and each small batch is encoded again, now with a graph, through
which its features' gradients go back. The sum over the small batches is the gradient of the large one.

Shapes: N pairs of a large batch, P width of the features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

__all__ = ["CachedGradients", "cache_gradients", "surrogate_loss"]

Encoder = Callable[[Any], tuple[Tensor, Tensor]]
Objective = Callable[[Tensor, Tensor, list[Tensor]], Tensor]


@dataclass(frozen=True)
class CachedGradients:
    """What the small batches of one large batch need to be learned from, one after the other.

    Attributes:
        loss: Of the large batch, a scalar.
        features: For each small batch the gradients of its image and its text features, (n, P) each.
        temperature: The gradient of each parameter of the objective itself.
        random_states: The state of the generators before each small batch.
    """

    loss: Tensor
    features: list[tuple[Tensor, Tensor]]
    temperature: list[Tensor]
    random_states: list["_RandomState"]


@dataclass(frozen=True)
class _RandomState:
    """Generators of the processor and of the device in use: what dropout draws from."""

    host: Tensor
    device_type: str
    devices: tuple[list[int], list[Tensor]]

    @classmethod
    def now(cls, device: torch.device) -> "_RandomState":
        return cls(torch.get_rng_state(), device.type, get_device_states(torch.empty(0, device=device)))

    def restore(self) -> None:
        torch.set_rng_state(self.host)
        set_device_states(*self.devices, device_type=self.device_type)


def cache_gradients(
    encode: Encoder,
    batches: Sequence[Any],
    objective: Objective,
    temperature: Sequence[nn.Parameter],
    model: nn.Module,
) -> CachedGradients:
    """Encode all small batches without a graph and take the gradient of the loss over all of them.

    The buffers of `model` are afterwards what they were: running statistics count each batch once, when it
    is encoded again.

    Args:
        encode: Gives the image and the text features of a small batch, (n, P) each.
        batches: The small batches.
        objective: The loss of image features, text features (N, P) and the values of `temperature`.
        temperature: Parameters of the objective itself.
        model: What `encode` runs.
    """
    device = next(model.parameters()).device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    states, features = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(_RandomState.now(device))
            features.append(encode(batch))
        for buffer, before in buffers:
            buffer.copy_(before)
    images, texts = (torch.cat(part).requires_grad_() for part in zip(*features, strict=True))  # (N, P)
    values = [parameter.detach().clone().requires_grad_() for parameter in temperature]
    loss = objective(images, texts, values)
    gradients = torch.autograd.grad(loss, [images, texts, *values])
    sizes = [len(part) for part, _ in features]
    pairs = list(zip(gradients[0].split(sizes), gradients[1].split(sizes), strict=True))
    return CachedGradients(loss.detach(), pairs, list(gradients[2:]), states)


def surrogate_loss(
    encode: Encoder, batch: Any, cached: CachedGradients, index: int, temperature: Sequence[nn.Parameter]
) -> Tensor:
    """A scalar whose gradient is one small batch's part of the large batch's gradient.

    The batch is encoded with the same random numbers as before. The temperature's gradient is part of the
    last small batch, where distributed training exchanges gradients.

    Args:
        encode: As for `cache_gradients`.
        batch: The small batch.
        cached: What `cache_gradients` returned for the large one.
        index: Which of the small batches it is.
        temperature: As for `cache_gradients`.
    """
    cached.random_states[index].restore()
    images, texts = encode(batch)
    for_images, for_texts = cached.features[index]
    last = float(index == len(cached.features) - 1)
    terms = [(images * for_images).sum(), (texts * for_texts).sum()]
    terms += [
        (last * gradient * own).sum() for gradient, own in zip(cached.temperature, temperature, strict=True)
    ]
    return torch.stack(terms).sum()
