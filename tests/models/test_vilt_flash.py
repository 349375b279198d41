"""ViLT with kernels of flash attention: they get its packed tokens as they are, and nothing else changes."""

import pytest
import torch
from layers import row_kernel
from torch.testing import assert_close
from vilt_tiny import MIXED, mixed, tiny_config

from hf_mm.models.vilt.generation_vilt import MMViltForImageToText
from hf_mm.models.vilt.modeling_vilt import MMViltModel

LENGTHS, GRIDS = MIXED
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def tiny(model_class=MMViltModel, kernel="sdpa", **changes):
    torch.manual_seed(0)
    model = model_class(tiny_config(**changes))
    model.config._attn_implementation = kernel
    return model.eval()


def test_packed_tokens_have_the_states_and_gradients_of_other_kernels(monkeypatch):
    row_kernel.install(monkeypatch)
    found = []
    for kernel in ("sdpa", row_kernel.KERNEL):
        model = tiny(kernel=kernel)
        out = model(**mixed())
        weights = torch.randn(out.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
        loss = (out.last_hidden_state * weights).sum() + out.pooler_output.sum()
        found.append([out.last_hidden_state, *torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(found[1], found[0], **NEAR)


def test_every_block_hands_over_real_tokens_and_the_bounds_of_rows(monkeypatch):
    calls = row_kernel.install(monkeypatch)
    tiny(kernel=row_kernel.KERNEL)(**mixed())
    counts = [words + 1 + rows * columns for words, (rows, columns) in zip(LENGTHS, GRIDS, strict=True)]
    bounds = torch.tensor([0, *counts]).cumsum(0).tolist()
    assert [shape for shape, _ in calls] == [(sum(counts), 4, 8)] * 2
    for _, options in calls:
        assert options["cu_seqlens_q"].tolist() == options["cu_seqlens_k"].tolist() == bounds
        assert options["max_seqlen_q"] == options["max_seqlen_k"] == max(counts)
        assert not options["causal"]


def test_the_device_is_asked_no_more_than_with_other_kernels(monkeypatch):
    """Bounds and lengths follow from the layout, for which a batch is looked at once."""
    row_kernel.install(monkeypatch)
    model, tolist, lists = tiny(kernel=row_kernel.KERNEL), torch.Tensor.tolist, []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(self.shape) or tolist(self))
    model(**mixed())
    assert [shape for shape in lists if shape != (4,)] == [
        (5,)
    ]  # the stand-in reads the bounds of three rows


def test_recorded_states_are_those_of_other_kernels(monkeypatch):
    row_kernel.install(monkeypatch)
    states = [
        tiny(kernel=kernel)(**mixed(), output_hidden_states=True).last_hidden_state
        for kernel in ("sdpa", row_kernel.KERNEL)
    ]
    assert_close(states[1], states[0], **NEAR)


def test_a_text_after_a_prefix_needs_another_kernel():
    """Such kernels hide padding and the future, and a prefix that all see is neither."""
    model, batch = tiny(MMViltForImageToText, row_kernel.KERNEL), mixed()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    message = "A prefix mask needs an attention kernel that takes any mask, not 'flash_attention_2'; load the"
    with pytest.raises(ValueError, match=message):
        model(**batch, labels=labels)


def test_without_the_package_it_is_what_is_missing():
    """transformers names it; it does not say that the model could not use it."""
    with pytest.raises(ImportError, match=r"(?i)flash"):
        tiny().set_attn_implementation("flash_attention_3")
