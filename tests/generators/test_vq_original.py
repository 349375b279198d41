"""taming VQGAN and LlamaGen checkpoints are read and written; no released file was at hand."""

import json
import math

import pytest
import torch
from generators.original_vq import RELEASED, OriginalVQ, random_weights, shapes
from torch.testing import assert_close

from hf_mm import MMVQAutoencoder, load_original_vq, save_original_vq
from hf_mm.generators.autoencoder.convert_vq_original import to_original_vq_state_dict

HOLDER = {"taming": "state_dict", "llamagen": "model"}
FILE = {"taming": "last.ckpt", "llamagen": "vq_ds16_c2i.pt"}
LAYOUTS = list(HOLDER)
LOSSES = {
    "loss.discriminator.main.0.weight": torch.zeros(2),
    "loss.perceptual_loss.lin0.model.1.weight": torch.ones(1),
}


def folder_of(layout, weights, folder):
    losses = LOSSES if layout == "taming" else {}
    torch.save({HOLDER[layout]: weights | losses, "epoch": 3}, folder / FILE[layout])
    return folder


def pictures():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


# Of a small model that both repositories' code could build.
WRITABLE = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "block_out_channels": [128, 128],
    "layers_per_block": 2,
    "latent_channels": 8,
    "num_vq_embeddings": 24,
    "vq_embed_dim": 6,
    "sample_size": 16,
}


def writable(**changes):
    torch.manual_seed(0)
    return MMVQAutoencoder(**WRITABLE | changes).eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_with_released_names_gives_the_same_codes_and_pictures(layout, tmp_path):
    weights = random_weights(layout)
    model = MMVQAutoencoder.from_original(folder_of(layout, weights, tmp_path), sample_size=16)
    indices, sample = OriginalVQ(layout, weights)(pictures())
    assert len(indices.unique()) > 3
    made = model(pictures())
    assert_close(made.indices, indices)
    assert_close(made.sample, sample, rtol=1e-5, atol=1e-5)
    assert_close(model.decode_indices(indices).sample, sample, rtol=1e-5, atol=1e-5)
    assert not model.training


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_released_models_have_these_names_and_shapes(layout):
    released = RELEASED[layout]
    levels = len(released["ch_mult"])
    with torch.device("meta"):
        model = MMVQAutoencoder(
            down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
            block_out_channels=[released["ch"] * multiple for multiple in released["ch_mult"]],
            layers_per_block=released["blocks"],
            latent_channels=released["z"],
            num_vq_embeddings=released["codes"],
            vq_embed_dim=released["width"],
            quantizer="plain",
            l2_normalized=layout == "llamagen",
            sample_size=256,
        )
    written = to_original_vq_state_dict(model, layout)
    assert {name: tuple(weight.shape) for name, weight in written.items()} == shapes(layout, **released)


def test_the_tokenizer_of_llamagen_has_the_published_number_of_weights():
    """72 million by its README, as its model zoo counts them."""
    sizes = shapes("llamagen", **RELEASED["llamagen"])
    del sizes["quantize.codebook_used"]
    assert round(sum(map(math.prod, sizes.values())) / 1e6) == 72


@pytest.mark.parametrize(("layout", "quantizer"), [("taming", "ema"), ("llamagen", "plain")])
def test_what_is_written_is_read_back_and_computes_the_same(layout, quantizer, tmp_path):
    model = writable(quantizer=quantizer, l2_normalized=layout == "llamagen")
    save_original_vq(model, tmp_path, layout)
    again = load_original_vq(tmp_path, sample_size=16)
    assert again.config.quantizer == "plain"
    assert_close(again(pictures()).sample, model(pictures()).sample, rtol=1e-5, atol=1e-5)
    weights = torch.load(next(tmp_path.glob("*.[cp]*t")))[HOLDER[layout]]
    indices, sample = OriginalVQ(layout, weights, levels=2, blocks=2)(pictures())
    assert_close(again.encode(pictures()).indices, indices)
    assert_close(again(pictures()).sample, sample, rtol=1e-5, atol=1e-5)


def test_a_written_taming_folder_says_how_to_build_the_model(tmp_path):
    save_original_vq(writable(), tmp_path, "taming")
    model = json.loads((tmp_path / "model.yaml").read_text())["model"]
    assert model["target"] == "taming.models.vqgan.VQModel"
    assert model["params"]["n_embed"] == 24
    network = model["params"]["ddconfig"]
    assert (network["ch"], network["ch_mult"], network["num_res_blocks"]) == (128, [1, 1], 2)
    assert (network["resolution"], network["attn_resolutions"]) == (16, [8])


def test_averages_in_a_llamagen_file_come_before_its_weights(tmp_path):
    weights, averages = random_weights("llamagen"), random_weights("llamagen")
    averages["decoder.conv_out.bias"] = torch.tensor([1.0, 2.0, 3.0])
    torch.save({"model": weights, "ema": averages, "args": {"lr": 1e-4}}, tmp_path / "vq.pt")
    model = load_original_vq(tmp_path / "vq.pt")
    assert model.decoder.conv_out.bias.tolist() == [1.0, 2.0, 3.0]


def test_a_loaded_model_can_train_on_with_moving_averages(tmp_path):
    folder = folder_of("taming", random_weights("taming"), tmp_path)
    model = load_original_vq(folder, quantizer="ema", kmeans_iterations=0).train()
    before = model.quantize.embedding.weight.clone()
    made = model(pictures())
    (made.sample.square().mean() + made.loss).backward()
    assert not torch.equal(model.quantize.embedding.weight, before)


def test_lightning_s_folder_of_checkpoints_is_found(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    folder_of("taming", random_weights("taming"), tmp_path / "checkpoints")
    assert load_original_vq(tmp_path).num_codes == 24


def refused(tmp_path, words, weights, **options):
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=words):
        load_original_vq(tmp_path, **options)


def test_a_missing_weight_is_named(tmp_path):
    weights = random_weights("taming")
    del weights["decoder.up.1.block.0.norm1.bias"]
    refused(tmp_path, r"`decoder.up_blocks.1.resnets.0.norm1.bias` is missing \(1 weights", weights)


def test_a_weight_that_has_no_place_is_named(tmp_path):
    weights = random_weights("taming") | {"quantize.used": torch.zeros(3)}
    refused(tmp_path, r"`quantize.used` is unexpected \(1 weights", weights)


def test_a_file_that_is_cut_short_is_named(tmp_path):
    weights = random_weights("taming")
    del weights["quantize.embedding.weight"]
    refused(tmp_path, r"no weight that means `quantize.embedding.weight`; it is cut short", weights)


def test_a_gumbel_quantiser_is_refused(tmp_path):
    weights = random_weights("taming") | {"quantize.embed.weight": torch.zeros(3, 2)}
    refused(tmp_path, "a Gumbel quantiser", weights)


def test_a_decoder_of_other_widths_is_refused(tmp_path):
    weights = random_weights("taming")
    for name, weight in random_weights("taming", ch_mult=(1, 1, 2)).items():
        if name.startswith("decoder"):
            weights[name] = weight
    refused(tmp_path, r"`decoder\.\S+` is .*, the widths of the encoder want .*must have the same", weights)


def test_a_file_of_neither_is_refused(tmp_path):
    refused(tmp_path, r"neither of taming \(no `encoder.down.0.*nor of LlamaGen", {"weight": torch.zeros(1)})


def test_a_folder_without_or_with_several_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no file \*.ckpt, \*.pt, \*.pth"):
        load_original_vq(tmp_path)
    for name in ("a.ckpt", "b.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match=r"holds a.ckpt, b.pt; name the file that is meant"):
        load_original_vq(tmp_path)


@pytest.mark.parametrize(
    ("changes", "layout", "words"),
    [
        ({}, "vqgan", "`layout` must be 'taming' or 'llamagen', got 'vqgan'"),
        ({"norm_num_groups": 16}, "taming", "`norm_num_groups`=16 cannot be written, taming has 32"),
        (
            {"block_out_channels": [128, 192]},
            "taming",
            r"`block_out_channels`=\[128, 192\] cannot.*\[128, 128\]",
        ),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "taming", "`up_block_types`=.*taming has .'AttnUp"),
        ({"block_out_channels": [64, 128]}, "llamagen", r"`block_out_channels`=\[64, 128\].*begins with 128"),
        ({"in_channels": 1}, "llamagen", "`in_channels`=1 cannot be written, llamagen has 3 only"),
        (
            {"quantizer": "fsq", "fsq_levels": [4, 3], "num_vq_embeddings": None, "vq_embed_dim": None},
            "taming",
            "'fsq' has no place in a taming checkpoint",
        ),
    ],
)
def test_what_their_code_cannot_build_is_not_written(changes, layout, words, tmp_path):
    with torch.device("meta"):
        model = MMVQAutoencoder(**WRITABLE | changes)
    with pytest.raises(ValueError, match=words):
        save_original_vq(model, tmp_path / "new", layout)
    assert not (tmp_path / "new").exists()
