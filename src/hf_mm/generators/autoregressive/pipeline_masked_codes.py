"""Pictures from a class or a text in a few rounds, all codes at once, by a stock bidirectional model.

Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer" (https://arxiv.org/abs/2202.04200).

Shapes: B pictures, h x w codes of a picture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from .choosing_codes import code_warpers
from .code_pipeline import CodePipeline
from .masked_decoding import masked_codes

__all__ = ["VQMaskedPipeline"]


class VQMaskedPipeline(CodePipeline):
    """Write pictures in rounds: guess all codes, keep the surest, guess the others again.

    Args:
        vqvae: Tokenizer of pictures: `MMVQAutoencoder`, or diffusers' `VQModel`.
        transformer: `BertForMaskedLM`, or another bidirectional masked language model.
        tokenizer: Reads prompts; `None` when there are none.
        id2label: Names of the classes by their number; `None` when there are none.
        code_height: Codes from top to bottom of a picture.
        code_width: Codes from left to right.
        prompt_length: Tokens of a condition.
    """

    has_mask = True

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.5,
        temperature: float = 1.0,
        choice_temperature: float = 4.5,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Mapping[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw pictures.

        Args:
            class_labels: Numbers or names of classes, one for each picture.
            prompt: Or texts. With neither, one picture of anything.
            num_images_per_prompt: Pictures of each.
            num_inference_steps: Rounds; as many as there are codes at most.
            guidance_scale: How strongly pictures shall show what was asked for; 1 as in training, at half the
                work.
            temperature: Below 1 likely codes become likelier still; 0 takes the likeliest.
            choice_temperature: Noise in the choice of the surest codes; with 0 pictures become alike.
            top_k: Draw from so many likeliest codes; 0 from all.
            top_p: Draw from the likeliest codes that have this probability together; 1 from all.
            generator: For the same pictures each time; or one for each picture.
            seed: Instead: picture i has `seed` + i, or the i-th of a list, whatever it is drawn with.
            output_type: "pil", "np" (B, Y, X, C) or "pt" (B, C, Y, X) in [0, 1], or "codes" (B, h, w).
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: Called as diffusers does, with pipeline, step, step, {"codes": (B, h * w)};
                those still to come are -1, those it changes or returns are read on and stay.
            callback_on_step_end_tensor_inputs: Names of what it is given.

        Raises:
            ValueError: A class or prompt that the transformer does not know, or a setting out of range.
        """
        self._check_call(output_type, callback_on_step_end_tensor_inputs)
        self._check_rounds(num_inference_steps, choice_temperature)
        warp = code_warpers(temperature, top_k, top_p)
        prefixes = self.prefixes(class_labels, prompt, num_images_per_prompt)
        settings = (self.code_count, num_inference_steps, guidance_scale, warp, choice_temperature)
        noise = self._noise(generator, seed, prefixes)
        rounds = masked_codes(self.transformer, self.vocabulary, prefixes, *settings, noise)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        return self._write(rounds, num_inference_steps, output_type, return_dict, *callback)

    def _check_rounds(self, steps: int, choice_temperature: float) -> None:
        if not 1 <= steps <= self.code_count:
            raise ValueError(
                f"`num_inference_steps`={steps} must be 1 to {self.code_count}: each round fixes a code at "
                f"least, and a picture has {self.code_count}."
            )
        if choice_temperature < 0:
            raise ValueError(f"`choice_temperature`={choice_temperature} must be 0 or more.")
