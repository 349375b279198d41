"""An autoencoder to look through: what it makes of pictures, what lies between two, what it draws from noise.

Shapes: B pictures, C channels, Y x X pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ...hub.diffusers_code import RemotePipelineMixin

__all__ = ["AutoencoderPipeline", "check_autoencoder"]

OUTPUT_TYPES = ("pil", "np", "pt")
SEVERAL = 64  # pictures that go through the model at a time

Generators = torch.Generator | list[torch.Generator] | None


class AutoencoderPipeline(RemotePipelineMixin, DiffusionPipeline):
    """Reconstruct, interpolate, sample.

    Args:
        vae: `AutoencoderKL`, `MMVQAutoencoder`, or diffusers' `VQModel`.

    Raises:
        TypeError: It is none of these.
    """

    def __init__(self, vae: ModelMixin) -> None:
        super().__init__()
        check_autoencoder(vae, "vae")
        self.register_modules(vae=vae)
        self.downscale = 2 ** (len(self._config["block_out_channels"]) - 1)
        self.image_processor = VaeImageProcessor(
            do_resize=False, vae_scale_factor=self.downscale, vae_latent_channels=0
        )  # 0: no pictures are taken for latents

    @property
    def _config(self) -> Any:
        return self.vae.config

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        uniform_codes: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw pictures: decode latents from the prior N(0, 1), to which the divergence pulls a VAE.

        A VAE that was trained with a weight of 1 draws what it has learnt; with the 1e-6 of latent diffusion,
        or a codebook, most of what the prior gives are no latents of pictures.

        Args:
            batch_size: How many, B; by default 1, or as many as there are `latents`.
            height: In pixels; by default the `sample_size` of the model.
            width: In pixels.
            generator: For the same pictures each time; or one for each picture.
            latents: Decode these, (B, channels, height, width) as the model has them, instead of drawing any;
                nothing that says what to draw goes with them.
            uniform_codes: A codebook has no prior of its own; draw each place's code at random nevertheless.
            output_type: "pil", "np" (B, Y, X, C) or "pt" (B, C, Y, X), both in [0, 1].
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.

        Returns:
            `images`.

        Raises:
            ValueError: Sizes, shapes, numbers of generators or the type of output are not possible, arguments
                contradict each other, or a codebook is to be sampled without `uniform_codes`.
        """
        _check_output_type(output_type)
        if latents is None:
            shape = self._latent_shape(1 if batch_size is None else batch_size, height, width)
            _check_generators(generator, shape[0])
            if isinstance(self.vae, AutoencoderKL):
                latents = randn_tensor(shape, generator, self.device, self.vae.dtype)
            elif uniform_codes:
                latents = self._random_codes(shape, generator)
            else:
                raise ValueError(
                    f"{type(self.vae).__name__} has a codebook and no prior to draw from; train a "
                    "transformer on its codes, or pass `uniform_codes=True` to see random codes."
                )
        else:
            given = {"height": height, "width": width, "generator": generator}
            self._check_latents(latents, batch_size, given | {"uniform_codes": uniform_codes or None})
        return self._output(self._decode(latents.to(self.device, self.vae.dtype)), output_type, return_dict)

    @torch.no_grad()
    def reconstruct(
        self, images: Any, output_type: str = "pil", return_dict: bool = True
    ) -> ImagePipelineOutput | tuple[Any]:
        """What is left of pictures after they went through the latents; a VAE takes the means of those.

        Args:
            images: One or several PIL images, an array (B, Y, X, C) or a tensor (B, C, Y, X) in [0, 1]; all
                of one size, with the channels of the model, and sides that are multiples of `downscale`.
            output_type: "pil", "np" or "pt".
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.

        Returns:
            `images`, as many and as large.

        Raises:
            ValueError: The pictures are of other sizes, channels or values.
        """
        _check_output_type(output_type)
        parts = self._pixels(images, "images").split(SEVERAL)
        return self._output(
            torch.cat([self._decode(self._encode(part)) for part in parts]), output_type, return_dict
        )

    @torch.no_grad()
    def interpolate(
        self, first: Any, second: Any, steps: int = 8, output_type: str = "pil", return_dict: bool = True
    ) -> ImagePipelineOutput | tuple[Any]:
        """From one picture to another on the straight line between their latents.

        Args:
            first: A picture, see `reconstruct`.
            second: Another of the same size.
            steps: Pictures on the way, the reconstructions of both included.
            output_type: "pil", "np" or "pt".
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.

        Returns:
            `images`, as many as `steps`.

        Raises:
            ValueError: `steps` is below 2, or the pictures are not two of one size.
        """
        _check_output_type(output_type)
        if steps < 2:
            raise ValueError(f"`steps`={steps} must be at least 2: the way has two ends.")
        ends = [self._pixels(picture, name) for picture, name in ((first, "first"), (second, "second"))]
        if ends[0].shape != ends[1].shape or len(ends[0]) != 1:
            raise ValueError(
                f"`first` and `second` must be one picture each, of one size; got "
                f"{tuple(ends[0].shape)} and {tuple(ends[1].shape)} (pictures, channels, height, width)."
            )
        start, end = self._encode(torch.cat(ends)).chunk(2)
        shares = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)[:, None, None, None]
        frames = torch.lerp(start, end, shares)  # (steps, channels, height, width)
        return self._output(
            torch.cat([self._decode(p) for p in frames.split(SEVERAL)]), output_type, return_dict
        )

    @property
    def _latent_channels(self) -> int:
        """Of the latents that are encoded and decoded."""
        if isinstance(self.vae, AutoencoderKL):
            return self._config["latent_channels"]
        return self.vae.quant_conv.out_channels

    def _check_latents(self, latents: Tensor, batch_size: int | None, others: Mapping[str, Any]) -> None:
        """Latents that the model decodes, and no other wishes."""
        if latents.ndim != 4 or latents.shape[1] != self._latent_channels:
            raise ValueError(
                f"`latents` must be (batch, {self._latent_channels}, height, width), got "
                f"{tuple(latents.shape)}."
            )
        if batch_size not in (None, len(latents)):
            raise ValueError(
                f"`batch_size`={batch_size}, but there are {len(latents)} `latents`; leave it out."
            )
        if also := [f"`{name}`" for name, value in others.items() if value is not None]:
            raise ValueError(
                f"`latents` are decoded as they are, {', '.join(also)} would have no effect; leave "
                f"{'it' if len(also) == 1 else 'them'} out."
            )

    def _latent_shape(self, batch_size: int, height: int | None, width: int | None) -> tuple[int, ...]:
        sides = []
        for name, side in (("height", height), ("width", width)):
            side = self._config["sample_size"] if side is None else side
            if side < 1 or side % self.downscale:
                raise ValueError(
                    f"`{name}`={side} must be a multiple of {self.downscale}, pixels of one latent."
                )
            sides.append(side // self.downscale)
        if batch_size < 1:
            raise ValueError(f"`batch_size`={batch_size} must be at least 1.")
        return (batch_size, self._latent_channels, *sides)

    def _random_codes(self, shape: tuple[int, ...], generator: Generators) -> Tensor:
        """Latents of codes that are drawn at random, each as likely as any other."""
        model: Any = self.vae
        count, _, rows, columns = shape
        several = generator if isinstance(generator, list) else [generator]
        codes = model.config["num_vq_embeddings"] if isinstance(model, VQModel) else model.num_codes
        each = count // len(several)
        drawn = [
            torch.randint(codes, (each, rows, columns), generator=one, device=one.device if one else "cpu")
            for one in several
        ]
        indices = torch.cat(drawn).to(self.device)
        if isinstance(model, VQModel):
            return model.quantize.get_codebook_entry(indices.flatten(), (count, rows, columns, shape[1]))
        return model.lookup(indices)

    def _encode(self, pixels: Tensor) -> Tensor:
        model: Any = self.vae
        encoded = model.encode(pixels.to(self.device, model.dtype))
        return encoded.latent_dist.mode() if isinstance(model, AutoencoderKL) else encoded.latents

    def _decode(self, latents: Tensor) -> Tensor:
        model: Any = self.vae
        return model.decode(latents).sample

    def _pixels(self, images: Any, name: str) -> Tensor:
        """Pictures as (B, C, Y, X) in [-1, 1]."""
        if isinstance(images, Tensor | np.ndarray):
            _check_numbers(images, name)
        else:
            images = [images] if isinstance(images, Image.Image) else list(images)
            _check_pictures(images, name)
        pixels = self.image_processor.preprocess(images)  # (B, C, Y, X)
        channels, (rows, columns) = pixels.shape[1], pixels.shape[-2:]
        if channels != self._config["in_channels"]:
            raise ValueError(
                f"`{name}` have {channels} channels, the model reads {self._config['in_channels']}; convert "
                "them to grey (`convert('L')`) or colour (`convert('RGB')`) first."
            )
        if rows % self.downscale or columns % self.downscale:
            raise ValueError(
                f"`{name}` are {columns}x{rows} px, sides must be multiples of {self.downscale}; resize or "
                "pad them first."
            )
        return pixels

    def _output(
        self, pixels: Tensor, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple[Any]:
        images: Any = self.image_processor.postprocess(pixels, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def check_autoencoder(model: Any, name: str) -> None:
    """Refuse what is no autoencoder of pictures.

    Ours is known by the name of its class: in a pipeline from the Hub it comes from a file of its own.

    Args:
        model: What was given.
        name: As what.

    Raises:
        TypeError: It is neither `AutoencoderKL`, nor `MMVQAutoencoder`, nor `VQModel`.
    """
    ours = any(base.__name__ == "MMVQAutoencoder" for base in type(model).__mro__)
    if not ours and not isinstance(model, AutoencoderKL | VQModel):
        raise TypeError(
            f"`{name}` is a {type(model).__name__}, not an AutoencoderKL, MMVQAutoencoder or VQModel; other "
            "models encode and decode in other ways."
        )


def _check_generators(generator: Generators, count: int) -> None:
    if isinstance(generator, list) and len(generator) not in (1, count):
        raise ValueError(f"{len(generator)} generators for `batch_size`={count}; give one, or one for each.")


def _check_pictures(images: Sequence[Any], name: str) -> None:
    """PIL images, all alike."""
    others = sorted({type(image).__name__ for image in images if not isinstance(image, Image.Image)})
    if others or not images:
        raise ValueError(
            f"`{name}` must be PIL images, an array or a tensor, got {', '.join(others) or 'none'}."
        )
    sizes, modes = sorted({image.size for image in images}), sorted({image.mode for image in images})
    if len(sizes) > 1 or len(modes) > 1 or modes[0] not in ("L", "RGB"):
        raise ValueError(
            f"`{name}` have the sizes {sizes} px and the modes {modes}; bring them to one size, and convert "
            "them to grey (`convert('L')`) or colour (`convert('RGB')`)."
        )


def _check_numbers(images: Tensor | np.ndarray, name: str) -> None:
    """Numbers in [0, 1] for several pictures."""
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"`{name}` must be an array (batch, height, width, channels) or a tensor (batch, channels, "
            f"height, width), got the shape {tuple(images.shape)}."
        )
    least, most = float(images.min()), float(images.max())
    if not 0.0 <= least <= most <= 1.0:
        raise ValueError(f"`{name}` must be in [0, 1], got numbers from {least:.4g} to {most:.4g}.")


def _check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type`={output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")
