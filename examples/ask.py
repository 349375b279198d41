"""Load a trained model as anyone on the Hub would, and ask it about one image.

python examples/ask.py out/demo [IMAGE QUESTION]
"""

import sys

from transformers import AutoModelForImageTextToText, AutoProcessor

import hf_mm  # noqa: F401  registers the model types; without it pass trust_remote_code=True
from hf_mm import easy_vqa


def main(folder: str, image: object = None, question: str = "what shape is in the image?") -> str:
    """Ask `question` about `image`, a path or picture; by default about a test image of easy-VQA."""
    image = easy_vqa("test")[0]["image"] if image is None else image
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
    answer = processor.decode(tokens, skip_special_tokens=True).strip()
    print(f"{question} {answer}")
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])
