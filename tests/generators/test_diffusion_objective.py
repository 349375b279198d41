"""What denoisers learn by: losses by hand, dropped conditions, runs that are resumed, latents of NaN."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from generators.diffusion_tiny import (
    NAMES,
    TEXT_DIM,
    clip_text,
    dit,
    kl_autoencoder,
    text_unet,
    unet,
    words,
)
from peft import LoraConfig
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import DiffusionObjective, PhasedTrainer, PixelCollator, PixelRows
from hf_mm.data.tokenizer import word_tokenizer
from hf_mm.objectives.phased import DivergedError

FLOW = FlowMatchEulerDiscreteScheduler()
TEXTS = ("a red apple", "a green pear", "pear")


def noise_schedule(kind="epsilon", **changes):
    return DDPMScheduler(**{"prediction_type": kind, "clip_sample": False} | changes)


def batch(rows=4, channels=1):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand(rows, channels, 8, 8, generator=draw) * 2 - 1
    return {"pixel_values": pixels, "class_labels": torch.arange(rows) % 3}


def encoded(texts=TEXTS):
    return dict(words()(list(texts), padding=True, return_tensors="pt"))


def text_objective(denoiser=None, **options):
    parts = {"vae": kl_autoencoder(), "text_encoder": clip_text(), "tokenizer": words()}
    model = text_unet(sample_size=4) if denoiser is None else denoiser
    return DiffusionObjective(model, noise_schedule(), **parts | options)


def by_hand(model, kind, weighting, given, noise, draw):
    """Loss of the formulas, for noise and timesteps, or times, that are given."""
    clean, labels = given["pixel_values"], given["class_labels"]
    if kind.startswith("flow"):
        times = draw[:, None, None, None]
        output = model((1 - times) * clean + times * noise, draw * 1000, labels).sample
        target = noise - clean if kind == "flow_velocity" else clean
        weights = 1 / times**2 if weighting == "velocity" else torch.ones_like(times)
        return (weights * (output - target) ** 2).mean()
    scheduler = noise_schedule(kind)
    output = model(scheduler.add_noise(clean, noise, draw), draw, labels).sample
    kept = scheduler.alphas_cumprod[draw][:, None, None, None]
    snr = kept / (1 - kept)
    target = {"epsilon": noise, "sample": clean}.get(kind, kept.sqrt() * noise - (1 - kept).sqrt() * clean)
    least = {"epsilon": snr.clamp(max=5) / snr, "sample": snr.clamp(max=5)}
    weights = (
        least.get(kind, snr.clamp(max=5) / (snr + 1)) if weighting == "min_snr" else torch.ones_like(snr)
    )
    return (weights * (output - target) ** 2).mean()


CASES = [
    ("epsilon", "constant"),
    ("epsilon", "min_snr"),
    ("sample", "min_snr"),
    ("v_prediction", "min_snr"),
    ("flow_velocity", "constant"),
    ("flow_sample", "velocity"),
]


@pytest.mark.parametrize(("kind", "weighting"), CASES)
def test_loss_and_gradients_are_those_of_the_formula(kind, weighting):
    model, given, flow = unet(num_class_embeds=4), batch(), kind.startswith("flow")
    objective = DiffusionObjective(model, FLOW if flow else noise_schedule(kind), kind, weighting).eval()
    torch.manual_seed(5)
    loss, logs = objective.loss(given, "denoiser")
    torch.manual_seed(5)
    noise = torch.randn_like(given["pixel_values"])
    draw = 1 - torch.rand(4) if flow else torch.randint(1000, (4,))
    expected = by_hand(model, kind, weighting, given, noise, draw)
    assert_close(loss, expected)
    assert list(logs) == ([] if weighting == "constant" else ["squared_error"])
    weights = objective.phase_parameters("denoiser")
    found = torch.autograd.grad(loss, weights, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(expected, weights), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_logit_normal_times_are_those_that_are_asked_for():
    options = {"times": "logit_normal", "time_mean": 1.0, "time_std": 0.5}
    objective = DiffusionObjective(unet(), FLOW, "flow_velocity", **options)
    torch.manual_seed(0)
    _, timesteps, _, _ = objective.noised(*torch.zeros(2, 20_000, 1, 1, 1))
    logits = (timesteps / 1000).logit()
    assert float(logits.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(logits.std()) == pytest.approx(0.5, abs=0.02)


def test_a_row_counts_as_much_as_its_weight_says():
    objective = DiffusionObjective(unet(), noise_schedule()).eval()
    losses = []
    for weights in ([1.0, 1, 1, 1], [1.0, 0, 0, 0], [0.0, 1, 1, 1], [2.0, 0, 0, 0]):
        torch.manual_seed(0)
        losses.append(objective.loss(batch() | {"row_weights": torch.tensor(weights)}, "denoiser")[0])
    assert_close(losses[1] + losses[2], losses[0])
    assert_close(losses[3], 2 * losses[1])


def test_the_schedule_may_end_in_noise_alone():
    scheduler = noise_schedule("v_prediction", rescale_betas_zero_snr=True, num_train_timesteps=2)
    assert scheduler.alphas_cumprod[1] == 0
    for weighting in ("constant", "snr", "min_snr", "truncated_snr", "snr_plus_one"):
        objective = DiffusionObjective(unet(), scheduler, "v_prediction", weighting)
        assert objective.loss(batch(), "denoiser")[0].isfinite()


@pytest.mark.parametrize("build", [lambda: unet(num_class_embeds=4), lambda: dit(num_classes=3)])
def test_a_tenth_of_the_rows_get_the_null_class_in_training_and_none_in_evaluation(build):
    objective = DiffusionObjective(build(), noise_schedule(), id2label=NAMES)
    given = {"class_labels": torch.arange(20_000) % 3}
    torch.manual_seed(0)
    found = objective.train().conditions(given, 20_000)["class_labels"]
    assert float((found == 3).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(found[found != 3], given["class_labels"][found != 3])
    assert torch.equal(objective.eval().conditions(given, 20_000)["class_labels"], given["class_labels"])


@pytest.mark.parametrize("pads", [True, False])
def test_dropped_texts_are_the_empty_prompt_from_tokens_and_from_a_cache(pads):
    denoiser = None if pads else dit(channels=4, text_dim=TEXT_DIM)
    objective = text_objective(denoiser, condition_dropout=0.5)
    tokens = encoded()
    rows = {name: value.repeat(100, 1) for name, value in tokens.items()}
    kept = objective.eval().conditions(rows, 300)
    nothing = objective.conditions(encoded([""]), 1)
    torch.manual_seed(0)
    found = objective.train().conditions(rows, 300)
    torch.manual_seed(0)
    dropped = torch.rand(300) < 0.5
    assert 100 < int(dropped.sum()) < 200
    assert_close(found["text_states"][~dropped], kept["text_states"][~dropped])
    length = nothing["text_states"].shape[1]
    expected = nothing["text_states"].expand(int(dropped.sum()), -1, -1)
    assert_close(found["text_states"][dropped, :length], expected)
    if pads:  # all of one length, which is read without a mask
        assert found["text_mask"] is None
        assert length == found["text_states"].shape[1] == words().model_max_length
    else:
        assert torch.equal(found["text_mask"][dropped].sum(1), torch.full((int(dropped.sum()),), 2))
        assert torch.equal(found["text_mask"][~dropped], rows["attention_mask"][~dropped])
    cache = {"text_states": kept["text_states"]}
    cache |= {} if pads else {"text_mask": kept["text_mask"]}
    torch.manual_seed(0)
    cached = objective.conditions(cache, 300)
    seen = torch.ones(300, 1) if pads else found["text_mask"]
    assert_close(cached["text_states"] * seen[..., None], found["text_states"] * seen[..., None])
    assert pads or torch.equal(cached["text_mask"], found["text_mask"])


def test_cached_latents_and_states_give_the_loss_of_pictures_and_texts():
    objective = text_objective().eval()
    given = batch(3) | encoded()
    states = objective.conditions(given, 3)["text_states"]
    cached = {"latents": objective.clean(given), "text_states": states}
    losses = []
    for one in (given, cached):
        torch.manual_seed(0)
        losses.append(objective.loss(one, "denoiser")[0])
    assert_close(*losses)
    latents = objective.vae.encode(given["pixel_values"]).latent_dist.mean * 0.7
    assert_close(cached["latents"], latents)
    assert not torch.equal(objective.train().clean(given), latents)  # drawn


def runs(kind):
    """An objective with everything that chance and dropout touch, and its batches."""
    if kind == "unet":
        return DiffusionObjective(unet(num_class_embeds=4, dropout=0.1), noise_schedule(), id2label=NAMES)
    if kind == "dit":
        options = {"times": "logit_normal", "id2label": NAMES}
        return DiffusionObjective(dit(num_classes=3), FLOW, "flow_sample", "velocity", **options)
    return text_objective(
        text_unet(sample_size=4, dropout=0.1), train_text_encoder=True, preview_prompts=TEXTS
    )


def trainer(folder, kind="unet", objective=None, rows=None, **changes):
    pixels = torch.randint(
        0, 256, (11, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    texts = tuple((TEXTS[i % 3],) for i in range(11))
    rows = PixelRows(pixels, torch.arange(11) % 3, ("bag", "shoe", "hat"), texts) if rows is None else rows
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "logging_steps": 1,
            "seed": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        | changes,
    )
    collator = PixelCollator(flip=True, tokenizer=words() if kind == "text" else None)
    objective = runs(kind) if objective is None else objective
    objective.preview_steps = 2
    return PhasedTrainer(objective, arguments, rows, collator, ema_decay=0.5, preview_count=4)


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
def test_a_denoiser_trains_and_a_resumed_run_ends_bit_for_bit_alike(tmp_path, kind):
    run = trainer(tmp_path / "whole", kind)
    before = {name: weight.clone() for name, weight in run.objective.state_dict().items()}
    run.train()
    after = run.objective.state_dict()
    learnt = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert learnt == ({"denoiser", "text_encoder"} if kind == "text" else {"denoiser"})
    assert (tmp_path / "whole/previews/step-4.png").is_file()
    again = trainer(tmp_path / "again", kind)
    torch.rand(7)
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    for name, weight in again.objective.state_dict().items():
        assert torch.equal(weight, after[name]), name
    with run.averages_applied(), again.averages_applied():
        for one, other in zip(
            run.objective.denoiser.parameters(), again.objective.denoiser.parameters(), strict=True
        ):
            assert torch.equal(one, other)


def test_one_picture_is_learnt(tmp_path):
    rows = PixelRows(torch.full((4, 1, 8, 8), 200, dtype=torch.uint8))
    objective = DiffusionObjective(dit(), FLOW, "flow_sample")
    run = trainer(tmp_path, objective=objective, rows=rows, max_steps=40, learning_rate=1e-2, save_steps=100)
    run.train()
    losses = [entry["denoiser_loss"] for entry in run.state.log_history]
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])


def test_an_adapter_alone_is_trained_where_the_rest_is_frozen():
    model = text_unet(sample_size=4)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    objective = text_objective(model)
    objective.requires_grad_(False)  # as the trainer does
    found = objective.phase_parameters("denoiser")
    names = {name for name, weight in model.named_parameters() if any(weight is one for one in found)}
    assert len(names) == len(found) > 0
    assert all("lora" in name for name in names)


@pytest.mark.parametrize("kind", ["unet", "text", "dit"])
def test_the_pipeline_has_the_parts_and_draws_the_preview(kind):
    objective = runs(kind).eval()
    objective.preview_steps = 2
    found = objective.preview(torch.Generator().manual_seed(0), 5)
    assert found.shape == (5, 1, 8, 8)
    assert -1 <= found.min() < found.max() <= 1
    assert torch.equal(found, objective.preview(torch.Generator().manual_seed(0), 5))
    pipe = objective.pipeline()
    assert (pipe.denoiser, pipe.vae) == (objective.denoiser, objective.vae)
    assert pipe.prediction_type == objective.prediction_type


def test_previews_of_texts_need_prompts():
    assert text_objective().preview(torch.Generator(), 2) is None


class Spoilt(PixelCollator):
    """The numbers of one row are not finite."""

    def __call__(self, rows):
        given = super().__call__(rows)
        if 7 in rows.rows:
            given["pixel_values"][0, 0, 0, 0] = torch.nan
        return given


def test_latents_that_are_not_finite_end_the_run_with_their_step(tmp_path):
    objective = DiffusionObjective(unet(channels=4), noise_schedule(), vae=kl_autoencoder())
    run = trainer(tmp_path, objective=objective, save_steps=1)
    run.data_collator = Spoilt()
    words = (
        r"Step (\d): the latents of `pixel_values` are not finite\. Look at the pictures; or the autoencoder"
    )
    with pytest.raises(DivergedError, match=words) as caught:
        run.train()
    assert int(str(caught.value)[5]) == run.state.global_step + 1


def test_a_cache_with_numbers_that_are_not_finite_is_named():
    objective = DiffusionObjective(unet(), noise_schedule())
    objective.step = 41
    with pytest.raises(DivergedError, match=r"Step 42: the `latents` are not finite\. .* make the cache"):
        objective.loss({"latents": torch.full((2, 1, 8, 8), torch.inf)}, "denoiser")


def built(denoiser=None, scheduler=None, **options):
    return DiffusionObjective(denoiser or unet(), scheduler or noise_schedule(), **options)


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda: {"prediction_type": "eps"}, "'eps' is not one of epsilon, sample"),
        (lambda: {"prediction_type": "mean_flow"}, "learnt by `MeanFlowObjective`"),
        (lambda: {"prediction_type": "sample"}, "predicts 'sample'.*DDPMScheduler expects epsilon"),
        (lambda: {"prediction_type": "flow_velocity"}, "FlowMatchEulerDiscreteScheduler"),
        (lambda: {"scheduler": FLOW}, "predicts 'epsilon'.*expects flow_prediction"),
        (lambda: {"weighting": "p2"}, "No weighting 'p2'; there are constant, snr"),
        (lambda: {"scheduler": FLOW, "prediction_type": "flow_sample", "weighting": "snr"}, "'snr' of flows"),
        (lambda: {"weighting": "min_snr", "gamma": -1.0}, "`gamma`=-1.0 must be above 0"),
        (lambda: {"times": "normal"}, "`times`='normal' must be one of uniform, logit_normal"),
        (
            lambda: {"times": "logit_normal"},
            "are of flows, but 'epsilon' is learnt at the whole timesteps of DDPM",
        ),
        (lambda: {"scheduler": FLOW, "prediction_type": "flow_sample", "time_std": 0.0}, "`std`=0.0"),
        (
            lambda: {"scheduler": noise_schedule(rescale_betas_zero_snr=True)},
            "ends in noise alone .*'v_prediction'",
        ),
        (lambda: {"condition_dropout": 1.0}, "`condition_dropout`=1.0 must be at least 0 and below 1"),
        (
            lambda: {"denoiser": unet(num_class_embeds=3), "id2label": NAMES},
            "needs a null class, but all 3 .*=4",
        ),
        (lambda: {"denoiser": text_unet()}, "reads texts, but `text_encoder` and `tokenizer` are missing"),
        (lambda: {"train_text_encoder": True}, "`train_text_encoder` is set, but UNet2DModel takes no texts"),
        (lambda: {"denoiser": unet().requires_grad_(False)}, "No weight of denoiser requires a gradient"),
        (lambda: {"vae": kl_autoencoder()}, "reads 1 channels .*latents of AutoencoderKL have 4"),
    ],
)
def test_parts_and_choices_that_do_not_go_together_are_named(choose, words):
    options = choose()
    with pytest.raises(ValueError, match=words):
        built(**options)


def test_a_tokenizer_without_a_token_for_the_empty_text_is_refused():
    options = {"tokenizer": word_tokenizer(["a"]), "vae": None}
    with pytest.raises(ValueError, match="no token of '', the text of rows whose condition is dropped"):
        text_objective(dit(channels=4, text_dim=TEXT_DIM), **options)


LONG = {"input_ids": torch.ones(2, 9, dtype=torch.long), "attention_mask": torch.ones(2, 9)}


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (
            lambda: built(unet(num_class_embeds=4)),
            {"class_labels": torch.tensor([0, 3])},
            r"`\[1\] is 3, but",
        ),
        (
            lambda: built(unet(num_class_embeds=4)),
            {"class_labels": None},
            "asked by classes, but the batch has",
        ),
        (lambda: built(unet(channels=3)), {}, r"`pixel_values` must be \(batch, 3, height, width\)"),
        (lambda: built(), {"pixel_values": torch.zeros(2, 1, 7, 8)}, "`height`=7 px is no multiple of 2"),
        (text_objective, {}, r"asked by texts, but the batch has only \['class_labels', 'pixel_values'\]"),
        (text_objective, LONG, "Texts of 9 tokens .* draws texts of 6; pad and truncate"),
        (text_objective, {"text_states": torch.zeros(2, 5, TEXT_DIM)}, "Texts of 5 tokens .* texts of 6"),
        (
            lambda: text_objective(train_text_encoder=True),
            {"text_states": torch.zeros(2, 6, TEXT_DIM)},
            "`train_text_encoder` changes the states of texts",
        ),
    ],
)
def test_batches_that_do_not_fit_are_named(make, changes, words):
    given = {name: value for name, value in (batch(2) | changes).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        make().loss(given, "denoiser")
