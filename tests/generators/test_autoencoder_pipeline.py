"""Reconstruct, interpolate, sample, with every kind of autoencoder."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from PIL import Image
from torch.testing import assert_close

from hf_mm.generators.autoencoder.modeling_vq_autoencoder import MMVQAutoencoder
from hf_mm.generators.autoencoder.pipeline_autoencoder import AutoencoderPipeline

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": 8,
}
KINDS = {
    "kl": lambda **changes: AutoencoderKL(**TINY | changes),
    "vq": lambda **changes: MMVQAutoencoder(**TINY | changes, num_vq_embeddings=16),
    "fsq": lambda **changes: MMVQAutoencoder(**TINY | changes, quantizer="fsq", fsq_levels=[4, 3]),
    "diffusers-vq": lambda **changes: VQModel(**TINY | changes, num_vq_embeddings=16, vq_embed_dim=4),
}


def pipeline(kind="kl", **changes):
    torch.manual_seed(0)
    return AutoencoderPipeline(KINDS[kind](**changes).eval())


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_is_the_decoded_code_of_the_picture(kind, pictures):
    pipe = pipeline(kind)
    pixels = torch.from_numpy(np.stack(pictures)).float()[:, None] / 127.5 - 1
    with torch.no_grad():
        if kind == "kl":
            wanted = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample
        else:
            wanted = pipe.vae(pixels).sample
    found = pipe.reconstruct(pictures, output_type="pt").images
    assert_close(found, (wanted / 2 + 0.5).clamp(0, 1))


def test_pictures_arrays_and_tensors_are_read_alike(pictures):
    pipe = pipeline()
    array = np.stack(pictures).astype(np.float32)[..., None] / 255
    wanted = pipe.reconstruct(pictures, output_type="np").images
    assert wanted.shape == (3, 8, 8, 1)
    assert_close(pipe.reconstruct(array, output_type="np").images, wanted)
    tensor = torch.from_numpy(array).movedim(-1, 1)
    assert_close(pipe.reconstruct(tensor, output_type="np").images, wanted)
    assert_close(pipe.reconstruct(pictures[0], output_type="np").images, wanted[:1])
    found = pipe.reconstruct(tuple(pictures)).images
    assert [picture.mode for picture in found] == ["L"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_interpolation_begins_and_ends_with_the_reconstructions(kind, pictures):
    pipe = pipeline(kind)
    frames = pipe.interpolate(*pictures[:2], steps=5, output_type="pt").images
    assert frames.shape == (5, 1, 8, 8)
    assert_close(frames[[0, -1]], pipe.reconstruct(pictures[:2], output_type="pt").images)


def test_the_middle_of_an_interpolation_decodes_the_mean_of_the_latents(pictures):
    pipe = pipeline()
    middle = pipe.interpolate(*pictures[:2], steps=3, output_type="pt").images[1:2]
    pixels = torch.from_numpy(np.stack(pictures[:2])).float()[:, None] / 127.5 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean.mean(0, keepdim=True)
    assert_close(pipe(latents=mean, output_type="pt").images, middle)


def test_samples_decode_the_standard_normal_of_the_seed():
    pipe = pipeline()
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    found = pipe(2, generator=torch.Generator().manual_seed(5), output_type="pt").images
    assert_close(found, pipe(latents=noise, output_type="pt").images)
    wide = pipe(height=4, width=16).images[0]
    assert (wide.size, wide.mode) == ((16, 4), "L")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_pixels(kind):
    pipe = pipeline(kind)

    def draw(*seeds):
        several = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(
            len(seeds), generator=several, uniform_codes=kind != "kl", output_type="pt", return_dict=False
        )[0]

    assert_close(draw(1, 2), draw(1, 2), rtol=0, atol=0)
    assert not torch.equal(draw(1, 2)[0], draw(1, 2)[1])
    assert_close(draw(1, 2)[1:], draw(2))


def test_as_many_pictures_as_latents():
    latents = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pipe = pipeline()
    found = pipe(latents=latents, output_type="pt").images
    assert found.shape == (3, 1, 8, 8)
    assert_close(pipe(3, latents=latents, output_type="pt").images, found, rtol=0, atol=0)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="`vae` is a UNet2DModel, not an AutoencoderKL, MMVQAutoencoder or"):
        AutoencoderPipeline(UNet2DModel(8, block_out_channels=(32, 32, 32, 32)))


def test_random_codes_reach_every_code_and_no_other():
    pipe = pipeline("fsq")
    latents = pipe._random_codes((200, 2, 4, 4), torch.Generator().manual_seed(0))
    seen = {tuple(code) for code in latents.movedim(1, -1).flatten(0, 2).tolist()}
    wanted = pipe.vae.lookup(torch.arange(12).view(1, 1, 12)).movedim(1, -1).flatten(0, 2).tolist()
    assert seen == {tuple(code) for code in wanted}


def test_colour_pictures_come_back_in_colour():
    pipe = pipeline("vq", in_channels=3, out_channels=3)
    found = pipe.reconstruct([Image.new("RGB", (16, 8), "red")]).images[0]
    assert (found.mode, found.size) == ("RGB", (16, 8))


def test_half_precision_gives_pictures(pictures):
    pipe = pipeline().to(torch.bfloat16)
    whole = pipeline().reconstruct(pictures, output_type="np").images
    assert_close(pipe.reconstruct(pictures, output_type="np").images, whole, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe, one: pipe.reconstruct([one, one.resize((16, 8))]), r"sizes \[\(8, 8\), \(16, 8\)\] px"),
        (lambda pipe, one: pipe.reconstruct(one.convert("P")), r"the modes \['P'\]"),
        (lambda pipe, one: pipe.reconstruct(one.convert("RGB")), "have 3 channels, the model reads 1"),
        (lambda pipe, one: pipe.reconstruct(one.resize((8, 7))), "are 8x7 px, sides must be multiples of 2"),
        (lambda pipe, one: pipe.reconstruct([]), "must be PIL images, an array or a tensor, got none"),
        (
            lambda pipe, one: pipe.reconstruct(["cat.png"]),
            "must be PIL images, an array or a tensor, got str",
        ),
        (lambda pipe, one: pipe.reconstruct(torch.zeros(1, 8, 8)), r"got the shape \(1, 8, 8\)"),
        (lambda pipe, one: pipe.reconstruct(-torch.ones(1, 1, 8, 8)), r"in \[0, 1\], got numbers from -1 to"),
        (lambda pipe, one: pipe.reconstruct(one, "jpg"), "`output_type`='jpg' must be one of pil, np, pt"),
        (lambda pipe, one: pipe.interpolate(one, one, steps=1), "`steps`=1 must be at least 2"),
        (
            lambda pipe, one: pipe.interpolate(one, one.resize((16, 8))),
            "must be one picture each, of one size",
        ),
        (lambda pipe, one: pipe(height=7), "`height`=7 must be a multiple of 2"),
        (lambda pipe, one: pipe(0), "`batch_size`=0 must be at least 1"),
        (lambda pipe, one: pipe(latents=torch.zeros(1, 4, 2, 2)), r"must be \(batch, 3, height, width\)"),
        (
            lambda pipe, one: pipe(2, generator=[torch.Generator()] * 3),
            "3 generators for `batch_size`=2; give one, or one for each",
        ),
        (
            lambda pipe, one: pipe(2, latents=torch.zeros(3, 3, 2, 2)),
            "`batch_size`=2, but there are 3 `latents`; leave it out",
        ),
        (
            lambda pipe, one: pipe(latents=torch.zeros(1, 3, 2, 2), height=8, generator=torch.Generator()),
            "decoded as they are, `height`, `generator` would have no effect; leave them out",
        ),
        (
            lambda pipe, one: pipe(latents=torch.zeros(1, 3, 2, 2), uniform_codes=True),
            "decoded as they are, `uniform_codes` would have no effect; leave it out",
        ),
    ],
)
def test_mistakes_are_named(call, message, pictures):
    with pytest.raises(ValueError, match=message):
        call(pipeline(), pictures[0])


@pytest.mark.parametrize("kind", ["vq", "diffusers-vq"])
def test_a_codebook_is_not_sampled_unasked(kind):
    with pytest.raises(ValueError, match="has a codebook and no prior to draw from"):
        pipeline(kind)()
    with pytest.raises(ValueError, match="2 generators for `batch_size`=3"):
        pipeline(kind)(3, generator=[torch.Generator(), torch.Generator()], uniform_codes=True)


def test_no_offloading_is_promised():
    """Its hooks sit on `forward`; parts of the models are called directly here."""
    with pytest.raises(ValueError, match="no `model_cpu_offload_seq` class attribute is set"):
        pipeline().enable_model_cpu_offload(device="cpu")
