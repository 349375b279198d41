"""Write a model of ours as the checkpoint that plain transformers (or what serves it) loads.

The reverse of `from_pretrained` on a foreign checkpoint, by the same `ForeignCheckpoint`. The new folder is
read back with transformers' own class before it gets its name, so what cannot be loaded is never left behind;
what is read by code on the Hub only is read back with the class it came from.
"""

import json
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME
from transformers.utils.hub import cached_file

from ..registry import FAMILIES, family_of, load_family, register
from .interop import ForeignCheckpoint, ForeignLoadingMixin

__all__ = ["export"]


def export(source: str | Path, target: str | Path, model_type: str | None = None) -> list[str]:
    """Convert a saved model into a folder for plain transformers.

    Args:
        source: Folder or Hub id of a model of this package, with merged weights, not an adapter.
        target: Folder to write; it must not hold anything yet.
        model_type: The architecture of transformers to write, for families that know more than one; by
            default the first that can express the model.

    Returns:
        Names of the files written, sorted. The image processor or processor is among them when `source` has
        one.

    Raises:
        FileExistsError: `target` is there and not empty.
        FileNotFoundError: There is no folder `source`.
        ValueError: `source` is not a model of ours, or the foreign architecture cannot express it.
    """
    register()
    target = Path(target)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty; name a new folder or remove it first.")
    model_class, classes = _class_of(source)
    model = model_class.from_pretrained(source)
    checkpoint, fields = _checkpoint_of(model_class, model_type, model.config)  # refuses before writing
    weights = checkpoint.weights_to(model.state_dict())
    processor = _processor_of(source, classes)
    with _new_folder(target) as folder:
        _write_config(fields, checkpoint, model, folder)
        save_torch_state_dict(weights, folder, metadata={"format": "pt"})
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        if processor is not None:
            checkpoint.processor_to(processor).save_pretrained(folder)
        _read_back(checkpoint, model, folder)
    return sorted(path.name for path in target.iterdir())


def _class_of(source: str | Path) -> tuple[Any, dict[str, type]]:
    """The class of ours that a checkpoint was saved from, and the classes of its family."""
    if not Path(source).exists() and (Path(source).is_absolute() or len(Path(source).parts) > 2):
        raise FileNotFoundError(f"{source} does not exist; wanted a folder or a Hub id.")
    config = AutoConfig.from_pretrained(source)
    ours = {f"mm_{family}" for family in FAMILIES}
    if config.model_type not in ours:
        raise ValueError(
            f"{source} holds a model of type {config.model_type!r}; only models of this package can be "
            f"exported: {', '.join(sorted(ours))}."
        )
    classes = load_family(family_of(type(config)))
    for module in {cls.__module__: None for cls in classes.values()}:  # also classes that have no Auto class
        for name in config.architectures or []:
            cls = vars(sys.modules[module]).get(name)
            if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
                return cls, classes
    raise ValueError(
        f"{source} does not say which class it was saved from (`architectures`={config.architectures} in its "
        "config.json); load it with the right class and save it again."
    )


def _checkpoint_of(
    model_class: Any, model_type: str | None, config: PreTrainedConfig
) -> tuple[ForeignCheckpoint, dict]:
    """The table that writes `model_class`, of the architecture asked for or the first that can; fields."""
    known = model_class.foreign_checkpoints if issubclass(model_class, ForeignLoadingMixin) else ()
    known = [checkpoint for checkpoint in known if model_class.__name__ in checkpoint.classes]
    refusals = {}
    for checkpoint in known:
        if model_type in (None, checkpoint.model_type):
            try:
                return checkpoint, checkpoint.config_to(config, model_class)
            except ValueError as error:
                refusals[checkpoint.model_type] = error
    if len(refusals) > 1:
        raise ValueError(" ".join(f"As {name}: {error}" for name, error in refusals.items()))
    if refusals:
        raise next(iter(refusals.values()))
    types = ", ".join(checkpoint.model_type for checkpoint in known) or "nothing"
    raise ValueError(
        f"{model_class.__name__} cannot be exported{f' as {model_type!r}' if model_type else ''}; "
        f"it can become: {types}."
    )


def _processor_of(source: str | Path, classes: dict[str, type]) -> Any:
    """What prepares the inputs of the model, None when none was saved with it."""
    names = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
    if not any(cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in names):
        return None
    auto = transformers.AutoProcessor if "AutoProcessor" in classes else transformers.AutoImageProcessor
    return auto.from_pretrained(source)


def _write_config(fields: dict, checkpoint: ForeignCheckpoint, model: PreTrainedModel, folder: Path) -> None:
    architectures = [checkpoint.classes[type(model).__name__]]
    if checkpoint.model_type in CONFIG_MAPPING:
        config = AutoConfig.for_model(checkpoint.model_type, **fields)
        config.architectures, config.dtype = architectures, model.dtype
        config.save_pretrained(folder)
        return
    dtype = str(model.dtype).removeprefix("torch.")
    whole = {
        "architectures": architectures,
        "model_type": checkpoint.model_type,
        **fields,
        "torch_dtype": dtype,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_back(checkpoint: ForeignCheckpoint, model: PreTrainedModel, folder: Path) -> None:
    """Load the folder as its user will.

    Raises:
        ValueError: A weight is missing, left over, of another shape or another value there.
    """
    reader: Any = getattr(transformers, checkpoint.classes[type(model).__name__], type(model))
    again, report = reader.from_pretrained(folder, output_loading_info=True)
    wrong = {str(name) for names in report.values() for name in names}
    if reader is type(model):
        own, written = model.state_dict(), again.state_dict()
        wrong |= {name for name in own if not torch.equal(own[name], written[name])}
    wrong = {name for name in wrong if not any(re.fullmatch(lack, name) for lack in checkpoint.may_lack)}
    if wrong:
        raise ValueError(f"{reader.__name__} does not take: {', '.join(sorted(wrong))}.")


@contextmanager
def _new_folder(target: Path) -> Any:
    """A folder beside `target` that takes its name when the block ends and vanishes when it raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"_unfinished-{uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
