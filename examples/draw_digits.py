"""Train a GAN on handwritten digits, load it as anyone would, and draw. About two minutes on a CPU core.

python examples/draw_digits.py
"""

from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from transformers import TrainingArguments

import hf_mm  # noqa: F401  diffusers then knows the pipeline; without it pass trust_remote_code=True
from hf_mm.recipes import gan


def main(folder: str = "out/digits", **changes) -> list[Path]:
    """Train into `folder`; writes pictures of sevens, usual sevens, and a film from a 3 to an 8 beside it."""
    recipe = gan.Recipe(gamma=0.3, gamma_end=None)
    gan.main(recipe, TrainingArguments(folder, **gan.DEFAULTS | {"max_steps": 1500} | changes))

    pipe = DiffusionPipeline.from_pretrained(folder)
    pictures = {
        "sevens": pipe(class_labels="7", num_images_per_prompt=10, seed=0).images,
        "usual_sevens": pipe(class_labels="7", num_images_per_prompt=10, seed=0, truncation=0.5).images,
        "from_3_to_8": pipe.interpolate(seeds=0, frames=9, class_labels=["3", "8"]).images,
    }
    written = []
    for name, images in pictures.items():
        written.append(Path(folder) / f"{name}.png")
        make_image_grid(images, rows=1, cols=10, resize=64).save(written[-1])
        print(written[-1])
    return written


if __name__ == "__main__":
    main()
