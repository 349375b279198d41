"""The model card of a generator: what it is, what it draws, how it was measured and trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..evaluation.report import environment, eval_results, markdown_table, model_card
from ..hub.saving import atomic_write

__all__ = ["GeneratorCard"]

TEXT = """# {{ name }}

{{ description }}

{{ samples }}
## Use

```python
{{ use }}
```
{{ without }}
{{ results }}
## Training

{{ training }}

{{ environment }}
"""
USE = """import hf_mm
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repository}")"""
WITHOUT = """
Without hf_mm installed: `DiffusionPipeline.from_pretrained("{repository}", custom_pipeline="pipeline",
trust_remote_code=True)`.
"""
USE_ADAPTERS = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{repository}")"""
SAMPLES = "samples.png"
TASK = "unconditional-image-generation"


@dataclass(frozen=True)
class GeneratorCard:
    """What a trainer cannot know of the model it trains.

    Args:
        name: Of the model.
        description: In Markdown: what it is, what it learnt from, what it cannot do.
        dataset: Name or Hub id of the data that the metrics are of.
        split: Of that data.
        license: Of the weights.
        tags: Beside those of every generator.
        task: Of the Hub, such as "text-to-image".
        base: Folder or Hub id of the model that adapters are for; `None` where a whole pipeline is saved.
        call: Lines of Python that draw with `pipeline`; empty for none.
        metadata: Further fields of `ModelCardData`.
    """

    name: str
    description: str = "A generator of pictures."
    dataset: str = "pictures"
    split: str = "test"
    license: str = "apache-2.0"
    tags: Sequence[str] = ()
    task: str = TASK
    base: str | None = None
    call: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def write(
        self,
        folder: Path,
        args: TrainingArguments,
        metrics: Mapping[str, Any],
        training: Mapping[str, Any],
        samples: Path | None,
    ) -> None:
        """Write README.md, and the pictures that it shows.

        Args:
            folder: Of the saved pipeline.
            args: Of the run.
            metrics: What was measured on `dataset`; those that are numbers become metadata.
            training: What the run itself counted, such as steps and seconds.
            samples: The last preview; `None` for none.
        """
        if samples is not None:
            with atomic_write(folder / SAMPLES) as temporary:
                temporary.write_bytes(samples.read_bytes())
        measured = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        results = eval_results(measured, self.dataset, self.split, self.task)
        repository = args.hub_model_id or self.name
        averaged = " of the averaged weights" if training.get("ema_decay") else ""
        use = (USE_ADAPTERS if self.base else USE).format(repository=repository, base=self.base)
        card = model_card(
            TEXT,
            self.name,
            results if measured else None,
            {
                "name": self.name,
                "description": self.description,
                "samples": f"![Samples{averaged}]({SAMPLES})\n" if samples else "",
                "use": "\n".join(filter(None, [use, self.call])),
                "without": "" if self.base else WITHOUT.format(repository=repository),
                "results": self._results(metrics),
                "training": _table({**training, **_settings(args)}),
                "environment": ", ".join(f"{name} {value}" for name, value in environment().items()),
            },
            license=self.license,
            library_name="diffusers",
            pipeline_tag=self.task,
            tags=["hf-mm", *self.tags],
            **self.metadata,
        )
        with atomic_write(folder / "README.md") as temporary:
            card.save(temporary)

    def _results(self, metrics: Mapping[str, Any]) -> str:
        if not metrics:
            return ""
        return f"## Results\n\nOn {self.dataset}, {self.split} split:\n\n{_table(metrics)}\n"


def _settings(args: TrainingArguments) -> dict[str, Any]:
    """What of `args` decides the result."""
    names = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "max_grad_norm",
        "seed",
    )
    found = {name: getattr(args, name) for name in names}
    return {name: getattr(value, "value", value) for name, value in found.items()}


def _table(values: Mapping[str, Any]) -> str:
    """Names and values; numbers short, the rest as it is."""
    rows = [
        {"name": name, "value": f"{value:.4g}" if isinstance(value, float) else str(value)}
        for name, value in values.items()
    ]
    return markdown_table(rows)
