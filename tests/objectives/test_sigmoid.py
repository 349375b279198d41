"""The sigmoid loss: against transformers' SigLIP and the loss pair by pair; tiles against the whole."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SiglipConfig, SiglipModel

from hf_mm import sigmoid_loss


def parts_of(number, width=16, dtype=torch.float32):
    """Image features, text features that resemble them, scale and bias, all leaves."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(number, width, generator=generator), dim=-1)
    texts = normalize(images + 0.5 * torch.randn(number, width, generator=generator), dim=-1)
    parts = (images, texts, torch.tensor(10.0), torch.tensor(-4.0))
    return [part.to(dtype).requires_grad_() for part in parts]


def loss_and_gradients(loss, parts):
    return [loss.detach(), *torch.autograd.grad(loss, parts)]


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 11, 50])
def test_value_and_gradients_equal_binary_cross_entropy_of_all_pairs(similarity, chunk_size):
    parts = parts_of(11)
    images, texts, scale, bias = parts
    matrix = images @ texts.T if similarity == "dot" else -torch.cdist(images, texts)
    peer = binary_cross_entropy_with_logits(scale * matrix + bias, torch.eye(11), reduction="sum") / 11
    loss = sigmoid_loss(*parts, similarity=similarity, chunk_size=chunk_size)
    expected = loss_and_gradients(peer, parts)
    assert_close(loss_and_gradients(loss, parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_transformers_siglip_gets_the_same_loss_and_gradients(chunk_size):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    peer = SiglipModel(
        SiglipConfig(
            text_config=small | {"vocab_size": 50, "max_position_embeddings": 8},
            vision_config=small | {"image_size": 16, "patch_size": 8},
        )
    )
    ids = torch.randint(0, 50, (5, 8))
    outputs = peer(input_ids=ids, pixel_values=torch.randn(5, 3, 16, 16), return_loss=True)
    loss = sigmoid_loss(
        outputs.image_embeds,
        outputs.text_embeds,
        peer.logit_scale.exp(),
        peer.logit_bias,
        chunk_size=chunk_size,
    )
    assert peer.logit_scale.shape == (1,)  # a number is a number, with or without an axis
    assert_close(loss, outputs.loss, rtol=1e-5, atol=1e-6)
    weights = list(peer.parameters())
    expected = torch.autograd.grad(outputs.loss, weights, retain_graph=True, allow_unused=True)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_tiled_gradients_pass_gradcheck(similarity):
    parts = parts_of(5, width=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *given: 3 * sigmoid_loss(*given, similarity=similarity, chunk_size=2), parts
    )


def test_gradients_flow_to_the_one_part_that_wants_them():
    """A locked tower has no gradient; the other still gets its own."""
    images, texts, scale, bias = parts_of(6)
    (expected,) = torch.autograd.grad(sigmoid_loss(images, texts, scale, bias), texts)
    locked = sigmoid_loss(images.detach(), texts, scale.item(), bias.item(), chunk_size=4)
    (measured,) = torch.autograd.grad(locked, texts)
    assert_close(measured, expected, rtol=1e-5, atol=1e-6)


class LargestResult(TorchDispatchMode):
    elements, operations = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_tiles_are_all_that_is_held():
    with LargestResult() as seen:
        sigmoid_loss(*parts_of(256, width=8), chunk_size=16).backward()
    assert seen.elements == 256 * 8


def test_evaluation_makes_no_gradients():
    parts = parts_of(64)
    with LargestResult() as training:
        sigmoid_loss(*parts, chunk_size=16)
    with torch.no_grad(), LargestResult() as evaluating:
        sigmoid_loss(*parts, chunk_size=16)
    assert evaluating.operations < 0.6 * training.operations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_half_precision_features_are_compared_in_float32(dtype, chunk_size):
    halves = parts_of(9, dtype=dtype)
    wide = [part.detach().float().requires_grad_() for part in halves]
    expected = loss_and_gradients(sigmoid_loss(*wide), wide)
    measured = loss_and_gradients(sigmoid_loss(*halves, chunk_size=chunk_size), halves)
    assert [part.dtype for part in measured] == [torch.float32, *[dtype] * 4]
    assert_close(measured[0], expected[0], rtol=1e-5, atol=1e-6)
    for half, exact in zip(measured[1:], expected[1:], strict=True):
        assert_close(half, exact.to(dtype), rtol=1e-2, atol=1e-6)  # one rounding of half precision


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_the_plain_form_compiles_into_one_graph(similarity):
    parts = parts_of(6)

    def loss(*given):
        return sigmoid_loss(*given, similarity=similarity)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = loss_and_gradients(loss(*parts), parts)
    assert_close(loss_and_gradients(compiled(*parts), parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_batch_of_one_is_a_single_positive(chunk_size):
    feature = torch.tensor([[0.6, 0.8]])
    expected = math.log(1 + math.exp(-(10.0 - 4.0)))
    loss = sigmoid_loss(feature, feature, 10.0, -4.0, chunk_size=chunk_size)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_a_caption_of_two_images_costs_each_at_least_two_ln_2(scale):
    """The caption is each image's partner and, as the other's, its stranger; logit 0 is the best there is."""
    caption = torch.ones(2, 4) / 2
    best = sigmoid_loss(caption, caption, scale, -scale).item()
    assert best == pytest.approx(2 * math.log(2), rel=1e-5)
    assert sigmoid_loss(caption, caption, scale, 1.0 - scale).item() > best + 0.1
    assert sigmoid_loss(caption, caption, scale, -1.0 - scale).item() > best + 0.1


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_nan_is_passed_on(chunk_size):
    parts = parts_of(5)
    with torch.no_grad():
        parts[1][3, 1] = torch.nan
    assert sigmoid_loss(*parts, chunk_size=chunk_size).isnan()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_large_logits_neither_overflow_nor_vanish(chunk_size):
    images = torch.eye(4)
    assert sigmoid_loss(images, -images, 1e4, -1e3, chunk_size=chunk_size).item() == pytest.approx(11e3)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((4, 8), (4, 9)), {}, r"`image_features` is \(4, 8\) but `text_features` is \(4, 9\)"),
        (((0, 8), (0, 8)), {}, "have no rows; skip empty batches"),
        (((4, 8), (4, 8)), {"bias": torch.ones(4)}, r"`bias` must be a single number, got shape \(4,\)"),
        (((4, 8), (4, 8)), {"chunk_size": -1}, "`chunk_size` must be at least 1"),
    ],
)
def test_bad_input_is_named(shapes, options, message):
    images, texts = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(images, texts, **({"scale": 1.0, "bias": 0.0} | options))
