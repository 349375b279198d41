"""Pictures from a class or a text, code by code, by a stock Llama over the codes of a tokenizer.

Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation"
(https://arxiv.org/abs/2406.06525).

Shapes: B pictures, h x w codes of a picture, K codes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from ...layers.decode_linear import DecodingLinear, lay_out_for_decoding, restore_layout
from ...layers.decode_step import install_step, remove_step
from .choosing_codes import code_warpers
from .code_pipeline import CodePipeline
from .raster_decoding import raster_codes

__all__ = ["VQAutoregressivePipeline"]


class VQAutoregressivePipeline(CodePipeline):
    """Write pictures code by code.

        pipe = VQAutoregressivePipeline.from_pretrained("out/autoregressive")
        pipe(class_labels=["bag", "sandal"], guidance_scale=2.0, seed=0).images

    Args:
        vqvae: Tokenizer of pictures: `MMVQAutoencoder`, or diffusers' `VQModel`.
        transformer: `LlamaForCausalLM`, or another causal language model without caps on its logits.
        tokenizer: Reads prompts; `None` when there are none.
        id2label: Names of the classes by their number; `None` when there are none.
        code_height: Codes from top to bottom of a picture.
        code_width: Codes from left to right.
        prompt_length: Tokens of a condition.
    """

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float = 1.5,
        temperature: float = 1.0,
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
            guidance_scale: How strongly pictures shall show what was asked for; 1 as in training, at half the
                work.
            temperature: Below 1 likely codes become likelier still; 0 takes the likeliest.
            top_k: Draw from so many likeliest codes; 0 from all.
            top_p: Draw from the likeliest codes that have this probability together; 1 from all.
            generator: For the same pictures each time; or one for each picture.
            seed: Instead: picture i has `seed` + i, or the i-th of a list, whatever it is drawn with.
            output_type: "pil", "np" (B, Y, X, C) or "pt" (B, C, Y, X) in [0, 1], or "codes" (B, h, w).
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: Called as diffusers does, with pipeline, step, step, {"codes": (B, h * w)};
                those still to come are -1, those it changes or returns are read on.
            callback_on_step_end_tensor_inputs: Names of what it is given.

        Raises:
            ValueError: A class or prompt that the transformer does not know, or a setting out of range.
        """
        self._check_call(output_type, callback_on_step_end_tensor_inputs)
        warp = code_warpers(temperature, top_k, top_p)
        prefixes = self.prefixes(class_labels, prompt, num_images_per_prompt)
        noise, count = self._noise(generator, seed, prefixes), self.code_count
        rounds = raster_codes(self.transformer, self.vocabulary, prefixes, count, guidance_scale, warp, noise)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        return self._write(rounds, count, output_type, return_dict, *callback)

    def optimize_for_inference(self) -> "VQAutoregressivePipeline":
        """Lay the transformer's weights out for writing few pictures on a CPU, in place.

        The codes stay the same. The fewer rows are written together, the more is gained; guidance reads two
        for each picture. Training, loading, copying and moving are refused until `restore_for_training`;
        saving writes the usual weights.

        Returns:
            This pipeline.

        Raises:
            ValueError: The transformer is in training mode, not on a CPU, or neither in float32 nor bfloat16.
        """
        model: Any = self.transformer
        if any(isinstance(module, DecodingLinear) for module in model.modules()):
            return self
        if model.training or model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                "`optimize_for_inference` lays out weights in float32 or bfloat16 on a CPU, in `eval()` "
                f"mode; the transformer is in {model.dtype} on {model.device}"
                f"{', in training mode' if model.training else ''}."
            )
        lay_out_for_decoding(model)
        install_step(model)
        return self

    def restore_for_training(self) -> "VQAutoregressivePipeline":
        """Undo `optimize_for_inference`, in place: the same weights, bit for bit.

        Returns:
            This pipeline.
        """
        remove_step(self.transformer)
        restore_layout(self.transformer)
        return self
