"""What a GAN learns by: the discriminator's phase, then the generator's.

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline", section 2 and algorithm 1: the
relativistic loss with R1 and R2 on every step (https://arxiv.org/abs/2501.05441). The older losses are there
to compare with.

Shapes: B pictures of a batch, Z numbers of noise, C channels, S pixels a side.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...layers.class_ids import check_class_ids
from ...objectives.adversarial import (
    ADVERSARIAL_LOSSES,
    discriminator_loss,
    generator_loss,
    squared_gradients,
)
from ...objectives.phased import DivergedError, PhasedObjective
from .conditions_gan import check_words, pooled_text
from .modeling_gan_discriminator import MMGANDiscriminator
from .modeling_gan_generator import MMGANGenerator
from .pipeline_gan import GANPipeline, tokens_of_prompts

__all__ = ["GANObjective", "diversity"]


class GANObjective(PhasedObjective):
    """A generator and a discriminator that learn from each other.

    Logged: of the discriminator's phase `lead`, by how much a real picture's logit is above its generated
    partner's, and the penalties `r1` and `r2`; of the generator's phase `diversity`, see there.

    Args:
        generator: An `MMGANGenerator`.
        discriminator: An `MMGANDiscriminator` for the same conditions.
        adversarial_loss: "relativistic" (R3GAN), "non_saturating" or "hinge".
        gamma: Weight of R1 + R2, halved; 0.0 leaves them out. Larger for larger pictures: the paper has 0.05
            for CIFAR-10 and 150 for 256 px.
        gamma_end: Its value after `gamma_steps`, reached along half a cosine; `None` to keep it.
        gamma_steps: See `gamma_end`.
        tokenizer: Of the texts, for `preview_prompts` and the pipeline; the collator needs the same.
        text_encoder: Frozen, for models with `text_embed_dim`.
        preview_prompts: What the preview shows of a model that is asked by texts.
        least_diversity: A run is given up when the diversity is below.
        patience: Logs in a row with that, beyond `collapse_start`, before it is given up.
        collapse_start: Steps after which that is watched.

    Raises:
        ValueError: An unknown loss, a weight below 0, or models or a tokenizer that do not fit each other.
    """

    phases = ("discriminator", "generator")
    averaged = ("generator",)
    logs_below: Tensor

    def __init__(
        self,
        generator: MMGANGenerator,
        discriminator: MMGANDiscriminator,
        adversarial_loss: str = "relativistic",
        gamma: float = 1.0,
        gamma_end: float | None = None,
        gamma_steps: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | None = None,
        preview_prompts: Sequence[str] = (),
        least_diversity: float = 0.02,
        patience: int = 3,
        collapse_start: int = 300,
    ) -> None:
        super().__init__()
        if adversarial_loss not in ADVERSARIAL_LOSSES:
            raise ValueError(
                f"No adversarial loss {adversarial_loss!r}; there are {', '.join(ADVERSARIAL_LOSSES)}."
            )
        if gamma < 0 or (gamma_end is not None and (gamma_end < 0 or gamma_steps < 1)):
            raise ValueError(
                f"`gamma`={gamma} and `gamma_end`={gamma_end} must be at least 0, and `gamma_steps`="
                f"{gamma_steps} at least 1 to get from one to the other."
            )
        _check_partners(generator, discriminator, text_encoder)
        check_words(tokenizer, generator.config["vocab_size"])
        self.generator, self.discriminator = generator, discriminator
        self.adversarial_loss = adversarial_loss
        self.gamma, self.gamma_end, self.gamma_steps = gamma, gamma_end, gamma_steps
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.preview_prompts = tuple(preview_prompts)
        self.least_diversity, self.patience, self.collapse_start = least_diversity, patience, collapse_start
        self.frozen = () if text_encoder is None else ("text_encoder",)
        self.register_buffer("logs_below", torch.zeros((), dtype=torch.long))  # a resumed run counts on

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """The weights of one of the two nets."""
        return list(self.get_submodule(phase).parameters())

    def current_gamma(self) -> float:
        """The weight of the penalties at `step`."""
        if self.gamma_end is None:
            return self.gamma
        done = min(self.step / self.gamma_steps, 1.0)
        return self.gamma_end + (self.gamma - self.gamma_end) * (1 + math.cos(math.pi * done)) / 2

    def loss(self, batch: Mapping[str, Tensor], phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one phase, with fresh noise.

        Args:
            batch: `pixel_values` (B, C, S, S) in [-1, 1] and the conditions: `class_labels` (B,), or
                `input_ids` and `attention_mask`. A generated picture is asked for what its real partner is.
            phase: "discriminator" or "generator".

        Raises:
            ValueError: Pictures of another size or number of channels, a class id out of range, or a missing
                condition.
        """
        real, conditions = batch["pixel_values"], self._conditions(batch)
        if phase == "discriminator":
            return self._discriminator_loss(real, conditions, batch)
        fake = self.generator(self.draw_latents(batch), **conditions).sample
        fake_logits = self.discriminator(fake, **conditions).logits
        with torch.no_grad():
            real_logits = self.discriminator(real, **conditions).logits
        loss = generator_loss(self.adversarial_loss, fake_logits, real_logits)
        return loss, {"diversity": diversity(fake.detach(), real, conditions.get("class_labels"))}

    def draw_latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Noise (B, Z) for a batch, of torch's own generator."""
        real = batch["pixel_values"]
        return torch.randn(len(real), self.generator.config["latent_dim"], device=real.device)

    def _discriminator_loss(
        self, real: Tensor, conditions: dict[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            fake = self.generator(self.draw_latents(batch), **conditions).sample
        gamma = self.current_gamma()
        # Both halves in one call: no picture's logit depends on another's.
        samples = torch.cat([real, fake.to(real)]).requires_grad_(gamma > 0)  # (2 B, C, S, S)
        twice = {name: torch.cat([value, value]) for name, value in conditions.items()}
        logits = self.discriminator(samples, **twice).logits
        real_logits, fake_logits = logits.chunk(2)
        loss = discriminator_loss(self.adversarial_loss, real_logits, fake_logits)
        logs = {"lead": (real_logits - fake_logits).detach().float().mean()}
        if gamma > 0:
            r1, r2 = (part.mean() for part in squared_gradients(logits, samples).chunk(2))
            loss = loss + gamma / 2 * (r1 + r2)
            logs |= {"r1": r1.detach(), "r2": r2.detach()}
        return loss, logs

    def _conditions(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What both nets are asked by, of what the batch has."""
        config = self.generator.config
        if config["num_classes"] is not None:
            if "class_labels" not in batch:
                raise ValueError(f"The model is asked by classes, but the batch has only {sorted(batch)}.")
            labels = batch["class_labels"]
            check_class_ids(labels, config["num_classes"])
            return {"class_labels": labels}
        if config["vocab_size"] is None and config["text_embed_dim"] is None:
            return {}
        if "input_ids" not in batch:
            raise ValueError(f"The model is asked by texts, but the batch has only {sorted(batch)}.")
        words = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        if self.text_encoder is None:
            return words
        return {"text_embeds": pooled_text(self.text_encoder, **words)}

    def preview(self, noise_generator: torch.Generator, count: int) -> Tensor | None:
        """Pictures of the classes, or of `preview_prompts`, in turn; `None` without such prompts."""
        config = self.generator.config
        device = next(self.generator.parameters()).device
        latents = torch.randn(count, config["latent_dim"], generator=noise_generator).to(device)
        places = torch.arange(count, device=device)
        batch: dict[str, Tensor] = {}
        if config["num_classes"] is not None:
            batch = {"class_labels": places % config["num_classes"]}
        elif config["vocab_size"] is not None or config["text_embed_dim"] is not None:
            if self.tokenizer is None or not self.preview_prompts:
                return None
            words = tokens_of_prompts(self.tokenizer, self.preview_prompts, config["text_context"])
            batch = {name: value.to(device)[places % len(value)] for name, value in words.items()}
        return self.generator(latents, **self._conditions(batch)).sample

    def pipeline(self) -> GANPipeline:
        """The generator, with what reads texts for it."""
        return GANPipeline(self.generator, tokenizer=self.tokenizer, text_encoder=self.text_encoder)

    def health(self, logs: Mapping[str, float]) -> None:
        """Give up a generator that draws the same picture whatever the noise."""
        found = logs.get("diversity")
        if found is None or self.step < self.collapse_start or found >= self.least_diversity:
            self.logs_below.zero_()
            return
        self.logs_below += 1
        if self.logs_below >= self.patience:
            raise DivergedError(
                f"The generator collapsed: its pictures have {found:.2g} of the "
                f"variance of real ones, below `least_diversity`={self.least_diversity} for {self.patience} "
                "logs in a row. Raise `gamma`, lower the learning rate, or use larger batches."
            )


@torch.no_grad()
def diversity(fake: Tensor, real: Tensor, class_labels: Tensor | None = None) -> Tensor:
    """The variance of generated pictures, pixel by pixel, as a share of that of real ones.

    With classes it is the variance within them: a generator with one picture for each class has none.

    Args:
        fake: (B, C, S, S) generated pictures.
        real: (B, C, S, S) real ones.
        class_labels: (B,) classes of both.

    Returns:
        A scalar, 0 where all pictures (of a class) are the same, about 1 where they vary as real ones do;
        1 where the real ones do not vary, as with one picture of each class.
    """
    if class_labels is None:
        class_labels = torch.zeros(len(real), dtype=torch.long, device=real.device)
    member = torch.nn.functional.one_hot(class_labels).to(torch.float32)  # (B, classes)
    share = member / member.sum(0).clamp(min=1)
    spread = []
    for pictures in (fake, real):
        flat = pictures.flatten(1).float()
        spread.append((flat - member @ (share.T @ flat)).square().sum())
    return torch.where(spread[1] > 0, spread[0] / spread[1].clamp(min=1e-12), 1.0)


def _check_partners(
    generator: MMGANGenerator, discriminator: MMGANDiscriminator, text_encoder: PreTrainedModel | None
) -> None:
    pairs = {name: name for name in ("sample_size", "num_classes", "vocab_size", "text_embed_dim")}
    for own, other in ({"out_channels": "in_channels"} | pairs).items():
        found = (generator.config[own], discriminator.config[other])
        if found[0] != found[1]:
            raise ValueError(
                f"The generator has `{own}`={found[0]}, the discriminator `{other}`={found[1]}; build both "
                "for the same pictures and conditions."
            )
    if (generator.config["text_embed_dim"] is None) != (text_encoder is None):
        raise ValueError(
            f"`text_embed_dim`={generator.config['text_embed_dim']} and `text_encoder`="
            f"{type(text_encoder).__name__} belong together; give both or neither."
        )
