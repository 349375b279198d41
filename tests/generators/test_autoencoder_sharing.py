"""Autoencoders' pipelines and the patch discriminator keep what every generator promises."""

import torch
from diffusers import AutoencoderKL
from generators.generator_contract import GeneratorModelContract, PipelineContract

from hf_mm.generators.autoencoder.modeling_vq_autoencoder import MMVQAutoencoder
from hf_mm.generators.autoencoder.patch_discriminator import MMPatchDiscriminator
from hf_mm.generators.autoencoder.pipeline_autoencoder import AutoencoderPipeline

TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 8,
}


class TestPatchDiscriminator(GeneratorModelContract):
    model_class = MMPatchDiscriminator
    answer = ""

    def options(self):
        return {"in_channels": 1, "base_channels": 8, "num_layers": 1, "norm_num_groups": 4}

    def inputs(self):
        return {"sample": torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1}


class TestPipelineOfVAE(PipelineContract):
    """The component is diffusers' own: only the pipeline's code travels."""

    pipeline_class = AutoencoderPipeline

    def pipeline(self):
        torch.manual_seed(0)
        return AutoencoderPipeline(AutoencoderKL(**TINY).eval())

    def call(self):
        return {"batch_size": 2}

    def picture(self):
        return 3, 8, 8


class TestPipelineOfVQ(TestPipelineOfVAE):
    """Both the pipeline and its component are ours."""

    def pipeline(self):
        torch.manual_seed(0)
        return AutoencoderPipeline(MMVQAutoencoder(**TINY, num_vq_embeddings=16).eval())

    def call(self):
        return {"batch_size": 2, "uniform_codes": True}
