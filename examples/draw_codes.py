"""Draw pictures code by code, and see how a seed decides each of them.

    python examples/draw_codes.py out/autoregressive bag sandal

The folder is what `hf-mm train autoregressive` saves. Conditions are names of classes, or texts where the
model was trained on texts.
"""

import sys

from hf_mm import VQAutoregressivePipeline, sample_grid


def main(folder: str, *wanted: str, out: str = "drawn.png", count: int = 4) -> list:
    """Draw `count` pictures of each condition, without and with guidance, and write them to `out`."""
    pipe = VQAutoregressivePipeline.from_pretrained(folder)
    asked = {"class_labels": list(wanted)} if pipe.classes else {"prompt": list(wanted)}
    drawn = []
    for guidance_scale in (1.0, 2.0):
        drawn += pipe(**asked, num_images_per_prompt=count, guidance_scale=guidance_scale, seed=0).images
    labels = [f"{name}, guidance {scale}" for scale in (1, 2) for name in wanted]
    sample_grid(drawn, count, row_labels=labels).save(out)
    pipe.optimize_for_inference()  # one picture without guidance, faster, the same pixels
    alone = pipe(**{key: [value[0]] for key, value in asked.items()}, guidance_scale=1.0, seed=0).images[0]
    print(f"{out}: {len(drawn)} pictures of {alone.width}x{alone.height} px")
    return drawn


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
