"""Contrastive training whose batch may be far larger than what fits in memory at once."""

import logging
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..objectives.contrastive import info_nce
from ..objectives.distributed import distributed_info_nce, distributed_sigmoid_loss
from ..objectives.sigmoid import sigmoid_loss
from .checkpoints import last_checkpoint
from .diagnosis import spoilt_pairs
from .gradient_cache import CachedGradients, cache_gradients, surrogate_loss
from .towers import bare_model
from .trainer import MeasuringTrainer

__all__ = ["ContrastiveTrainer"]

logger = logging.getLogger(__name__)

EXCHANGES = {"softmax": ("gather", "local"), "sigmoid": ("gather", "ring")}


class ContrastiveTrainer(MeasuringTrainer):
    """Trainer for image-text models such as `MMCLIPModel`: one contrastive batch per optimizer step.

    Every pair of a step is compared with every other: those of all `gradient_accumulation_steps` small
    batches of `per_device_train_batch_size` pairs, in all processes. Value and gradient are those of one
    large batch, dropout included; the price of accumulation is a second forward pass without a graph. Batch
    statistics (`BatchNorm`) are those of the small batches. A step with a single small batch is a plain one.

    The temperature is clamped after each step, and parts that are frozen whole run in evaluation mode, so
    that a locked tower gives the same features at every step.

    A loss or a gradient that is not finite ends training with the step and the pairs at fault; no
    checkpoint is written after it. A caption that occurs twice in a batch is counted as a wrong answer of
    its double. So is what `accelerate` does at the end of an epoch: with several processes it fills the
    last batches from the first rows, unless `dataloader_drop_last=True` or
    `accelerator_config={"even_batches": False}`; without even batches the last ones may differ in size.

    `evaluate` gives the mean loss of batches of `per_device_eval_batch_size` pairs, each compared within its
    batch only: numbers of other batch sizes do not compare. With `compute_metrics` its predictions are the
    image and the text vectors.

    Args:
        *args: Of `Trainer`. Batches hold `pixel_values`, `input_ids` and `attention_mask`.
        alignment_metrics: Called with the model at each evaluation, as `measure` of `MeasuringTrainer`; for
            zero-shot accuracy and retrieval.
        chunk_size: Rows of the similarity matrix that are held at a time; all when `None`. The result is the
            same.
        exchange: What processes tell each other: "gather" all features, or "local" (softmax), where each
            takes the loss of its own pairs only, or "ring" (sigmoid).
        **kwargs: Of `Trainer`.

    Raises:
        TypeError: The model has no temperature to train.
        ValueError: A batch of one pair, an unknown exchange, or parallelism other than processes.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        alignment_metrics: Callable[[nn.Module], dict[str, float]] | None = None,
        chunk_size: int | None = None,
        exchange: str = "gather",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, measure=alignment_metrics, **kwargs)
        self.chunk_size = chunk_size
        self.exchange = exchange
        self.can_return_loss = True  # without labels in the batch
        self._window: list[Any] = []
        self._leftover: list[Any] = []
        self._turn = 0
        self._cached: CachedGradients | None = None
        self._warned = False
        self._check_settings()
        self.add_callback(_Steps())

    def _check_settings(self) -> None:
        bare = self._bare
        if not hasattr(bare, "clamp_temperature"):
            raise TypeError(
                f"`model` is a {type(bare).__name__}; ContrastiveTrainer needs a model with two towers and a "
                "temperature, such as MMCLIPModel."
            )
        known = EXCHANGES[bare.config.objective]
        if self.exchange not in known:
            raise ValueError(
                f"`exchange`={self.exchange!r} does not suit the {bare.config.objective} objective of this "
                f"model; use one of {list(known)}."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.n_gpu > 1:
            raise ValueError(
                "ContrastiveTrainer holds the whole model in each process and uses one device in each; start "
                "one process per device with torchrun, without FSDP or DeepSpeed."
            )
        args = self.args
        pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if self.train_dataset is not None and pairs < 2:
            raise ValueError(
                "A contrastive batch of one pair has nothing to compare with: `per_device_train_batch_size`="
                f"{args.per_device_train_batch_size}, `gradient_accumulation_steps`="
                f"{args.gradient_accumulation_steps}, {args.world_size} process; raise one of them."
            )

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer` has it; the small batches of a step wait in the host's memory."""
        self._leftover = []
        loader = super().get_train_dataloader()
        if self.args.gradient_accumulation_steps > 1 and isinstance(loader, DataLoaderShard):
            loader.device = None  # `training_step` moves each when its turn comes
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Take the small batches of a step, which form one contrastive batch.

        A stream may end within a step; what it gave then begins the first step of its next round. `Trainer`
        would add up the gradients of two contrastive batches in one step.
        """
        self._window, count = super().get_batch_samples(
            chain(self._leftover, epoch_iterator), num_batches, device
        )
        self._leftover = self._window if len(self._window) < num_batches else []
        if self._leftover and not self.state.global_step:
            raise ValueError(
                f"The training data end after {len(self._leftover)} batches, before one step of "
                f"`gradient_accumulation_steps`={num_batches} is full; lower it."
            )
        if self._leftover:
            self._window = []
        # Not encoded yet: a resumed run restores its generators only after this.
        self._turn, self._cached = 0, None
        return self._window, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch, or in training what gives its part of the large batch's gradient.

        In training the value is the large batch's loss divided by the number of small ones.
        """
        if model.training:
            _lock_frozen_parts(self._bare)
            if len(self._window) > 1:
                return self._part_of_window(model, inputs)
        images, texts = self._encode(model, inputs)
        if model.training:
            loss = self._training_loss(images, texts, self._temperature(), [inputs])
        else:
            loss = self._loss(images, texts, self._temperature(), together=False)
        return (loss, {"image_embeds": images, "text_embeds": texts}) if return_outputs else loss

    def _part_of_window(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        def encode(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return self._encode(model, self._prepare_inputs(batch))

        def objective(images: Tensor, texts: Tensor, values: list[Tensor]) -> Tensor:
            return self._training_loss(images, texts, values, self._window)

        temperature = self._temperature()
        if self._cached is None:
            self._cached = cache_gradients(encode, self._window, objective, temperature, model)
        part = surrogate_loss(encode, inputs, self._cached, self._turn, temperature)
        value = self._cached.loss / len(self._window)
        self._turn += 1
        if self._turn == len(self._window):
            self._window, self._cached = [], None
        return part - part.detach() + value  # the gradient of the part with the value that is to be logged

    @property
    def _bare(self) -> Any:
        model: Any = self.model
        return bare_model(model)

    def _encode(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Image and text features (n, P), by `forward`: what wraps the model in training acts there."""
        outputs = model(**inputs, return_loss=False)
        images, texts = outputs["image_embeds"], outputs["text_embeds"]
        dtype = torch.promote_types(images.dtype, torch.float32)
        return images.to(dtype), texts.to(dtype)

    def _temperature(self) -> list[nn.Parameter]:
        """Logarithm of the scale, and the bias if there is one."""
        bare = self._bare
        return [value for value in (bare.logit_scale, bare.logit_bias) if value is not None]

    def _loss(self, images: Tensor, texts: Tensor, temperature: list[Any], together: bool) -> Tensor:
        """The loss of these pairs, or `together` with those of the other processes."""
        log_scale, *bias = [value.float() for value in temperature]
        config = self._bare.config
        settings: dict[str, Any] = {"chunk_size": self.chunk_size}
        settings["similarity"] = "dot" if config.similarity == "cosine" else "euclidean"
        if together := together and self.args.world_size > 1:
            settings["exchange"] = self.exchange
        if config.objective == "softmax":
            settings["label_smoothing"] = config.label_smoothing
            function = distributed_info_nce if together else info_nce
        else:
            function = distributed_sigmoid_loss if together else sigmoid_loss
        return function(images, texts, log_scale.exp(), *bias, **settings)

    def _training_loss(
        self, images: Tensor, texts: Tensor, temperature: list[Any], batches: list[Any]
    ) -> Tensor:
        loss = self._loss(images, texts, temperature, together=True)
        if not torch.isfinite(loss):
            which = spoilt_pairs(batches, images, texts, self.processing_class)
            self._stop(f"the loss is {loss.item()}. {which}")
        if len(images) * self.args.world_size == 1 and not self._warned:
            logger.warning(
                "Step %d has a single pair, which teaches nothing; leave the end of an epoch out with "
                "`dataloader_drop_last=True`.",
                self.state.global_step + 1,
            )
            self._warned = True
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # With a loss scaler, as for float16, such steps are expected and skipped.
        if norm is not None and self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            self._stop(f"the loss is finite but the gradient is {float(norm)}.")
        return norm

    def _stop(self, what: str) -> None:
        last = last_checkpoint(str(self.args.output_dir))
        where = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
        step, epoch = self.state.global_step + 1, self.state.epoch or 0.0
        raise FloatingPointError(
            f"Step {step} (epoch {epoch:.2f}): {what.strip()} Training stops; {where}. Look at these "
            "pairs, or go on with a lower learning rate."
        )


class _Steps(TrainerCallback):
    """What has to happen at the edges of a step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse loaders of unequal length: a process that has ended would keep the others waiting."""
        loader = kwargs["train_dataloader"]
        if args.world_size == 1 or not hasattr(loader.dataset, "__len__"):
            return
        counts: list[Any] = [None] * args.world_size
        torch.distributed.all_gather_object(counts, len(loader))
        if len(set(counts)) > 1:
            raise ValueError(
                f"The processes have {counts} batches per epoch, and each step needs all of them; set "
                "`dataloader_drop_last=True`, or leave `even_batches` of `accelerator_config` on."
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        bare_model(kwargs["model"]).clamp_temperature()


def _lock_frozen_parts(model: nn.Module) -> None:
    for part in model.children():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()
