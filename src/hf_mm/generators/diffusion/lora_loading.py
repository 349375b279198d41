"""LoRA files of diffusers on any denoiser: read, checked against the model, and written.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685). The
file is diffusers' `pytorch_lora_weights.safetensors`: names that begin with `unet.`, `transformer.` or
`text_encoder.`, and the settings of PEFT in its header. What is written here fits `load_lora_weights` of
`StableDiffusionPipeline`, and the other way round.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import Tensor, nn

from ...hub.saving import atomic_folder

__all__ = ["LORA_FILE", "DiffusionLoraMixin", "lora_prefix"]

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_TEXT_PREFIX = "text_encoder"
LORA_PREFIXES = ("unet", "transformer")
LORA_BASE_FIELD = "base_model_name_or_path"


class DiffusionLoraMixin(LoraBaseMixin):
    """For pipelines whose denoiser is called `denoiser`: LoRA, with diffusers' names for all that is done.

    `load_lora_weights`, `save_lora_weights`, and of `LoraBaseMixin`: `set_adapters`, `fuse_lora`,
    `unfuse_lora`, `unload_lora_weights`, `enable_lora`, `disable_lora`, `delete_adapters`,
    `get_list_adapters`.
    """

    _lora_loadable_modules = ["denoiser", LORA_TEXT_PREFIX]

    def load_lora_weights(  # ty: ignore[incompatible-method-override]
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Put a LoRA on the denoiser, and on the text encoder where the file has weights for it.

        Args:
            pretrained_model_name_or_path_or_dict: File, folder or Hub id of a LoRA in diffusers' format (or
                that of kohya-ss), or its weights by name.
            adapter_name: For `set_adapters`; by default "default_0" and so on.
            **kwargs: Where the file is, as for `StableDiffusionPipeline.load_lora_weights`: `weight_name`,
                `subfolder`, `revision`, ...

        Raises:
            ValueError: The LoRA is of another base: a layer that is not there, or of another size; it is
                named.
        """
        place = pretrained_model_name_or_path_or_dict
        parts: Any = self
        state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(place) if isinstance(place, Path) else place, return_lora_metadata=True, **kwargs
        )
        prefix, metadata = lora_prefix(parts.denoiser), dict(metadata or {})
        self._check(state, metadata, place)
        name = adapter_name or self._free_adapter_name()
        options = {"network_alphas": alphas, "adapter_name": name, "metadata": metadata or None}
        options["_pipeline"] = self
        if any(key.startswith(f"{prefix}.") for key in state):
            parts.denoiser.load_lora_adapter(state, prefix=prefix, **options)
        if any(key.startswith(f"{LORA_TEXT_PREFIX}.") for key in state):
            load: Any = StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder
            load(state, text_encoder=parts.text_encoder, lora_scale=self.lora_scale, **options)

    def save_lora_weights(  # ty: ignore[incompatible-method-override]
        self, save_directory: str | Path, adapter_name: str = "default", weight_name: str = LORA_FILE
    ) -> None:
        """Write one adapter, of the denoiser and of the text encoder if that has it too.

        Args:
            save_directory: Folder, created when absent.
            adapter_name: Which one; "default" is what training puts on.
            weight_name: Of the file.

        Raises:
            ValueError: There is no such adapter.
        """
        layers: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        parts: Any = self
        for prefix, model in (
            (lora_prefix(parts.denoiser), parts.denoiser),
            (LORA_TEXT_PREFIX, parts.text_encoder),
        ):
            found = {} if model is None else _adapter_weights(model, adapter_name)
            if found:
                layers[prefix] = convert_state_dict_to_diffusers(found)
                settings[prefix] = model.peft_config[adapter_name].to_dict()
        if not layers:
            there = sorted({name for names in self.get_list_adapters().values() for name in names})
            raise ValueError(
                f"`adapter_name`={adapter_name!r} is no adapter of this pipeline; there are {there}."
            )
        with atomic_folder(save_directory) as temporary:
            self._save_lora_weights(str(temporary), layers, settings, weight_name=weight_name)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the pipeline, whose weights must be whole.

        Raises:
            ValueError: There are adapters: their layers would be saved under names that nobody loads.
        """
        names = sorted({name for names in self.get_list_adapters().values() for name in names})
        if names:
            raise ValueError(
                f"The pipeline has the adapters {names}; write them by `save_lora_weights`, or melt them in "
                "by `fuse_lora` and then `unload_lora_weights`, and save the pipeline then."
            )
        super().save_pretrained(save_directory, *args, **kwargs)  # ty: ignore[missing-attribute]

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Melt adapters in.

        Args:
            components: "denoiser", "text_encoder"; by default all that have adapters.
            lora_scale: How strongly.
            safe_fusing: Look for weights that are no numbers first.
            adapter_names: By default the active ones.
            **kwargs: As in diffusers.
        """
        components = list(self.get_list_adapters()) if components is None else components
        super().fuse_lora(components, lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Take the adapters out again.

        Args:
            components: As in `fuse_lora`.
            **kwargs: As of `LoraBaseMixin.unfuse_lora`.
        """
        super().unfuse_lora(list(self.get_list_adapters()) if components is None else components, **kwargs)

    def _free_adapter_name(self) -> str:
        taken = {name for names in self.get_list_adapters().values() for name in names}
        return next(name for n in range(len(taken) + 1) if (name := f"default_{n}") not in taken)

    def _check(self, state: Mapping[str, Tensor], metadata: Mapping[str, Any], place: Any) -> None:
        """Refuse what does not fit, before anything is changed."""
        parts: Any = self
        own = lora_prefix(parts.denoiser)
        models = {own: parts.denoiser, LORA_TEXT_PREFIX: parts.text_encoder}
        where = str(place) if isinstance(place, str | Path) else "The dictionary"
        bases = {str(value) for name, value in metadata.items() if name.endswith(LORA_BASE_FIELD) and value}
        base = f" of {', '.join(sorted(bases))}" if bases else ""
        kinds = sorted({name.split(".", 1)[0] for name in state}, key=[LORA_TEXT_PREFIX].__contains__)
        for kind in kinds:
            if models.get(kind) is None:
                takes = [name for name, model in models.items() if model is not None]
                raise ValueError(
                    f"{where} is a LoRA{base} for `{kind}`, this pipeline takes one for {', '.join(takes)} "
                    f"({type(parts.denoiser).__name__}); load it on the base it was trained on."
                )
            problem = _misfit(_peft_names(state, kind, models[kind]), models[kind])
            if problem:
                raise ValueError(
                    f"{where} is a LoRA{base}, another base than this {type(models[kind]).__name__}: "
                    f"{problem}. Load it on the base it was trained on."
                )


def lora_prefix(denoiser: Any) -> str:
    """With what the names of a denoiser's weights begin in a LoRA file: "unet" or "transformer"."""
    return LORA_PREFIXES[0 if isinstance(denoiser, UNet2DConditionModel) else 1]


def _adapter_weights(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The two factors of each adapted layer, under PEFT's names."""
    found = {}
    for name, weight in model.state_dict().items():
        for factor in ("lora_A", "lora_B"):
            if f".{factor}.{adapter_name}." in name:
                found[name.replace(f".{factor}.{adapter_name}.", f".{factor}.")] = weight
    return found


def _peft_names(state: Mapping[str, Tensor], prefix: str, model: nn.Module) -> dict[str, Tensor]:
    """The weights for one model, under PEFT's names."""
    own = {
        name.removeprefix(f"{prefix}."): weight
        for name, weight in state.items()
        if name.startswith(f"{prefix}.")
    }
    if prefix != LORA_TEXT_PREFIX:
        peft = any("lora_A" in name for name in own)
        return own if peft else convert_unet_state_dict_to_peft(own)
    own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
    inner = hasattr(model, "text_model")
    return own if inner else {name.removeprefix("text_model."): weight for name, weight in own.items()}


def _misfit(weights: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """What of a LoRA does not fit a model: the first layer that is absent, or of another size."""
    layers = dict(model.named_modules())
    for name, factor in weights.items():
        place, _, which = name.partition(".lora_")
        layer: Any = layers.get(place)
        weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
        if weight is None:
            return f"it has no layer `{place}`"
        side, wanted = ("input", weight.shape[1]) if which.startswith("A") else ("output", weight.shape[0])
        given = factor.shape[1] if side == "input" else factor.shape[0]
        if factor.ndim > 1 and given != wanted:
            return f"the {side} of `{place}` is {wanted} wide, in the LoRA {given}"
    return None
