"""Latents and text states on the disk: whole, of the right models, taken up where a run stopped; batches."""

import numpy as np
import pytest
import torch
from data.test_image_codes import some_rows
from diffusers import AutoencoderKL
from generators.codes_tiny import own_vq, words
from generators.diffusion_tiny import unet
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from hf_mm import (
    LatentCollator,
    LatentRows,
    LatentStore,
    PixelRows,
    TextStateStore,
    extract_latents,
    extract_text_states,
    load_autoencoder,
    picture_views,
)
from hf_mm.generators.diffusion.scaled_latents import latents_of_pictures

QUIET = {"progress": False, "shard_size": 4}
TEXTS = ("a red apple", "a bag", "a green pear")


def vae(seed=0, **changes):
    torch.manual_seed(seed)
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 8}
    stages = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    scale = {"scaling_factor": 0.7, "shift_factor": 0.1}
    options = {"in_channels": 1, "out_channels": 1} | blocks | stages | scale | changes
    return AutoencoderKL(**options).eval()


def text_encoder(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=64, max_position_embeddings=40, **sizes)).eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    extract_latents(vae(), some_rows(), folder, picture_views(flip=True), batch_size=3, **QUIET)
    return folder


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    extract_text_states(
        text_encoder(), words(), TEXTS * 2, folder, batch_size=3, shard_size=3, progress=False
    )
    return folder


@torch.no_grad()
def test_a_store_holds_the_scaled_posteriors_of_each_view(store):
    model, pixels = vae(), some_rows().pixel_values()
    latents = LatentStore(store, model)
    assert (len(latents), latents.latent_size, len(latents.views)) == (10, (4, 4, 4), 2)
    means = torch.stack([latents[number][:, 0] for number in range(10)])  # (10, V, c, y, x)
    assert_close(means[:, 0], latents_of_pictures(model, pixels))
    assert_close(means[:, 1], latents_of_pictures(model, pixels.flip(-1)))
    assert_close(latents[-1][0, 1], model.encode(pixels[-1:]).latent_dist.std[0] * 0.7)


def test_latents_of_a_codebook_have_no_deviation_and_half_precision_takes_half_the_room(tmp_path):
    rows = some_rows()
    latents = extract_latents(own_vq(), rows, tmp_path, dtype="float16", **QUIET)
    assert np.load(tmp_path / "latents-00000.npy").dtype == np.float16
    with torch.no_grad():
        expected = latents_of_pictures(own_vq(), rows.pixel_values())
    assert latents[0].shape == (1, 1, *expected.shape[1:])
    assert_close(latents[9][0, 0], expected[9], rtol=1e-3, atol=1e-3)  # half precision


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    model = vae()
    encode, given = model.encode, []

    def killed(pixels):
        given.append(len(pixels))
        if len(given) == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    model.encode = killed
    with pytest.raises(KeyboardInterrupt):
        extract_latents(model, some_rows(), tmp_path, **QUIET)
    with pytest.raises(ValueError, match="has 2 of 3 shards: it was not finished"):
        LatentStore(tmp_path)
    latents = extract_latents(model, some_rows(), tmp_path, **QUIET)
    assert given == [4, 4, 2, 2]
    extract_latents(model, some_rows(), tmp_path, **QUIET)
    assert given == [4, 4, 2, 2]
    whole = extract_latents(vae(), some_rows(), tmp_path / "whole", **QUIET)
    assert_close(latents[9], whole[9], rtol=0, atol=0)


def test_batches_are_drawn_from_the_posteriors_by_seed_and_rows(store):
    rows = LatentRows(LatentStore(store), some_rows())
    picked = [rows[number] for number in (4, 7, 1, 2)]
    first, again, other = (LatentCollator(seed=seed)(picked) for seed in (0, 0, 1))
    assert first["class_labels"].tolist() == [1, 1, 1, 2]
    assert_close(first["latents"], again["latents"], rtol=0, atol=0)
    assert not torch.equal(first["latents"], other["latents"])
    means = LatentCollator(draw=False)(picked)["latents"]
    assert_close(means, torch.stack([row["moments"][0, 0] for row in picked]), rtol=0, atol=0)
    row = rows[0] | {"moments": rows[0]["moments"][:1]}
    many = torch.cat([LatentCollator(seed=seed)([row])["latents"] for seed in range(400)])
    assert_close(many.mean(0), row["moments"][0, 0], rtol=0, atol=0.25 * row["moments"][0, 1].max().item())
    assert_close(many.std(0), row["moments"][0, 1], rtol=0.25, atol=0)


@torch.no_grad()
def test_each_distinct_text_is_encoded_once_and_the_empty_one_too(states):
    encoder, tokenizer = text_encoder(), words()
    found = TextStateStore(states, encoder)
    assert len(found) == 4
    asked = ["a green pear", "", "a bag", "a bag"]
    values, mask = found(asked)
    encoded = tokenizer(asked, padding=True, return_tensors="pt", verbose=False)
    assert_close(mask, encoded["attention_mask"])
    expected = encoder(encoded["input_ids"], attention_mask=mask).last_hidden_state
    assert_close(values[mask.bool()], expected[mask.bool()])


@torch.no_grad()
def test_a_denoiser_that_reads_padding_gets_it(tmp_path):
    encoder, tokenizer = text_encoder(), words()
    found = extract_text_states(encoder, tokenizer, TEXTS, tmp_path, full_length=True, progress=False)
    values, mask = found(TEXTS)
    length = tokenizer.model_max_length
    ids = tokenizer(list(TEXTS), padding="max_length", return_tensors="pt")["input_ids"]
    assert mask.tolist() == [[1] * length] * 3
    assert_close(values, encoder(ids).last_hidden_state)


def test_batches_bring_the_states_of_one_text_of_each_row(store, states):
    rows = LatentRows(LatentStore(store), some_rows())
    text_states = TextStateStore(states)
    batch = LatentCollator(text_states, draw=False)([rows[1], rows[2]])
    expected, mask = text_states(["a red apple", "a green pear"])
    assert_close(batch["text_states"], expected, rtol=0, atol=0)
    assert_close(batch["text_mask"], mask, rtol=0, atol=0)


def test_what_other_models_made_is_refused(store, states):
    with pytest.raises(ValueError, match="has latents of another vae"):
        LatentStore(store, vae(scaling_factor=0.5))
    with pytest.raises(ValueError, match="has latents of another vae"):
        extract_latents(vae(1), some_rows(), store, picture_views(flip=True), **QUIET)
    with pytest.raises(ValueError, match="has text states of another text encoder"):
        TextStateStore(states, text_encoder(1))
    with pytest.raises(ValueError, match=r"is no index of text states: it has \["):
        TextStateStore(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": some_rows(seed=1)}, "has latents of other pictures"),
        ({"views": picture_views()}, "has latents of other views"),
        ({"shard_size": 5}, r"has latents of other shard_size \(4, not 5\)"),
        ({"dtype": "float16"}, "has latents of other dtype"),
        ({"dtype": "int8"}, "`dtype`='int8' must be one of float32, float16"),
        ({"shard_size": 0}, "`shard_size`=0 and `batch_size`=64 must be at least 1"),
        ({"views": []}, "`views` is empty"),
        ({"rows": some_rows()[:0]}, "`rows` has no pictures"),
        (
            {"rows": PixelRows(some_rows().pixels[:, :1].expand(-1, 2, -1, -1))},
            r"have 2 channels, AutoencoderKL takes \d; train",
        ),
    ],
)
def test_a_store_of_something_else_is_refused(store, changes, message):
    options = {"rows": some_rows(), "views": picture_views(flip=True)} | QUIET | changes
    with pytest.raises(ValueError, match=message):
        extract_latents(vae(), folder=store, **options)


def test_an_autoencoder_is_found_in_its_folder_and_another_model_is_named(tmp_path):
    vae().save_pretrained(tmp_path / "vae")
    assert load_autoencoder(tmp_path / "vae").config.latent_channels == vae().config.latent_channels
    unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="unet' is UNet2DModel, which encodes no pictures"):
        load_autoencoder(tmp_path / "unet")
    with pytest.raises(FileNotFoundError, match="is a folder without an autoencoder; train one by"):
        load_autoencoder(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="nowhere': there is no such folder, and the Hub gives no such"
    ):
        load_autoencoder(tmp_path / "nowhere")


def test_texts_that_are_not_there_are_named(states):
    with pytest.raises(KeyError, match="has no states of 'a boot' among its 4 texts"):
        TextStateStore(states)(["a boot"])
    with pytest.raises(ValueError, match="has text states of other texts"):
        extract_text_states(text_encoder(), words(), TEXTS[:1], states, shard_size=3, progress=False)


def test_texts_beyond_the_context_are_cut_as_in_drawing(tmp_path, caplog):
    tokenizer = words()
    tokenizer.model_max_length = 4
    found = extract_text_states(text_encoder(), tokenizer, TEXTS, tmp_path, progress=False)
    assert found(["a green pear"])[0].shape == (1, 4, 16)
    assert "longer than the context of 4 tokens" in caplog.text


def test_faulty_rows_are_named(store):
    latents = LatentStore(store)
    with pytest.raises(ValueError, match="`latents` are of 10 pictures, `rows` has 3"):
        LatentRows(latents, some_rows(3))
    row = {"moments": latents[0], "number": 8}
    with pytest.raises(ValueError, match="`text_states` are given but row 8 has no texts"):
        LatentCollator(TextStateStore.__new__(TextStateStore))([row])


def test_latents_that_are_not_finite_are_refused(tmp_path):
    model = vae()
    with torch.no_grad():
        model.quant_conv.bias[0] = torch.nan
    with pytest.raises(ValueError, match="latents of picture 0 that are not finite"):
        extract_latents(model, some_rows(), tmp_path, **QUIET)
