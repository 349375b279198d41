"""The words of captions as targets of image vectors: closed forms, what learns, and what is refused."""

import pytest
import torch
from chat_tiny import picture, tokenizer, turn
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from hf_mm import VLMCollator, encode_rows, train_only
from hf_mm.models.vlm.small_vlm import small_vlm
from hf_mm.training.word_alignment import WordAlignment, word_regression_loss


def test_vectors_that_are_the_words_over_and_over_have_no_loss():
    table = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([3, 7])
    vectors = table[torch.tensor([3, 7, 3, 7, 3])]
    assert word_regression_loss([vectors], [ids], table) == 0


def test_the_mean_is_over_images_in_units_of_the_tables_variance():
    table = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).double()
    images = [table[torch.tensor([1, 2])] + 1.0, table[torch.tensor([5])] + 3.0]
    loss = word_regression_loss(images, [torch.tensor([1, 2, 9]), torch.tensor([5])], table)
    assert_close(loss, ((1 + 9) / 2 / table.float().var()), rtol=1e-5, atol=0)


def test_the_best_vector_of_an_ambiguous_place_is_the_mean_of_its_words():
    table = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    vector = table[torch.tensor([1, 2])].mean(0, keepdim=True).requires_grad_()
    word_regression_loss([vector, vector], [torch.tensor([1]), torch.tensor([2])], table).backward()
    assert_close(vector.grad, torch.zeros_like(vector), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def kit():
    torch.manual_seed(0)
    model, processor = small_vlm(tokenizer())
    train_only(model, ["connector", "vision"])
    return model, processor


def captioned(processor, *texts):
    """A batch of pictures with a caption each, without its ids."""
    rows = [
        {"images": [image], "conversations": [[turn("user", image), turn("assistant", text)]]}
        for image, text in ((picture(seed, 64, 64), text) for seed, text in enumerate(texts))
    ]
    return encode_rows(processor, rows)


def test_special_tokens_are_no_words(kit):
    model, processor = kit
    batch = VLMCollator(processor)(captioned(processor, "red circle", "yes"))
    ended = batch["labels"].clone()
    ended[ended == processor.tokenizer.eos_token_id] = -100
    special = processor.tokenizer.all_special_ids
    loss = WordAlignment(model, special)(**batch)["loss"]
    assert_close(WordAlignment(model, special)(**{**batch, "labels": ended})["loss"], loss, rtol=0, atol=0)
    assert WordAlignment(model, [])(**batch)["loss"] != loss


def test_only_what_is_trained_gets_a_gradient(kit):
    model, processor = kit
    aligner = WordAlignment(model, processor.tokenizer.all_special_ids)
    aligner(**VLMCollator(processor)(captioned(processor, "red circle", "yes")))["loss"].backward()
    for name, weight in aligner.named_parameters():
        assert (weight.grad is not None) == ("language" not in name), name
    aligner.zero_grad()


def test_trainer_brings_images_near_their_words_and_leaves_the_language_model(tmp_path):
    torch.manual_seed(0)
    model, processor = small_vlm(tokenizer())
    train_only(model, ["connector", "vision"])
    before = {name: weight.clone() for name, weight in model.language_model.state_dict().items()}
    args = TrainingArguments(
        tmp_path,
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        logging_steps=5,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        WordAlignment(model, processor.tokenizer.all_special_ids),
        args,
        data_collator=VLMCollator(processor),
        train_dataset=captioned(processor, "red circle", "blue triangle", "yes", "no shape"),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.3 * losses[0]
    for name, weight in model.language_model.state_dict().items():
        assert_close(weight, before[name], rtol=0, atol=0)


def test_rows_that_do_not_fit_are_refused(kit):
    model, processor = kit
    aligner = WordAlignment(model, processor.tokenizer.all_special_ids)
    batch = VLMCollator(processor)(captioned(processor, "red circle", "yes"))
    with pytest.raises(ValueError, match="The batch has 2 images in 1 rows; words are aligned with captions"):
        aligner(**{**batch, "labels": batch["labels"][:1]})
    batch["labels"][1] = -100
    with pytest.raises(ValueError, match="Image 1 of the batch has no word in its caption"):
        aligner(**batch)
