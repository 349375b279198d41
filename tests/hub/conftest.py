"""A Hub, and two kinds of people who use it: those who have installed hf_mm and those who have not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.loopback import LoopbackHub
from hub.processes import PARSE_ONCE, WITHOUT_HF_MM, FreshProcesses, on_hub

ROOT = Path(__file__).parents[2]

# Imported once for all cases, and what both sides do with a model.
TOOLS = """
import json, sys
import peft, torch, transformers
import transformers.models.clip.modeling_clip, transformers.models.llama.modeling_llama
import diffusers
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForImageTextToText,
    AutoProcessor, AutoTokenizer, Trainer, TrainingArguments, pipeline,
)

transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()
picture = Image.linear_gradient("L").resize((48, 40)).convert("RGB")
parts = [{"type": "image", "image": picture}, {"type": "text", "text": "a red?"}]
turns = [{"role": "user", "content": parts}]

def answer(model, processor):
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(turns, **options)
    return model.eval().generate(**inputs, max_new_tokens=8, do_sample=False).tolist()

def load(place, **flags):
    return [auto.from_pretrained(place, **flags) for auto in (AutoModelForImageTextToText, AutoProcessor)]

def classify(model):
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        return model.eval()(pixels).logits.tolist()

def draw(pipe):
    options = {"uniform_codes": True, "output_type": "pt"}
    return pipe(2, generator=torch.Generator().manual_seed(0), **options).images.flatten().tolist()

def rebuild(model):
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    with torch.no_grad():
        return model(pixels).sample.flatten().tolist()
"""


@pytest.fixture(scope="session")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as loopback:
        yield loopback


@pytest.fixture(scope="session")
def member(hub, tmp_path_factory) -> Iterator[FreshProcesses]:
    """Processes that import hf_mm, and know the tiny models of `hub.sharing_tiny`."""
    tiny = "tiny_kl, tiny_pipeline, tiny_vit, tiny_vlm, tiny_vq"
    shared = f"{TOOLS}\nimport hf_mm\nfrom hub.sharing_tiny import {tiny}\n"
    path = f"{ROOT / 'src'}:{ROOT / 'tests'}"
    with on_hub(hub.endpoint, tmp_path_factory.mktemp("member"), shared, path) as processes:
        yield processes


@pytest.fixture(scope="session")
def stranger(hub, tmp_path_factory) -> Iterator[FreshProcesses]:
    """Processes that cannot import hf_mm."""
    with on_hub(
        hub.endpoint, tmp_path_factory.mktemp("stranger"), WITHOUT_HF_MM + PARSE_ONCE + TOOLS
    ) as processes:
        yield processes
