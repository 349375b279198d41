"""Small contrastive runs of real models, shared by the tests of training."""

from models.clip_tiny import pairs, text_config, tiny_model, vision_config
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from hf_mm import ContrastiveTrainer, build_optimizer

ROWS = 12


class Pairs(Dataset):
    """Pairs in a fixed order, made once."""

    def __init__(self, count=ROWS, seed=0):
        self.batch = pairs(count, seed)

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.batch.items()}


class Recorder(TrainerCallback):
    """The gradients of every optimizer step, by name of the weight."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            {
                name: weight.grad.clone()
                for name, weight in model.named_parameters()
                if weight.grad is not None
            }
        )


def gradients(folder, model, **settings):
    """The gradients of the first step of a run."""
    recorder = Recorder()
    trainer(folder, model, callbacks=[recorder], **settings).train()
    return recorder.steps[0]


def dropping(probability=0.3):
    """Towers with dropout in every block."""
    chances = {"hidden_dropout": probability, "attention_dropout": probability}
    return {"vision_config": vision_config(**chances), "text_config": text_config(**chances)}


def trainer(folder, model=None, rows=None, optimizer=None, callbacks=None, hooks=None, **settings):
    """A run of one step on rows in order, by plain gradient descent unless `optim` says otherwise."""
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 1,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
    }
    model = tiny_model() if model is None else model
    args = TrainingArguments(folder, **(defaults | settings))
    return ContrastiveTrainer(
        model,
        args,
        train_dataset=Pairs() if rows is None else rows,
        eval_dataset=Pairs(6, seed=1),
        optimizers=(build_optimizer(model, args), None),
        callbacks=callbacks,
        **(hooks or {}),
    )


def weights(run):
    return {name: weight.detach().clone() for name, weight in run.model.named_parameters()}


def after(run, **options):
    """Weights at the end of a run."""
    run.train(**options)
    return weights(run)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]
