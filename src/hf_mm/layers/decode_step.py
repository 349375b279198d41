"""One token through a Llama-like language model in as few calls as its equation has.

The models of transformers spend a good part of a token's time between the products: modules calling modules,
masks for nothing, keys and values copied anew. A step computes what theirs do, from the same weights, when
rows of one length are decoded by a single token each; everything else goes through the model's own `forward`.
There is one for Touvron et al. 2023, "LLaMA" (https://arxiv.org/abs/2302.13971), section 2.2, and relatives
with the same layer: Mistral, Qwen 2, Qwen 3 (which normalises queries and keys), SmolLM 3 (some layers do not
rotate).

Shapes: R rows, D width, H query heads, G key and value heads, E width of a head, T tokens in the cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from .decode_cache import RoomyLayer
from .decode_linear import BlockedLinear, ColumnLinear, DecodingLinear, joint_bias

__all__ = ["DecodingStep", "install_step", "remove_step"]

LAYERS = {
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "SmolLM3DecoderLayer",
}
NORMALISED = {"Qwen3DecoderLayer"}  # queries and keys of each head
PARTLY_ROTATED = {"SmolLM3DecoderLayer"}


class DecodingStep:
    """The `forward` of a decoder of `LAYERS`: a step where it can be one, else what was there before.

    A step it is for one token of each row on a CPU, without gradients, behind a filled `DynamicCache`, with
    sdpa attention, nothing padded, no further output asked for, and no hooks in the way.

    Args:
        decoder: The model below the head.
    """

    def __init__(self, decoder: PreTrainedModel) -> None:
        self.decoder: Any = decoder
        self.replaced = vars(decoder).get("forward")  # what others set before us, as accelerate does
        self.otherwise = decoder.forward
        self.layers = [_Layer(layer) for layer in self.decoder.layers]
        self.norm = _norm(self.decoder.norm)
        self.dtype = self.decoder.norm.weight.dtype
        # The dictionaries themselves: hooks that come later are seen.
        self.hooks = [
            hooks
            for name, module in decoder.named_modules()
            if name
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take the arguments of the decoder's `forward`; return what it returns."""
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        if (
            (input_ids is None) != (inputs_embeds is None)
            and self._is_step(given, attention_mask)
            and self._is_simple(kwargs | {"use_cache": use_cache is False})
            and self._is_filled(past_key_values, len(given))
        ):
            if inputs_embeds is None:
                inputs_embeds = self.decoder.embed_tokens(input_ids)
            if inputs_embeds.dtype == self.dtype:
                return self._step(inputs_embeds, position_ids, past_key_values)
            input_ids = None
        return self.otherwise(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _is_step(self, given: Any, attention_mask: Any) -> bool:
        if given.shape[1] != 1 or given.device.type != "cpu" or torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        if attention_mask is None:
            return True
        return isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and bool(attention_mask.all())

    def _is_simple(self, kwargs: dict[str, Any]) -> bool:
        """Nothing asked for but the states, from a model as it was."""
        if kwargs.pop("return_dict", True) is False or any(
            value is not None and value is not False for value in kwargs.values()
        ):
            return False
        config = self.decoder.config
        return (
            config._attn_implementation == "sdpa"
            and not (config.output_attentions or config.output_hidden_states)
            and not self.decoder.training
            and not any(self.hooks)
        )

    def _is_filled(self, cache: Any, rows: int) -> bool:
        if type(cache) is not DynamicCache or len(cache.layers) != len(self.layers) or cache.offloading:
            return False
        if any(type(layer) not in (RoomyLayer, DynamicLayer) for layer in cache.layers):
            return False
        return cache.get_seq_length() > 0 and cache.layers[0].keys.shape[0] == rows

    def _step(self, states: Tensor, position_ids: Tensor | None, cache: Any) -> Any:
        if position_ids is None:
            position_ids = torch.tensor([[cache.get_seq_length()]])
        cos, sin = self.decoder.rotary_emb(states, position_ids=position_ids)  # (1 or R, 1, E)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)  # so that halves change places by `roll`
        states = states[:, 0]  # (R, D)
        for index, layer in enumerate(self.layers):
            if type(cache.layers[index]) is DynamicLayer:
                cache.layers[index] = RoomyLayer.taking_over(cache.layers[index])
            states = layer(states, cos, sin, cache.layers[index])
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(states).unsqueeze(1),  # (R, 1, D)
            past_key_values=cache,
        )


class _Layer:
    """One block on one token of each row, (R, D) to (R, D)."""

    def __init__(self, layer: Any) -> None:
        attention, mlp, kind = layer.self_attn, layer.mlp, type(layer).__name__
        self.width, self.scaling = attention.head_dim, attention.scaling
        self.turned = (attention.q_proj.out_features + attention.k_proj.out_features) // self.width  # H + G
        self.keys = attention.k_proj.out_features // self.width  # G
        self.rotates = attention.use_rope if kind in PARTLY_ROTATED else True
        self.norm_attention = _norm(layer.input_layernorm)
        self.norm_mlp = _norm(layer.post_attention_layernorm)
        self.norm_heads = (_norm(attention.q_norm), _norm(attention.k_norm)) if kind in NORMALISED else ()
        self.queries_keys_values = _joint_product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = _product(attention.o_proj)
        self.gate_up, self.inner = _joint_product(mlp.gate_proj, mlp.up_proj), mlp.gate_proj.out_features
        self.activation, self.down = mlp.act_fn.forward, _product(mlp.down_proj)

    def __call__(self, states: Tensor, cos: Tensor, sin: Tensor, past: RoomyLayer) -> Tensor:
        states = states + self.output(self.attend(self.norm_attention(states), cos, sin, past))
        both = self.gate_up(self.norm_mlp(states))  # (R, gate and up)
        return states + self.down(self.activation(both[:, : self.inner]).mul_(both[:, self.inner :]))

    def attend(self, states: Tensor, cos: Tensor, sin: Tensor, past: RoomyLayer) -> Tensor:
        """(R, D) to (R, H * E)."""
        rows = len(states)
        heads = self.queries_keys_values(states).view(rows, -1, self.width)  # (R, H + G + G, E)
        turned = heads[:, : self.turned]  # queries and keys, (R, H + G, E)
        if self.norm_heads:
            parts = turned.split((self.turned - self.keys, self.keys), dim=1)
            both = [norm(part) for norm, part in zip(self.norm_heads, parts, strict=True)]
            turned.copy_(torch.cat(both, dim=1))
        if self.rotates:  # `sin` has its first half negated
            torch.add(turned * cos, turned.roll(self.width // 2, -1) * sin, out=turned)
        new = heads[:, -2 * self.keys :].view(rows, 2, self.keys, 1, self.width)
        keys, values = past.append(new.transpose(0, 1))  # (R, G, T, E)
        # The queries of one key head as if they were tokens: keys and values are read once for all of them.
        queries = heads[:, : -2 * self.keys].view(rows, self.keys, -1, self.width)  # (R, G, H / G, E)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values, scale=self.scaling)
        return attended.flatten(1)


def install_step(language_model: PreTrainedModel) -> bool:
    """Let a causal language model, its weights laid out, decode by steps, in place.

    Returns:
        Whether it is one of those there is a step for; if not, nothing has changed.
    """
    decoder: Any = language_model.base_model
    if not isinstance(decoder, PreTrainedModel) or not isinstance(
        decoder._modules.get("layers"), nn.ModuleList
    ):
        return False
    kinds = {type(layer) for layer in decoder.layers}
    if {kind.__name__ for kind in kinds} - LAYERS or not kinds:
        return False
    if not all(kind.__module__.startswith("transformers.models.") for kind in kinds):
        return False
    decoder.forward = DecodingStep(decoder)
    return True


def remove_step(language_model: PreTrainedModel) -> None:
    """Undo `install_step`, in place."""
    decoder: Any = language_model.base_model
    step = vars(decoder).get("forward")
    if isinstance(step, DecodingStep):
        del decoder.forward
        if step.replaced is not None:
            decoder.forward = step.replaced


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """Root mean square in float32, rounded where the models of transformers round."""
    weight, epsilon = module.weight, module.variance_epsilon
    shape = tuple(weight.shape)

    def norm(states: Tensor) -> Tensor:
        if states.dtype == torch.float32:
            return nn.functional.rms_norm(states, shape, weight, epsilon)
        return weight * nn.functional.rms_norm(states.float(), shape, None, epsilon).to(states.dtype)

    return norm


def _product(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a layer computes of rows, without the checks around it."""
    if isinstance(linear, ColumnLinear):
        return _row_product(linear.columns, linear.row_bias)
    return linear.product if isinstance(linear, DecodingLinear) else linear.forward


def _joint_product(*linears: nn.Module) -> Callable[[Tensor], Tensor]:
    """What layers with the same input compute, one behind the other: by one product where they lie so."""
    columns = [linear for linear in linears if isinstance(linear, ColumnLinear)]
    groups = {linear.group for linear in linears if isinstance(linear, BlockedLinear)}
    if len(groups) == 1 and len(linears) == len(next(iter(groups)).sizes):
        return next(iter(groups)).product
    places = {linear.columns.untyped_storage().data_ptr() for linear in columns}
    if len(columns) < len(linears) or len(places) > 1:
        products = [_product(linear) for linear in linears]
        return lambda states: torch.cat([product(states) for product in products], dim=-1)
    first, sizes = columns[0].columns, [linear.out_features for linear in columns]
    joint = first.as_strided((first.shape[0], sum(sizes)), first.stride())
    return _row_product(joint, joint_bias([linear.row_bias for linear in columns], first.new_zeros, sizes))


def _row_product(columns: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    if bias is None:
        return lambda states: torch.mm(states, columns)
    return lambda states: torch.addmm(bias, states, columns)
