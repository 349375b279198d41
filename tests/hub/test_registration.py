"""After `import hf_mm` the Auto classes know our families: in any order of imports, with no call or flag."""

from pathlib import Path

import pytest
from hub.processes import FreshProcesses
from transformers import AutoModelForImageTextToText

from hf_mm.registry import family_of, register

SRC = Path(__file__).parents[2] / "src"
NAMES = ["AutoModel", "AutoConfig", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer"]
NAMES += ["Trainer", "PreTrainedModel", "GenerationMixin", "pipeline"]
OTHERS = [
    *(f"from transformers import {name}" for name in NAMES),
    "import transformers.models.auto.modeling_auto",
    "import peft",
    "import diffusers",
    "from hf_mm.models.vlm.modeling_vlm import MMVLMForConditionalGeneration",
]
# What transformers imports and takes long: shared by all cases.
SHARED = """
import sys
import torch, torch._dynamo, torch.distributed.tensor, accelerate, datasets, scipy.optimize, PIL.Image

assert not {"transformers", "hf_mm"} & set(sys.modules)
"""
CHECK = """
from importlib import import_module
from transformers import AutoConfig, AutoModel
import transformers
from hf_mm.registry import AUTO_MODULES, FAMILIES, load_family

for family in FAMILIES:
    classes = load_family(family)
    config = classes.pop("AutoConfig")
    assert AutoConfig.for_model(config.model_type).__class__ is config
    for auto_name, cls in classes.items():
        if auto_name.startswith("AutoModel"):
            assert getattr(transformers, auto_name)._model_mapping[config] is cls
        elif auto_name == "AutoImageProcessor":
            assert import_module(AUTO_MODULES[2]).IMAGE_PROCESSOR_MAPPING[config] == {"pil": cls}
        else:
            assert import_module(AUTO_MODULES[3]).PROCESSOR_MAPPING[config] is cls
"""
ORDERS = {
    "hf_mm, then AutoModel": "import hf_mm\nfrom diffusers import AutoModel",
    "hf_mm, then DiffusionPipeline": "import hf_mm\nfrom diffusers import DiffusionPipeline",
    "DiffusionPipeline, then hf_mm": "from diffusers import DiffusionPipeline\nimport hf_mm",
    "a component": "from hf_mm.generators.autoencoder.modeling_vq_autoencoder import MMVQAutoencoder",
}
CHECK_DIFFUSERS = """
import diffusers
from diffusers import AutoModel, DiffusionPipeline
from hf_mm.registry import GENERATORS, load_generators

for family in GENERATORS:
    for name, cls in load_generators(family).items():
        assert getattr(diffusers, name) is cls
        if not issubclass(cls, DiffusionPipeline):
            home = sys.modules[cls.__module__]
            assert getattr(diffusers.pipelines, cls.__module__.split(".")[-1]) is home
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    with FreshProcesses(SHARED, tmp_path_factory.mktemp("fresh"), str(SRC)) as processes:
        yield processes


@pytest.mark.parametrize("other", OTHERS)
def test_registered_when_imported_first(fresh, other):
    fresh.run(f"import hf_mm\n{other}\n{CHECK}")


@pytest.mark.parametrize("other", OTHERS)
def test_registered_when_imported_last(fresh, other):
    fresh.run(f"{other}\nimport hf_mm\n{CHECK}")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_generators_are_registered_whoever_is_imported_first(fresh, order):
    fresh.run(f"{order}\n{CHECK_DIFFUSERS}")


def test_diffusers_alone_brings_no_generators(fresh):
    """Nobody who wants a scheduler waits for our models."""
    fresh.run("""
import hf_mm
from diffusers import DDIMScheduler

assert not [name for name in sys.modules if name.startswith("hf_mm.generators")]
""")


def test_hf_mm_brings_neither_transformers_nor_diffusers(fresh):
    fresh.run("""
import hf_mm

assert not {"transformers", "diffusers"} & set(sys.modules)
""")


def test_an_error_in_our_generators_is_heard(fresh):
    fresh.run("""
import hf_mm.registry

hf_mm.registry.GENERATORS["autoencoder"] = ("modeling_vq_autoencoder.MMVQ",)
try:
    from diffusers import DiffusionPipeline
except Exception as error:
    while error.__cause__ is not None:
        error = error.__cause__
    assert "modeling_vq_autoencoder' has no attribute 'MMVQ'" in str(error), error
else:
    raise AssertionError("came without ours and without a word")
""")


def test_an_error_in_our_modules_is_heard(fresh):
    fresh.run("""
import hf_mm.registry

hf_mm.registry.FAMILIES["vit"]["AutoModel"] = "modeling_vit.MMVit"
for name in ("AutoModel", "Trainer"):  # and not only once
    try:
        exec(f"from transformers import {name}")
    except ImportError as error:  # of transformers, which shows ours as its cause
        assert "modeling_vit' has no attribute 'MMVit'" in str(error.__cause__)
    else:
        raise AssertionError(f"{name} came without ours and without a word")
""")


def test_a_failed_import_before_does_not_matter(fresh):
    fresh.run(f"""
import hf_mm
for name in ("transformers.no_such_module", "hf_mm.no_such_module"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
{CHECK}""")


def test_an_import_in_another_thread_registers_too(fresh):
    fresh.run(f"""
import hf_mm
from threading import Thread

thread = Thread(target=lambda: __import__("transformers.models.auto.modeling_auto"))
thread.start()
thread.join()
{CHECK}""")


def test_modules_keep_their_own_loaders(fresh):
    fresh.run("""
import hf_mm, inspect, transformers.modeling_utils as module
from importlib.machinery import SourceFileLoader

assert type(module.__loader__) is type(module.__spec__.loader) is SourceFileLoader
assert "class PreTrainedModel" in inspect.getsource(module)
""")


def test_modules_run_with_python_m(fresh):
    fresh.run("import hf_mm, runpy\nassert 'FAMILIES' in runpy.run_module('hf_mm.registry')")


def test_registering_again_changes_nothing():
    before = dict(AutoModelForImageTextToText._model_mapping._extra_content)
    register()
    register()
    assert AutoModelForImageTextToText._model_mapping._extra_content == before


def test_an_unknown_class_has_no_family():
    with pytest.raises(ValueError, match=r"builtins.dict is not a class of hf_mm.models.\*"):
        family_of(dict)
