"""The generated file of a family: what it holds, and what is refused because it could not travel."""

import builtins
import symtable
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest
from diffusers.utils.dynamic_modules_utils import check_imports, find_pipeline_class
from transformers.dynamic_module_utils import get_imports

import hf_mm
from hf_mm.hub.bundle import bundle, class_bundle, family_bundle
from hf_mm.registry import FAMILIES, GENERATORS, load_family, load_generators

PARTS = "hf_mm.bundle_parts"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules into a package inside hf_mm; returns a function that bundles the class `Top` of `top`."""
    monkeypatch.setattr(hf_mm, "__path__", [*hf_mm.__path__, str(tmp_path)])
    folder = tmp_path / "bundle_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Parts."""\n')

    def write_and_bundle(**modules: str) -> str:
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        return bundle(type("Top", (), {"__module__": f"{PARTS}.top"}))

    yield write_and_bundle
    for name in [name for name in sys.modules if name.startswith(PARTS)]:
        del sys.modules[name]


def run(text: str) -> dict:
    names: dict = {"__name__": "generated"}
    exec(compile(text, "generated.py", "exec"), names)
    return names


def test_the_parts_run_as_one_file(package):
    low = """
'''Low.'''

import math

__all__ = ["half"]

TWO: int = 2
ONE = THE_ONE = 1


def half(x: float) -> float:
    return _divide(x, TWO) * ONE


def _divide(x: float, y: float) -> float:
    return math.floor(x) / y
"""
    top = """
import math
from math import (
    pi,
)

from .low import (
    TWO,
    half,
)


class Top:
    value = half(8.5) + TWO + math.floor(pi)
"""
    text = package(low=low, top=top)
    assert run(text)["Top"].value == 9.0
    assert PARTS not in "".join(line for line in text.splitlines() if "import" in line)
    assert text.count("import math\n") == 1
    assert "__all__" not in text


def test_a_part_that_two_modules_need_comes_once_and_first(package):
    text = package(
        low="def base() -> int:\n    return 1\n",
        middle="from .low import base\n\nONE = base()\n",
        top="from .low import base\nfrom .middle import ONE\n\n\nclass Top:\n    value = base() + ONE\n",
    )
    assert run(text)["Top"].value == 2
    assert text.count("def base") == 1


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"top": "from .low import base as b\n", "low": "base = 1\n"},
            r"top:1: in-package imports must import names, unrenamed, .*; got 'from .low import base as b'",
        ),
        ({"top": "from . import low\n", "low": ""}, r"must import names, unrenamed, .* 'from . import low'"),
        (
            {"top": f"import {PARTS}.low\n", "low": ""},
            rf"must import names, unrenamed, .* 'import {PARTS}.low'",
        ),
        ({"top": "from .low import *\n", "low": ""}, r"must import names, .* 'from .low import \*'"),
        (
            {"top": "def f() -> None:\n    from .low import base\n", "low": "base = 1\n"},
            r"top:2: in-package imports must stand at the top",
        ),
        (
            {"top": "if 1 > 0:\n    from .low import base\n", "low": "base = 1\n"},
            r"top:2: in-package imports must stand at the top",
        ),
        (
            {"top": "from .middle import base\n", "middle": "from .low import base\n", "low": "base = 1\n"},
            r"top:1: hf_mm.bundle_parts.middle does not define `base`; import it from the module that does",
        ),
        (
            {
                "top": "from .low import a\n",
                "low": "a = 1\nfrom .middle import b\n",
                "middle": "from .low import a\nb = 1\n",
            },
            r"low imports hf_mm.bundle_parts.middle imports hf_mm.bundle_parts.low: a circle cannot",
        ),
        (
            {"top": "from __future__ import annotations\n"},
            r"top:1: `from __future__` would change every module of the generated file; write",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_what_cannot_travel_is_named(package, modules, message):
    with pytest.raises(ValueError, match=message):
        package(**modules)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("def part() -> None: ...\n", "class part: ...\n"),
        ("part = 1\n", "part: int = 2\n"),
        ("part, other = 1, 2\n", "for part in (): ...\n"),
        ("from math import pi as part\n", "part = 3\n"),
        ("import math as part\n", "import json as part\n"),
        ("from PIL.Image import open as part\n", "from io import open as part\n"),
    ],
)
def test_one_name_with_two_meanings_is_refused(package, first, second):
    with pytest.raises(ValueError, match=r"`part` is .*low.* and .*top\); rename one to bundle both"):
        package(low=f"base = 1\n{first}", top=f"from .low import base\n{second}")


def test_the_same_import_in_two_modules_is_no_conflict(package):
    low = "import os.path\nimport numpy as np\nfrom math import pi\n\nbase = np.sign(pi)\n"
    top = "import os\nimport numpy as np\nfrom math import e, pi\n\nfrom .low import base\n"
    assert "from math import e, pi\n" in package(low=low, top=top)


def names_in(scope: symtable.SymbolTable) -> Iterator[symtable.Symbol]:
    yield from scope.get_symbols()
    for inner in scope.get_children():
        yield from names_in(inner)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_comes_with_every_class_and_nothing_undefined(family):
    text = family_bundle(family)
    module = symtable.symtable(text, f"hf_mm_{family}.py", "exec")
    defined = {name.get_name() for name in module.get_symbols() if name.is_assigned() or name.is_imported()}
    assert {cls.__name__ for cls in load_family(family).values()} <= defined
    used = {name.get_name() for name in names_in(module) if name.is_global() and name.is_referenced()}
    assert not used - defined - set(dir(builtins)) - {"__file__", "__name__"}


def test_a_family_is_generated_once_and_not_at_every_checkpoint():
    assert family_bundle("vit") is family_bundle("vit")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_asks_for_nothing_that_transformers_does_not_bring(family, tmp_path):
    file = tmp_path / "bundle.py"
    file.write_text(family_bundle(family))
    assert set(get_imports(file)) - sys.stdlib_module_names <= {
        "PIL",
        "huggingface_hub",
        "numpy",
        "torch",
        "transformers",
    }


def test_a_family_that_nests_others_brings_and_registers_them():
    text = family_bundle("vlm")
    assert "class MMViTForImageClassification(" in text
    assert "    AutoConfig.register('mm_vit', MMViTConfig, exist_ok=True)\n" in text
    assert "    AutoModel.register(MMViTConfig, MMViTModel, exist_ok=True)\n" in text
    assert "register_nested_families" not in family_bundle("vit")


CLASSES = [path.split(".")[-1] for paths in GENERATORS.values() for path in paths]
BRINGS = {"PIL", "diffusers", "huggingface_hub", "numpy", "torch", "transformers"}


def generator(name: str) -> type:
    return next(classes[name] for family in GENERATORS if name in (classes := load_generators(family)))


@pytest.mark.parametrize("name", CLASSES)
def test_a_generator_comes_with_nothing_undefined(name, tmp_path):
    text = class_bundle(generator(name))
    module = symtable.symtable(text, f"{name}.py", "exec")
    defined = {name.get_name() for name in module.get_symbols() if name.is_assigned() or name.is_imported()}
    used = {name.get_name() for name in names_in(module) if name.is_global() and name.is_referenced()}
    assert name in defined
    assert not used - defined - set(dir(builtins)) - {"__file__", "__name__"}
    file = tmp_path / "bundle.py"
    file.write_text(text)
    assert set(get_imports(file)) - sys.stdlib_module_names <= BRINGS
    assert check_imports(file) == []  # nothing that diffusers would look for beside it


def loaded(text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A generated file as diffusers runs it."""
    module = ModuleType("diffusers_modules.local.pipeline")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(text, "pipeline.py", "exec"), vars(module))
    return module


@pytest.mark.parametrize("name", [name for name in CLASSES if name.endswith("Pipeline")])
def test_diffusers_finds_one_pipeline_in_its_file(name, monkeypatch):
    module = loaded(class_bundle(generator(name)), monkeypatch)
    assert find_pipeline_class(module).__name__ == name


BASE = """
from diffusers import DiffusionPipeline


class Base(DiffusionPipeline):
    def kind(self) -> str:
        return "base"
"""


def bundle_top(package, **modules: str) -> str:
    package(**modules)  # writes them
    return class_bundle(import_module(f"{PARTS}.top").Top)


def test_a_pipeline_that_another_derives_from_is_out_of_sight(package, monkeypatch):
    text = bundle_top(package, low=BASE, top="from .low import Base\n\n\nclass Top(Base):\n    ...\n")
    top = find_pipeline_class(loaded(text, monkeypatch))
    assert top.__name__ == "Top"
    assert top().kind() == "base"


@pytest.mark.parametrize(
    ("top", "message"),
    [
        (
            "from .low import Base\nclass Top(Base):\n    def f(self): return isinstance(self, Base)\n",
            r"^f uses `Base`, which diffusers would take .* file of Top; write `super\(\)` or `type\(self\)`",
        ),
        (
            "from diffusers import DiffusionPipeline\nfrom .low import Base\n"
            "class Top(DiffusionPipeline):\n    ...\n",
            r"top needs hf_mm.bundle_parts.low, which defines the pipeline Base; diffusers takes files",
        ),
    ],
)
def test_a_second_pipeline_in_a_file_is_refused(package, top, message):
    with pytest.raises(ValueError, match=message):
        bundle_top(package, low=BASE, top=top)
