"""Train a small VAE on handwritten digits, look at what it remembers, and draw digits nobody wrote.

python examples/autoencode_digits.py
"""

from diffusers import DiffusionPipeline
from transformers import TrainingArguments

import hf_mm
from hf_mm.recipes import autoencoder


def main(folder: str = "out/vae-digits", **changes) -> list:
    """Train into `folder`, load it as anyone would; returns pictures from the prior."""
    args = TrainingArguments(folder, **autoencoder.DEFAULTS | changes)
    results = autoencoder.main(autoencoder.Recipe("vae", "digits", feature_net="none"), args)
    print(f"error on digits it never saw: {results['mse']:.4f}, {results['psnr']:.1f} dB")

    pipeline = DiffusionPipeline.from_pretrained(folder)
    digits = hf_mm.generation_rows("digits", "test")[:2].pixel_values() / 2 + 0.5
    way = pipeline.interpolate(digits[:1], digits[1:], steps=8).images
    drawn = pipeline(batch_size=16).images
    hf_mm.film_strip(way).save(f"{folder}/from_one_to_another.png")
    hf_mm.sample_grid(drawn, columns=8).save(f"{folder}/drawn.png")
    print(f"see {folder}/from_one_to_another.png and {folder}/drawn.png")
    return drawn


if __name__ == "__main__":
    main()
