"""Train text to image: from nothing on a CPU, or on from a published Stable Diffusion, also for one subject.

    hf-mm train autoencoder --model vae --downscale 4 --dataset easy-vqa --output_dir out/vae-shapes
    hf-mm train text_to_image --vae out/vae-shapes --output_dir out/shapes
    hf-mm train text_to_image --vae out/vae-shapes --denoiser unet --output_dir out/unet-shapes
    hf-mm train text_to_image --dataset openmoji --data_folder package --output_dir out/emoji
    hf-mm train text_to_image --pretrained SD --dataset FOLDER --lora_rank 8 --output_dir out/style
    hf-mm train text_to_image --pretrained SD --subject my-dog --instance_prompt "a sks dog" \
        --class_prompt "a dog" --output_dir out/my-dog

`--dataset` is `easy-vqa` (a coloured shape with captions such as "a small red triangle at the top left"),
`openmoji`, or a folder or Hub id whose pictures have texts. From nothing, a transformer of 8 x 8 patches and
a small text encoder learn together, in pixels or, with `--vae`, in the latents of what `hf-mm train
autoencoder --model vae --downscale 4` wrote, where shapes are learnt sooner; `--denoiser unet` learns what
plain diffusers can load. `--pretrained` is a Stable Diffusion in its published layout, trained as a whole or
by LoRA; `--subject` a folder of a few pictures of one thing, for DreamBooth. Latents and the states of texts
are made once where their models stay as they are. Any flag of `transformers.TrainingArguments` works.

Written to the output folder: a pipeline, of a UNet also as plain Stable Diffusion in `plain`, or the adapters
alone (`pytorch_lora_weights.safetensors`); `previews`, `grid.png` with a row for each prompt,
`neighbours.png` with the training pictures next to what is drawn, which is never pushed, and `results.json`:
of easy-VQA how many of 432 pictures show the colour, shape, place and size asked for, by their pixels and
with `--vlm` by the answers of a vision-language model.

Rombach et al. 2022 (https://arxiv.org/abs/2112.10752); Li and He 2025 (https://arxiv.org/abs/2511.13720):
large patches need the clean picture as target; Hu et al. 2021, "LoRA" (https://arxiv.org/abs/2106.09685);
Ruiz et al. 2023, "DreamBooth" (https://arxiv.org/abs/2208.12242).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from transformers import AutoModel as AutoTextModel
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from hf_mm import (
    DiffusionObjective,
    ImageDiffusionPipeline,
    LatentCollator,
    LatentRows,
    LatentTextCollator,
    MMDiTModel,
    MMVLMForConditionalGeneration,
    PhasedTrainer,
    PixelCollator,
    PixelRows,
    PriorCollator,
    SubjectRows,
    add_diffusion_lora,
    atomic_write,
    attribute_table,
    described_shapes,
    draw_class,
    drawn_attribute_results,
    easy_vqa_descriptions,
    environment,
    extract_latents,
    extract_text_states,
    generation_rows,
    load_autoencoder,
    picture_folder,
    picture_views,
    sample_grid,
    shape_prompts,
    text_to_image_card,
    train_caption_tokenizer,
    unseen_prompt_page,
    with_drawn_pages,
    write_results,
)
from hf_mm.generators.diffusion.image_inputs import downscale_of, patch_size_of

__all__ = ["DEFAULTS", "PRESETS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    dataset: str = field(
        default="easy-vqa", metadata={"help": "easy-vqa, openmoji, a folder or a Hub id; with texts."}
    )
    data_folder: str | None = field(default=None, metadata={"help": "The unpacked package of OpenMoji."})
    image_size: int | None = field(
        default=None, metadata={"help": "In px; by default that of the data set, or of the published model."}
    )
    rows: int | None = field(
        default=None, metadata={"help": "Pictures to learn from; of a subject's class by default 100."}
    )
    denoiser: str = field(default="dit", metadata={"help": "dit or unet, from nothing."})
    vae: str | None = field(
        default=None, metadata={"help": "Autoencoder whose latents are learnt, or its pipeline; else pixels."}
    )
    text_encoder: str | None = field(
        default=None, metadata={"help": "Trained CLIP or its text tower; else a small one learns along."}
    )
    pretrained: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a Stable Diffusion to train on."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Of adapters on `pretrained`; 0 trains all of it."})
    train_text_encoder: bool = field(
        default=False, metadata={"help": "Also train the text encoder of `pretrained` or `text_encoder`."}
    )
    subject: str | None = field(default=None, metadata={"help": "Folder of pictures of one subject."})
    instance_prompt: str | None = field(
        default=None, metadata={"help": "What they show, with a rare word: 'a sks dog'."}
    )
    class_prompt: str | None = field(
        default=None, metadata={"help": "What else there is of the kind: 'a dog'; by default it may be lost."}
    )
    guidance_scale: float = field(default=3.0, metadata={"help": "Of what is drawn and measured."})
    vlm: str | None = field(
        default=None, metadata={"help": "Folder of a model that answers easy-VQA's questions, as a judge."}
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS: dict[str, Any] = {
    "max_steps": 5000,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "adam_beta2": 0.99,
    "warmup_steps": 0.02,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "logging_steps": 50,
    "save_steps": 1000,
    "save_total_limit": 1,
    "report_to": "none",
}
SHORT: dict[str, Any] = {"max_steps": 400, "per_device_train_batch_size": 1, "save_strategy": "no"}
STEADY: dict[str, Any] = {"lr_scheduler_type": "constant", "warmup_steps": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "openmoji": {"max_steps": 12000},
    "latents": {"max_steps": 8000},  # colours, places and sizes come by 2,500, shapes after them
    "pretrained": {"max_steps": 2000, "per_device_train_batch_size": 4, "learning_rate": 1e-5, **STEADY},
    "lora": {"max_steps": 2000, "per_device_train_batch_size": 4, "learning_rate": 1e-4, **STEADY},
    "subject": {"learning_rate": 5e-6, **SHORT, **STEADY},
    "subject lora": {"learning_rate": 1e-4, **SHORT, **STEADY},
}
PATCHES = (4, 8, 1)  # a side at least and most, and the least patch
DIT: dict[str, Any] = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "text_pooling": True}
UNET_WIDTHS, ATTENTION_PX = (48, 96, 128), 8  # of a UNet's stages; texts are read where a side has so few
TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS, CONTEXT, LONGEST = 1024, 16, 77  # tokens: of the vocabulary, of short texts at least, and at most
# Flat colours show through noise: where a shape is shows at time 0.96, and only before does the text say it.
# A latent says once what many pixels repeat. The noise in a velocity of large patches would not go through.
PIXELS: dict[str, Any] = {"prediction_type": "flow_sample", "weighting": "velocity"}
PIXELS |= {"time_mean": 2.5, "time_std": 1.75}
LATENTS: dict[str, Any] = {"prediction_type": "flow_velocity", "time_mean": 0.75, "time_std": 1.25}
PIXEL_SHIFT, LATENT_SHIFT = 10.0, 3.0  # of the times of drawing, likewise
SD_SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD_SCHEDULE |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
MOVES_PX = {"openmoji": 2}  # few pictures; not mirrored, as texts know left from right
CONDITION_DROPOUT = 0.1
EMA_DECAY = 0.998
PRIOR_PICTURES = 100
STEPS, AT_ONCE = 30, 72  # of drawing; pictures that are drawn together
PREVIEWS = 8  # of a run
COLUMNS, NEIGHBOURS, SHOWN_PROMPTS = 8, 4, 12  # of the pages
PROMPTS = ("red apple", "green apple", "red heart", "blue heart")
PROMPTS += ("yellow circle", "smiling face", "cat", "house")


def check(recipe: Recipe, args: TrainingArguments) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: Says what to change.
    """
    if recipe.denoiser not in ("dit", "unet"):
        raise ValueError(f"`denoiser`={recipe.denoiser!r} is none of dit, unet.")
    if (recipe.rows is not None and recipe.rows < 1) or recipe.lora_rank < 0:
        raise ValueError(f"`rows`={recipe.rows} must be above 0, `lora_rank`={recipe.lora_rank} 0 or more.")
    if recipe.vlm and (recipe.dataset != "easy-vqa" or recipe.subject):
        raise ValueError(f"`vlm`={recipe.vlm!r} judges what is drawn of easy-vqa only; leave it out.")
    if recipe.pretrained is None:
        for name in [name for name in ("lora_rank", "subject") if getattr(recipe, name)]:
            raise ValueError(f"`{name}`={getattr(recipe, name)!r} needs `pretrained` to go on from.")
    elif recipe.vae or recipe.text_encoder:
        raise ValueError(
            f"`pretrained`={recipe.pretrained!r} brings its autoencoder and text encoder; leave `vae` and "
            "`text_encoder` out."
        )
    pair = f"`subject`={recipe.subject!r} and `instance_prompt`={recipe.instance_prompt!r}"
    if (recipe.subject is None) != (recipe.instance_prompt is None):
        raise ValueError(f"{pair} belong together; give both or neither.")
    if recipe.class_prompt is not None and recipe.subject is None:
        raise ValueError(f"`class_prompt`={recipe.class_prompt!r} needs `subject`, of whose class it is.")


def all_texts(rows: PixelRows) -> list[str]:
    """Every text of every picture.

    Raises:
        ValueError: There are none.
    """
    if rows.texts is None:
        raise ValueError("The pictures have no texts to learn; `hf-mm train diffusion` needs none.")
    return [text for texts in rows.texts for text in texts]


def text_parts(recipe: Recipe, texts: Sequence[str]) -> dict[str, Any]:
    """A tokenizer and what reads its tokens: trained before, or new and to be trained along."""
    if recipe.text_encoder is not None:
        model = AutoTextModel.from_pretrained(recipe.text_encoder)
        parts = {"text_encoder": getattr(model, "text_model", model).eval()}
        parts["tokenizer"] = AutoTokenizer.from_pretrained(recipe.text_encoder)
        return parts | {"train_text_encoder": recipe.train_text_encoder}
    tokenizer = train_caption_tokenizer(texts, WORDS, LONGEST)
    longest = max(len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"])
    tokenizer.model_max_length = min(max(longest, CONTEXT), LONGEST)
    names = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT, **sizes, **names))
    return {"tokenizer": tokenizer, "text_encoder": encoder, "train_text_encoder": True}


def new_parts(recipe: Recipe, train: PixelRows, vae: Any) -> dict[str, Any]:
    """Models that have learnt nothing yet, and what they learn by."""
    parts = text_parts(recipe, all_texts(train))
    parts |= {"vae": vae, "condition_dropout": CONDITION_DROPOUT}
    channels, side = train.channels, train.image_size
    if vae is not None:
        channels, side = vae.config.latent_channels, side // downscale_of(vae)
    width = parts["text_encoder"].config.hidden_size
    if recipe.denoiser == "unet":
        target = {"prediction_type": "v_prediction"}
        parts |= {"denoiser": build_unet(channels, side, width)}
        return parts | target | {"scheduler": DDIMScheduler(**SD_SCHEDULE, **target)}
    patch = patch_size_of(side, *PATCHES)
    sizes = {"sample_size": side, "in_channels": channels, "patch_size": patch, "text_dim": width}
    flow, shift = (PIXELS, PIXEL_SHIFT) if vae is None else (LATENTS, LATENT_SHIFT)
    parts |= flow | {"times": "logit_normal", "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift)}
    return parts | {"denoiser": MMDiTModel(**sizes, **DIT)}


def build_unet(channels: int, side: int, text_width: int) -> UNet2DConditionModel:
    """The kind of UNet that Stable Diffusion has, with three stages."""
    sides = [side >> stage for stage in range(len(UNET_WIDTHS))]
    reads = [here <= ATTENTION_PX or here == sides[-1] for here in sides]
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=UNET_WIDTHS,
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in reads),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(reads)),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,  # diffusers calls the number of heads so
        cross_attention_dim=text_width,
    )


def published_parts(recipe: Recipe) -> dict[str, Any]:
    """The models of a Stable Diffusion, with adapters where these are to be trained."""
    pipe = ImageDiffusionPipeline.from_stable_diffusion(str(recipe.pretrained))
    names = ("denoiser", "scheduler", "vae", "text_encoder", "tokenizer", "prediction_type")
    parts = {name: getattr(pipe, name) for name in names}
    parts["train_text_encoder"] = recipe.train_text_encoder
    parts["condition_dropout"] = 0.0 if recipe.subject else CONDITION_DROPOUT
    for name in ("denoiser", "text_encoder"):
        parts[name].requires_grad_(True)
    if recipe.lora_rank:
        encoder = parts["text_encoder"] if recipe.train_text_encoder else None
        add_diffusion_lora(parts["denoiser"], encoder, recipe.lora_rank)
    return parts


def load_rows(recipe: Recipe, vae: Any, denoiser: Any = None) -> PixelRows:
    """Pictures to learn from, of the size that the model is for."""
    options: dict[str, Any] = {"image_size": recipe.image_size, "folder": recipe.data_folder}
    if vae is not None:
        options["channels"] = vae.config.in_channels
    if recipe.image_size is None and denoiser is not None:
        options["image_size"] = denoiser.config.sample_size * downscale_of(vae)
    elif recipe.image_size is None and vae is not None:
        options["image_size"] = vae.config.sample_size
    if recipe.subject is None:
        return generation_rows(recipe.dataset, "train", **options)[: recipe.rows]
    size = options["image_size"]
    return picture_folder(recipe.subject, size, str(recipe.instance_prompt), options["channels"])


def training_data(
    recipe: Recipe, args: TrainingArguments, objective: DiffusionObjective, train: PixelRows, folder: Path
) -> tuple[Any, Callable[[Any], Mapping[str, Any]]]:
    """Rows and what makes batches of them; what frozen models make of the rows is made once."""
    moves = MOVES_PX.get(recipe.dataset, 0) if recipe.subject is None else 0
    pixels = PixelCollator(pad_crop_px=moves, seed=args.seed, tokenizer=objective.tokenizer)
    if recipe.subject is not None:
        if recipe.class_prompt is None:
            return SubjectRows(train), PriorCollator(pixels)
        count = PRIOR_PICTURES if recipe.rows is None else recipe.rows
        wanted = (objective.pipeline(), folder / "class", recipe.class_prompt, count, train.image_size)
        return SubjectRows(train, draw_class(*wanted, **drawing(recipe))), PriorCollator(pixels)
    if objective.vae is None:
        return train, pixels
    vae, quiet = objective.vae.to(args.device), {"progress": not args.disable_tqdm}
    latents = extract_latents(vae, train, folder / "latents", picture_views(shift_px=moves), **quiet)
    rows = LatentRows(latents, train)
    if "text_encoder" not in objective.frozen:
        return rows, LatentTextCollator(LatentCollator(seed=args.seed), objective.tokenizer)
    encoder = (objective.text_encoder.to(args.device), objective.tokenizer)
    wanted = (all_texts(train), folder / "text_states", isinstance(objective.denoiser, UNet2DConditionModel))
    states = extract_text_states(*encoder, *wanted, **quiet)
    return rows, LatentCollator(states, seed=args.seed)


def drawing(recipe: Recipe) -> dict[str, Any]:
    """How everything is drawn."""
    return {"num_inference_steps": STEPS, "chunk_size": AT_ONCE, "guidance_scale": recipe.guidance_scale}


def shown_prompts(recipe: Recipe, train: PixelRows) -> list[str]:
    """Texts to watch the model by; those of openmoji are of pictures that it never sees."""
    if recipe.subject is not None:
        return [prompt for prompt in (recipe.instance_prompt, recipe.class_prompt) if prompt is not None]
    if recipe.dataset == "easy-vqa":
        prompts = [prompt.text for prompt in shape_prompts()]
        return prompts[:: len(prompts) // SHOWN_PROMPTS + 1]  # 37: all colours, shapes and places come up
    if recipe.dataset == "openmoji":
        held_out = generation_rows("openmoji", "test", train.image_size, recipe.data_folder).texts or ()
        every = max(1, len(held_out) // SHOWN_PROMPTS)
        return [*PROMPTS, *(texts[0] for texts in held_out[::every])]
    return list(dict.fromkeys(all_texts(train)))[:SHOWN_PROMPTS]


def draw(recipe: Recipe, pipe: Any, prompts: list[str], train: PixelRows, folder: Path, seed: int) -> None:
    """A page with a row for each prompt, and one with the training pictures next to the first of each."""
    size = {"height": train.image_size, "width": train.image_size}
    options = {**drawing(recipe), **size, "seed": seed}
    drawn = pipe(prompts, **options, num_images_per_prompt=COLUMNS, output_type="pt").images
    drawn = drawn.float().cpu() * 2 - 1
    pages = {"grid": sample_grid(drawn, COLUMNS, row_labels=prompts)}
    firsts = [seed + number * COLUMNS for number in range(len(prompts))]
    shown = {**options, "seed": firsts, "k": min(NEIGHBOURS, len(train))}
    pages["neighbours"] = unseen_prompt_page(pipe, prompts, train, **shown)
    for name, page in pages.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            page.save(temporary)


def load_judge(recipe: Recipe, device: Any) -> dict[str, Any]:
    """Who answers questions about what is drawn, if anyone; it is asked for places if it points."""
    if recipe.vlm is None:
        return {}
    model = MMVLMForConditionalGeneration.from_pretrained(recipe.vlm).to(device)
    return {"model": model, "processor": AutoProcessor.from_pretrained(recipe.vlm), "pointing": None}


def measure(recipe: Recipe, pipe: Any, judge: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Of all 432 prompts of easy-VQA, and of as many real pictures: what they show, by each judge."""
    prompts = shape_prompts()[: recipe.rows]
    texts = [prompt.text for prompt in prompts]
    drawn = pipe(texts, **drawing(recipe), seed=seed).images
    real = easy_vqa_descriptions("test").select(range(len(prompts)))
    return {
        "drawn": drawn_attribute_results(drawn, prompts, **judge),
        "real pictures": drawn_attribute_results(real["image"], described_shapes(real), **judge),
    }


def save(trainer: PhasedTrainer, results: Mapping[str, Any], folder: Path) -> None:
    """The adapters, or the pipeline, of a UNet also as plain Stable Diffusion, with all that was found."""
    objective: Any = trainer.objective
    if isinstance(objective.denoiser, UNet2DConditionModel) and not results["lora_rank"]:
        try:
            with trainer.averages_applied():
                objective.pipeline().to_pipeline().save_pretrained(folder / "plain")
        except ValueError as error:  # such as no autoencoder, or one of codes
            print(f"Not written as plain Stable Diffusion: {error}")
    write_results(folder / "results.json", results)
    trainer.card, metrics = with_drawn_pages(trainer.card, results.get("attributes"))
    trainer.save_model(metrics=metrics)


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Train, draw, measure, save; returns the results."""
    check(recipe, args)
    set_seed(args.seed)
    judge = load_judge(recipe, args.device)  # before hours of training
    folder = Path(str(args.output_dir))
    if recipe.pretrained is not None:
        parts = published_parts(recipe)
        train = load_rows(recipe, parts["vae"], parts["denoiser"])
    else:
        vae = None if recipe.vae is None else load_autoencoder(recipe.vae)
        train = load_rows(recipe, vae)
        parts = new_parts(recipe, train, vae)
    prompts = shown_prompts(recipe, train)
    shown = {"preview_prompts": prompts, "preview_guidance": recipe.guidance_scale, "preview_steps": STEPS}
    objective = DiffusionObjective(**parts, **shown).to(args.device)
    rows, collator = training_data(recipe, args, objective, train, folder)
    decay = EMA_DECAY if recipe.pretrained is None else None
    about = (folder.resolve().name, recipe.subject or recipe.dataset, drawing(recipe))
    card = text_to_image_card(objective, train, *about, recipe.pretrained, recipe.lora_rank)
    trainer = PhasedTrainer(objective, args, rows, collator, ema_decay=decay, preview_count=16, card=card)
    trainer.preview_steps = max(trainer.max_steps // PREVIEWS, 1)
    trained = trainer.train()
    names = ("dataset", "pretrained", "subject", "lora_rank", "guidance_scale")
    results: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    results |= {"prediction_type": objective.prediction_type, "seed": args.seed, "train_rows": len(train)}
    results |= {"steps": trainer.state.global_step, "train_seconds": trained["train_runtime"]}
    results["images_per_second"] = trained["train_images_per_second"]
    results["weights"] = sum(weight.numel() for weight in objective.phase_parameters("denoiser"))
    with trainer.averages_applied():
        pipe = objective.pipeline()
        pipe.set_progress_bar_config(disable=True)
        draw(recipe, pipe, prompts, train, folder, args.seed)
        if recipe.dataset == "easy-vqa" and recipe.subject is None:
            results["attributes"] = measure(recipe, pipe, judge, args.seed)
    results["environment"] = environment()
    save(trainer, results, folder)
    return results


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train text_to_image", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    known = parser.parse_known_args(argv)[0]
    latents = known.vae is not None and known.denoiser == "dit" and known.dataset not in PRESETS
    kind = "latents" if latents else known.dataset
    if known.pretrained is not None:
        kind = "lora" if known.lora_rank else "pretrained"
        kind = kind if known.subject is None else "subject lora" if known.lora_rank else "subject"
    parser.set_defaults(**PRESETS.get(kind, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    print(f"{results['steps']} steps in {results['train_seconds']:.0f} s")
    if "attributes" in results:
        print(attribute_table(results["attributes"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
