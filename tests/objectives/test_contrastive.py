"""InfoNCE: against cross_entropy written out and transformers' CLIP; streamed against plain."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPConfig, CLIPModel

from hf_mm import info_nce


def pairs(number, width=16, hard=0, dtype=torch.float32, seed=0):
    """Image features, text features that resemble them, a scale and hard negatives, all leaves."""
    generator = torch.Generator().manual_seed(seed)
    images = normalize(torch.randn(number, width, generator=generator), dim=-1)
    texts = normalize(images + 0.5 * torch.randn(number, width, generator=generator), dim=-1)
    parts = [images, texts, torch.tensor(14.3)]
    if hard:
        parts.append(normalize(torch.randn(number, hard, width, generator=generator), dim=-1))
    return [part.to(dtype).requires_grad_() for part in parts]


def loss_and_gradients(loss, parts):
    loss.backward()
    gradients = [part.grad.clone() for part in parts]
    for part in parts:
        part.grad = None
    return [loss.detach(), *gradients]


def spelled_out(images, texts, scale, hard=None, similarity="dot", label_smoothing=0.0):
    """As one writes it with torch's own parts, hard negatives row by row."""
    matrix = images @ texts.T if similarity == "dot" else -torch.cdist(images, texts)
    own = torch.arange(len(matrix))
    of_texts = cross_entropy(scale * matrix.T, own, label_smoothing=label_smoothing)
    if hard is not None:
        compare = (lambda x, h: h @ x) if similarity == "dot" else (lambda x, h: -(h - x).norm(dim=-1))
        harder = torch.stack([compare(x, h) for x, h in zip(images, hard, strict=True)])
        matrix = torch.cat([matrix, harder], dim=1)
    return (cross_entropy(scale * matrix, own, label_smoothing=label_smoothing) + of_texts) / 2


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("hard", [0, 3])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_value_and_gradients_equal_cross_entropy_spelled_out(similarity, hard, label_smoothing, chunk_size):
    """11 pairs: the last tiles of four are smaller."""
    parts = pairs(11, hard=hard)
    options = {"similarity": similarity, "label_smoothing": label_smoothing}
    expected = loss_and_gradients(spelled_out(*parts, **options), parts)
    named = dict(zip(("hard_negatives",), parts[3:], strict=False))
    loss = info_nce(*parts[:3], **named, chunk_size=chunk_size, **options)
    assert_close(loss_and_gradients(loss, parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 7, 100])
def test_the_chunk_size_changes_nothing(chunk_size):
    parts = pairs(7)
    streamed = loss_and_gradients(info_nce(*parts, chunk_size=chunk_size), parts)
    assert_close(streamed, loss_and_gradients(info_nce(*parts), parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_streamed_gradients_pass_gradcheck(similarity):
    parts = pairs(5, width=4, hard=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, t, s, h: info_nce(
            x, t, s, hard_negatives=h, similarity=similarity, label_smoothing=0.1, chunk_size=2
        ),
        parts,
    )


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_transformers_clip_gets_the_same_loss_and_gradients(chunk_size):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 50, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 49},
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    peer = CLIPModel(config)
    ids = torch.cat([torch.randint(0, 48, (5, 6)), torch.full((5, 1), 49)], dim=1)
    outputs = peer(input_ids=ids, pixel_values=torch.randn(5, 3, 16, 16), return_loss=True)
    loss = info_nce(outputs.image_embeds, outputs.text_embeds, peer.logit_scale.exp(), chunk_size=chunk_size)
    assert_close(loss, outputs.loss, rtol=1e-5, atol=1e-6)
    weights = list(peer.parameters())
    expected = torch.autograd.grad(outputs.loss, weights, retain_graph=True, allow_unused=True)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class LargestResult(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, list | tuple) else [out]:
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
        return out


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_streaming_never_holds_more_than_a_tile_or_the_features(similarity):
    parts = pairs(256, width=8)
    with LargestResult() as plain:
        info_nce(*parts, similarity=similarity).backward()
    with LargestResult() as streamed:
        info_nce(*parts, similarity=similarity, chunk_size=16).backward()
    assert plain.elements == 256 * 256
    assert streamed.elements == 256 * 8


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_features_at_one_place_have_a_finite_gradient(similarity, chunk_size):
    images = torch.randn(40, 512, generator=torch.Generator().manual_seed(0)).requires_grad_()
    texts = images.detach().clone().requires_grad_()
    loss = info_nce(images, texts, 0.1, similarity=similarity, chunk_size=chunk_size)
    loss.backward()
    assert images.grad.isfinite().all()
    assert texts.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_half_precision_features_are_compared_in_float32(dtype, chunk_size):
    halves = pairs(9, dtype=dtype)
    halves[2] = torch.tensor(14.3, requires_grad=True)
    wide = [part.detach().float().requires_grad_() for part in halves]
    expected = loss_and_gradients(info_nce(*wide), wide)
    measured = loss_and_gradients(info_nce(*halves, chunk_size=chunk_size), halves)
    assert [part.dtype for part in measured] == [torch.float32, dtype, dtype, torch.float32]
    assert_close(measured[0], expected[0], rtol=1e-5, atol=1e-6)
    assert_close(measured[3], expected[3], rtol=1e-5, atol=1e-6)
    for half, exact in zip(measured[1:3], expected[1:3], strict=True):
        assert_close(half, exact.to(dtype), rtol=1e-2, atol=1e-6)  # one rounding of half precision


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_autocast_does_not_round_the_logits(chunk_size):
    parts = pairs(9)
    expected = loss_and_gradients(info_nce(*parts), parts)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(*parts, chunk_size=chunk_size)
    assert_close(loss_and_gradients(loss, parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_the_plain_form_compiles_into_one_graph(similarity):
    parts = pairs(6, hard=2)

    def loss(images, texts, scale, hard):
        return info_nce(images, texts, scale, hard_negatives=hard, similarity=similarity, label_smoothing=0.1)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = loss_and_gradients(loss(*parts), parts)
    assert_close(loss_and_gradients(compiled(*parts), parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_batch_of_one_has_no_loss_and_no_gradient(chunk_size):
    parts = pairs(1)
    loss, *gradients = loss_and_gradients(info_nce(*parts, chunk_size=chunk_size), parts)
    assert loss.item() == 0.0
    assert all((gradient == 0).all() for gradient in gradients)


def test_a_batch_of_one_learns_from_hard_negatives():
    images, texts, _, hard = pairs(1, hard=4)
    loss, *gradients = loss_and_gradients(
        info_nce(images, texts, 1.0, hard_negatives=hard), [images, texts, hard]
    )
    assert loss.item() > 0.1
    assert all((gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize("twins", [2, 3])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_duplicate_captions_keep_the_loss_above_the_logarithm_of_their_number(twins, chunk_size):
    """Perfect features: each of 8 captions far from all others, but the first `twins` are one caption."""
    captions = torch.eye(8)
    captions[:twins] = captions[0]
    floor = twins * math.log(twins) / 8
    assert info_nce(captions, captions, 100.0, chunk_size=chunk_size).item() == pytest.approx(floor, abs=1e-6)


def test_a_pair_of_duplicates_alone_costs_ln_2_and_nothing_is_learnt():
    captions = torch.ones(2, 3) / 3**0.5
    images = captions.clone().requires_grad_()
    loss = info_nce(images, captions, 100.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert images.grad.abs().max().item() < 1e-5


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_nan_is_passed_on(similarity, chunk_size):
    """The trainer stops at a NaN loss; a loss that hides it would train on."""
    parts = pairs(5)
    with torch.no_grad():
        parts[0][3, 1] = torch.nan
    assert info_nce(*parts, similarity=similarity, chunk_size=chunk_size).isnan()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_large_logits_neither_overflow_nor_vanish(chunk_size):
    images = torch.eye(4)
    worst = info_nce(images, images.roll(1, 0), 1e4, chunk_size=chunk_size)
    assert worst.item() == pytest.approx(1e4, rel=1e-6)
    assert info_nce(images, -images, 1e4, chunk_size=chunk_size).item() == pytest.approx(1e4, rel=1e-3)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((8,), (8,)), {}, r"`image_features` must be \(pairs, width\), got \(8,\)\."),
        (((4, 8), (4, 1, 8)), {}, r"`text_features` must be \(pairs, width\), got \(4, 1, 8\)\."),
        (((4, 8), (5, 8)), {}, r"`image_features` is \(4, 8\) but `text_features` is \(5, 8\); row i of"),
        (((0, 8), (0, 8)), {}, "`image_features` and `text_features` have no rows; skip empty batches"),
        (((4, 8), (4, 8)), {"similarity": "cosine"}, "`similarity` must be 'dot' or 'euclidean', got"),
        (((4, 8), (4, 8)), {"chunk_size": 0}, "`chunk_size` must be at least 1, or None .*, got 0"),
        (((4, 8), (4, 8)), {"label_smoothing": 1.5}, "`label_smoothing` must be between 0 and 1, got 1.5"),
        (((4, 8), (4, 8)), {"scale": torch.ones(2)}, r"`scale` must be a single number, got shape \(2,\)"),
        (
            ((4, 8), (4, 8)),
            {"hard_negatives": torch.ones(4, 8)},
            r"`hard_negatives` must be \(4, K, 8\), K texts per image, got \(4, 8\)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(shapes, options, message):
    images, texts = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        info_nce(images, texts, **({"scale": 1.0} | options))


def test_integer_features_are_refused():
    with pytest.raises(TypeError, match=r"`text_features` must be floating point, got torch.int64"):
        info_nce(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), 1.0)
