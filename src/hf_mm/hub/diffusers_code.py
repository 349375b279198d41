"""Save the code of diffusers models and pipelines beside their weights.

diffusers fetches one file for a component, `<component>/<module>.py`, and one for a pipeline, `pipeline.py`.
So a component and a pipeline are each written there as one generated file, named after the module of the
class; all such files share one flat space of modules, so these names are unique in this package. A stranger
loads a pipeline by

    DiffusionPipeline.from_pretrained(place, custom_pipeline="pipeline", trust_remote_code=True)

and a component that was saved alone by `diffusers.AutoModel.from_pretrained(place, trust_remote_code=True)`.
Who has imported this package needs neither flag.

In those files a pipeline and its components hold one copy each of the classes they share: a pipeline must not
ask `isinstance(component, ...)` of classes of this package, and its `__init__` takes components as
`ModelMixin`.
"""

import json
import sys
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from .saving import atomic_write, publishing_folder

__all__ = ["RemoteModelMixin", "RemotePipelineMixin"]


class RemoteModelMixin:
    """For models, before `ModelMixin` and `ConfigMixin`: saving is atomic and brings the code along.

    class MMVQAutoencoder(RemoteModelMixin, ModelMixin, ConfigMixin): ...
    """

    _auto_class: str | None = "AutoModel"  # diffusers then names the file in `auto_map`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._auto_class = "AutoModel" if _travels(cls.__module__) else None

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs: Any) -> tuple[dict, dict, dict]:
        """What of a saved config is for `__init__`; `auto_map` is not, and diffusers would warn of it."""
        config_dict = {name: value for name, value in config_dict.items() if name != "auto_map"}
        return super().extract_init_dict(config_dict, **kwargs)  # ty: ignore[missing-attribute]

    def save_config(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the config and the code, as the parent's method does with the config alone."""
        _write_code(type(self), Path(save_directory) / f"{_basename(type(self).__module__)}.py")
        super().save_config(save_directory, push_to_hub, **kwargs)  # ty: ignore[missing-attribute]

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights, config and code so that they can be loaded again, with or without this package.

        Args:
            save_directory: Folder, created when absent; its earlier files stay until the new ones are whole.
            is_main_process: Whether this process writes; the others write nothing.
            save_function: Not used, as in diffusers.
            safe_serialization: Only true: pickled weights could run any program.
            variant: Part of the name of the weights' file, such as "fp16" or "ema".
            max_shard_size: Size from which weights are split into several files.
            push_to_hub: Also push what was saved, by `repo_id` and the like in `kwargs`.
            use_flashpack: Write weights in that format, as in diffusers.
            **kwargs: All else that the parent's method takes.

        Raises:
            FileExistsError: `save_directory` is a file.
            ValueError: `safe_serialization` is false.
        """
        _refuse_pickles(safe_serialization)
        if not is_main_process:
            return
        with publishing_folder(fspath(save_directory), push_to_hub, kwargs) as temporary:
            save = super().save_pretrained  # ty: ignore[missing-attribute]
            kwargs["use_flashpack"] = use_flashpack
            save(str(temporary), variant=variant, max_shard_size=max_shard_size, **kwargs)


class RemotePipelineMixin:
    """For pipelines, before `DiffusionPipeline`: saving is atomic and brings the code along.

        class GANPipeline(RemotePipelineMixin, DiffusionPipeline): ...

    A pipeline that was loaded by remote code is saved with the code it came with.
    """

    def to_json_string(self) -> str:
        """The index of the pipeline, in which components of this package stand by their file."""
        index = json.loads(super().to_json_string())  # ty: ignore[missing-attribute]
        for name, (module, class_name) in _own_components(index).items():
            index[name] = [_basename(module), class_name]
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the index and the code of the pipeline and of the components saved before."""
        folder = Path(save_directory)
        index = json.loads(super().to_json_string())  # ty: ignore[missing-attribute]
        for name, (module, class_name) in _own_components(index).items():
            if (folder / name).is_dir():
                cls = getattr(sys.modules[module], class_name)
                _write_code(cls, folder / name / f"{_basename(module)}.py")
        _write_code(type(self), folder / "pipeline.py")
        super().save_config(save_directory, push_to_hub, **kwargs)  # ty: ignore[missing-attribute]

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save every component, the index and the code.

        Args:
            save_directory: Folder, created when absent; its earlier files stay until the new ones are whole.
            safe_serialization: Only true: pickled weights could run any program.
            variant: Part of the name of the weights' files, such as "fp16" or "ema".
            max_shard_size: Size from which the weights of a component are split into several files.
            push_to_hub: Also push what was saved, by `repo_id` and the like in `kwargs`.
            use_flashpack: Write weights in that format, as in diffusers.
            **kwargs: All else that the parent's method takes.

        Raises:
            FileExistsError: `save_directory` is a file.
            ValueError: `safe_serialization` is false.
        """
        _refuse_pickles(safe_serialization)
        with publishing_folder(fspath(save_directory), push_to_hub, kwargs) as temporary:
            save = super().save_pretrained  # ty: ignore[missing-attribute]
            kwargs["use_flashpack"] = use_flashpack
            save(str(temporary), variant=variant, max_shard_size=max_shard_size, **kwargs)


def _travels(module: str) -> bool:
    """Whether a class of this module has a file to go with it: ours, or loaded from such a file."""
    return module.split(".")[0] in {"hf_mm", "diffusers_modules"}


def _basename(module: str) -> str:
    return module.split(".")[-1]


def _own_components(index: dict) -> dict[str, tuple[str, str]]:
    """Component: (module, class) of those in an index whose code goes with them."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: (str(pair[0]), str(pair[1])) for name, pair in pairs.items() if _travels(str(pair[0]))}


def _write_code(cls: type, path: Path) -> None:
    """The file that a class needs where this package is absent; none for classes of somebody else."""
    if not _travels(cls.__module__):
        return
    if cls.__module__.split(".")[0] == "hf_mm":
        # By name: this file travels with every class, the generator does not.
        code = import_module("hf_mm.hub.bundle").class_bundle(cls)
    else:
        code = Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8")
    with atomic_write(path) as temporary:
        temporary.write_text(code, encoding="utf-8")


def _refuse_pickles(safe_serialization: bool) -> None:
    if not safe_serialization:
        raise ValueError(
            "`safe_serialization=False` would write pickled weights, which can run any program when they are "
            "loaded; leave it out to write safetensors."
        )
