"""Linear layers with weights in the order that oneDNN's kernels read them: faster inference on CPUs.

The matrix products of a transformer take nearly all of its time, and those of oneDNN run faster than those
behind `nn.Linear` when the weights lie in its own blocks and the activation is part of the product. What
comes out is the same to rounding. Packed weights can neither be trained, nor saved, nor moved: a model is
packed by an explicit call, and unpacked again, bit for bit, by another.
"""

from collections import Counter
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .onednn_linear import OneDNNLinear, has_onednn_linear

__all__ = ["PackedLinear", "pack_for_inference", "unpack_for_training"]

Model = TypeVar("Model", bound=nn.Module)

LINEAR = (nn.Linear, OneDNNLinear)
PACKABLE = (torch.float32, torch.bfloat16)
GELU_OF_TYPE = {type(ACT2FN["gelu"]): "none", type(ACT2FN["gelu_pytorch_tanh"]): "tanh"}
# Children of modules whose forward is an activation right after this linear layer.
BEFORE_ACTIVATION = ({"fc1", "fc2"}, {"dense"})
FIRST = {"fc1", "dense"}


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU, its activation included.

    Args:
        linear: The layer whose weights are copied.
        gelu: Apply GELU to the result, "none" for the exact one, "tanh" for its approximation, as
            `nn.GELU` calls them; `None` applies nothing.
    """

    def __init__(self, linear: nn.Linear, gelu: str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype, self.gelu, self.kind = linear.weight.dtype, gelu, type(linear)
        bias = linear.bias
        self.trainable = (linear.weight.requires_grad, bias is not None and bias.requires_grad)
        # Neither parameters nor buffers: nothing outside can read, move or save this layout.
        self.packed_weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.packed_bias = None if bias is None else bias.detach().clone()
        self.train(linear.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features).

        Raises:
            RuntimeError: In training mode, or when a gradient is asked for.
            ValueError: Another dtype or width than that of the packed weights, or not on a CPU.
        """
        if self.training or (hidden_states.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(
                "Packed weights have no gradient: call the model in `eval()` mode under `torch.no_grad()` or "
                "`torch.inference_mode()`, or call `unpack_for_training(model)` first."
            )
        given = (hidden_states.device.type, hidden_states.dtype, hidden_states.shape[-1:])
        if given != ("cpu", self.dtype, (self.in_features,)):
            raise ValueError(
                f"Weights packed for (..., {self.in_features}) of {self.dtype} on the CPU, got "
                f"{tuple(hidden_states.shape)} of {hidden_states.dtype} on {hidden_states.device}; without "
                "autocast, unpack, convert and pack again for another."
            )
        attr, algorithm = ("none", "") if self.gelu is None else ("gelu", self.gelu)
        return torch.ops.mkldnn._linear_pointwise(
            hidden_states, self.packed_weight, self.packed_bias, attr, [], algorithm
        )

    def unpacked(self) -> nn.Linear:
        """The layer that was packed, bit for bit, without the activation."""
        linear = self.kind(self.in_features, self.out_features, self.packed_bias is not None, "meta")
        linear.weight = nn.Parameter(self.packed_weight.to_dense(), self.trainable[0])
        if self.packed_bias is not None:
            linear.bias = nn.Parameter(self.packed_bias.clone(), self.trainable[1])
        return linear.train(self.training)

    def extra_repr(self) -> str:
        activation = "" if self.gelu is None else ", gelu" if self.gelu == "none" else ", gelu (tanh)"
        return f"{self.in_features}, {self.out_features}, {self.dtype}{activation}"

    def __getstate__(self) -> dict:
        raise RuntimeError(
            "A packed model cannot be saved, loaded into or copied; call `unpack_for_training(model)` first."
        )

    def _save_to_state_dict(self, *args: object, **kwargs: object) -> None:
        self.__getstate__()

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self.__getstate__()

    def _apply(self, fn: object, recurse: bool = True) -> "PackedLinear":
        probe = torch.empty(0, dtype=self.dtype)
        moved = fn(probe)  # ty: ignore[not-callable]
        if (moved.device, moved.dtype) != (probe.device, probe.dtype):
            raise RuntimeError(
                f"Weights packed in {self.dtype} for the CPU cannot go to {moved.dtype} on {moved.device}; "
                "call `unpack_for_training(model)` first."
            )
        return self


def pack_for_inference(model: Model) -> Model:
    """Exchange the linear layers of a model, of this package or another, for packed ones, in place.

    A GELU between the two layers of an MLP becomes part of the first. Left as they are: layers that share
    their weights with another (a tied head), have hooks, or are of a subclass of `nn.Linear`.

    Args:
        model: In `eval()` mode, on the CPU, in float32 or bfloat16.

    Returns:
        The same model.

    Raises:
        RuntimeError: The model is in training mode, or this PyTorch or CPU cannot do it.
        ValueError: The model is elsewhere, of another dtype, packed already, or has nothing to pack.
    """
    _check_packable(model)
    uses = Counter(
        id(weight)
        for module in model.modules()
        for weight in module._parameters.values()
        if weight is not None
    )
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent._modules.items()  # with those that stand there twice
        if isinstance(child, nn.Linear)
        and type(child) in LINEAR
        and uses[id(child.weight)] == 1
        and not _has_hooks(child)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no `nn.Linear` below it that can be packed.")
    dtypes = {child.weight.dtype for _, _, child in found} - set(PACKABLE)
    if dtypes:
        raise ValueError(
            f"Weights of {dtypes.pop()} cannot be packed; convert the model to one of {PACKABLE}."
        )
    places = Counter(id(child) for _, _, child in found)
    packed: dict[int, PackedLinear] = {}  # a layer that serves in two places stays one
    for parent, name, child in found:
        if id(child) not in packed:
            activation = _gelu_after(parent, name) if places[id(child)] == 1 else None
            packed[id(child)] = PackedLinear(child, GELU_OF_TYPE[type(activation[1])] if activation else None)
            if activation:
                setattr(parent, activation[0], _Fused(activation[1]))
        setattr(parent, name, packed[id(child)])
    return model


def unpack_for_training(model: Model) -> Model:
    """Undo `pack_for_inference`, in place: the same weights, bit for bit, free to train and save.

    Returns:
        The same model; unchanged when it was not packed.
    """
    unpacked: dict[int, nn.Linear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, PackedLinear):
                unpacked.setdefault(id(child), child.unpacked())
                setattr(parent, name, unpacked[id(child)])
            elif isinstance(child, _Fused):
                setattr(parent, name, child.activation[0])
    return model


class _Fused(nn.Module):
    """In place of an activation that the layer before it applies."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = (activation,)  # no child: it is out of service

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def _check_packable(model: nn.Module) -> None:
    if not has_onednn_linear():
        raise RuntimeError(
            "This build of PyTorch has no oneDNN kernels to pack weights for; leave `pack_for_inference` "
            "out, or install the CPU build of PyTorch for x86."
        )
    if model.training:
        raise RuntimeError("Packed weights are for inference; call `model.eval()` first.")
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is packed already; call `unpack_for_training(model)` first."
        )
    weights = list(model.parameters())
    elsewhere = next((weight.device for weight in weights if weight.device.type != "cpu"), None)
    if elsewhere is not None:
        raise ValueError(f"Packed weights are for CPUs, the model is on {elsewhere}; move it there first.")
    half = any(weight.dtype == torch.bfloat16 for weight in weights)
    if half and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise RuntimeError("This CPU has no bfloat16 kernels in oneDNN; pack the model in float32.")


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _gelu_after(parent: nn.Module, name: str) -> tuple[str, nn.Module] | None:
    """The GELU that `parent` applies to what its child `name` gives, and its name; None if not sure.

    Sure are modules made of nothing but the layers of an MLP and its activation.
    """
    children = dict(parent.named_children())
    gelus = {child: module for child, module in children.items() if type(module) in GELU_OF_TYPE}
    if name not in FIRST or len(gelus) != 1 or children.keys() - gelus.keys() not in BEFORE_ACTIVATION:
        return None
    ((gelu, module),) = gelus.items()
    return None if _has_hooks(module) else (gelu, module)
