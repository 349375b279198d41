"""The VQ autoencoder against diffusers' `VQModel`, and what its codebooks learn, counted by hand."""

import copy
import math

import pytest
import torch
from diffusers import VQModel
from diffusers.models.autoencoders.vae import VectorQuantizer
from generators.generator_contract import GeneratorModelContract
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from hf_mm import MMVQAutoencoder

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "latent_channels": 6,
    "sample_size": 8,
}
CODEBOOK = {"num_vq_embeddings": 16, "vq_embed_dim": 4}
QUANTISERS = {
    "plain": CODEBOOK | {"quantizer": "plain"},
    "plain-l2": CODEBOOK | {"quantizer": "plain", "l2_normalized": True},
    "ema": CODEBOOK | {"quantizer": "ema"},
    "ema-l2": CODEBOOK | {"quantizer": "ema", "l2_normalized": True},
    "fsq": {"quantizer": "fsq", "fsq_levels": [4, 3, 2]},
}
WITH_CODEBOOK = [name for name in QUANTISERS if name != "fsq"]


def build(name="ema", **changes):
    torch.manual_seed(0)
    model = MMVQAutoencoder(**TINY | QUANTISERS[name] | changes).eval()
    with torch.no_grad():  # codes and features far apart, as after training
        model.quant_conv.weight.mul_(20)
        if name != "fsq" and not model.config.l2_normalized:
            model.quantize.embedding.weight.copy_(torch.randn(model.num_codes, 4))
    return model


def pictures(count=2, seed=0, size=8):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class TestVQAutoencoder(GeneratorModelContract):
    model_class = MMVQAutoencoder
    half_tolerance = None  # a feature rounded to bfloat16 may be nearer to another code

    def options(self):
        return TINY | QUANTISERS["plain"]

    def inputs(self):
        return {"sample": pictures()}

    def loss(self, model):
        codes = model(pictures())
        return codes.sample.square().mean() + codes.loss


class TestVQAutoencoderWithMovingAverages(TestVQAutoencoder):
    def options(self):
        return TINY | QUANTISERS["ema-l2"]


class TestVQAutoencoderOfFiniteScalars(TestVQAutoencoder):
    def options(self):
        return TINY | QUANTISERS["fsq"]


@pytest.mark.parametrize("name", WITH_CODEBOOK)
def test_forward_encode_and_decode_are_those_of_diffusers(name):
    model, x = build(name), pictures()
    theirs = model.to_vq_model()
    assert type(theirs) is VQModel
    assert len(model.encode(x).indices.unique()) > 3
    assert_close(model(x).sample, theirs(x).sample, rtol=1e-5, atol=1e-5)
    features = theirs.encode(x).latents
    quantised, _, (_, _, indices) = theirs.quantize(features)
    assert_close(model.encode(x).indices.flatten(), indices)
    assert_close(model.encode(x).latents, quantised, rtol=1e-5, atol=1e-5)
    assert_close(model.decode(quantised).sample, theirs.decode(features).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("swapped", [False, True])
def test_gradients_are_those_of_diffusers_with_the_same_loss(swapped):
    """Swapped as `VQModel` has it: its `legacy` puts the 0.25 on the codebook."""
    weights = {"codebook_weight": 0.25, "commitment_weight": 1.0} if swapped else {}
    model, x = build("plain", **weights).train(), pictures()
    theirs = model.to_vq_model()
    theirs.quantize.legacy = swapped
    for one in (model, theirs):
        made = one(x)
        loss = made.loss if one is model else made.commit_loss
        ((made.sample - x).square().mean() + loss).backward()
    expected = dict(theirs.named_parameters())
    for name, weight in model.named_parameters():
        assert_close(weight.grad, expected[name].grad, rtol=1e-5, atol=1e-5)


def test_by_default_the_codebook_counts_1_and_the_commitment_a_quarter():
    model = build("plain")
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    codes = model.quantize(z)
    codes.loss.backward()
    chosen = model.lookup(codes.indices).detach()
    difference = (z - chosen).detach()
    assert_close(z.grad, 0.25 * 2 * difference / z.numel())
    expected = torch.zeros(16, 4).index_add_(
        0, codes.indices.flatten(), -2 * difference.movedim(1, -1).flatten(0, 2) / z.numel()
    )
    assert_close(model.quantize.embedding.weight.grad, expected)
    assert_close(codes.loss, codes.codebook_loss + 0.25 * codes.commitment_loss)


def test_diffusers_has_the_two_weights_swapped():
    """If this fails, `legacy` has changed its meaning, and so have the docs here."""
    model = build("plain")
    stock = VectorQuantizer(16, 4, beta=0.25)
    stock.embedding.weight.data.copy_(model.quantize.embedding.weight.data)
    z = torch.randn(1, 4, 3, 3, requires_grad=True)
    _, loss, _ = stock(z)
    loss.backward()
    chosen = model.lookup(model.quantize(z).indices).detach()
    assert_close(z.grad, 2 * (z.detach() - chosen) / z.numel())


@pytest.mark.parametrize("name", QUANTISERS)
def test_the_decoder_s_gradient_passes_through_the_codes(name):
    model, z = build(name), torch.randn(2, 3 if name == "fsq" else 4, 3, 3, requires_grad=True)
    upstream = torch.randn(z.shape)
    model.quantize(z).latents.backward(upstream)
    again = z.detach().clone().requires_grad_()
    if "l2" in name:
        torch.nn.functional.normalize(again, dim=1).backward(upstream)
    elif name == "fsq":
        levels = torch.tensor([4, 3, 2])
        half = (levels - 1) * 1.001 / 2
        offset = torch.tensor([0.5, 0.0, 0.5])
        bounded = torch.tanh(again.movedim(1, -1) + torch.atanh(offset / half)) * half - offset
        (bounded / (levels // 2)).movedim(-1, 1).backward(upstream)
    else:
        again.backward(upstream)
    assert_close(z.grad, again.grad)


@pytest.mark.parametrize("name", QUANTISERS)
def test_indices_decode_to_the_same_pictures_bit_for_bit(name):
    model, x = build(name), pictures()
    codes = model.encode(x)
    assert codes.indices.shape == (2, 4, 4)
    assert codes.indices.dtype == torch.int64
    assert_close(model.lookup(codes.indices), codes.latents, rtol=0, atol=0)
    assert_close(model.decode_indices(codes.indices).sample, model(x).sample, rtol=0, atol=0)


@pytest.mark.parametrize("name", QUANTISERS)
def test_every_code_is_its_own_nearest_code(name):
    model = build(name)
    if name == "fsq":  # features that the bound maps near the codes
        half = (torch.tensor([4, 3, 2]) - 1) * 1.001 / 2
        offset = torch.tensor([0.5, 0.0, 0.5])
        values = model.quantize.codes() * torch.tensor([2, 1, 1])
        share = ((values + offset) / half).clamp(-1 + 1e-6, 1 - 1e-6)
        features = torch.atanh(share) - torch.atanh(offset / half)
    else:
        features = model.quantize.codes()
    codes = model.quantize(features.T[None, :, :, None])
    assert codes.indices.flatten().tolist() == list(range(model.num_codes))
    assert codes.used_codes == model.num_codes
    assert codes.perplexity.item() == pytest.approx(model.num_codes, rel=1e-5)


def test_fsq_has_no_codebook_and_no_loss():
    model = build("fsq")
    assert model.num_codes == 24
    assert not [name for name in model.state_dict() if name.startswith("quantize")]
    codes = model(pictures())
    assert codes.loss == codes.codebook_loss == codes.commitment_loss == 0


@pytest.mark.parametrize("l2", [False, True])
def test_moving_averages_equal_hand_computation(l2):
    model = build(
        "ema-l2" if l2 else "ema", restart_threshold=0.0, kmeans_iterations=0, ema_decay=0.9
    ).train()
    quantiser = model.quantize
    codes = quantiser.codes().clone()
    size, total = torch.full((16,), 18 / 16), codes * 18 / 16  # 2 * 3 * 3 vectors, dealt out alike
    for step in range(4):
        z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(step))
        vectors = z.permute(0, 2, 3, 1).reshape(-1, 4)
        vectors = vectors / vectors.norm(dim=1, keepdim=True) if l2 else vectors
        chosen = torch.cdist(vectors, codes).argmin(dim=1)
        assert_close(quantiser(z).indices.flatten(), chosen)
        for code in range(16):
            mine = vectors[chosen == code]
            size[code] = 0.9 * size[code] + 0.1 * len(mine)
            total[code] = 0.9 * total[code] + 0.1 * mine.sum(dim=0)
        codes = total / size[:, None]
        codes = codes / codes.norm(dim=1, keepdim=True) if l2 else codes
        assert_close(quantiser.embedding.weight, codes)
        assert_close(quantiser.cluster_size, size)


def test_the_codes_of_a_batch_are_those_before_it_was_learnt():
    model = build("ema", kmeans_iterations=0).train()
    before = copy.deepcopy(model).eval()
    assert_close(model(pictures()).sample, before(pictures()).sample)
    assert not torch.equal(model.quantize.embedding.weight, before.quantize.embedding.weight)


def test_the_codebook_of_averages_is_out_of_reach_of_optimizers():
    assert not [name for name, _ in build("ema").named_parameters() if name.startswith("quantize")]


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_evaluation_never_changes_the_codebook(mode):
    model = build("ema").train()
    model(pictures())
    before = copy.deepcopy(model.state_dict())
    model.train(mode == "no_grad")
    with torch.set_grad_enabled(mode == "eval"):
        model(pictures(seed=1))
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_first_batch_sets_the_codebook_by_kmeans_the_same_for_the_same_seed():
    books = []
    for seed in (0, 0, 1):
        model = build("ema", restart_threshold=0.0).train()
        torch.manual_seed(seed)
        z = torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(7))
        assert model.quantize(z).used_codes == 16
        books.append(model.quantize.embedding.weight.clone())
        assert model.quantize(z).commitment_loss < 0.6  # a random book has about 1.2
    assert_close(books[0], books[1], rtol=0, atol=0)
    assert not torch.equal(books[0], books[2])


def test_training_goes_on_with_the_codebook_that_was_loaded(tmp_path):
    model = build("ema").train()
    model(pictures())
    model.save_pretrained(tmp_path)
    copies = [MMVQAutoencoder.from_pretrained(tmp_path), build("ema").train()]
    copies[1](pictures(seed=5))  # has started; then other weights come
    copies[1].load_state_dict(model.state_dict())
    fresh = build("ema")
    fresh.load_state_dict(model.state_dict())
    for one in (model, *copies, fresh):
        torch.manual_seed(3)
        one.train()(pictures(seed=1))
        assert_close(one.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_from_before_the_start_start_again():
    fresh, begun = build("ema").train(), build("ema").train()
    begun(pictures(seed=5))
    begun.load_state_dict(fresh.state_dict())
    for model in (fresh, begun):
        torch.manual_seed(3)
        model(pictures(seed=1))
    assert_close(begun.state_dict(), fresh.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("l2", [False, True])
def test_restarts_revive_a_collapsed_codebook(l2):
    """All codes but one are far from every feature, so one code takes all."""
    used = {}
    for threshold in (0.0, 0.02):
        model = build(
            "ema-l2" if l2 else "ema", restart_threshold=threshold, kmeans_iterations=0, ema_decay=0.9
        ).train()
        away = torch.tensor([-1.0, 0, 0, 0]) if l2 else torch.full((4,), 100.0)
        model.quantize.embedding.weight.copy_(away.expand(16, 4))
        model.quantize.embedding.weight[0] = torch.tensor([1.0, 0, 0, 0])
        torch.manual_seed(0)
        for _ in range(80):
            z = torch.randn(8, 4, 4, 4)
            z[:, 0] = z[:, 0].abs() + 0.1  # on the side of the first code
            codes = model.quantize(z)
        used[threshold] = codes.used_codes.item()
        if threshold:
            assert codes.perplexity > 8
    assert used[0.0] == 1
    assert used[0.02] == 16


def test_a_used_code_is_never_restarted():
    model = build("ema", kmeans_iterations=0, restart_threshold=0.5).train()
    plain = build("ema", kmeans_iterations=0, restart_threshold=0.0).train()
    z = model.quantize.codes().T[None, :, :, None]  # each code once
    for _ in range(5):
        for one in (model, plain):
            one.quantize(z)
    assert_close(model.quantize.embedding.weight, plain.quantize.embedding.weight)


@pytest.mark.parametrize("name", QUANTISERS)
def test_under_autocast_distances_losses_and_codebook_stay_float32(name):
    model, z = build(name).train(), torch.randn(2, 3 if name == "fsq" else 4, 3, 3).bfloat16()
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.quantize(z)
    torch.manual_seed(0)
    full = other.quantize(z.float())
    assert_close(half.indices, full.indices)
    assert_close(half.loss, full.loss, rtol=0, atol=0)
    assert half.loss.dtype == half.perplexity.dtype == torch.float32
    assert half.latents.dtype == torch.bfloat16
    assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_training_step_under_autocast_has_finite_gradients(name):
    model = build(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model(pictures())
        loss = (made.sample.float() - pictures()).square().mean() + made.loss
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_training_step_never_waits_for_numbers(name):
    """Fake tensors have no numbers: reading one off, as `.item()` would, raises."""
    with FakeTensorMode():
        model = MMVQAutoencoder(**TINY | QUANTISERS[name]).train()
        if "ema" in name:
            model.quantize._started = True  # known from the second step on
        made = model(torch.rand(2, 1, 8, 8))
        (made.sample.square().mean() + made.loss).backward()
        assert made.used_codes.shape == ()


@pytest.mark.parametrize("name", WITH_CODEBOOK)
def test_stock_vq_model_loads_the_folder(name, tmp_path):
    model = build(name)
    if "l2" in name:  # lengths that training leaves, or an average of weights
        model.quantize.embedding.weight.data.mul_(torch.rand(16, 1) + 1)
    before = model.quantize.embedding.weight.detach().clone()
    model.save_pretrained(tmp_path)
    assert_close(model.quantize.embedding.weight, before, rtol=0, atol=0)
    theirs, report = VQModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert_close(theirs(pictures()).sample, model(pictures()).sample, rtol=1e-5, atol=1e-5)
    again = MMVQAutoencoder.from_pretrained(tmp_path)
    assert_close(again(pictures()).sample, model(pictures()).sample, rtol=0, atol=0)


def test_codes_of_length_1_have_the_gradient_of_their_direction():
    model, z = build("plain-l2"), torch.randn(2, 4, 3, 3)
    book = model.quantize.embedding.weight
    codes = model.quantize(z)
    codes.codebook_loss.backward()
    again = book.detach().clone().requires_grad_()
    chosen = torch.nn.functional.normalize(again, dim=1)[codes.indices].movedim(-1, 1)
    (chosen - torch.nn.functional.normalize(z, dim=1)).square().mean().backward()
    assert_close(book.grad, again.grad)
    assert_close((book.grad * book).sum(dim=1), torch.zeros(16), rtol=0, atol=1e-7)


def test_a_folder_of_stock_vq_model_loads_here_with_a_plain_codebook(tmp_path):
    theirs = build("plain").to_vq_model()
    theirs.save_pretrained(tmp_path)
    model, report = MMVQAutoencoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert model.config.quantizer == "plain"
    assert_close(model(pictures()).sample, theirs(pictures()).sample, rtol=1e-5, atol=1e-5)


def test_a_loaded_stock_codebook_can_learn_on_by_moving_averages(tmp_path):
    theirs = build("plain").to_vq_model()
    theirs.save_pretrained(tmp_path)
    model = MMVQAutoencoder.from_pretrained(tmp_path, quantizer="ema", kmeans_iterations=0, ema_decay=0.999)
    model.train()(pictures())
    moved = (model.quantize.embedding.weight - theirs.quantize.embedding.weight).abs().max()
    assert 0 < moved < 0.2


def test_fsq_is_no_vq_model(tmp_path):
    model = build("fsq")
    with pytest.raises(ValueError, match=r"'fsq' with `fsq_levels`=\[4, 3, 2\] has no codebook.*VQModel"):
        model.to_vq_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError):  # not a model with a random codebook
        VQModel.from_pretrained(tmp_path)


def test_a_stock_vq_model_with_spatial_norms_is_refused(tmp_path):
    spatial = {"norm_type": "spatial", "block_out_channels": [32, 32], "norm_num_groups": 32}
    VQModel(**TINY | CODEBOOK | spatial).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`norm_type`='spatial' of this VQModel is not built here"):
        MMVQAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 3, 8, 8), r"must be \(batch, 1, height, width\), got \(2, 3, 8, 8\)"),
        ((1, 8, 8), r"must be \(batch, 1, height, width\), got \(1, 8, 8\)"),
        ((1, 1, 9, 8), r"9x8 px are no multiple of `downscale`=2; resize or pad"),
        ((1, 1, 8, 0), r"8x0 px are no multiple"),
    ],
)
def test_pictures_of_another_shape_are_named(shape, words):
    with pytest.raises(ValueError, match=words):
        build()(torch.zeros(shape))


def test_pictures_of_bytes_are_named():
    with pytest.raises(TypeError, match=r"floating point numbers in \[-1, 1\], got torch.uint8"):
        build()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("indices", "error", "words"),
    [
        (torch.full((1, 2, 2), 16), ValueError, "`indices` has 16 but the codebook is 0 to 15; take class"),
        (torch.full((1, 2, 2), -1), ValueError, "`indices` has -1 but the codebook is 0 to 15"),
        (torch.zeros(1, 4, dtype=torch.long), ValueError, r"must be \(batch, height, width\), got \(1, 4\)"),
        (
            torch.zeros(0, 2, 2, dtype=torch.long),
            ValueError,
            r"must be \(batch, height, width\), got \(0, 2, 2\)",
        ),
        (torch.zeros(1, 2, 2), TypeError, "must be whole numbers, got torch.float32"),
    ],
)
def test_indices_outside_the_codebook_are_named(indices, error, words):
    with pytest.raises(error, match=words):
        build().decode_indices(indices)


def test_latents_of_another_width_are_named():
    with pytest.raises(
        ValueError, match=r"must be \(batch, 4, height, width\), got \(1, 5, 2, 2\); for indices"
    ):
        build().decode(torch.zeros(1, 5, 2, 2))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantizer": "gumbel"}, "`quantizer` must be 'ema', 'plain' or 'fsq', got 'gumbel'"),
        ({"quantizer": "fsq"}, r"needs `fsq_levels` of at least 2 each.*got None"),
        ({"quantizer": "fsq", "fsq_levels": [8, 1]}, r"of at least 2 each.*got \[8, 1\]"),
        (
            {"quantizer": "fsq", "fsq_levels": [4, 3], "num_vq_embeddings": 12},
            r"`num_vq_embeddings`=12 must be None.*make 12 codes",
        ),
        (
            {"quantizer": "fsq", "fsq_levels": [4, 3], "vq_embed_dim": 5},
            r"`vq_embed_dim`=5 but `fsq_levels`=\[4, 3\] has 2 dimensions",
        ),
        (
            {"quantizer": "fsq", "fsq_levels": [4, 3], "l2_normalized": True},
            "`l2_normalized` is of codebooks",
        ),
        ({"fsq_levels": [4, 3]}, r"`fsq_levels`=\[4, 3\] is of `quantizer`='fsq' only, got 'ema'"),
        ({"num_vq_embeddings": 1}, "`num_vq_embeddings`=1 and `vq_embed_dim`=6: a codebook has at least 2"),
        ({"ema_decay": 1.0}, "`ema_decay` must be from 0 to below 1, got 1.0"),
        ({"restart_threshold": 1.5}, "`restart_threshold` must be from 0 to below 1, got 1.5; it is a share"),
    ],
)
def test_fields_that_do_not_go_together_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        MMVQAutoencoder(**TINY | fields)


def test_moving_averages_refuse_half_precision_weights():
    model = build("ema").bfloat16().train()
    with pytest.raises(ValueError, match=r"codebook is torch.bfloat16, too coarse.*under autocast"):
        model(pictures().bfloat16())


def test_the_grid_of_codes_is_that_of_downscale():
    model = MMVQAutoencoder(
        **TINY
        | {
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "block_out_channels": [8, 8, 8],
        }
    )
    assert model.downscale == 4
    assert model.num_codes == 256
    assert model.config.num_vq_embeddings == 256
    assert model.eval().encode(pictures(size=16)).indices.shape == (2, 16 // 4, math.isqrt(16))
