"""Training that takes turns: several losses, each with its own parameters, optimizer and learning rate.

`Trainer` knows one loss and one optimizer. A generator and its discriminator, or an autoencoder that learns
to please one, need two: the loop here is for them, on Accelerate, with the arguments, callbacks and logs that
users of `Trainer` know. What is learnt stands in the objective, see `objectives/phased.py`.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device, set_seed
from torch.utils.data import DataLoader, Dataset
from transformers import (
    DefaultFlowCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, PrinterCallback
from transformers.trainer_utils import HubStrategy

from ..data.pixel_rows import PixelCollator, PixelRows
from ..hub.saving import atomic_write
from ..objectives.phased import DivergedError, PhasedObjective
from .checkpoints import LAST_FILE, last_checkpoint
from .memory import heap_kept, peak_memory_mb, reset_peak_memory
from .phased_arguments import check_arguments
from .phased_averages import ModuleAverages, in_evaluation
from .phased_batches import StepBatches
from .phased_card import GeneratorCard
from .phased_measures import Measure, RunMeasures, write_measures
from .phased_meter import RunningMeans, TrainingClock
from .phased_phases import Phase, build_phases, phases_state, restore_phases, share_weights
from .phased_previews import preview_file, write_preview
from .phased_progress import LossBar
from .phased_publishing import push_folder, save_pipeline
from .phased_state import (
    read_checkpoint,
    remove_unfinished,
    restore_process,
    rotate,
    states_of_processes,
    undisturbed,
    write_checkpoint,
)
from .phased_step import PhaseTaker

__all__ = ["PhasedTrainer"]


class PhasedTrainer:
    """Trains a `PhasedObjective`.

    In each step every active phase takes all small batches of the step, then its optimizer moves; the next
    phase sees the result. Small batches are always full: the last rows of an epoch stand beside the first of
    the next. Gradients are averaged over processes, and draws differ between them.

    A loss or gradient that is not finite, or what the objective's `health` objects to, ends the run with a
    `DivergedError` that names the step and the last good checkpoint. A run that is resumed goes on bit for
    bit; with `dataloader_num_workers` only if the collator draws from what is in a batch, as `PixelCollator`
    does.

    Args:
        objective: What is learnt.
        args: As for `Trainer`; what this loop does not know is refused.
        train_dataset: Has a length.
        data_collator: Rows to a batch; by default `PixelCollator()` for `PixelRows`.
        learning_rates: By phase, where it is not `args.learning_rate`.
        ema_decay: Share of the old averages of `objective.averaged` kept at each step; `None` for none.
        preview_steps: Draw `previews/step-N.png` every so many steps and at the end; 0 for the end only.
        preview_count: Pictures of a preview; 0 for no previews.
        measure: Given the pipeline of the objective, numbers by name, see `distance_measure`. They are logged
            and written to `measures.jsonl`, beside `train_seconds`, those of training alone: of measuring,
            previews and saving none count. Only the main process measures.
        measure_steps: Measure every so many steps and at the end; 0 for the end only.
        callbacks: As for `Trainer`; they are given the objective as `model`.
        card: What the model card says beyond what was measured.

    Raises:
        ValueError: An argument that this loop does not know, or no rows.
        TypeError: The data set has no length.
    """

    def __init__(
        self,
        objective: PhasedObjective,
        args: TrainingArguments,
        train_dataset: Dataset | Sequence,
        data_collator: Callable[[Any], Mapping[str, Any]] | None = None,
        learning_rates: Mapping[str, float] | None = None,
        ema_decay: float | None = 0.999,
        preview_steps: int = 0,
        preview_count: int = 64,
        measure: Measure | None = None,
        measure_steps: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
        card: GeneratorCard | None = None,
    ) -> None:
        check_arguments(args, train_dataset)
        if preview_steps < 0 or preview_count < 0:
            raise ValueError(
                f"`preview_steps`={preview_steps} and `preview_count`={preview_count} must be 0 or more."
            )
        self.objective = objective
        self.args = args
        self.train_dataset: Any = train_dataset
        default: Any = PixelCollator() if isinstance(train_dataset, PixelRows) else default_data_collator
        self.data_collator = default if data_collator is None else data_collator
        self.learning_rates = dict(learning_rates or {})
        self.ema_decay = ema_decay
        self.preview_steps = preview_steps
        self.preview_count = preview_count
        self.measures = RunMeasures(measure, measure_steps)
        self.folder = Path(str(args.output_dir))
        self.card = card or GeneratorCard(self.folder.name)
        self.metrics: dict[str, Any] = {}
        self.state = TrainerState()
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        bar = PrinterCallback() if args.disable_tqdm else LossBar()
        reports = [report() for report in get_reporting_integration_callbacks(args.report_to)]
        self._callbacks = CallbackHandler(
            [DefaultFlowCallback(), *reports, *callbacks, bar], objective, None, None, None
        )
        self._control = TrainerControl()
        self._means = RunningMeans()
        self._taker = PhaseTaker(objective, self.accelerator, args.max_grad_norm, self._means)
        self._phases: dict[str, Phase] = {}
        self._averages = ModuleAverages(objective, (), None)
        self._previewed: Path | None = None
        self._saved: Path | None = None
        self._clock = TrainingClock(args.device)
        self._mark = (0.0, 0)  # seconds and steps at the last log

    @property
    def rows_per_step(self) -> int:
        """Rows that a step takes, of all small batches and processes."""
        sizes = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        return sizes[0] * sizes[1] * self.accelerator.num_processes

    @property
    def max_steps(self) -> int:
        """Steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        rows = self.args.num_train_epochs * len(self.train_dataset)
        return max(1, -int(-rows // self.rows_per_step))

    @heap_kept()
    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> dict[str, float]:
        """Train.

        Args:
            resume_from_checkpoint: A checkpoint to go on from; `True` for the last one in `output_dir`;
                "last" for that, or for the beginning where there is none yet. By default what `args` says.

        Returns:
            Runtime, seconds and speed of training alone, peak memory, and the last logged means, with names
            that begin with "train_".

        Raises:
            DivergedError: The run is past help; says the step, and the last good checkpoint.
            ValueError: The checkpoint is of another run, or the objective is faulty.
            FileNotFoundError: There is no such checkpoint.
        """
        checkpoint = self._checkpoint(resume_from_checkpoint)
        reset_peak_memory(self.args.device)
        wanted = [(weight, weight.requires_grad) for weight in self.objective.parameters()]
        try:
            states = self._begin(checkpoint)
            loader = iter(self._loader())
            if states is not None:  # last, so that nothing of the above draws from its sources of chance
                process = self.accelerator.process_index, self.accelerator.num_processes
                self._means.load_state_dict(restore_process(states, *process))
            return self._run(loader)
        except DivergedError as error:
            raise DivergedError(f"{str(error).rstrip('.')}. {self._what_is_left()}") from error
        finally:
            for weight, requires_grad in wanted:
                weight.grad = None
                weight.requires_grad_(requires_grad)

    def save_model(self, folder: str | Path | None = None, metrics: Mapping[str, Any] | None = None) -> None:
        """Save the pipeline, or its adapters, with averaged weights, and a card with samples; push if asked.

        Args:
            folder: By default `output_dir`; what lies there is pushed when `args.push_to_hub`.
            metrics: What was measured, for the card.
        """
        folder = self.folder if folder is None else Path(folder)
        self.metrics |= dict(metrics or {})
        if self.accelerator.is_main_process:
            with self.averages_applied():
                save_pipeline(self.objective.pipeline(), folder)
            last = {**self._last_means(), "ema_decay": self.ema_decay}
            self.card.write(folder, self.args, self.metrics, last, self._previewed)
            if self.args.push_to_hub and folder == self.folder:
                push_folder(self.folder, self.args, self.state.global_step)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def averages_applied(self) -> Generator[None]:
        """The objective in evaluation mode, averages in place and without gradients, while the block runs."""
        with self._averages.applied(), in_evaluation(self.objective):
            yield

    # The parts of a run, in their order.

    def _checkpoint(self, given: str | Path | bool | None) -> Path | None:
        given = self.args.resume_from_checkpoint if given is None else given
        if not given:
            return None
        if given is not True and given != "last":
            return Path(str(given))
        found = last_checkpoint(self.folder)
        if found is None and given is True:
            raise FileNotFoundError(
                f"{self.folder} has no checkpoint to go on from; train without `resume_from_checkpoint`."
            )
        return None if found is None else Path(found)

    def _begin(self, checkpoint: Path | None) -> list[dict[str, Any]] | None:
        """Set everything up; what each process had of its own when a checkpoint was written."""
        args, max_steps = self.args, self.max_steps
        if self.accelerator.is_main_process:
            remove_unfinished(self.folder)
        set_seed(args.seed, device_specific=True)
        self.objective.to(args.device)
        if self.accelerator.num_processes > 1:
            share_weights(self.objective)
        phases = build_phases(self.objective, args, max_steps, self.learning_rates)
        self._phases = {phase.name: phase for phase in phases}
        self._averages = ModuleAverages(self.objective, self.objective.averaged, self.ema_decay)
        self._means.clear()
        self._previewed = self._saved = None
        self._clock = TrainingClock(args.device)
        self.state = TrainerState()
        states = None if checkpoint is None else self._restore(checkpoint)
        self.state.max_steps = max_steps
        self.state.num_train_epochs = -(-max_steps * self.rows_per_step // len(self.train_dataset))
        self.state.is_local_process_zero = self.accelerator.is_local_main_process
        self.state.is_world_process_zero = self.accelerator.is_main_process
        self.state.train_batch_size = args.per_device_train_batch_size
        self.state.compute_steps(args, max_steps)
        self.objective.train()
        self.objective.requires_grad_(False)
        return states

    def _loader(self) -> DataLoader:
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        batches = StepBatches(
            len(self.train_dataset),
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            (self.state.global_step, self.state.max_steps),
            seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        workers = args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else it draws from torch's own, resumed or not
        )

    def _run(self, loader: Iterator[Mapping[str, Any]]) -> dict[str, float]:
        args, state = self.args, self.state
        begun, start = time.perf_counter(), (self._clock.seconds, state.global_step)
        self._mark = start
        self._clock.go()
        self._control = self._callbacks.on_train_begin(args, state, self._control)
        try:
            while state.global_step < state.max_steps and not self._control.should_training_stop:
                self._control = self._callbacks.on_step_begin(args, state, self._control)
                batches = [next(loader) for _ in range(args.gradient_accumulation_steps)]
                if args.device.type != "cpu":
                    batches = [send_to_device(batch, args.device, non_blocking=True) for batch in batches]
                self._step(batches)
                self._after_step()
            self._clock.stop()
            return self._summary(time.perf_counter() - begun, *start)
        finally:
            self._callbacks.on_train_end(args, state, self._control)

    def _step(self, batches: list[Mapping[str, Any]]) -> None:
        """Every active phase in its turn, then the averages."""
        state = self.state
        self.objective.step = state.global_step
        for name in self.objective.active_phases(state.global_step):
            self._taker.take(self._phases[name], batches, state.global_step + 1)
        self._averages.update()
        epoch = state.epoch
        state.global_step += 1
        self.objective.step = state.global_step
        state.epoch = state.global_step * self.rows_per_step / len(self.train_dataset)
        self._control = self._callbacks.on_step_end(self.args, state, self._control)
        if state.epoch // 1 > epoch // 1:
            self._control = self._callbacks.on_epoch_end(self.args, state, self._control)

    def _after_step(self) -> None:
        """Log, draw, measure and save, when it is time; what is saved was looked at before."""
        control, step = self._control, self.state.global_step
        last = step >= self.state.max_steps or control.should_training_stop
        draws = self.preview_count > 0 and (last or (self.preview_steps and step % self.preview_steps == 0))
        saves = control.should_save
        if control.should_log or saves or last:
            means = self._checked_means()
            if control.should_log or last:
                self._log(means)
        measures = self.measures.due(step, last)
        if draws or measures or saves:
            with self._clock.paused(ends=last):
                if draws and self.accelerator.is_main_process:
                    self._preview()
                if measures:
                    self._measure()
                if saves:
                    self._save()

    def _checked_means(self) -> dict[str, float]:
        """The means since the last log, if the run is in good health."""
        self._taker.watch.check()
        means = self._means.read(self.args.device)
        try:
            self.objective.health(means)
        except DivergedError as error:
            raise DivergedError(f"Step {self.state.global_step}: {error}") from error
        return means

    def _log(self, means: dict[str, float]) -> None:
        since, step = self._mark
        seconds = self._clock.seconds - since
        rates = {
            f"{name}_learning_rate": float(phase.scheduler.get_last_lr()[0])
            for name, phase in self._phases.items()
        }
        speed = (self.state.global_step - step) * self.rows_per_step / max(seconds, 1e-9)
        logs = {**means, **rates, "images_per_second": round(speed, 1), "epoch": round(self.state.epoch, 4)}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._control = self._callbacks.on_log(self.args, self.state, self._control, logs)
        self._means.clear()
        self._mark = (self._clock.seconds, self.state.global_step)

    def _preview(self) -> None:
        path = preview_file(self.folder, self.state.global_step)
        with self.averages_applied():
            if write_preview(path, self.objective, self.args.seed, self.preview_count):
                self._previewed = path

    def _measure(self) -> None:
        """The main process measures, all processes log; a resumed run has those of its checkpoint."""
        found: list[dict[str, float] | None] = [None]
        if self.accelerator.is_main_process:
            with undisturbed(), self.averages_applied():
                found = [self.measures.take(self.objective.pipeline(), self.state.global_step)]
        measured = broadcast_object_list(found)[0] or {}
        logs = {
            **measured,
            "train_seconds": round(self._clock.seconds, 3),
            "epoch": round(self.state.epoch, 4),
        }
        self.state.log_history.append({**logs, "step": self.state.global_step})
        if self.accelerator.is_main_process:
            write_measures(self.folder, self.state.log_history)
        self._control = self._callbacks.on_log(self.args, self.state, self._control, logs)

    def _save(self) -> None:
        """Write a checkpoint."""
        processes = states_of_processes(self._means.state_dict())
        folder = self.folder / f"checkpoint-{self.state.global_step}"
        if self.accelerator.is_main_process:
            parts = {
                "objective": self.objective.state_dict(),
                "averages": self._averages.state_dict(),
                "phases": phases_state(self._phases, self.accelerator.scaler),
                "processes": processes,
                "place": self._place(),
                "progress": {"train_seconds": self._clock.seconds},
            }
            write_checkpoint(folder, parts, self.state)
            rotate(self.folder, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        self._saved = folder
        self._control = self._callbacks.on_save(self.args, self.state, self._control)
        if self.args.push_to_hub and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            self.save_model()

    def _place(self) -> dict[str, Any]:
        """What the place in the data depends on, beside the step."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return {"rows": len(self.train_dataset), "rows_per_step": self.rows_per_step, "data_seed": seed}

    def _restore(self, folder: Path) -> list[dict[str, Any]]:
        """Go on from a checkpoint; what each process had of its own, which is restored last."""
        parts, state = read_checkpoint(folder)
        if parts["place"] != self._place():
            raise ValueError(
                f"{folder} is of a run with {parts['place']}, this one has {self._place()}: it would see "
                "other rows. Give it the same data, seed and rows per step."
            )
        self.objective.load_state_dict(parts["objective"])
        self._averages.load_state_dict(parts["averages"])
        restore_phases(self._phases, self.accelerator.scaler, parts["phases"])
        self.state, self._saved = state, folder
        self._clock = TrainingClock(self.args.device, parts["progress"]["train_seconds"])
        return parts["processes"]

    def _what_is_left(self) -> str:
        advice = "with lower `learning_rate`s, a smaller `max_grad_norm` or another seed"
        if self._saved is None:
            return f"No checkpoint was written before it; train anew {advice}."
        return f"The last good checkpoint is {self._saved}; go on from it {advice}."

    def _last_means(self) -> dict[str, Any]:
        """The last log that is no measurement."""
        logs = reversed(self.state.log_history)
        return next((entry for entry in logs if "images_per_second" in entry), {})

    def _summary(self, runtime: float, before: float, first: int) -> dict[str, float]:
        """What the run took and where it ended; it began at `first` steps and after `before` seconds."""
        if self.accelerator.is_main_process:
            with atomic_write(self.folder / LAST_FILE) as temporary:
                self.state.save_to_json(str(temporary))
        steps = (self.state.global_step - first) / max(self._clock.seconds - before, 1e-9)  # a second
        return {
            "train_runtime": round(runtime, 3),
            "train_seconds": round(self._clock.seconds, 3),
            "train_images_per_second": round(steps * self.rows_per_step, 1),
            "train_steps_per_second": round(steps, 3),
            "train_peak_memory_mb": round(peak_memory_mb(self.args.device), 1),
            "epoch": self.state.epoch,
            **{
                f"train_{name}": value
                for name, value in self._last_means().items()
                if name not in ("epoch", "step", "images_per_second")
            },
        }
