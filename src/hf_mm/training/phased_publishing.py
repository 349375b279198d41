"""What of a phased run goes to the Hub: all but its checkpoints, caches and pictures of its data."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import TrainingArguments

from ..hub.saving import UNFINISHED

__all__ = ["push_folder", "save_pipeline"]

# What a run can make again, and pictures of the training data, which may be private.
MADE_OF_DATA = ("codes/*", "latents/*", "text_states/*", "class/*", "neighbours.png")


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Write a pipeline; of one with adapters these alone, as what they stand on is published already."""
    if getattr(pipeline, "get_list_adapters", dict)():
        pipeline.save_lora_weights(folder)
    else:
        pipeline.save_pretrained(str(folder))


def push_folder(folder: Path, args: TrainingArguments, step: int) -> None:
    """Upload a folder without its checkpoints and without what was made of the data on the way.

    Args:
        folder: `output_dir` of the run; gives the repository its name where `args` has none.
        args: Its `hub_...` say where to.
        step: After which the weights are, for the message of the commit.
    """
    api = HfApi(token=args.hub_token)
    name = args.hub_model_id or folder.resolve().name
    repository = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        revision=args.hub_revision,
        commit_message=f"Weights after step {step}",
        ignore_patterns=["checkpoint-*", f"{UNFINISHED}*", *MADE_OF_DATA],
    )
