"""Tiny models of transformers' own vision-language BERTs, and what to compare of them and of ours."""

import torch
import transformers
from region_bert_tiny import CLS, VOCAB, WIDTH, mixed
from torch.testing import assert_close

import hf_mm
from hf_mm.models.region_bert.convert_region_bert_lxmert import LXMERT_CHECKPOINT
from hf_mm.models.region_bert.convert_region_bert_visual_bert import VISUAL_BERT_CHECKPOINT

EXACT = {"rtol": 1e-5, "atol": 1e-5}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 14,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
LXMERT_SIZES = {
    "l_layers": 2,
    "r_layers": 1,
    "x_layers": 2,
    "visual_feat_dim": WIDTH,
    "num_qa_labels": 5,
    "num_object_labels": 6,
    "num_attr_labels": 4,
}
VISUAL_BERT_SIZES = {"num_hidden_layers": 2, "visual_embedding_dim": WIDTH}


def drawn(model, seed=0):
    """Every weight drawn anew, norms about 1: gradients then reach the first block."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(mean=float("orm.weight" in name), std=0.2)
    return model.eval()


def lxmert(name="MMRegionBertModel", **changes):
    """transformers' class that ours of this name corresponds to."""
    config = transformers.LxmertConfig(**(SIZES | LXMERT_SIZES | changes))
    return drawn(getattr(transformers, LXMERT_CHECKPOINT.classes[name])(config))


def visual_bert(name="MMRegionBertModel", **changes):
    config = transformers.VisualBertConfig(**(SIZES | VISUAL_BERT_SIZES | changes))
    return drawn(getattr(transformers, VISUAL_BERT_CHECKPOINT.classes[name])(config))


def lxmert_inputs(batch):
    """Our columns under its names."""
    names = {
        "region_features": "visual_feats",
        "region_boxes": "visual_pos",
        "region_mask": "visual_attention_mask",
    }
    return {names.get(name, name): values for name, values in batch.items()}


def visual_bert_inputs(batch):
    names = {"region_features": "visual_embeds", "region_mask": "visual_attention_mask"}
    return {names.get(name, name): v for name, v in batch.items() if name != "region_boxes"}


def two_segments(rows=3):
    """Texts of two segments, and regions, none of which is like another."""
    batch = mixed(rows)
    places = torch.arange(batch["input_ids"].shape[1])
    return {**batch, "token_type_ids": (places > 2).long().expand_as(batch["input_ids"]).contiguous()}


def load(name, folder, **options):
    """Load our class of this name and insist that every weight found its place."""
    model, report = getattr(hf_mm, name).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


def converted(model, folder, name="MMRegionBertModel"):
    model.save_pretrained(folder)
    return load(name, folder)


def hidden_words(batch):
    """Words to guess: what stands there, and -100 elsewhere."""
    ids = batch["input_ids"]
    hidden = (torch.arange(ids.shape[1]) % 3 == 1) & (ids < CLS) & batch["attention_mask"].bool()
    return hidden, ids.masked_fill(~hidden, -100)


def assert_same_gradients(ours, theirs, checkpoint, unmoved=()):
    """Weight by weight; the first row of those in `unmoved` never moves over there."""
    given = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    expected = checkpoint.weights_from(given)
    got = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
    copies = {name for name in expected if name.startswith(("answer_", "images_"))} - set(got)
    assert set(got) == set(expected) - copies
    for name, grad in got.items():
        other = expected[name]
        largest = grad.abs().max().item()
        assert largest > 1e-5 or name.endswith(("k_proj.bias", "rank_output.bias")), name  # add to all alike
        if name.endswith(tuple(unmoved)):
            assert other[0].abs().max() == 0 < grad[0].abs().max(), name
            grad, other = grad[1:], other[1:]
        near = {"rtol": 1e-5, "atol": min(1e-5, max(1e-7, largest / 10_000))}
        assert_close(grad, other, msg=lambda text, name=name: f"{name}: {text}", **near)
