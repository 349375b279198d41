"""What models over codes learn from: codes alone, empty conditions, masks; and likelihoods."""

import math
from itertools import product

import pytest
import torch
from generators.codes_tiny import (
    CODES,
    LENGTH,
    VOCABULARY,
    masked_pipeline,
    raster_pipeline,
    text_pipeline,
)
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mm import (
    AutoregressiveObjective,
    CodeVocabulary,
    MaskedCodesObjective,
    VQAutoregressivePipeline,
    code_likelihood,
)
from hf_mm.generators.autoregressive.code_likelihood import frequency_nats
from hf_mm.generators.autoregressive.masked_decoding import MEAN_SHARE


def batch(rows=4):
    codes = torch.randint(CODES, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"codes": codes, "prefixes": VOCABULARY.class_prefixes([i % 3 for i in range(rows)])}


def test_the_loss_is_over_codes_alone():
    """With every other token ruled out, the loss of transformers is the same, and so is its gradient."""
    pipe = raster_pipeline()
    objective = AutoregressiveObjective(pipe).eval()
    given = batch()
    loss, _ = objective.loss(given, "transformer")
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in pipe.transformer.named_parameters()}
    pipe.transformer.zero_grad()
    tokens = torch.cat([given["prefixes"], given["codes"]], dim=1)
    logits = pipe.transformer(tokens).logits[:, :-1]
    ruled_out = torch.zeros(VOCABULARY.size).index_fill(0, torch.arange(CODES, VOCABULARY.size), -torch.inf)
    expected = torch.nn.functional.cross_entropy((logits + ruled_out).flatten(0, 1), given["codes"].flatten())
    expected.backward()
    assert_close(loss, expected)
    for name, weight in pipe.transformer.named_parameters():
        assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    objective, given = AutoregressiveObjective(raster_pipeline()).eval(), batch()
    halves = [{name: value[rows] for name, value in given.items()} for rows in (slice(0, 2), slice(2, 4))]
    losses = [objective.loss(half, "transformer")[0] for half in halves]
    assert_close(torch.stack(losses).mean(), objective.loss(given, "transformer")[0])


def test_a_tenth_of_the_conditions_become_empty_in_training_and_none_in_evaluation():
    objective = AutoregressiveObjective(raster_pipeline())
    given = {"prefixes": VOCABULARY.class_prefixes([1] * 20_000)}
    torch.manual_seed(0)
    dropped = (objective.train().conditions(given) == VOCABULARY.null_id).all(-1).double().mean()
    assert dropped == pytest.approx(0.1, abs=0.01)
    assert torch.equal(objective.eval().conditions(given), given["prefixes"])


def test_a_text_becomes_empty_as_a_whole():
    pipe = text_pipeline()
    prefixes = pipe.prefixes(prompt=["a red apple"] * 200)
    torch.manual_seed(0)
    dropped = pipe.vocabulary.drop(prefixes, 0.5)
    kept = (dropped == prefixes).all(-1)
    assert 60 < int(kept.sum()) < 140
    assert (dropped[~kept] == pipe.vocabulary.null_id).all()


def test_the_masked_loss_is_divided_by_what_is_hidden_on_average():
    objective = MaskedCodesObjective(masked_pipeline(), label_smoothing=0.0).eval()
    given = batch(64)
    torch.manual_seed(0)
    loss, logs = objective.loss(given, "transformer")
    counted = float(loss.detach()) * given["codes"].numel() * MEAN_SHARE / float(logs["masked_nats"])
    assert counted == pytest.approx(round(counted), abs=0.05)  # whole codes
    assert counted / given["codes"].numel() == pytest.approx(MEAN_SHARE, abs=0.1)


def test_only_hidden_codes_are_learnt():
    """A model that sees all but the hidden ones has no gradient from the logits of the others."""
    pipe = masked_pipeline()
    seen = []
    hook = pipe.transformer.register_forward_hook(
        lambda module, args, output: (output.logits.retain_grad(), seen.append(output.logits))[0]
    )
    inputs = []
    before = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["input_ids"]), with_kwargs=True
    )
    MaskedCodesObjective(pipe).loss(batch(), "transformer")[0].backward()
    hook.remove()
    before.remove()
    hidden = inputs[0] == VOCABULARY.mask_id
    learnt = seen[0].grad.abs().sum(-1) > 0
    assert hidden.any()
    assert torch.equal(learnt, hidden)


@pytest.mark.parametrize(
    ("build", "objective_class"),
    [(raster_pipeline, AutoregressiveObjective), (masked_pipeline, MaskedCodesObjective)],
)
def test_an_objective_shows_and_saves_what_it_trains(build, objective_class):
    pipe = build()
    objective = objective_class(pipe)
    pictures = [objective.eval().preview(torch.Generator().manual_seed(0), 4) for _ in range(2)]
    assert pictures[0].shape == (4, 1, 8, 8)
    assert -1 <= pictures[0].min() < 0 < pictures[0].max() <= 1
    assert torch.equal(*pictures)
    assert type(objective.pipeline()) is type(pipe)
    assert objective.pipeline().transformer is objective.transformer
    trained = {id(weight) for weight in objective.phase_parameters("transformer")}
    assert trained == {id(weight) for weight in pipe.transformer.parameters()}


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_impossible_shares_are_named(share):
    with pytest.raises(ValueError, match=f"`condition_dropout`={share} must be at least 0 and below 1"):
        AutoregressiveObjective(raster_pipeline(), share)
    with pytest.raises(ValueError, match=f"`label_smoothing`={share} must be at least 0 and below 1"):
        MaskedCodesObjective(masked_pipeline(), label_smoothing=share)


def tiny_pipeline(codes=3, side=2):
    """A model of so few pictures that all of them can be counted."""
    vocabulary = CodeVocabulary(codes, 1)
    pipe = raster_pipeline()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1 + side * side,
        initializer_range=1.0,
    )
    config.bos_token_id = config.eos_token_id = None
    vqvae = type(pipe.vqvae).from_config({**pipe.vqvae.config, "num_vq_embeddings": codes})
    return VQAutoregressivePipeline(vqvae, LlamaForCausalLM(config).eval(), None, {0: "it"}, side, side)


def test_the_likelihoods_of_all_pictures_add_up_to_one():
    pipe = tiny_pipeline()
    total = 0.0
    for codes in product(range(3), repeat=4):
        one = {"codes": torch.tensor([codes]), "prefixes": pipe.prefixes(0)}
        total += math.exp(-4 * code_likelihood(pipe, [one], 64)["nats_per_code"])
    assert total == pytest.approx(1.0, abs=1e-5)


def test_likelihoods_in_all_their_units():
    pipe, given = raster_pipeline(), batch()
    found = code_likelihood(pipe, [given], dimensions=64)
    objective = AutoregressiveObjective(pipe).eval()
    nats = float(objective.loss(given, "transformer")[0].detach())
    blind = given | {"prefixes": VOCABULARY.null_prefixes(4)}
    expected = {
        "nats_per_code": nats,
        "bits_per_code": nats / math.log(2),
        "bits_per_dimension": nats / math.log(2) * LENGTH / 64,
        "nats_per_code_without_condition": float(objective.loss(blind, "transformer")[0].detach()),
        "uniform_nats_per_code": math.log(CODES),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="`batches` is empty"):
        code_likelihood(pipe, [], 64)


def test_frequencies_by_hand():
    found = frequency_nats(torch.tensor([0, 0, 1]), torch.tensor([0, 2]), 3)  # 3, 2 and 1 of 6
    assert found == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)
