"""Say which text an image and which image a text goes with, by a model that reads both together.

python examples/rank_captions.py MODEL "a red circle, a blue square" IMAGE IMAGE ...
"""

import sys

from hf_mm import MMViltForImageAndTextRetrieval, MMViltProcessor, score_pairs


def main(folder: str, captions: str, *images: object) -> list[list[float]]:
    """Score each of `images`, paths or pictures, with each of `captions`, separated by commas."""
    model = MMViltForImageAndTextRetrieval.from_pretrained(folder).eval()
    processor = MMViltProcessor.from_pretrained(folder)
    texts = [caption.strip() for caption in captions.split(",")]
    scores = score_pairs(model, processor, images, texts, progress=False)  # (images, texts)
    for number, best in enumerate(scores.argmax(dim=1).tolist(), start=1):
        print(f"image {number}: {texts[best]}")
    return scores.tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
