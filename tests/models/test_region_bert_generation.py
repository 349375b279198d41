"""Region BERTs writing about an image: the common contract, who sees whom, generation, and errors."""

import pytest
import torch
from contract import ModelContract
from region_bert_tiny import CLS, MIXED, NAMES, SEP, mixed, regions, texts, tiny_config
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from hf_mm.models.region_bert.generation_region_bert import MMRegionBertForImageToText
from hf_mm.models.region_bert.pretraining_region_bert import MMRegionBertForPreTraining

LENGTHS, COUNTS = MIXED


def tiny(name="uniter", **changes):
    """Weights that differ much; VL-BERT's regions say something from the start."""
    torch.manual_seed(0)
    large = {"initializer_range": 0.5, "region_norm_init": 1.0}
    model = MMRegionBertForImageToText(tiny_config(name, **(large | changes))).eval()
    model.generation_config.eos_token_id = None
    return model


def written(rows=3, prompt=2):
    """Texts whose first tokens are a prompt."""
    batch = mixed(rows)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :prompt] = -100
    return {**batch, "labels": labels}


class TestImageToText(ModelContract):
    model_class = MMRegionBertForImageToText

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


@pytest.mark.parametrize("name", NAMES)
def test_a_written_word_changes_nothing_before_it_and_regions_change_all(name):
    model, batch = tiny(name), written()
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 5] = 3 if batch["input_ids"][1, 5] != 3 else 4
    before, after = model(**batch).logits[1], model(**other).logits[1]
    assert_close(after[:5], before[:5])
    assert not torch.allclose(after[5], before[5])
    assert not torch.allclose(after[8], before[8])
    image = {**batch, "region_features": batch["region_features"] + 1.0}
    assert ((model(**image).logits[1] - before).abs().amax(dim=-1) > 1e-4).all()


def test_the_prompt_sees_all_of_itself():
    model, batch = tiny(), written(prompt=4)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 3] = 3 if batch["input_ids"][1, 3] != 3 else 4
    assert not torch.allclose(model(**other).logits[1, 0], model(**batch).logits[1, 0])


def test_it_begins_as_what_pre_training_has_learnt_of_captions(tmp_path):
    torch.manual_seed(0)
    pretrained = MMRegionBertForPreTraining(tiny_config(task_weights={"mlm": 1.0, "caption": 1.0})).eval()
    pretrained.save_pretrained(tmp_path)
    batch = written()
    model = MMRegionBertForImageToText.from_pretrained(tmp_path)
    caption = {name: values for name, values in batch.items() if name != "labels"}
    loss = pretrained(**caption, caption_labels=batch["labels"]).caption_loss
    assert_close(model(**batch).loss, loss)


def greedy(model, batch, steps):
    """Word by word by hand: the whole text anew, the prompt its prefix."""
    ids, prompt = batch["input_ids"], batch["input_ids"].shape[1]
    image = {name: values for name, values in batch.items() if name.startswith("region")}
    for _ in range(steps):
        prefix = (torch.arange(ids.shape[1]) < prompt).long().expand_as(ids)
        with torch.no_grad():
            logits = model(ids, torch.ones_like(ids), prefix_mask=prefix, **image).logits
        ids = torch.cat((ids, logits[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_generated_words_are_those_that_come_next_by_hand(name):
    model, batch = tiny(name), {**texts((4, 4, 4)), **regions(COUNTS)}
    got = model.generate(**batch, do_sample=False, max_new_tokens=5)
    assert torch.equal(got, greedy(model, batch, 5))


def test_prompts_of_unequal_length_are_continued_as_each_alone():
    model, batch = tiny(), {**texts(LENGTHS), **regions(COUNTS)}
    for name in ("input_ids", "attention_mask"):
        for row, length in enumerate(LENGTHS):
            batch[name][row] = batch[name][row].roll(9 - length)
    together = model.generate(**batch, do_sample=False, max_new_tokens=3)[:, 9:]
    for row, length in enumerate(LENGTHS):
        alone = {name: values[row : row + 1] for name, values in batch.items()}
        alone |= {name: alone[name][:, 9 - length :] for name in ("input_ids", "attention_mask")}
        got = model.generate(**alone, do_sample=False, max_new_tokens=3)[0, length:]
        assert torch.equal(got, together[row])


def test_beams_and_samples_have_their_own_regions():
    model, batch = tiny(), regions(COUNTS)
    best = model.generate(**batch, num_beams=3, max_new_tokens=4)
    assert best[:, 0].tolist() == [CLS] * 3
    torch.manual_seed(0)
    several = model.generate(**batch, do_sample=True, num_return_sequences=2, max_new_tokens=4)
    assert len(several) == 6
    alone = model.generate(
        **{name: values[:1] for name, values in batch.items()}, num_beams=3, max_new_tokens=4
    )
    assert torch.equal(alone[0], best[0, : alone.shape[1]])


@pytest.mark.parametrize(("name", "most"), [("uniter", 14), ("vl-bert", 12)])
def test_without_a_length_a_text_ends_at_its_end_token_or_with_the_positions(name, most):
    model = tiny(name)
    assert model.generate(**regions(COUNTS), do_sample=False).shape[1] == most
    with torch.no_grad():
        model.mlm_head.decoder.bias[SEP] = 1000.0
    model.generation_config.eos_token_id = SEP
    assert model.generate(**regions(COUNTS), do_sample=False).tolist() == [[CLS, SEP]] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_new_tokens": 11},
            "15 tokens are asked for, prompt included, but the position table ends at 14",
        ),
        ({"max_length": 15}, "15 tokens are asked for"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]] * 3)}, "A prompt ends with padding"),
    ],
)
def test_what_cannot_be_written_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(**{**texts((4, 4, 4)), **regions(COUNTS)} | options)


def test_labels_that_cannot_be_guessed_are_named():
    batch = written()
    with pytest.raises(ValueError, match="`prefix_mask` and `labels` are both given"):
        tiny()(**batch, prefix_mask=torch.ones_like(batch["input_ids"]))
    batch["labels"][2, 0] = 5
    with pytest.raises(ValueError, match="Row 2 has a label at its first token"):
        tiny()(**batch)
    with pytest.raises(ValueError, match=r"Labels of words to write must be \(3, 9\) integers"):
        tiny()(**batch | {"labels": batch["labels"][:, :8]})
