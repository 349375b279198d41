"""What of a phased run goes to the Hub: all but its checkpoints."""

from pathlib import Path

from huggingface_hub import HfApi
from transformers import TrainingArguments

from ..hub.saving import UNFINISHED

__all__ = ["push_folder"]


def push_folder(folder: Path, args: TrainingArguments, step: int) -> None:
    """Upload a folder without its checkpoints.

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
        ignore_patterns=["checkpoint-*", f"{UNFINISHED}*"],
    )
