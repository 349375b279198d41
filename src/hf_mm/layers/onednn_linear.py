"""The linear layer, with oneDNN's matrix products where they are the faster ones.

On a CPU in float32 PyTorch multiplies with the BLAS that it was built with. oneDNN's kernels, which it brings
along too, make the products of a transformer in less time, forward and backward; measured with AVX-512 on an
AMD EPYC. What comes out is the same to rounding.

Shapes: T tokens, K inputs, N outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["OneDNNLinear", "has_onednn_linear"]

# Where oneDNN begins to gain: in smaller products it costs more to call than it saves.
LEAST_MULTIPLICATIONS, LEAST_TOKENS = 2**24, 8


class OneDNNLinear(nn.Linear):
    """`nn.Linear`, to rounding, and itself wherever the product is not one of float32 on a CPU.

    So it is under autocast and `torch.compile`, for small products, and while
    `torch.backends.mkldnn.flags(enabled=False)` is in force.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if not self._gains(input):
            return super().forward(input)
        tokens = input.reshape(-1, self.in_features).contiguous()  # (T, K)
        return _Product.apply(tokens, self.weight, self.bias).unflatten(0, input.shape[:-1])

    def _gains(self, states: Tensor) -> bool:
        """Whether the product is one that oneDNN's kernels make faster, and nothing is in their way."""
        weight, tokens = self.weight, states.numel() // self.in_features
        return (
            tokens >= LEAST_TOKENS
            and tokens * weight.numel() >= LEAST_MULTIPLICATIONS
            and not torch.compiler.is_compiling()
            and all(type(part) in PLAIN and part.dtype == torch.float32 for part in (states, weight))
            and states.device.type == weight.device.type == "cpu"
            and weight.is_contiguous()
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
            and not torch._C._are_functorch_transforms_active()
            and has_onednn_linear()
            and bool(torch.backends.mkldnn.enabled)
            and torch.backends.cpu.get_cpu_capability() == "AVX512"
        )


class _Product(torch.autograd.Function):
    """(T, K) tokens, (N, K) weights and a bias (N,) or none to (T, N)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return _onednn(tokens, weight, bias)

    @staticmethod
    def backward(  # ty: ignore[incompatible-method-override]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        tokens, weight = ctx.saved_tensors
        of_tokens, of_weight, of_bias = ctx.needs_input_grad
        # Gradients of gradients need operators that have some.
        product = linear if torch.is_grad_enabled() else _onednn
        gradient = gradient.contiguous()  # one that was expanded has no rows of its own
        return (
            product(gradient, weight.t()) if of_tokens else None,
            product(gradient.t(), tokens.t()) if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )


def has_onednn_linear() -> bool:
    """Whether this PyTorch was built with oneDNN, and the operator that multiplies with it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")


PLAIN = (Tensor, nn.Parameter)
