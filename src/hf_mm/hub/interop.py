"""Read and write checkpoints of architectures that a family covers but that another library defined.

A family says once, as a `ForeignCheckpoint`, how the fields of the config and the names of the weights map.
`from_pretrained` of a class with `ForeignLoadingMixin` then reads the other library's folders and Hub
repositories as it reads our own, and `hub/export.py` writes them. Built for the checkpoints of transformers.
"""

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import load_state_dict
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from .stored_weights import open_weights

__all__ = ["WHERE", "ForeignCheckpoint", "ForeignLoadingMixin", "read_json", "require_fields"]

# The arguments of `from_pretrained` that say where files are, not what is made of them.
WHERE = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


class ForeignCheckpoint:
    """One architecture of another library: how its config and weights become ours, and back.

    Subclass it once per foreign model type and name the subclass's instance in `foreign_checkpoints` of the
    models. The table `fields` does the config and `names` the weights. A checkpoint that needs more (a field
    that depends on others, arithmetic on a fused projection) extends the methods that apply the tables.

    Attributes:
        model_type: The `model_type` in the foreign `config.json`.
        classes: The foreign class that each of our classes corresponds to, by name.
        fields: The foreign field of the config that each of our fields corresponds to.
        defaults: What an absent foreign field means, where it is not what its absence means to us.
        fixed: Our fields that the foreign architecture has no word for, with the value that it always has.
        names: One row for each kind of weight: our name, the name to write, further names to read (of older
            versions, or of modules as opposed to files). `{}` stands for a number, `*` for all the rest of
            the name; each as often on both sides. The first row that fits counts.
        prefix: Put before the names of `names` by heads, on both sides; "" for none.
        foreign_prefix: The same on the foreign side, where it is another there.
        unused: Patterns of foreign names that are not read: a saved 0, 1, 2, ..., another tower.
        may_lack: Patterns of foreign weights that an exported folder need not hold.
        beside: JSON files next to `config.json` that `config_from` also wants, such as a tokenizer's; they
            are in `theirs` under their names, `None` where there is none.
    """

    model_type: str
    classes: Mapping[str, str]
    names: tuple[tuple[str, ...], ...]
    fields: Mapping[str, str] = {}
    defaults: Mapping[str, Any] = {}
    fixed: Mapping[str, Any] = {}
    prefix: str = ""
    foreign_prefix: str | None = None
    unused: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """The fields of our config, by the tables `fields` and `fixed`.

        Args:
            theirs: The foreign `config.json`; fields at their default may be absent.
            weights: Names of the weights beside it, already ours.
            model_class: The class of ours that is being loaded.

        Raises:
            ValueError: A value that our architecture cannot express.
        """
        known = {**self.defaults, "dtype": theirs.get("torch_dtype"), **theirs}  # the name of transformers 4
        fields = {ours: known[field] for ours, field in self.fields.items() if known.get(field) is not None}
        return {**self.fixed, **fields}

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """The foreign `config.json` of a model of class `model_class`, by the table `fields`.

        Raises:
            ValueError: A value that the foreign architecture cannot express.
        """
        values = ours.to_dict()
        what = f"transformers' {self.classes.get(model_class.__name__, f'`{self.model_type}`')}"
        require_fields(ours, self.fixed, what)
        return {field: values[name] for name, field in self.fields.items() if values.get(name) is not None}

    def processor_to(self, processor: Any) -> Any:
        """What prepares the inputs, as one that transformers alone can load; itself when it is stock.

        Raises:
            ValueError: It is of our own and this architecture has no counterpart.
        """
        if type(processor).__module__.split(".")[0] != "transformers":
            raise ValueError(
                f"{type(processor).__name__} has no counterpart that goes with `{self.model_type}`; save the "
                "model with a processor of transformers, or without one."
            )
        return processor

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Foreign weights under our names; a name that the table does not know stays as it is."""
        return self._rename(theirs, source=slice(1, None), target=0)

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our weights under foreign names.

        Raises:
            ValueError: A weight that the foreign architecture has no place for.
        """
        unknown = [name for name in ours if self.renamed(name, source=slice(0, 1), target=1) is None]
        if unknown:
            raise ValueError(
                f"`{unknown[0]}` ({len(unknown)} weights in all) has no place in a `{self.model_type}` "
                "checkpoint; only what that architecture has can be exported."
            )
        return self._rename(ours, source=slice(0, 1), target=1)

    def renamed(self, name: str, source: slice, target: int) -> str | None:
        """`name` from one of the columns `source` of the table to the column `target`; None if unknown."""
        prefixes = self.prefix, self.prefix if self.foreign_prefix is None else self.foreign_prefix
        given, wanted = prefixes if target else prefixes[::-1]
        given, wanted = (given, wanted) if given and name.startswith(given) else ("", "")
        for row in self.names:
            for pattern in row[source]:
                match = _compiled(pattern).fullmatch(name.removeprefix(given))
                if match:
                    return wanted + re.sub(r"\{\}|\*", "%s", row[target]) % match.groups()
        return None

    def _rename(self, weights: Mapping[str, Tensor], source: slice, target: int) -> dict[str, Tensor]:
        renamed: dict[str, Tensor] = {}
        for name, weight in weights.items():
            if any(_compiled(pattern).fullmatch(name) for pattern in self.unused):
                continue
            new = self.renamed(name, source, target) or name
            if new in renamed:
                raise ValueError(f"Two weights of the checkpoint mean `{new}`; `{name}` is the second.")
            renamed[new] = weight
        return renamed


def require_fields(config: PreTrainedConfig, wanted: Mapping[str, Any], what: str) -> None:
    """Refuse to export a config with other values than these.

    Args:
        config: Of a model of ours.
        wanted: Fields of it, with the value that the foreign architecture has.
        what: That architecture, for the message.

    Raises:
        ValueError: The first field that differs.
    """
    values = config.to_dict()
    for name, value in wanted.items():
        if values[name] != value:
            raise ValueError(
                f"`{name}`={values[name]!r} cannot be exported, {what} has {value!r} only; set it so if only "
                "training needs it, else share the folder itself, it loads with `trust_remote_code=True`."
            )


class ForeignLoadingMixin:
    """For models, before `PreTrainedModel`: `from_pretrained` also reads `foreign_checkpoints`."""

    foreign_checkpoints: tuple[ForeignCheckpoint, ...] = ()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args: object, **kwargs: object
    ) -> Self:
        """Load as `PreTrainedModel.from_pretrained` does, with the same arguments.

        Raises:
            ValueError: The checkpoint is of a model type that this class neither is nor can read.
        """
        source = pretrained_model_name_or_path
        where: dict[str, Any] = {name: kwargs[name] for name in WHERE if name in kwargs}
        theirs = None if source is None or kwargs.get("gguf_file") else read_json(source, CONFIG_NAME, where)
        if source is not None and theirs is None:
            cls._refuse_adapter_on_foreign(source, where)
        checkpoint = None if theirs is None else cls._foreign(str(source), theirs)
        if source is None or theirs is None or checkpoint is None:
            return super().from_pretrained(source, *args, **kwargs)  # ty: ignore[missing-attribute]
        options = {name: value for name, value in kwargs.items() if name not in where}
        weights = _read_weights(source, options, where)
        if options.get("config") is None:
            names = {checkpoint.renamed(name, slice(1, None), 0) or name for name in weights}
            found = {name: read_json(source, name, where) for name in checkpoint.beside}
            options["config"] = cls._build_config(checkpoint.config_from(theirs | found, names, cls), options)
        options["state_dict"] = checkpoint.weights_from(weights)
        loaded = super().from_pretrained(None, *args, **options)  # ty: ignore[missing-attribute]
        model = loaded[0] if options.get("output_loading_info") else loaded
        model.name_or_path = model.config.name_or_path = str(source)
        if model.can_generate() and options.get("generation_config") is None:
            with suppress(OSError):  # without a file of it, the one made from the config stays
                _complete(
                    stored := GenerationConfig.from_pretrained(source, **where), model.generation_config
                )
                model.generation_config = stored
        return loaded

    @classmethod
    def _foreign(cls, source: str, theirs: dict) -> ForeignCheckpoint | None:
        """The table that reads a checkpoint, None when it is one of our own."""
        model_type = theirs.get("model_type")
        own = cls.config_class.model_type  # ty: ignore[missing-attribute]
        if model_type == own:
            return None
        for checkpoint in cls.foreign_checkpoints:
            if checkpoint.model_type == model_type:
                return checkpoint
        known = ", ".join([own, *(checkpoint.model_type for checkpoint in cls.foreign_checkpoints)])
        raise ValueError(
            f"{source} holds a model of type {model_type!r}; {cls.__name__} reads: {known}. Load it with "
            "`AutoModel`, or with the class that its `config.json` names under `architectures`."
        )

    @classmethod
    def _refuse_adapter_on_foreign(cls, source: str | Path, where: dict) -> None:
        """Without this, transformers loads the base itself and never looks at `foreign_checkpoints`."""
        adapter = read_json(source, "adapter_config.json", where) or {}
        base = adapter.get("base_model_name_or_path")
        theirs = read_json(base, CONFIG_NAME, {}) if base else None
        if theirs is not None and cls._foreign(str(base), theirs) is not None:
            raise ValueError(
                f"{source} is an adapter on {base}, a model of type {theirs['model_type']!r}; load "
                f"{cls.__name__}.from_pretrained({base!r}) and give it to `PeftModel.from_pretrained`."
            )

    @classmethod
    def _build_config(cls, fields: dict, options: dict) -> PreTrainedConfig:
        """Our config of converted `fields`; takes changes to it, such as `num_labels`, out of `options`."""
        config_class = cls.config_class  # ty: ignore[missing-attribute]
        config = config_class(**fields)
        loading = {"config", "dtype", "torch_dtype"}  # `from_pretrained` itself needs these
        for name in [name for name in options if hasattr(config, name) and name not in loading]:
            fields[name] = options.pop(name)
        return config_class(**fields)


def _complete(stored: GenerationConfig, made: GenerationConfig) -> None:
    """Let a file that does not say where to stop or what to avoid leave that as the config made it."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens"):
        if getattr(stored, name) is None:
            setattr(stored, name, getattr(made, name))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)"))


def read_json(source: str | Path, name: str, where: dict) -> dict | None:
    """A file of a folder or repository; None when there is none (an adapter, a broken id).

    Args:
        source: Folder or Hub id.
        name: Of the file.
        where: Those of the arguments of `from_pretrained` that say where files are (`WHERE`).
    """
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _read_weights(source: str | Path, options: dict, where: dict) -> dict[str, Any]:
    """All weights of a checkpoint by name; takes what chooses between its files out of `options`.

    Those of safetensors files are read when the model takes them, see `open_weights`.
    """
    variant, safe = options.pop("variant", None), options.pop("use_safetensors", None)
    files = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    files = files[2:] if safe is False else files[:2] if safe else files
    if variant:
        files = [f".{variant}.".join(name.rsplit(".", 1)) for name in files]  # as transformers names them
    for name in files:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **where)
        if path is None:
            continue
        index = path if path.endswith(".json") else None
        shards = get_checkpoint_shard_files(source, path, **where)[0] if index else [path]
        if shards[0].endswith(".safetensors"):
            weights = open_weights(shards, index)
            # DeepSpeed's third stage deals the weights out itself, from whole tensors.
            return {n: w[...] for n, w in weights.items()} if is_deepspeed_zero3_enabled() else weights
        weights_only = options.get("weights_only", True)
        parts = [load_state_dict(shard, weights_only=weights_only) for shard in shards]
        return {name: weight for part in parts for name, weight in part.items()}
    raise FileNotFoundError(f"{source} holds no weights; wanted one of {', '.join(files)}.")
