"""What of `TrainingArguments` a phased run understands; the rest is refused rather than ignored."""

from collections.abc import Sized

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy, SchedulerType

__all__ = ["check_arguments"]

MEASURING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # they wait for a measure of each evaluation
REFUSED = (
    ("eval_strategy", ("no",), "give `measure` and `measure_steps`"),
    ("load_best_model_at_end", (False,), "the last averages are saved"),
    ("save_only_model", (False,), "a run could not go on from it; use `save_model`"),
    ("dataloader_drop_last", (False,), "small batches are always full"),
    ("train_sampling_strategy", ("random",), "rows are always shuffled"),
    ("ignore_data_skip", (False,), "finding one's place costs nothing here"),
    ("gradient_checkpointing", (False, None), "turn it on in the models of the objective"),
    ("activation_checkpointing", (False, None), "turn it on in the models of the objective"),
    ("torch_compile", (False,), "compile the models of the objective"),
    ("auto_find_batch_size", (False,), "give a batch size that fits"),
    ("label_smoothing_factor", (0.0,), "the objective makes the loss"),
    ("neftune_noise_alpha", (None,), "the objective makes the loss"),
    ("use_liger_kernel", (False,), "change the models of the objective"),
    ("deepspeed", (None,), "weights are whole in each process"),
    ("fsdp", (None, "", []), "weights are whole in each process"),
    ("hub_strategy", ("every_save", "end"), "checkpoints are not pushed"),
)
"""Arguments, the values that are accepted, and what to do instead."""


def check_arguments(args: TrainingArguments, dataset: object) -> None:
    """Refuse what would have no effect.

    Raises:
        ValueError: An argument that this loop does not know; no rows; or several devices in one process.
        TypeError: The data set has no length.
    """
    schedule = str(SchedulerType(args.lr_scheduler_type).value)
    if schedule in MEASURING_SCHEDULES:
        raise ValueError(
            f"`lr_scheduler_type`={schedule!r} has no meaning for PhasedTrainer: it waits for an "
            "evaluation; take a schedule by steps, such as 'cosine'."
        )
    for name, accepted, instead in REFUSED:
        value = getattr(args, name)
        value = getattr(value, "value", value)
        if value not in accepted:
            raise ValueError(f"`{name}`={value!r} has no meaning for PhasedTrainer: {instead}.")
    if args.save_strategy == SaveStrategy.BEST:
        raise ValueError("`save_strategy`='best' has no meaning for PhasedTrainer: save by steps or epochs.")
    if not isinstance(dataset, Sized):
        raise TypeError(f"`train_dataset` is a {type(dataset).__name__} without a length; make it a list.")
    if not len(dataset):
        raise ValueError("`train_dataset` has no rows; there is nothing to learn from.")
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} devices and would use one; start one process for each "
            "(torchrun --nproc_per_node), or show it one (CUDA_VISIBLE_DEVICES=0)."
        )
