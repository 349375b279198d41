"""Register with the Auto classes of transformers, and with diffusers, when they appear, whoever comes first.

Neither has plug-ins, and importing them takes seconds that `import hf_mm` must not cost. So a finder at
the head of `sys.meta_path` notices the modules that define what loads models. Ours are registered when the
outermost import of one of them or of this package is over: in its middle (transformers imports the Auto
classes while `modeling_utils` or `generation` are half done) our modules could not import what they need.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import local
from types import ModuleType

from .registry import AUTO_MODULES, DIFFUSERS_MODULES, register_in

__all__ = ["watch"]

WATCHED = {*AUTO_MODULES, *DIFFUSERS_MODULES}


class _Nesting(local):
    """How many imports of watched packages this thread is inside of."""

    depth = 0


_nesting = _Nesting()
_pending: set[str] = set()  # watched modules that do not know ours yet


def watch() -> None:
    """Register with what is loaded of transformers and diffusers, and with the rest as soon as it is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        _pending.update(module for module in WATCHED if module in sys.modules)
    _register_pending()


def _register_pending() -> None:
    if _nesting.depth:
        return
    _nesting.depth += 1  # our own imports must not begin a second round
    try:
        while _pending:
            module = min(_pending)
            register_in(module)
            _pending.remove(module)  # not before: an error here comes back with the next import
    finally:
        _nesting.depth -= 1


class _Finder(MetaPathFinder):
    """Leaves the finding to the others and has the modules of watched packages counted."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] not in {"transformers", "diffusers", __package__}:
            return None
        for finder in sys.meta_path:
            if finder is self or not (spec := finder.find_spec(fullname, path, target)):
                continue
            if spec.loader:
                spec.loader = _Loader(spec.loader)
            return spec
        return None


class _Loader(Loader):
    """Runs a module by its own loader, then registers if that was the outermost import."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)  # `python -m` asks for `get_code` before anything is run

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__:
            module.__spec__.loader = self.loader  # nobody else meets the stand-in
        _nesting.depth += 1
        try:
            self.loader.exec_module(module)
        finally:
            _nesting.depth -= 1
        if module.__name__ in WATCHED:
            _pending.add(module.__name__)
        _register_pending()
