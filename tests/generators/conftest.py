"""A Hub, who has installed hf_mm and who has not: both know diffusers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.loopback import LoopbackHub
from hub.processes import WITHOUT_HF_MM, FreshProcesses, on_hub

SRC = Path(__file__).parents[2] / "src"

# Imported once for all cases. Warnings of diffusers are kept: loading must not give any.
TOOLS = """
import logging, sys
import torch, transformers, diffusers
from diffusers import AutoModel, AutoencoderKL, DiffusionPipeline, VQModel

warnings = []
keep = logging.Handler()
keep.emit = lambda record: warnings.append(record.getMessage())
keep.setLevel(logging.WARNING)
logging.getLogger("diffusers").addHandler(keep)
diffusers.utils.logging.disable_progress_bar()

def pictures(pipe, call):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**call, generator=torch.Generator().manual_seed(0), output_type="pt").images
"""


@pytest.fixture(scope="session")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as loopback:
        yield loopback


@pytest.fixture(scope="session")
def member(hub, tmp_path_factory) -> Iterator[FreshProcesses]:
    """Processes that import hf_mm and ask for no remote code."""
    with on_hub(
        hub.endpoint, tmp_path_factory.mktemp("member"), f"import hf_mm\n{TOOLS}", str(SRC)
    ) as processes:
        yield processes


@pytest.fixture(scope="session")
def stranger(hub, tmp_path_factory) -> Iterator[FreshProcesses]:
    """Processes that cannot import hf_mm."""
    with on_hub(hub.endpoint, tmp_path_factory.mktemp("stranger"), WITHOUT_HF_MM + TOOLS) as processes:
        yield processes
