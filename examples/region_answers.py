"""Answer a question about an image from its regions, and draw which word looks at which region.

python examples/region_answers.py MODEL IMAGE "what shape is in the image?" regions.png
"""

import sys

from hf_mm import (
    EasyVQARegions,
    MMRegionBertForQuestionAnswering,
    MMRegionProcessor,
    draw_regions,
    word_region_attention,
)


def main(folder: str, image: object, question: str, drawing: str) -> str:
    """Ask a model of `hf-mm train region_bert --preset uniter --task vqa`; `image` is a path or picture."""
    model = MMRegionBertForQuestionAnswering.from_pretrained(folder).eval()
    processor = MMRegionProcessor.from_pretrained(folder)
    regions = EasyVQARegions()([image])[0]  # found and described as those that the model was trained on
    answer = model.config.id2label[int(model(**processor(question, regions)).logits.argmax())]
    print(question, answer)
    looks = word_region_attention(model, processor, regions, question)
    draw_regions(image, looks.boxes, looks.word_of_each_region()).save(drawing)
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])
