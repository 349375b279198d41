"""ViLT writing about an image: the common contract, who sees whom, generation, and errors."""

import pytest
import torch
from contract import ModelContract
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from vilt_tiny import CLS, MIXED, SEP, images, mixed, texts, tiny_config

from hf_mm.models.vilt.generation_vilt import MMViltForImageToText

LENGTHS, GRIDS = MIXED


def tiny(**changes):
    torch.manual_seed(0)
    return MMViltForImageToText(tiny_config(**changes)).eval()


def written(rows=3, prompt=2):
    """Texts whose first tokens are a prompt."""
    batch = mixed(rows)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :prompt] = -100
    return {**batch, "labels": labels}


class TestImageToText(ModelContract):
    model_class = MMViltForImageToText

    def config(self, **changes):
        return tiny_config(**changes)

    def inputs(self):
        return written(2)


def test_the_loss_is_that_of_each_word_given_what_is_before_it():
    model, batch = tiny(), written()
    out = model(**batch)
    following = torch.cat((batch["labels"][:, 1:], torch.full((3, 1), -100)), dim=1)
    assert_close(out.loss, cross_entropy(out.logits.flatten(0, 1), following.flatten()))
    trained = model.train()(**batch)
    assert trained.logits is None
    assert_close(trained.loss, out.loss)


def test_a_written_word_changes_nothing_before_it():
    model, batch = tiny(), written()
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 5] = 3 if batch["input_ids"][1, 5] != 3 else 4
    before, after = model(**batch).logits[1], model(**other).logits[1]
    assert_close(after[:5], before[:5])
    assert not torch.allclose(after[5], before[5])
    assert not torch.allclose(after[8], before[8])


def test_the_prompt_and_the_image_see_each_other_and_all_that_follows_sees_both():
    model, batch = tiny(initializer_range=0.5), written(prompt=4)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 3] = 3 if batch["input_ids"][1, 3] != 3 else 4
    assert not torch.allclose(model(**other).logits[1, 0], model(**batch).logits[1, 0])
    image = {**batch, "pixel_values": batch["pixel_values"] + 1.0}
    assert ((model(**image).logits[1] - model(**batch).logits[1]).abs().amax(dim=-1) > 1e-4).all()


def test_the_prefix_is_what_stands_before_the_labels_unless_it_is_given():
    model, batch = tiny(initializer_range=0.5), written(prompt=3)
    prefix = (torch.arange(9) < 3).long().expand(3, -1)
    assert_close(model(**batch, prefix_mask=prefix).loss, model(**batch).loss)
    shorter = (torch.arange(9) < 1).long().expand(3, -1)
    assert not torch.allclose(model(**batch, prefix_mask=shorter).loss, model(**batch).loss)


def prompts():
    words = texts((4, 4, 4))
    return {**words, **images(GRIDS)}


def greedy(model, batch, steps):
    """Word by word by hand: the whole text anew, the prompt its prefix."""
    ids, prompt = batch["input_ids"], batch["input_ids"].shape[1]
    for _ in range(steps):
        prefix = (torch.arange(ids.shape[1]) < prompt).long().expand_as(ids)
        image = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
        with torch.no_grad():
            logits = model(ids, torch.ones_like(ids), prefix_mask=prefix, **image).logits
        ids = torch.cat((ids, logits[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    return ids


def test_generated_words_are_those_that_come_next_by_hand():
    model, batch = tiny(initializer_range=0.5), prompts()
    model.generation_config.eos_token_id = None
    got = model.generate(**batch, do_sample=False, max_new_tokens=5)
    assert torch.equal(got, greedy(model, batch, 5))


def test_prompts_of_unequal_length_are_continued_as_each_alone():
    model = tiny(initializer_range=0.5)
    model.generation_config.eos_token_id = None
    batch = {**texts(LENGTHS), **images(GRIDS)}
    for name in ("input_ids", "attention_mask"):
        for row, length in enumerate(LENGTHS):
            batch[name][row] = batch[name][row].roll(9 - length)
    together = model.generate(**batch, do_sample=False, max_new_tokens=3)[:, 9:]
    for row, length in enumerate(LENGTHS):
        alone = {name: values[row : row + 1] for name, values in batch.items()}
        alone |= {name: alone[name][:, 9 - length :] for name in ("input_ids", "attention_mask")}
        got = model.generate(**alone, do_sample=False, max_new_tokens=3)[0, length:]
        assert torch.equal(got, together[row])


def test_beams_and_samples_have_their_own_image():
    model, batch = tiny(initializer_range=0.5), images(GRIDS)
    best = model.generate(**batch, num_beams=3, max_new_tokens=4)
    assert best[:, 0].tolist() == [CLS] * 3
    torch.manual_seed(0)
    several = model.generate(**batch, do_sample=True, num_return_sequences=2, max_new_tokens=4)
    assert len(several) == 6
    alone = model.generate(**{n: v[:1] for n, v in batch.items()}, num_beams=3, max_new_tokens=4)
    assert torch.equal(alone[0], best[0, : alone.shape[1]])


def test_without_a_length_a_text_ends_at_its_end_token_or_with_the_positions():
    model = tiny(initializer_range=0.5)
    out = model.generate(**images(GRIDS), do_sample=False)
    assert out.shape[1] <= 12
    model.generation_config.eos_token_id = None
    assert model.generate(**images(GRIDS), do_sample=False).shape[1] == 12
    with torch.no_grad():
        model.mlm_head.decoder.bias[SEP] = 100.0
    model.generation_config.eos_token_id = SEP
    assert model.generate(**images(GRIDS), do_sample=False).tolist() == [[CLS, SEP]] * 3


def test_the_pixels_are_projected_once_for_a_text():
    model, calls = tiny(), []
    model.vilt.embeddings.patches.register_forward_hook(lambda *args: calls.append(1))
    model.generate(**images(GRIDS), do_sample=False, max_new_tokens=4)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_new_tokens": 9},
            "13 tokens are asked for, prompt included, but the position table ends at 12",
        ),
        ({"max_length": 13}, "13 tokens are asked for"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]] * 3)}, "A prompt ends with padding"),
    ],
)
def test_what_cannot_be_written_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(**prompts() | options)


def test_labels_that_everybody_sees_are_named():
    batch = written(prompt=2)
    prefix = torch.zeros_like(batch["input_ids"])
    prefix[1, :3] = 1
    with pytest.raises(ValueError, match="Row 1 has `labels` where `prefix_mask` is 1"):
        tiny()(**batch, prefix_mask=prefix)
    with pytest.raises(ValueError, match=r"`labels` must be \(3, 9\) as `input_ids`, got \(3, 8\)"):
        tiny()(**batch | {"labels": batch["labels"][:, :8]})


def test_a_kernel_that_takes_no_mask_is_named():
    model = tiny()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(
        ValueError, match="A prefix mask needs an attention kernel that takes any mask, not 'fl"
    ):
        model(**written())
