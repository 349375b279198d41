"""A tiny generator and discriminator with everything that a run has to keep: buffers, dropout, noise."""

from pathlib import Path

import torch
from torch import nn
from transformers import TrainingArguments

from hf_mm import PhasedObjective, PhasedTrainer, PixelCollator, PixelRows

__all__ = ["Mean", "TinyGAN", "rows", "run_of", "settings", "weights"]

SIDE, NOISE = 4, 3


def rows(count=11, seed=0):
    """Grey pictures of two classes."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    return PixelRows(pixels, torch.arange(count) % 2, ("one", "other"))


class TinyGAN(PhasedObjective):
    """Non-saturating losses; the generator has batch statistics, both have dropout."""

    phases = ("discriminator", "generator")
    averaged = ("generator",)
    frozen = ("judge",)

    def __init__(self, dropout=0.2, late=0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.late = late
        self.generator = nn.Sequential(
            nn.Linear(NOISE, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.GELU(), nn.Linear(8, SIDE**2)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(SIDE**2, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 1)
        )
        self.judge = nn.Sequential(nn.Linear(SIDE**2, 2), nn.Dropout(0.5))
        self.seen = []

    def active_phases(self, step):
        return self.phases if step >= self.late else ("generator",)

    def phase_parameters(self, phase):
        return list(getattr(self, phase).parameters())

    def loss(self, batch, phase):
        real = batch["pixel_values"].flatten(1)
        self.seen.append((self.step, phase, real.sum().item()))
        fake = self.generator(torch.randn(len(real), NOISE, device=real.device))
        if phase == "generator":
            loss = nn.functional.softplus(-self.discriminator(fake)).mean() + self.judge(fake).square().mean()
            return loss, {"spread": fake.detach().std()}
        logits = self.discriminator(torch.cat((real, fake.detach())))
        signs = torch.tensor([-1.0, 1.0]).repeat_interleave(len(real))[:, None]
        return nn.functional.softplus(signs * logits).mean(), {}

    def preview(self, noise_generator, count):
        noise = torch.randn(count, NOISE, generator=noise_generator)
        torch.rand(7)  # whoever draws here must not disturb the run
        return self.generator(noise).view(count, 1, SIDE, SIDE).tanh()

    def pipeline(self):
        return Saved(self.generator)


class Saved:
    """What a pipeline is to the trainer."""

    def __init__(self, model):
        self.model = model

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), Path(folder) / "weights.pt")


class Mean(PhasedObjective):
    """One phase without chance: a linear model of the pictures, whose loss is a mean over rows."""

    phases = ("model",)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(SIDE**2, 2)
        self.unused = nn.Linear(2, 2)

    def phase_parameters(self, phase):
        return [*self.model.parameters(), *self.unused.parameters()]

    def loss(self, batch, phase):
        logits = self.model(batch["pixel_values"].flatten(1))
        loss = nn.functional.cross_entropy(logits, batch["class_labels"])
        return loss, {"largest": logits.detach().amax()}

    def pipeline(self):
        return Saved(self.model)


def settings(folder, **changes):
    """Arguments of a short run."""
    chosen = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "logging_steps": 2,
        "save_steps": 2,
        "disable_tqdm": False,
        "report_to": "none",
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **(chosen | changes))


def run_of(folder, objective=None, data=None, collator=None, options=None, **changes):
    """A trainer of a tiny objective, with views of the pictures that are drawn."""
    return PhasedTrainer(
        TinyGAN() if objective is None else objective,
        settings(folder, **changes),
        rows() if data is None else data,
        PixelCollator(flip=True, pad_crop_px=1) if collator is None else collator,
        **{"ema_decay": 0.7, "preview_count": 4, **(options or {})},
    )


def weights(run):
    """Everything that a run trains and averages."""
    with run.averages_applied():
        averages = {name: value.clone() for name, value in run.objective.state_dict().items()}
    return {
        "own": {name: value.clone() for name, value in run.objective.state_dict().items()},
        "averages": averages,
    }
