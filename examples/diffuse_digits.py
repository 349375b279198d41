"""Train a flow of handwritten digits, load it as anyone would, and draw. About two minutes on a CPU core.

python examples/diffuse_digits.py
"""

from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from transformers import TrainingArguments

import hf_mm  # noqa: F401  diffusers then knows the pipeline; without it pass trust_remote_code=True
from hf_mm.recipes import diffusion


def main(folder: str = "out/flow", steps: int = 20, **changes) -> list[Path]:
    """Train into `folder`; writes sevens, usual sevens, and eights that were threes beside it."""
    recipe = diffusion.Recipe(system="flow-unet", inference_steps=steps)
    diffusion.main(recipe, TrainingArguments(folder, **diffusion.DEFAULTS | {"max_steps": 1500} | changes))

    pipe = DiffusionPipeline.from_pretrained(folder)
    asked = {"num_inference_steps": steps, "seed": 0}
    threes = pipe(class_labels="3", num_images_per_prompt=10, **asked).images
    pictures = {
        "sevens": pipe(class_labels="7", num_images_per_prompt=10, guidance_scale=1.0, **asked).images,
        "usual_sevens": pipe(class_labels="7", num_images_per_prompt=10, guidance_scale=4.0, **asked).images,
        "eights_from_threes": pipe(class_labels=["8"] * 10, image=threes, strength=0.7, **asked).images,
    }
    written = []
    for name, images in pictures.items():
        written.append(Path(folder) / f"{name}.png")
        make_image_grid(images, rows=1, cols=10, resize=64).save(written[-1])
        print(written[-1])
    return written


if __name__ == "__main__":
    main()
