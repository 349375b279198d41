"""Pictures out of a GAN: by class or text, from seeds, more usual ones by truncation, films between them.

Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", section 3.1: the
truncation trick (https://arxiv.org/abs/1809.11096). White 2016, "Sampling Generative Networks": along the
sphere, not through its middle, where no noise ever was (https://arxiv.org/abs/1609.04468).

Shapes: B pictures, Z numbers of noise, K width of the condition, L tokens.
"""

import math
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...hub.diffusers_code import RemotePipelineMixin
from ...layers.class_ids import class_ids
from .conditions_gan import check_words, pooled_text

__all__ = ["GANPipeline", "spherical_mixture", "tokens_of_prompts", "truncated_normal"]

OUTPUT_TYPES = ("pil", "np", "pt")
CHUNK = 8  # pictures at a time
Generators = torch.Generator | Sequence[torch.Generator] | None


class GANPipeline(RemotePipelineMixin, DiffusionPipeline):
    """One step from noise to a picture.

        pipe = DiffusionPipeline.from_pretrained("me/my-gan")
        pipe(class_labels=["sneaker", "bag"], num_images_per_prompt=4, seed=0).images
        make_image_grid(pipe.interpolate(seeds=[0, 1], class_labels="bag").images, rows=1, cols=9)

    Args:
        generator: An `MMGANGenerator`.
        tokenizer: For a generator that is asked by texts.
        text_encoder: For a generator with `text_embed_dim`.

    Raises:
        ValueError: The tokenizer has words that the generator has not.
    """

    _optional_components = ["tokenizer", "text_encoder"]

    def __init__(
        self,
        generator: ModelMixin,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(generator=generator, tokenizer=tokenizer, text_encoder=text_encoder)
        check_words(tokenizer, self.generator.config["vocab_size"])
        self.image_processor = VaeImageProcessor()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        truncation: float | None = None,
        chunk_size: int = CHUNK,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            class_labels: Ids or names, for a generator with classes; by default one is drawn for each
                picture.
            prompt: Texts, for a generator that is asked by them.
            num_images_per_prompt: How many of each class or text, one after the other; or of all without.
            seed: Of each picture, or of the first, the next ones having the next numbers. A picture depends
                on its own seed and condition, not on what else is drawn.
            generator: Source of the noise instead of `seed`: one for all, or one for each picture.
            latents: (B, Z) the noise itself instead, as it is. Without `class_labels`, classes are then drawn
                from torch's own generator.
            truncation: Largest absolute value of the noise: 0.5 or 1.0 for more usual and less different
                pictures of the same seeds; `None` for any.
            chunk_size: Pictures that go through the generator at a time. Always as many, the last ones filled
                up, so that nothing of a picture, to the last bit, depends on what is drawn with it.
            output_type: "pil", "np" (B, S, S, C) or "pt" (B, C, S, S), the last two in [0, 1].
            return_dict: An output object with `images`, or else a tuple of them.

        Raises:
            TypeError: A class is neither a whole number nor a name.
            ValueError: A class or text that the generator does not take, or does not know; too long a text;
                numbers of seeds or noise that are not those of the pictures; noise in two ways.
        """
        _check_output(output_type)
        asked = self._asked(class_labels, prompt)
        count = num_images_per_prompt * (1 if asked is None else len(asked))
        if num_images_per_prompt < 1 or chunk_size < 1:
            raise ValueError(
                f"`num_images_per_prompt`={num_images_per_prompt} and `chunk_size`={chunk_size} must be at "
                "least 1."
            )
        given = {"seed": seed, "generator": generator, "truncation": truncation}
        also = [f"`{name}`" for name, value in given.items() if value is not None]
        if latents is not None and also:
            raise ValueError(
                f"`latents` are the noise as it is, {', '.join(also)} would have no effect; leave "
                f"{'it' if len(also) == 1 else 'them'} out."
            )
        noise, drawn = self._noise(_noise_sources(count, seed, generator), truncation)
        if latents is not None:
            noise = self._checked(latents, count)
        condition = self._condition(asked, drawn, num_images_per_prompt)
        return self._draw(noise, condition, chunk_size, output_type, return_dict)

    @torch.no_grad()
    def interpolate(
        self,
        seeds: int | Sequence[int] = (0, 1),
        frames: int = 8,
        class_labels: int | str | Sequence[int | str] | None = None,
        prompt: str | Sequence[str] | None = None,
        truncation: float | None = None,
        chunk_size: int = CHUNK,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """The frames of a film from picture to picture: noise along the sphere, conditions along a line.

        Args:
            seeds: Of the pictures to pass through, or one for all of them.
            frames: From each picture to the next, the next not counted; the last one comes on top.
            class_labels: One for all of the film, or one for each picture to pass through.
            prompt: Likewise.
            truncation: As in a call.
            chunk_size: As in a call.
            output_type: As in a call.
            return_dict: As in a call.

        Raises:
            ValueError: Fewer than two pictures, or other numbers of seeds and conditions; else as a call.
        """
        _check_output(output_type)
        keys: list[int] = [int(seeds)] if isinstance(seeds, int | np.integer) else list(seeds)
        asked = self._asked(class_labels, prompt)
        given = 0 if asked is None else len(asked)
        stops = max(len(keys), given)
        if stops < 2 or frames < 1 or {len(keys), given or len(keys)} - {1, stops}:
            raise ValueError(
                f"{len(keys)} `seeds` and {given} conditions with `frames`={frames} make no film; "
                "give two pictures at least, one of each for all or one for each."
            )
        latents, drawn = self._noise(_noise_sources(len(keys), keys, None), truncation)
        condition = self._condition(asked, drawn, 1)
        latents = latents.expand(stops, -1)
        shares = torch.arange(frames * (stops - 1) + 1) / frames
        places = shares.long().clamp(max=stops - 2)
        shares = (shares - places).to(latents)[:, None]  # (frames, 1)
        latents = spherical_mixture(latents[places], latents[places + 1], shares)
        if condition is not None:
            condition = condition.expand(stops, -1)
            condition = torch.lerp(condition[places], condition[places + 1], shares.to(condition))
        return self._draw(latents, condition, chunk_size, output_type, return_dict)

    def _noise(
        self, sources: Sequence[torch.Generator | None], truncation: float | None
    ) -> tuple[Tensor, list[int]]:
        """(B, Z) noise and a class for each picture, each from its own source and in its own turn."""
        config = self.generator.config
        rows, classes = [], []
        for source in sources:
            device = "cpu" if source is None else source.device
            rows.append(torch.randn(config["latent_dim"], generator=source, device=device).cpu())
            if config["num_classes"] is not None:
                drawn = torch.randint(config["num_classes"], (1,), generator=source, device=device)
                classes.append(int(drawn))
        noise = torch.stack(rows)
        return noise if truncation is None else truncated_normal(noise, truncation), classes

    def _checked(self, latents: Tensor, count: int) -> Tensor:
        wanted = (count, self.generator.config["latent_dim"])
        if tuple(latents.shape) != wanted:
            raise ValueError(f"`latents` must be {wanted} for {count} pictures, got {tuple(latents.shape)}.")
        return latents

    def _asked(
        self,
        class_labels: int | str | Sequence[int | str] | None,
        prompt: str | Sequence[str] | None,
    ) -> Tensor | list[str] | None:
        """Ids of classes (N,), or N texts; `None` where nothing particular is asked for."""
        config = self.generator.config
        if class_labels is not None and config["num_classes"] is None:
            raise ValueError("This generator knows no classes; leave `class_labels` out.")
        by_text = config["vocab_size"] is not None or config["text_embed_dim"] is not None
        if prompt is not None and not by_text:
            raise ValueError("This generator reads no texts; leave `prompt` out.")
        if class_labels is not None:
            return class_ids(class_labels, config["num_classes"], config["class_names"] or ())
        if not by_text:
            return None
        if prompt is None:
            raise ValueError("This generator is asked by texts; pass `prompt`.")
        if self.tokenizer is None or (config["text_embed_dim"] is not None and self.text_encoder is None):
            missing = "tokenizer" if self.tokenizer is None else "text_encoder"
            raise ValueError(
                f"This pipeline has no `{missing}` to read `prompt` by; build it with the one that the "
                "generator was trained with."
            )
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("No picture is asked for: `prompt` is an empty list.")
        return prompts

    def _condition(
        self, asked: Tensor | list[str] | None, drawn: list[int], num_images_per_prompt: int
    ) -> Tensor | None:
        """(B, K) vectors of what was asked for, or else of the classes drawn; `None` where none are taken."""
        device = self._execution_device
        if isinstance(asked, list):
            words = tokens_of_prompts(self.tokenizer, asked, self.generator.config["text_context"])
            words = {name: value.to(device) for name, value in words.items()}
            if self.text_encoder is not None:
                words = {"text_embeds": pooled_text(self.text_encoder, **words)}
            return self.generator.condition(**words).repeat_interleave(num_images_per_prompt, 0)
        if asked is not None:
            vectors = self.generator.condition(class_labels=asked.to(device))
            return vectors.repeat_interleave(num_images_per_prompt, 0)
        return self.generator.condition(class_labels=torch.tensor(drawn, device=device)) if drawn else None

    def _draw(
        self, latents: Tensor, condition: Tensor | None, chunk_size: int, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple:
        latents = latents.to(self._execution_device, self.generator.dtype)
        parts = []
        for first in self.progress_bar(range(0, len(latents), chunk_size)):
            places = torch.arange(first, first + chunk_size).clamp(max=len(latents) - 1)
            asked = None if condition is None else condition[places]
            parts.append(self.generator(latents[places], condition_embeds=asked).sample)
        sample = torch.cat(parts)[: len(latents)]
        postprocess: Any = self.image_processor.postprocess
        images = postprocess(sample, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def truncated_normal(noise: Tensor, limit: float) -> Tensor:
    """Normal numbers to those of a normal distribution cut off beyond a limit, in the same order.

    Exact, and steady in `limit`: the same seeds show the same pictures, drawn towards the usual ones. Brock
    et al. draw again what is beyond, which has the same distribution.

    Args:
        noise: Any shape, normal of variance 1.
        limit: Largest absolute value, above 0.

    Returns:
        As `noise`.

    Raises:
        ValueError: A limit that leaves nothing.
    """
    if not limit > 0:
        raise ValueError(f"`truncation`={limit} must be above 0; `None` cuts nothing off.")
    inside = math.erf(limit / math.sqrt(2))  # the share of a normal distribution that stays
    levels = torch.erf(noise.double() / math.sqrt(2)) * inside
    return (math.sqrt(2) * torch.erfinv(levels)).clamp(-limit, limit).to(noise.dtype)


def spherical_mixture(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """From `start` to `end` along the arc between them, whose length changes steadily.

    Args:
        start: (B, Z).
        end: (B, Z).
        share: (B, 1), 0 at the start, 1 at the end.

    Returns:
        (B, Z); along the line where the two point the same way or opposite ways.
    """
    cosine = torch.cosine_similarity(start, end, dim=1).clamp(-1, 1)[:, None]
    angle = torch.arccos(cosine)  # (B, 1)
    sine = torch.sin(angle)
    flat = sine < 1e-4
    safe = torch.where(flat, 1.0, sine)
    first = torch.where(flat, 1 - share, torch.sin((1 - share) * angle) / safe)
    second = torch.where(flat, share, torch.sin(share * angle) / safe)
    return first * start + second * end


def tokens_of_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], context: int | None = None
) -> dict[str, Tensor]:
    """Texts to tokens, padded on the right.

    Args:
        tokenizer: Of the model.
        prompts: B texts.
        context: Most tokens of one; by default as the tokenizer says.

    Returns:
        `input_ids` and `attention_mask` (B, L).

    Raises:
        ValueError: A text is too long; it is named by its place from 0.
    """
    most = tokenizer.model_max_length if context is None else context
    encoded = tokenizer(list(prompts), padding=True, padding_side="right", return_tensors="pt", verbose=False)
    mask = encoded["attention_mask"]
    for place, length in enumerate(mask.sum(1).tolist()):
        if length > most:
            raise ValueError(
                f"`prompt` {place} has {length} tokens, the context has {most}: {prompts[place]!r:.80}; "
                "shorten it."
            )
    return {"input_ids": encoded["input_ids"], "attention_mask": mask}


def _noise_sources(
    count: int, seed: int | Sequence[int] | None, generator: Generators
) -> list[torch.Generator | None]:
    """Where the noise of each picture comes from."""
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` both say where the noise comes from; pass one of them.")
    if isinstance(seed, int | np.integer):
        seed = range(int(seed), int(seed) + count)
    sources: list[Any]
    if seed is not None:
        sources = [torch.Generator().manual_seed(index(number)) for number in seed]
    elif generator is None or isinstance(generator, torch.Generator):
        sources = [generator] * count
    else:
        sources = list(generator)
    if len(sources) != count:
        name = "generator" if seed is None else "seed"
        raise ValueError(f"`{name}` has {len(sources)} entries for {count} pictures; give one for each.")
    return sources


def _check_output(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type`={output_type!r} is not one of {', '.join(OUTPUT_TYPES)}.")
