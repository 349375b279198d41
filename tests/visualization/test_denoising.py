"""The way from noise to picture is kept as it was walked, and drawing it changes nothing."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from generators import diffusion_tiny
from PIL import Image
from torch.testing import assert_close

from hf_mm import ImageDiffusionPipeline, denoising_strip, latent_channel_grid, record_denoising


def pipeline(scheduler=None, latent=False, prediction_type="epsilon"):
    vae = diffusion_tiny.kl_autoencoder() if latent else None
    denoiser = diffusion_tiny.unet(
        channels=4 if latent else 1, num_class_embeds=4, sample_size=4 if latent else 8
    )
    names = diffusion_tiny.NAMES
    scheduler = scheduler or DDIMScheduler(clip_sample=not latent)
    pipe = ImageDiffusionPipeline(denoiser, scheduler, vae, prediction_type=prediction_type, id2label=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = {"class_labels": ["shoe", "hat"], "seed": 0, "num_inference_steps": 5}


@pytest.fixture(scope="module")
def flow():
    pipe = pipeline(FlowMatchEulerDiscreteScheduler(), prediction_type="flow_velocity")
    return pipe, record_denoising(pipe, **CALL)


def test_the_film_has_every_step_and_the_pictures_are_those_of_the_call(flow):
    pipe, film = flow
    assert film.noisy.shape == film.clean.shape == (5, 2, 1, 8, 8)
    assert film.timesteps.tolist() == pipe.scheduler.timesteps.tolist()
    plain = pipe(**CALL).images
    assert [np.asarray(image).tolist() for image in film.images] == [
        np.asarray(image).tolist() for image in plain
    ]
    noise = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1)])
    assert_close(film.noisy[0], noise)  # it begins at the noise of the seeds


def test_each_step_goes_on_towards_the_picture_that_was_seen(flow):
    """Euler steps of a flow: the next state lies between this one and the clean picture seen in it."""
    pipe, film = flow
    times = [*(pipe.scheduler.timesteps / 1000).tolist(), 0.0]
    for step in range(4):
        share = times[step + 1] / times[step]
        assert_close(film.noisy[step + 1], film.clean[step].lerp(film.noisy[step], share))


def test_inputs_are_shown_as_the_denoiser_is_given_them():
    """Variance-exploding schedulers hold states of a hundred, which would be black and white."""
    pipe = pipeline(EulerDiscreteScheduler())
    film = record_denoising(pipe, **CALL)
    assert film.noisy[0].std() < 2 < pipe.scheduler.init_noise_sigma


def test_the_strip_shows_steps_of_both_kinds_and_the_picture_last(flow):
    pipe, film = flow
    strip = denoising_strip(pipe, film, frames=3, labels=["shoe", "hat"], least_px=8)
    assert strip.mode == "L"
    alone = denoising_strip(pipe, film, frames=3, show="clean", least_px=8)
    levels = np.asarray(alone)
    expected = np.asarray(film.images[0])
    tile = levels[-2 * 10 : -2 * 10 + 8, -10:-2]  # of two rows, each 8 px and a gap of 2
    assert (tile == expected).all()
    assert strip.height == levels.shape[0] + 2 * 10  # two rows more
    with pytest.raises(ValueError, match="`frames`=0 must be at least 1, `show`='clean'"):
        denoising_strip(pipe, film, frames=0, show="clean")
    with pytest.raises(ValueError, match="1 `labels` for 2 pictures"):
        denoising_strip(pipe, film, labels=["shoe"])


def test_the_strip_of_latents_is_decoded():
    pipe = pipeline(latent=True)
    film = record_denoising(pipe, **CALL, guidance_scale=2.0)
    assert film.noisy.shape == film.clean.shape == (5, 2, 4, 4, 4)
    strip = denoising_strip(pipe, film, frames=5, show="noisy", least_px=8)
    first = np.asarray(pipe.decode(film.noisy[0], "pil")[1])
    assert (np.asarray(strip)[-10:-2, 2:10] == first).all()


def test_channels_of_latents_are_grey_at_zero_and_stand_beside_their_picture():
    latents = torch.zeros(2, 3, 2, 2)
    latents[1, 2] = 9.0
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    page = np.asarray(latent_channel_grid(latents, pictures, titles=False))
    tiles = page[2:, 2:]  # enlarged to 56 px, with gaps of 2
    assert tiles[0, 0].tolist() == [255, 0, 0]
    assert tiles[0, 58].tolist() == [128, 128, 128]
    assert tiles[58, 3 * 58].tolist() == [255, 255, 255]
    assert latent_channel_grid(latents).mode == "L"
    with pytest.raises(ValueError, match=r"`latents` are \(2, 3, 2, 2\) for 1 `pictures`"):
        latent_channel_grid(latents, pictures[:1])


def test_what_recording_sets_itself_is_refused(flow):
    with pytest.raises(ValueError, match=r"Recording sets `chunk_size` itself; leave it out\."):
        record_denoising(flow[0], chunk_size=1)
