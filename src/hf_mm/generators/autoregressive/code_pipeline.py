"""What pipelines over codes share: conditions in, pictures out.

Shapes: B pictures, C channels, Y x X pixels, h x w codes of a picture, L = h w, T tokens of a condition.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...hub.diffusers_code import RemotePipelineMixin
from ...layers.class_ids import class_ids
from ...layers.picture_chance import picture_generators
from .choosing_codes import row_noise
from .code_vocabulary import CodeVocabulary
from .picture_codes import codebook_size, pictures_of_codes

__all__ = ["CodePipeline"]

OUTPUT_TYPES = ("pil", "np", "pt", "codes")


class CodePipeline(RemotePipelineMixin, DiffusionPipeline):
    """The base of the pipelines here; each decodes in its own way.

    Args:
        vqvae: Tokenizer of pictures: `MMVQAutoencoder`, or diffusers' `VQModel`.
        transformer: Writes codes; its vocabulary is a `CodeVocabulary`.
        tokenizer: Reads prompts; `None` when there are none.
        id2label: Names of the classes by their number; `None` when there are none.
        code_height: h.
        code_width: w.
        prompt_length: T.

    Raises:
        ValueError: The transformer has another vocabulary, or too few positions.
    """

    _optional_components = ["tokenizer"]
    _callback_tensor_inputs = ["codes"]
    has_mask = False  # whether the last token of the transformer is a mask

    def __init__(
        self,
        vqvae: ModelMixin,
        transformer: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        id2label: dict | None = None,
        code_height: int = 8,
        code_width: int = 8,
        prompt_length: int = 1,
    ) -> None:
        super().__init__()
        labels = {str(number): name for number, name in (id2label or {}).items()}  # JSON's keys are texts
        if sorted(labels) != sorted(str(number) for number in range(len(labels))):
            raise ValueError(
                f"`id2label` must number the classes 0 to {len(labels) - 1}, got {sorted(labels)}."
            )
        self.vocabulary = CodeVocabulary(
            codebook_size(vqvae), len(labels), 0 if tokenizer is None else len(tokenizer), prompt_length
        )
        _check_transformer(transformer, self.vocabulary, code_height * code_width, self.has_mask)
        self.register_modules(vqvae=vqvae, transformer=transformer, tokenizer=tokenizer)
        self.register_to_config(
            id2label=labels, code_height=code_height, code_width=code_width, prompt_length=prompt_length
        )
        self.classes = [labels[str(number)] for number in range(len(labels))]
        self.code_size = (code_height, code_width)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @property
    def code_count(self) -> int:
        """L."""
        return self.code_size[0] * self.code_size[1]

    def prefixes(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
    ) -> Tensor:
        """The tokens (B, T) of conditions.

        Args:
            class_labels: Numbers or names of classes.
            prompt: Texts; an empty one asks for any picture. With neither, one picture without condition.
            num_images_per_prompt: Copies of each, next to each other.

        Raises:
            TypeError: A class is neither a whole number nor a name.
            ValueError: Both are given, nothing is asked for, a class is unknown or out of range, or a prompt
                is too long.
        """
        if class_labels is not None and prompt is not None:
            raise ValueError("`class_labels` and `prompt` cannot be given together; give one of them.")
        if num_images_per_prompt < 1:
            raise ValueError(f"`num_images_per_prompt`={num_images_per_prompt} must be at least 1.")
        if class_labels is not None:
            numbers = class_ids(class_labels, len(self.classes), self.classes)
            made = self.vocabulary.class_prefixes(numbers)
        elif prompt is not None:
            made = self.vocabulary.word_prefixes(self._word_ids(prompt))
        else:
            made = self.vocabulary.null_prefixes(1)
        if not len(made):
            raise ValueError("No picture is asked for: `prompt` is an empty list.")
        return made.repeat_interleave(num_images_per_prompt, 0).to(self.transformer.device)

    def decode(self, codes: Tensor, output_type: str = "pil", return_dict: bool = True) -> Any:
        """Pictures of codes.

        Args:
            codes: (B, h, w).
            output_type: "pil", "np" (B, Y, X, C) or "pt" (B, C, Y, X) in [0, 1], or "codes" as they are.
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.

        Raises:
            ValueError: A code is outside the codebook, or an unknown type of output.
        """
        _check_output_type(output_type)
        images: Any = codes
        if output_type != "codes":
            pixels = pictures_of_codes(self.vqvae, codes).float()
            postprocess: Any = self.image_processor.postprocess
            images = postprocess(pixels, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(
        self,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        seed: int | Sequence[int] | None,
        prefixes: Tensor,
    ) -> Callable[[int], Tensor]:
        """What gives (B, n) of exponential noise for n."""
        chance = picture_generators(generator, seed, len(prefixes))
        return lambda size: row_noise(chance, (len(prefixes), size), prefixes.device)

    def _write(
        self,
        rounds: Iterator[Tensor],
        total: int,
        output_type: str,
        return_dict: bool,
        callback: Callable[..., Mapping[str, Tensor] | None] | None,
        callback_inputs: Sequence[str],
    ) -> Any:
        """Go through the rounds of a decoder, then decode its last codes (B, L)."""
        codes: Any = None
        with self.progress_bar(total=total) as bar:
            for step, codes in enumerate(rounds):
                if callback is not None:
                    given = {name: {"codes": codes}[name] for name in callback_inputs}
                    changed = (callback(self, step, step, given) or {}).get("codes", codes)
                    if changed is not codes:
                        codes.copy_(changed)
                bar.update()
        return self.decode(codes.unflatten(1, self.code_size), output_type, return_dict)

    def _check_call(self, output_type: str, callback_inputs: Sequence[str]) -> None:
        _check_output_type(output_type)
        if unknown := sorted(set(callback_inputs) - set(self._callback_tensor_inputs)):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` names {unknown}; there are "
                f"{self._callback_tensor_inputs}."
            )

    def _word_ids(self, prompt: str | Sequence[str]) -> list[list[int]]:
        if self.tokenizer is None:
            raise ValueError(
                f"{type(self).__name__} has no tokenizer to read `prompt` by; give `class_labels`."
            )
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            return []
        return self.tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]


def _check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type`={output_type!r} is none of {', '.join(OUTPUT_TYPES)}.")


def _check_transformer(transformer: Any, vocabulary: CodeVocabulary, length: int, has_mask: bool) -> None:
    config, wanted = transformer.config, vocabulary.size + has_mask
    if config.vocab_size != wanted:
        raise ValueError(
            f"The transformer has `vocab_size`={config.vocab_size}, but {vocabulary.num_codes} codes, "
            f"{vocabulary.num_classes} classes, the empty condition, {vocabulary.num_words} words"
            f"{' and the mask' * has_mask} are {wanted} tokens; build it for these."
        )
    if config.pad_token_id is not None and config.pad_token_id < vocabulary.size:
        raise ValueError(
            f"The transformer has `pad_token_id`={config.pad_token_id}, a token of pictures here, whose "
            "embedding would then not be learnt; build it with `pad_token_id=None`."
        )
    tokens = vocabulary.prompt_length + length
    if config.max_position_embeddings < tokens:
        raise ValueError(
            f"The transformer has {config.max_position_embeddings} positions, but a condition of "
            f"{vocabulary.prompt_length} tokens and {length} codes are {tokens}."
        )
