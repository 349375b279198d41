"""What autoencoders learn by: every term, when it counts, and what it leaves alone."""

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch import nn
from torch.nn.functional import l1_loss, mse_loss
from torch.testing import assert_close

from hf_mm.generators.autoencoder.modeling_vq_autoencoder import MMVQAutoencoder
from hf_mm.generators.autoencoder.objective_autoencoder import AutoencoderObjective
from hf_mm.generators.autoencoder.patch_discriminator import MMPatchDiscriminator
from hf_mm.generators.autoencoder.perceptual import PerceptualLoss
from hf_mm.objectives.phased import DivergedError

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": 16,
}
KINDS = {
    "kl": lambda: AutoencoderKL(**TINY),
    "ema": lambda: MMVQAutoencoder(**TINY, num_vq_embeddings=16),
    "plain": lambda: MMVQAutoencoder(**TINY, num_vq_embeddings=16, quantizer="plain"),
    "fsq": lambda: MMVQAutoencoder(**TINY, quantizer="fsq", fsq_levels=[4, 3]),
    "diffusers-vq": lambda: VQModel(**TINY, num_vq_embeddings=16),
}


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {"pixel_values": torch.rand(4, 1, 16, 16) * 2 - 1}


def objective(kind="kl", adversarial_start=0, with_discriminator=False, **options):
    torch.manual_seed(0)
    model = KINDS[kind]()
    if with_discriminator:
        options["discriminator"] = MMPatchDiscriminator(1, 8, num_layers=1, norm_num_groups=4)
    return AutoencoderObjective(model, adversarial_start=adversarial_start, **options).train()


def phase(objective, name):
    """As the trainer does it: gradients for the parameters of this phase only."""
    own = {id(weight) for weight in objective.phase_parameters(name)}
    for weight in objective.parameters():
        weight.requires_grad_(id(weight) in own)


def test_a_vae_learns_by_reconstruction_and_divergence(batch):
    learner, pixels = objective(reconstruction="l2", kl_weight=0.5), batch["pixel_values"]
    torch.manual_seed(3)
    loss, logs = learner.loss(batch, "autoencoder")
    torch.manual_seed(3)
    posterior = learner.model.encode(pixels).latent_dist
    error = mse_loss(learner.model.decode(posterior.sample()).sample, pixels)
    divergence = posterior.kl().mean()
    assert_close(loss, error + 0.5 * divergence / 256)
    assert_close(logs, {"kl": divergence.detach(), "reconstruction": error.detach()})


def test_at_weight_one_the_calibrated_loss_is_the_evidence_bound(batch):
    learner, pixels = objective(reconstruction="gaussian", kl_weight=1.0), batch["pixel_values"]
    torch.manual_seed(3)
    loss = learner.loss(batch, "autoencoder")[0]
    torch.manual_seed(3)
    posterior = learner.model.encode(pixels).latent_dist
    sample = learner.model.decode(posterior.sample()).sample
    normal = torch.distributions.Normal(sample, (sample - pixels).square().mean().sqrt())
    nats = -normal.log_prob(pixels).flatten(1).sum(1) + posterior.kl()  # of each picture
    assert_close(loss, nats.mean() / 256)


@pytest.mark.parametrize("kind", ["ema", "plain", "fsq"])
def test_a_codebook_learns_by_reconstruction_and_what_its_codes_cost(batch, kind):
    learner, again = objective(kind), objective(kind)
    torch.manual_seed(3)
    loss, logs = learner.loss(batch, "autoencoder")
    torch.manual_seed(3)
    out = again.model(batch["pixel_values"])
    assert_close(loss, l1_loss(out.sample, batch["pixel_values"]) + out.loss)
    assert_close(logs["perplexity"], out.perplexity)
    assert_close(logs["used_codes"], out.used_codes)


def test_the_stock_vq_model_learns_by_its_own_loss(batch):
    learner = objective("diffusers-vq")
    loss, logs = learner.loss(batch, "autoencoder")
    out = learner.model(batch["pixel_values"])
    assert_close(loss, l1_loss(out.sample, batch["pixel_values"]) + out.commit_loss)
    indices = learner.model.quantize(learner.model.encode(batch["pixel_values"]).latents)[2][2]
    assert logs["used_codes"] == len(indices.unique())
    shares = indices.bincount() / indices.numel()
    assert_close(logs["perplexity"], (-(shares[shares > 0] * shares[shares > 0].log()).sum()).exp())


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_the_model_learns(batch, kind):
    learner = objective(kind)
    phase(learner, "autoencoder")
    learner.loss(batch, "autoencoder")[0].backward()
    assert learner.phase_parameters("autoencoder")
    assert all(weight.grad is not None for weight in learner.phase_parameters("autoencoder"))


def test_the_perceptual_term_reaches_the_model_and_not_its_network(batch):
    torch.manual_seed(0)
    perceptual = PerceptualLoss(nn.Conv2d(1, 4, 3), in_channels=1)
    learner, without = objective(perceptual=perceptual, perceptual_weight=2.0), objective()
    torch.manual_seed(3)
    loss, logs = learner.loss(batch, "autoencoder")
    torch.manual_seed(3)
    assert_close((loss - without.loss(batch, "autoencoder")[0]).detach(), 2 * logs["perceptual"])
    phase(learner, "autoencoder")
    weight = learner.model.decoder.conv_out.weight
    sample = learner.model(batch["pixel_values"]).sample
    (gradient,) = torch.autograd.grad(perceptual(sample, batch["pixel_values"]).mean(), weight)
    assert gradient.abs().sum() > 0
    assert not any(weight.requires_grad for weight in perceptual.parameters())


def test_the_adversarial_term_starts_late(batch):
    learner = objective(with_discriminator=True, adversarial_start=10)
    assert learner.active_phases(9) == ("autoencoder",)
    assert learner.active_phases(10) == ("autoencoder", "discriminator")
    for step, started in ((9, False), (10, True)):
        learner.step = step
        assert ("adversarial" in learner.loss(batch, "autoencoder")[1]) == started


def test_the_adversarial_term_pulls_at_the_last_layer_as_hard_as_the_rest(batch):
    learner = objective("fsq", with_discriminator=True, adversarial_weight=0.5)
    pixels, last = batch["pixel_values"], learner.model.decoder.conv_out.weight
    loss, logs = learner.loss(batch, "autoencoder")
    sample = learner.model(pixels).sample
    error, fooling = l1_loss(sample, pixels), -learner.discriminator(sample).mean()
    lengths = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (error, fooling)]
    assert_close(logs["adversarial_weight"], 0.5 * lengths[0] / (lengths[1] + 1e-4))
    assert_close(loss, error + logs["adversarial_weight"] * fooling)


def test_without_adaptation_the_weight_is_the_given_one(batch):
    learner = objective("fsq", with_discriminator=True, adversarial_weight=0.5, adaptive=False)
    assert learner.loss(batch, "autoencoder")[1]["adversarial_weight"] == 0.5


def test_the_autoencoders_step_leaves_no_gradient_in_the_discriminator_and_back(batch):
    learner = objective("ema", with_discriminator=True)
    for name, other in (("autoencoder", "discriminator"), ("discriminator", "autoencoder")):
        learner.zero_grad(set_to_none=True)
        phase(learner, name)
        learner.loss(batch, name)[0].backward()
        assert all(weight.grad is not None for weight in learner.phase_parameters(name))
        assert all(weight.grad is None for weight in learner.phase_parameters(other))


@pytest.mark.parametrize("kind", ["hinge", "non_saturating", "relativistic"])
def test_the_discriminator_learns_to_tell_reconstructions(batch, kind):
    learner = objective(with_discriminator=True, adversarial=kind)
    phase(learner, "discriminator")
    optimizer = torch.optim.Adam(learner.phase_parameters("discriminator"), 0.01)
    losses, logs = [], {}
    for _ in range(20):
        loss, logs = learner.loss(batch, "discriminator")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert logs["real_logits"] > logs["fake_logits"]


@pytest.mark.parametrize("kind", ["plain", "ema"])
def test_the_discriminator_learns_from_the_autoencoder_as_its_own_phase_left_it(batch, kind):
    learner = objective(kind, with_discriminator=True)
    phase(learner, "autoencoder")
    learner.loss(batch, "autoencoder")[0].backward()
    earlier = learner.model(batch["pixel_values"]).sample.detach()
    with torch.no_grad():
        for weight in learner.phase_parameters("autoencoder"):
            weight -= 0.1 * weight.grad
    phase(learner, "discriminator")
    logs = learner.loss(batch, "discriminator")[1]
    with torch.no_grad():
        now = learner.discriminator(learner.model(batch["pixel_values"]).sample).mean()
        before = learner.discriminator(earlier).mean()
    assert_close(logs["fake_logits"], now)
    assert (now - before).abs() > 1e-4


def test_the_discriminators_phase_does_not_count_a_batch_twice_in_the_codebook(batch):
    learner = objective("ema", with_discriminator=True)
    learner.loss(batch, "autoencoder")
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.loss(batch, "discriminator")
    assert_close(learner.model.state_dict(), before, rtol=0, atol=0)


def test_phases_share_no_parameter_and_codes_of_averages_have_none():
    learner = objective("ema", with_discriminator=True)
    own = {id(weight) for weight in learner.phase_parameters("autoencoder")}
    assert not own & {id(weight) for weight in learner.phase_parameters("discriminator")}
    phase(learner, "discriminator")  # what is switched off still belongs to its phase
    assert {id(weight) for weight in learner.phase_parameters("autoencoder")} == own


def test_previews_show_originals_beside_reconstructions(batch):
    learner = objective("fsq", preview_images=batch["pixel_values"]).eval()
    with torch.no_grad():
        shown = learner.preview(torch.Generator(), 6)
        wanted = learner.model(batch["pixel_values"][:3]).sample.clamp(-1, 1)
        again = learner.preview(torch.Generator(), 11)
    assert_close(shown[0::2], batch["pixel_values"][:3])
    assert_close(shown[1::2], wanted)
    assert_close(again[8:], shown[:3])  # as many as asked for, from the first again


def test_without_pictures_a_vae_shows_what_it_draws_and_a_codebook_nothing():
    learner = objective().eval()
    shown = learner.preview(torch.Generator().manual_seed(0), 3)
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(shown, learner.model.decode(noise).sample.clamp(-1, 1))
    assert objective("ema").eval().preview(torch.Generator(), 3) is None


def test_collapsed_latents_stop_the_run_after_a_while():
    learner = objective("ema")
    learner.health({"perplexity": 1.0})  # so early it may still recover
    learner.step = 500
    learner.health({"perplexity": 3.0})
    learner.health({"autoencoder_loss": 0.1})
    with pytest.raises(DivergedError, match=r"Step 500: the perplexity of the codes is 1\.2, so nearly all"):
        learner.health({"perplexity": 1.2})
    with pytest.raises(DivergedError, match=r"diverge from the prior by 0\.001 nats a picture"):
        learner.health({"kl": 0.001})
    free = objective(kl_weight=0.0, collapse_patience=0)
    free.health({"kl": 0.0})  # nothing pulls at the latents of a plain autoencoder


def test_mistakes_are_named(batch):
    with pytest.raises(ValueError, match="`reconstruction`='l3' must be one of l1, l2, smooth_l1, gaussian"):
        objective(reconstruction="l3")
    with pytest.raises(ValueError, match="`adversarial`='wgan' must be one of relativistic, non_saturating"):
        objective(adversarial="wgan")
    with pytest.raises(ValueError, match=r"`kl_weight`=-1\.0 must not be negative"):
        objective(kl_weight=-1.0)
    learner = objective()
    for call in (lambda: learner.loss(batch, "discriminator"), lambda: learner.phase_parameters("generator")):
        with pytest.raises(ValueError, match=r"No phase '.*'; there are autoencoder"):
            call()
    with pytest.raises(ValueError, match=r"`pixel_values` must be \(batch, 1, height, width\), got \(1, 3,"):
        learner.loss({"pixel_values": torch.zeros(1, 3, 16, 16)}, "autoencoder")
    with pytest.raises(ValueError, match="`pixel_values` are 15x16 px, sides must be multiples of 2"):
        learner.loss({"pixel_values": torch.zeros(1, 1, 15, 16)}, "autoencoder")


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="`model` is a Linear, not an AutoencoderKL, MMVQAutoencoder or VQM"):
        AutoencoderObjective(nn.Linear(2, 2))
