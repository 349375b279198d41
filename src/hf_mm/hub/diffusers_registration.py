"""Let diffusers find the classes of this package by name, so that loading asks for no flag.

diffusers has no plug-ins. It looks for a pipeline among its own attributes, and for a component among those
of `diffusers.pipelines` before it looks for a file; so ours are put there. `diffusers.AutoModel` asks for
trust as soon as a checkpoint names a file of code; here it takes the installed class first, flag or no flag,
as the Auto classes of transformers do.
"""

import sys
from functools import wraps
from typing import Any

__all__ = ["register_with_diffusers"]

CONFIG_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "token",
    "subfolder",
)

_installed: dict[str, type] = {}  # components by name


def register_with_diffusers(*classes: type) -> None:
    """Make `DiffusionPipeline.from_pretrained` and `diffusers.AutoModel` find `classes` without remote code.

    Args:
        *classes: Pipelines and components. A component is found by the last part of its module's name, which
            is what its checkpoints say, and by the whole, which is what a pipeline of diffusers' own writes.
    """
    import diffusers
    from diffusers import pipelines

    for cls in classes:
        setattr(diffusers, cls.__name__, cls)
        if not issubclass(cls, diffusers.DiffusionPipeline):
            _installed[cls.__name__] = cls
            for name in (cls.__module__.split(".")[-1], cls.__module__):
                setattr(pipelines, name, sys.modules[cls.__module__])
    for method in ("from_pretrained", "from_config"):
        _prefer_installed(diffusers.AutoModel, method)


def _prefer_installed(auto: Any, method: str) -> None:
    """Have a class method of `AutoModel` hand over to the installed class where there is one."""
    stock = vars(auto)[method].__func__
    if stock.__module__ == __name__:
        return  # done before

    @wraps(stock, assigned=("__name__", "__qualname__", "__doc__"))
    def load(cls: Any, source: Any = None, *args: Any, **options: Any) -> Any:
        installed = None if source is None else _installed_class(cls, source, options)
        if installed is None:
            return stock(cls, *([] if source is None else [source]), *args, **options)
        if method == "from_pretrained":
            options.pop("trust_remote_code", None)
            return installed.from_pretrained(source, *args, **options)
        others = {name: value for name, value in options.items() if name not in CONFIG_OPTIONS}
        others.pop("trust_remote_code", None)
        return installed.from_config(_config(cls, source, options), **others)

    setattr(auto, method, classmethod(load))


def _installed_class(auto: Any, source: Any, options: dict[str, Any]) -> Any:
    """The component of ours that a checkpoint was saved from, if any."""
    try:
        config = _config(auto, source, options)
    except OSError:  # no config there: AutoModel says so, or finds what it needs elsewhere
        return None
    return _installed.get(str(config.get("_class_name")))


def _config(auto: Any, source: Any, options: dict[str, Any]) -> dict[str, Any]:
    if isinstance(source, dict):
        return source
    auto.config_name = "config.json"  # as AutoModel itself does it
    return auto.load_config(source, **{name: options[name] for name in CONFIG_OPTIONS if name in options})
