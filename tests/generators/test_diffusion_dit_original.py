"""Checkpoints of the original DiT and of diffusers' are read and written; no released file was at hand."""

import argparse

import pytest
import torch
from diffusers import DiTTransformer2DModel
from generators.dit_tiny import moved
from generators.original_dit import RELEASED, original_dit, random_weights, shapes
from torch.testing import assert_close

from hf_mm import MMDiTModel, from_dit_transformer, load_original_dit, save_original_dit, to_dit_transformer
from hf_mm.generators.diffusion.convert_dit_original import to_original_dit_state_dict

TIMES = torch.tensor([3, 700])
CLASSES = torch.tensor([1, 3])  # 3 is the null class
WRITABLE = {"sample_size": 8, "in_channels": 4, "hidden_size": 16, "num_layers": 2, "num_heads": 2}


def fields(model):
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def latents(side=8):
    return torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(0))


def file_of(weights, folder, **holders):
    torch.save(holders or weights, folder / "DiT.pt")
    return folder / "DiT.pt"


def writable(**changes):
    torch.manual_seed(0)
    return moved(MMDiTModel(**WRITABLE | {"num_classes": 3, "out_channels": 8} | changes))


def equal_in_values_and_gradients(ours, theirs):
    """`ours` and `theirs` say what they predict for latents."""
    answers = []
    for model in (ours, theirs):
        sample = latents().requires_grad_()
        output = model(sample)
        output.square().mean().backward()
        answers.append((output.detach(), sample.grad))
    assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)


def test_a_file_with_released_names_predicts_the_same(tmp_path):
    weights = {name: weight.requires_grad_() for name, weight in random_weights().items()}
    model = MMDiTModel.from_original(
        file_of({name: w.detach() for name, w in weights.items()}, tmp_path), num_heads=2
    )
    assert not model.training
    equal_in_values_and_gradients(
        lambda sample: model(sample, TIMES, CLASSES).sample,
        lambda sample: original_dit(weights, sample, TIMES, CLASSES, heads=2),
    )
    for name, theirs in {
        "blocks.1.mlp.fc1": "blocks.1.mlp.fc1",
        "time_embed.linear_1": "t_embedder.mlp.0",
    }.items():
        assert_close(model.get_parameter(f"{name}.weight").grad, weights[f"{theirs}.weight"].grad)
    queries = weights["blocks.0.attn.qkv.weight"].grad[:16]
    assert_close(model.blocks[0].attn.to_q.weight.grad, queries)


@pytest.mark.parametrize("size", ["DiT-S/2", "DiT-XL/2"])
def test_the_released_models_have_these_names_and_shapes(size):
    released = RELEASED[size]
    with torch.device("meta"):
        model = MMDiTModel(
            in_channels=4,
            out_channels=8,
            hidden_size=released["width"],
            num_layers=released["layers"],
            num_heads=released["heads"],
            num_classes=1000,
        )
    written = to_original_dit_state_dict(model)
    sizes = {name: released[name] for name in ("width", "layers")}
    assert {name: tuple(weight.shape) for name, weight in written.items()} == shapes(**sizes)


def test_dit_xl_2_has_the_published_number_of_weights():
    """675 million, table 4 of the paper."""
    sizes = shapes(width=1152, layers=28)
    assert round(sum(torch.Size(shape).numel() for shape in sizes.values()) / 1e6) == 675


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    model = writable()
    save_original_dit(model, tmp_path / "DiT.pt")
    again = load_original_dit(tmp_path / "DiT.pt", num_heads=2)
    assert fields(again) == fields(model)
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_of_a_training_checkpoint_the_averages_are_read(tmp_path):
    weights, averages = random_weights(), random_weights()
    averages["final_layer.linear.bias"] = torch.arange(32.0)
    holders = {"model": weights, "ema": averages, "opt": {}, "args": argparse.Namespace(model="DiT-XL/2")}
    with pytest.raises(ValueError, match="`weights_only=False`"):
        load_original_dit(file_of(weights, tmp_path, **holders), num_heads=2)
    model = load_original_dit(tmp_path / "DiT.pt", weights_only=False, num_heads=2)
    assert model.proj_out.bias.tolist() == list(range(32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"pos_embed": torch.zeros(1, 16, 16)},
            r"`pos_embed` \(1, 16, 16\) is not the sines.*learnt positions",
        ),
        ({"blocks.1.mlp.fc2.bias": None}, r"`blocks.1.mlp.fc2.bias` is missing \(1 weights in all\)"),
        ({"blocks.1.attn.q_norm.weight": torch.ones(8)}, "`blocks.1.attn.q_norm.weight` is unexpected"),
        (
            {"y_embedder.embedding_table.weight": None},
            "no `y_embedder.embedding_table.weight`: it is no whole",
        ),
    ],
)
def test_what_is_no_original_checkpoint_is_refused(change, words, tmp_path):
    weights = {name: w for name, w in (random_weights() | change).items() if w is not None}
    with pytest.raises(ValueError, match=words):
        load_original_dit(file_of(weights, tmp_path), num_heads=2)


def test_heads_that_no_shape_tells_must_be_given(tmp_path):
    with pytest.raises(ValueError, match=r"16 wide, which is none of the published sizes; pass `num_heads`"):
        load_original_dit(file_of(random_weights(), tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qk_norm": True}, "`qk_norm`=True cannot be written, the original DiT has False only"),
        ({"num_classes": None}, "`num_classes`=None and `sample_size`=8 cannot be written"),
        ({"sample_size": (8, 16)}, r"`sample_size`=.8, 16. cannot be written.*squares"),
        ({"out_channels": 5}, "`out_channels`=5 cannot be written.*`in_channels`=4, or twice"),
    ],
)
def test_what_the_original_code_cannot_build_is_not_written(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_original_dit(writable(**changes), tmp_path / "DiT.pt")
    assert not list(tmp_path.iterdir())


def transformer(same=True, **changes):
    """diffusers' own, with one embedder in all layers or one in each."""
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2, "num_embeds_ada_norm": 3}
    torch.manual_seed(0)
    model = moved(DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, **sizes | changes))
    if same:
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def test_diffusers_dit_predicts_the_same():
    theirs = transformer()
    ours = from_dit_transformer(theirs)
    equal_in_values_and_gradients(
        lambda sample: ours(sample, TIMES, CLASSES).sample,
        lambda sample: theirs(sample, TIMES, CLASSES).sample,
    )
    for block, their_block in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        assert_close(block.modulation.weight.grad, their_block.norm1.linear.weight.grad)
        assert_close(block.mlp.fc1.weight.grad, their_block.ff.net[0].proj.weight.grad)
        assert_close(block.attn.to_v.weight.grad, their_block.attn1.to_v.weight.grad)
    of_layers = [
        block.norm1.emb.class_embedder.embedding_table.weight.grad for block in theirs.transformer_blocks
    ]
    assert_close(ours.class_embed.weight.grad, sum(of_layers))


def test_on_pictures_of_another_size_too():
    theirs = transformer()
    ours = from_dit_transformer(theirs)
    with torch.no_grad():
        sample = latents(side=12)
        expected = theirs(sample, TIMES, CLASSES).sample
        assert_close(ours(sample, TIMES, CLASSES).sample, expected, rtol=1e-5, atol=1e-5)


def test_back_in_diffusers_it_has_the_weights_it_came_with():
    theirs = transformer()
    again = to_dit_transformer(from_dit_transformer(theirs))
    assert fields(again) == fields(theirs)
    assert_close(again.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_embedders_that_differ_are_named():
    words = (
        r"`transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight` differs from "
        r"`transformer_blocks.0.*after training with diffusers.*one embedder for all"
    )
    with pytest.raises(ValueError, match=words):
        from_dit_transformer(transformer(same=False))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_fn": "geglu"}, "`activation_fn`='geglu' of this DiT.* has 'gelu-approximate'"),
        ({"attention_bias": False}, "`attention_bias`=False of this DiT.* has True"),
    ],
)
def test_a_diffusers_dit_of_another_kind_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        from_dit_transformer(transformer(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "`freq_shift`=0.0 has no place in a DiTTransformer2DModel, which has 1.0"),
        ({"freq_shift": 1.0, "num_classes": None}, "`num_classes`=None and `sample_size`=8: a DiT"),
    ],
)
def test_what_diffusers_dit_cannot_hold_is_not_converted(changes, words):
    with pytest.raises(ValueError, match=words):
        to_dit_transformer(writable(**changes))
