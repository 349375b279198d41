"""Teach a small model what words of colour, shape and place look like, and draw by them. On a CPU core.

python examples/draw_texts.py
"""

from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from transformers import TrainingArguments

import hf_mm  # noqa: F401  diffusers then knows the pipeline; without it pass trust_remote_code=True
from hf_mm.recipes import text_to_image

PROMPTS = ("a small red triangle at the top left", "a big blue circle in the middle", "a yellow rectangle")


def main(folder: str = "out/shapes", prompts: tuple[str, ...] = PROMPTS, **changes) -> list[Path]:
    """Train into `folder`; writes a page of pictures of each text, and one without guidance, beside it."""
    recipe = text_to_image.Recipe(dataset=changes.pop("dataset", "easy-vqa"), rows=changes.pop("rows", None))
    text_to_image.main(recipe, TrainingArguments(folder, **text_to_image.DEFAULTS | changes))

    pipe = DiffusionPipeline.from_pretrained(folder)
    written = []
    for name, guidance_scale in (("guided", 3.0), ("as_learnt", 1.0)):
        options = {"num_inference_steps": 20, "guidance_scale": guidance_scale, "seed": 0}
        drawn = pipe(list(prompts), num_images_per_prompt=6, **options).images
        written.append(Path(folder) / f"{name}.png")
        make_image_grid(drawn, rows=len(prompts), cols=6).save(written[-1])
        print(written[-1])
    return written


if __name__ == "__main__":
    main()
