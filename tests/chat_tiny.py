"""Small real tokenizers, processors and chats, shared by the tests of text and data."""

import numpy as np
from PIL import Image

from hf_mm.data.tokenizer import train_tokenizer
from hf_mm.models.vlm.image_processing_vlm import MMVLMImageProcessor
from hf_mm.models.vlm.processing_vlm import CROP_TOKENS, MMVLMProcessor

TEXTS = ["what color is the triangle?", "is there a blue shape in the image?", "yes", "no", "red", "circle"]

# As instruction-tuned models write it: no `{% generation %}`, and a line break after the end of a turn.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Knows parts only, as the templates of vision-language checkpoints do.
PARTS_ONLY = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>|{% else %}{{ part['text'] }}{% endif %}{% endfor %}<eos>"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Drops what was said before the last turn, as templates of reasoning models drop earlier thoughts.
FORGETFUL = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% if loop.last or message['role'] == 'user' %}{{ message['content'] }}{% else %}(...){% endif %}<eos>"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(template=None, tokens=()):
    special = ["<image>", *CROP_TOKENS.values(), "<|im_start|>", "<|im_end|>", *tokens]
    return train_tokenizer(TEXTS * 4, 400, special, template)


def processor(template=None, max_crops=0, side=32, **fields):
    """16 patches of 8 px per view; 2x2 pooling makes 4 tokens of a single view."""
    images = MMVLMImageProcessor(
        size=side,
        patch_size=8,
        pooling_size=2,
        max_crops=max_crops,
        crop_margin_patches=2 if side > 32 else 0,
    )
    return MMVLMProcessor(images, tokenizer(template), **fields)


def picture(seed=0, width=40, height=30):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def turn(role, *parts):
    content = [
        {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts
    ]
    return {"role": role, "content": content}


def learnt(processor, labels):
    """The labelled tokens as text, one piece per run of labels."""
    runs, run = [], []
    for label in [*[int(label) for label in labels], -100]:
        if label != -100:
            run.append(label)
        elif run:
            runs.append(processor.tokenizer.decode(run))
            run = []
    return runs
