"""Strangers, who have transformers and not this package, for all families."""

from collections.abc import Iterator

import pytest
from hub.processes import PARSE_ONCE, WITHOUT_HF_MM, FreshProcesses

# Imported once for all cases: what the files of our families import.
TOOLS = """
import torch, transformers
from transformers import (
    AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForMaskedLM, AutoProcessor,
    BertModel, GenerationMixin, LlamaModel, PreTrainedModel, ProcessorMixin,
)

transformers.utils.logging.disable_progress_bar()
"""


@pytest.fixture(scope="session")
def stranger(tmp_path_factory) -> Iterator[FreshProcesses]:
    """Processes that cannot import hf_mm, nor reach any Hub."""
    folder = tmp_path_factory.mktemp("stranger")
    variables = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    with FreshProcesses(WITHOUT_HF_MM + PARSE_ONCE + TOOLS, folder, **variables) as processes:
        yield processes
