"""transformers' `CLIPModel` trained as `hf-mm train clip` trains ours: the same pairs, views and steps.

    hf-mm train clip --output_dir out/emoji-text --text_model transformer
    python benchmarks/clip_training.py out/emoji-text

The peer has the sizes of our towers without their convolutional stem, the tokenizer and pictures of the given
folder, and transformers' own Trainer; results are printed and written to `peer.json` in that folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_mm import PairCollator, RandomViews, write_results
from hf_mm.recipes.clip import DEFAULTS, SMALL_TEXT, SMALL_VIT, WIDTH, Recipe, alignment, load


class Clamp(TrainerCallback):
    """What CLIP's paper does after each step and `CLIPModel` leaves to its user."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: CLIPModel, **kwargs: Any) -> None:
        """Keep the scale between 1 and 100."""
        model.logit_scale.data.clamp_(0.0, 4.6052)


def build(tokenizer: Any) -> CLIPModel:
    """A new `CLIPModel` as wide and as deep as ours."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    vision = {name: SMALL_VIT[name] for name in (*sizes, "image_size", "patch_size")}
    text = {name: SMALL_TEXT[name] for name in (*sizes, "max_position_embeddings")}
    text |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=WIDTH))


def main() -> None:
    """Train the peer, measure it as the recipe measures, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="what `hf-mm train clip` left")
    parser.add_argument("--data_folder", default="package")
    parser.add_argument("--dataset", default="openmoji")
    given = parser.parse_args()
    ours = json.loads((given.folder / "results.json").read_text())
    settings = DEFAULTS | {"max_steps": ours["steps"], "seed": ours["seed"]}
    args = TrainingArguments(output_dir=str(given.folder / "peer"), **settings)
    set_seed(args.seed)
    processor = AutoProcessor.from_pretrained(given.folder)
    if processor.tokenizer.eos_token_id is None:
        raise SystemExit("CLIPModel reads a text at its end token, which this tokenizer lacks: see above.")
    rows = load(Recipe(dataset=given.dataset, data_folder=given.data_folder))
    model, collate = build(processor.tokenizer), PairCollator(processor, augment=RandomViews(mirror=0.0))
    trainer = Trainer(
        model,
        args,
        data_collator=lambda batch: {**collate(batch), "return_loss": True},
        train_dataset=rows.train,
        callbacks=[Clamp()],
    )
    seconds = trainer.train().metrics["train_runtime"]
    measured = alignment(model.eval(), processor, rows, args.per_device_eval_batch_size)
    weights = sum(weight.numel() for weight in model.parameters())
    results = {
        "model": "transformers.CLIPModel",
        "weights": weights,
        "steps": args.max_steps,
        "seed": args.seed,
    }
    write_results(given.folder / "peer.json", results | {"train_seconds": seconds} | measured)
    for name, value in measured.items():
        print(f"{name:28} ours {ours[name]:8.4f}   peer {value:8.4f}")


if __name__ == "__main__":
    main()
