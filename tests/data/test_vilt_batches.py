"""What the collators make is what the heads of ViLT take."""

import numpy as np
import pytest
import torch
from models.vilt_tiny import tiny_config
from transformers import BertTokenizer

from hf_mm import (
    MMViltImageProcessor,
    MMViltProcessor,
    ViltCaptionCollator,
    ViltPairsOfImagesCollator,
    ViltPretrainingCollator,
    ViltQuestionCollator,
    ViltRetrievalCollator,
)
from hf_mm.models.vilt.generation_vilt import MMViltForImageToText
from hf_mm.models.vilt.heads_vilt import (
    MMViltForImageAndTextRetrieval,
    MMViltForImagesAndTextClassification,
    MMViltForQuestionAnswering,
)
from hf_mm.models.vilt.pretraining_vilt import MMViltForPreTraining

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "dog", "cat", "is", "it", "?"]
WEIGHTS = {"mlm": 1.0, "itm": 1.0, "wpa": 0.1, "mpp": 1.0}
TEXTS = ["a red dog", "a cat", "blue", "is it a dog ?"]


@pytest.fixture(scope="module")
def processor():
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    images = MMViltImageProcessor(size={"shortest_edge": 16}, size_divisor=8)
    return MMViltProcessor(images, tokenizer, max_length=10)


def picture(number):
    sides = ((16, 24), (24, 16), (16, 16), (20, 26))[number % 4]
    return np.random.default_rng(number).integers(0, 256, (*sides, 3), dtype=np.uint8)


def captions():
    return [{"image": picture(i), "caption": text} for i, text in enumerate(TEXTS)]


def built(kind, **changes):
    torch.manual_seed(0)
    return kind(tiny_config(**changes)).eval()


def learned(model, batch):
    """The output for a batch; its loss has a finite gradient."""
    out = model(**batch)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return out


def test_pre_training_does_every_task_of_a_batch(processor):
    batch = ViltPretrainingCollator(processor, patch_share=0.3, patch_size=8, seed=0)(captions())
    out = learned(built(MMViltForPreTraining, task_weights=WEIGHTS), batch)
    losses = {name: out[f"{name}_loss"] for name in ("mlm", "itm", "wpa", "mpp")}
    assert all(loss.isfinite() for loss in losses.values())
    total = losses["mlm"] + losses["itm"] + 0.1 * losses["wpa"] + losses["mpp"]
    torch.testing.assert_close(out.loss, total)


def test_questions_are_scored_either_way(processor):
    labels = {"yes": 0, "no": 1, "red": 2}
    rows = [{"image": picture(i), "question": text, "answer": "no"} for i, text in enumerate(TEXTS)]
    model = built(MMViltForQuestionAnswering, num_labels=3)
    soft = ViltQuestionCollator(processor, labels)(rows)
    hard = ViltQuestionCollator(processor, labels, soft=False)(rows)
    logits = learned(model, soft).logits.detach()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft["labels"]) * 3
    torch.testing.assert_close(model(**soft).loss, wanted)
    torch.testing.assert_close(model(**hard).loss, torch.nn.functional.cross_entropy(logits, hard["labels"]))


def test_pairs_of_pictures_are_compared(processor):
    rows = [{"images": [picture(i), picture(i + 1)], "statement": TEXTS[i], "label": i % 2} for i in range(4)]
    model = built(MMViltForImagesAndTextClassification, num_labels=2)
    out = learned(model, ViltPairsOfImagesCollator(processor)(rows))
    wanted = torch.nn.functional.cross_entropy(out.logits, torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(out.loss, wanted)


def test_the_first_of_a_pictures_texts_is_the_one_to_rank_first(processor):
    batch = ViltRetrievalCollator(processor, TEXTS, candidates=3, seed=0)(captions())
    out = learned(built(MMViltForImageAndTextRetrieval), batch)
    wanted = -out.logits.view(4, 3).log_softmax(dim=1)[:, 0].mean()
    torch.testing.assert_close(out.loss, wanted)


def test_captions_are_guessed_word_by_word_after_their_prompt(processor):
    rows = [{**row, "prompt": "is it"} for row in captions()[:3]]
    batch = ViltCaptionCollator(processor, prompt_column="prompt")(rows)
    out = learned(built(MMViltForImageToText), batch)
    scores = out.logits[:, :-1].flatten(0, 1)  # of the next word
    wanted = torch.nn.functional.cross_entropy(scores, batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(out.loss, wanted)


def test_a_text_is_written_after_each_prompt(processor):
    start = processor.prompts([picture(0), picture(1)], ["is it", "a"])
    model = built(MMViltForImageToText)
    written = model.generate(**start, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert written.shape == (2, 6)
    assert torch.equal(written[:, :3], start["input_ids"])
    alone = processor.prompts(picture(1), "a")
    once = model.generate(**alone, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert torch.equal(once[0, -3:], written[1, -3:])
