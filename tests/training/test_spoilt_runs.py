"""Numbers that are not finite end a run, with the step, the pairs and the last good checkpoint named."""

import pytest
import torch
from models.clip_tiny import BOS, EOS, VOCAB, tiny_model
from pair_runs import Pairs, trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "learning_rate": 1e-4}


def tokenizer():
    words = {f"w{index}": index for index in range(VOCAB)} | {"<b>": BOS, "<e>": EOS}
    del words[f"w{BOS}"], words[f"w{EOS}"]
    inner = Tokenizer(WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<b>", eos_token="<e>", pad_token="<e>")


def saved(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def spoilt(row):
    rows = Pairs()
    rows.batch["pixel_values"][row, 0, 3, 3] = torch.nan
    return rows


@pytest.mark.parametrize("steps", [1, 2], ids=["plain", "cached"])
def test_a_loss_that_is_nan_names_the_pair_and_keeps_the_checkpoint(steps, tmp_path):
    """Row 9 is the second of the third small batch, in the third step of one or the second of two."""
    run = trainer(tmp_path, rows=spoilt(9), gradient_accumulation_steps=steps, **SAVING)
    last = 3 - steps
    with pytest.raises(FloatingPointError) as caught:
        run.train()
    message = str(caught.value)
    assert message.startswith(
        f"Step {last + 1} (epoch 0.67): the loss is nan. The pixels of 1 of 4 pairs are not"
    )
    assert (
        f"not finite: 1. Training stops; the last checkpoint is {tmp_path / f'checkpoint-{last}'}." in message
    )
    assert saved(tmp_path) == [f"checkpoint-{index}" for index in range(1, last + 1)]


def test_captions_are_read_back_where_the_processor_can(tmp_path):
    words = tokenizer()
    run = trainer(tmp_path, rows=spoilt(2), hooks={"processing_class": words})
    caption = words.decode(Pairs().batch["input_ids"][2], skip_special_tokens=True)
    with pytest.raises(
        FloatingPointError, match=rf"not finite: 2 \('{caption}'\)\. .* there is no checkpoint yet"
    ):
        run.train()


def test_weights_that_diverged_spoil_every_pair(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"features of 8 of 8 pairs .*: 0, 1, 2, 3, 4 and 3 more\."):
        trainer(tmp_path, model, gradient_accumulation_steps=2).train()


def test_a_loss_can_be_spoilt_by_the_temperature_alone(tmp_path):
    model = tiny_model()
    torch.nn.init.constant_(model.logit_scale, torch.nan)
    with pytest.raises(FloatingPointError, match=r"Step 1 \(epoch 0\.00\): the loss is nan\. Training stops"):
        trainer(tmp_path, model).train()


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    """The step would be saved with spoilt weights, and the next loss would tell too late."""
    model, calls = tiny_model(), []

    def spoil(gradient):
        calls.append(gradient)
        return gradient * (torch.inf if len(calls) == 3 else 1.0)

    model.text_projection.weight.register_hook(spoil)
    with pytest.raises(
        FloatingPointError, match=r"Step 3 .*: the loss is finite but the gradient is (nan|inf)\."
    ):
        trainer(tmp_path, model, **SAVING).train()
    assert saved(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert all(weight.isfinite().all() for weight in model.parameters())
