"""What an autoencoder learns: pictures come back as they were, through latents that can be generated.

Kingma and Welling 2014, "Auto-Encoding Variational Bayes" (https://arxiv.org/abs/1312.6114); van den Oord et
al. 2017, "Neural Discrete Representation Learning", equation 3 (https://arxiv.org/abs/1711.00937); with a
perceptual term and a discriminator of patches: Esser et al. 2021, "Taming Transformers for High-Resolution
Image Synthesis", section 3.1, equations 5 to 7 (https://arxiv.org/abs/2012.09841).

Shapes: B pictures, C channels, Y x X pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from ...objectives.adversarial import ADVERSARIAL_LOSSES, discriminator_loss, generator_loss
from ...objectives.phased import DivergedError, PhasedObjective
from ...objectives.quantisation import code_perplexity, code_statistics
from ...objectives.reconstruction import (
    RECONSTRUCTION_LOSSES,
    adaptive_adversarial_weight,
    gaussian_kl,
    reconstruction_loss,
)
from .patch_discriminator import MMPatchDiscriminator
from .pipeline_autoencoder import AutoencoderPipeline, check_autoencoder

__all__ = ["AutoencoderObjective"]

COLLAPSED_PERPLEXITY = 1.5  # codes in use; at 1 all places of all pictures have the same
COLLAPSED_KL = 0.01  # nats of a whole picture: the latents tell nothing


class AutoencoderObjective(PhasedObjective):
    """Reconstruction + what the latents cost + perceptual + adversarial term.

        loss = nll + kl_weight * KL / numbers of a picture, or nll + codebook and commitment loss
        nll = reconstruction + perceptual_weight * perceptual
        loss += adversarial_weight * adaptive weight * adversarial, from `adversarial_start` on

    Reconstruction and divergence are means over the numbers of a picture, as VQGAN has them; latent diffusion
    adds them up, so that the weights mean the same here and there.

    Args:
        model: `AutoencoderKL`, `MMVQAutoencoder` or diffusers' `VQModel`.
        reconstruction: "l1", "l2", "smooth_l1", or "gaussian", see `reconstruction_loss`. With the last and a
            `kl_weight` of 1 the loss is the negative evidence bound in nats per number.
        kl_weight: Of the divergence of a VAE's posterior; 1e-6 leaves it to whatever generates latents to
            model them. Models with a codebook have their weights in their config.
        perceptual: `PerceptualLoss`, or any module of two batches of pictures that gives their distances.
        perceptual_weight: Of its mean.
        discriminator: Tells real patches from reconstructed ones; `None` for no adversarial term.
        adversarial: Which of `ADVERSARIAL_LOSSES`.
        adversarial_weight: Of the adversarial term.
        adversarial_start: Steps before the discriminator learns and counts: it would drown a model that
            reconstructs nothing yet.
        adaptive: Weigh the adversarial term so that it pulls at the last layer as hard as all the rest.
        preview_images: (N, C, Y, X) in [-1, 1], shown during training beside their reconstructions; without
            them a VAE shows pictures drawn from its prior.
        collapse_patience: Steps before latents that tell nothing count as collapsed.

    Raises:
        TypeError: The model is none of these.
        ValueError: There is no such loss, or a weight is negative.
    """

    averaged = ("model",)
    preview_images: Tensor | None

    def __init__(
        self,
        model: Any,
        reconstruction: str = "l1",
        kl_weight: float = 1e-6,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        discriminator: MMPatchDiscriminator | None = None,
        adversarial: str = "hinge",
        adversarial_weight: float = 1.0,
        adversarial_start: int = 0,
        adaptive: bool = True,
        preview_images: Tensor | None = None,
        collapse_patience: int = 500,
    ) -> None:
        super().__init__()
        check_autoencoder(model, "model")
        _check_choices(reconstruction, adversarial)
        weights = {
            "kl_weight": kl_weight,
            "perceptual_weight": perceptual_weight,
            "adversarial_weight": adversarial_weight,
            "adversarial_start": adversarial_start,
        }
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"`{name}`={value} must not be negative.")
        self.model, self.discriminator, self.perceptual = model, discriminator, perceptual
        self.reconstruction, self.kl_weight, self.perceptual_weight = (
            reconstruction,
            kl_weight,
            perceptual_weight,
        )
        self.adversarial, self.adversarial_weight = adversarial, adversarial_weight
        self.adversarial_start, self.adaptive = adversarial_start, adaptive
        self.collapse_patience = collapse_patience
        self.phases = ("autoencoder",) if discriminator is None else ("autoencoder", "discriminator")
        self.frozen = () if perceptual is None else ("perceptual",)
        # By name and now: the trainer switches `requires_grad` later on.
        self._trained = tuple(name for name, weight in model.named_parameters() if weight.requires_grad)
        self.register_buffer("preview_images", preview_images, persistent=False)

    def active_phases(self, step: int) -> tuple[str, ...]:
        """The autoencoder's alone before `adversarial_start`, then both."""
        return self.phases if step >= self.adversarial_start else self.phases[:1]

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """The weights of the model, or those of the discriminator."""
        if phase == "autoencoder":
            return [self.model.get_parameter(name) for name in self._trained]
        if phase == "discriminator" and self.discriminator is not None:
            return list(self.discriminator.parameters())
        raise ValueError(f"No phase {phase!r}; there are {', '.join(self.phases)}.")

    def loss(self, batch: Mapping[str, Tensor], phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a phase over `pixel_values` (B, C, Y, X) in [-1, 1]; see `PhasedObjective.loss`."""
        pixels = self._checked(batch["pixel_values"])
        if phase == "autoencoder":
            return self._autoencoder_loss(pixels)
        if phase == "discriminator" and self.discriminator is not None:
            return self._discriminator_loss(pixels)
        raise ValueError(f"No phase {phase!r}; there are {', '.join(self.phases)}.")

    def preview(self, noise_generator: torch.Generator, count: int) -> Tensor | None:
        """Originals and their reconstructions in turns, or pictures from the prior of a VAE."""
        if self.preview_images is not None:
            chosen = torch.arange((count + 1) // 2) % len(self.preview_images)
            originals = self.preview_images[chosen.to(self.preview_images.device)]
            sample = self._through(originals)[0].clamp(-1, 1).to(originals.dtype)
            return torch.stack([originals, sample], dim=1).flatten(0, 1)[:count]  # (count, C, Y, X)
        if not isinstance(self.model, AutoencoderKL):
            return None
        pipeline: Any = self.pipeline()
        pictures = pipeline(count, generator=noise_generator, output_type="pt").images
        return pictures * 2 - 1

    def pipeline(self) -> AutoencoderPipeline:
        """The model, ready to reconstruct."""
        return AutoencoderPipeline(self.model)

    def health(self, logs: Mapping[str, float]) -> None:
        """See that the latents tell pictures apart; see `PhasedObjective.health`."""
        if self.step < self.collapse_patience:
            return
        if logs.get("perplexity", COLLAPSED_PERPLEXITY) < COLLAPSED_PERPLEXITY:
            raise DivergedError(
                f"Step {self.step}: the perplexity of the codes is {logs['perplexity']:.3g}, so nearly all "
                "places have one code and the codebook has collapsed; lower the learning rate, or let unused "
                "codes start again (`quantizer='ema'` with a `restart_threshold`)."
            )
        if self.kl_weight and logs.get("kl", COLLAPSED_KL) < COLLAPSED_KL:
            raise DivergedError(
                f"Step {self.step}: the latents diverge from the prior by {logs['kl']:.3g} nats a picture; "
                "they tell nothing, the posterior has collapsed; lower `kl_weight` or the learning rate."
            )

    def _autoencoder_loss(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        sample, cost, logs = self._through(pixels)
        nll = error = reconstruction_loss(sample, pixels, self.reconstruction)
        logs["reconstruction"] = error
        if self.perceptual is not None:
            logs["perceptual"] = self.perceptual(sample, pixels).mean()
            nll = nll + self.perceptual_weight * logs["perceptual"]
        loss = nll + cost
        if self.discriminator is not None and self.step >= self.adversarial_start:
            real = self.discriminator(pixels) if self.adversarial == "relativistic" else None
            fooling = generator_loss(self.adversarial, self.discriminator(sample), real)
            weight = torch.as_tensor(self.adversarial_weight, device=loss.device)
            if self.adaptive:
                weight = weight * adaptive_adversarial_weight(
                    nll, fooling, self.model.decoder.conv_out.weight
                )
            loss = loss + weight * fooling
            logs |= {"adversarial": fooling, "adversarial_weight": weight}
        return loss, {name: value.detach() for name, value in logs.items()}

    def _discriminator_loss(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.discriminator is not None
        # Anew, as VQGAN does: the optimizer has moved the autoencoder, and its codebook, since its own phase
        # drew them. Keeping those would save an eighth of a step and teach another thing: what was.
        with torch.no_grad():
            sample = self._through(pixels)[0]
        real, fake = self.discriminator(pixels), self.discriminator(sample)
        # VQGAN and latent diffusion take half of the sum over both kinds
        loss = 0.5 * discriminator_loss(self.adversarial, real, fake)
        return loss, {"real_logits": real.detach().mean(), "fake_logits": fake.detach().mean()}

    def _through(self, pixels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstructions, what their latents cost, and numbers for the log."""
        if isinstance(self.model, AutoencoderKL):
            posterior = self.model.encode(pixels).latent_dist
            # In evaluation mode, for previews, the means: what is drawn would flicker.
            latents = posterior.sample() if self.training else posterior.mode()
            divergence = gaussian_kl(posterior.mean, posterior.logvar).mean()
            cost = self.kl_weight * divergence / pixels[0].numel()
            return self.model.decode(latents).sample, cost, {"kl": divergence}
        if isinstance(self.model, VQModel):
            latents, cost, (_, _, indices) = self.model.quantize(self.model.encode(pixels).latents)
            sample = self.model.decode(latents, force_not_quantize=True).sample
            chosen = indices.flatten()
            nothing = chosen.new_empty(len(chosen), 0)
            counts, _ = code_statistics(nothing, chosen, self.model.config["num_vq_embeddings"])
            return sample, cost, {"perplexity": code_perplexity(counts), "used_codes": (counts > 0).sum()}
        out = self.model(pixels)
        logs = {"commitment": out.commitment_loss, "perplexity": out.perplexity, "used_codes": out.used_codes}
        return out.sample, out.loss, logs

    def _checked(self, pixels: Tensor) -> Tensor:
        """Pictures that the model can take."""
        channels = self.model.config["in_channels"]
        if pixels.ndim != 4 or pixels.shape[1] != channels:
            raise ValueError(
                f"`pixel_values` must be (batch, {channels}, height, width), got {tuple(pixels.shape)}."
            )
        downscale = 2 ** (len(self.model.config["block_out_channels"]) - 1)
        if pixels.shape[2] % downscale or pixels.shape[3] % downscale:
            raise ValueError(
                f"`pixel_values` are {pixels.shape[2]}x{pixels.shape[3]} px, sides must be multiples of "
                f"{downscale}; resize or pad the pictures first."
            )
        return pixels


def _check_choices(reconstruction: str, adversarial: str) -> None:
    for name, given, known in (
        ("reconstruction", reconstruction, RECONSTRUCTION_LOSSES),
        ("adversarial", adversarial, ADVERSARIAL_LOSSES),
    ):
        if given not in known:
            raise ValueError(f"`{name}`={given!r} must be one of {', '.join(known)}.")
