"""Pipelines over codes keep what every generator promises, with tokenizers of ours and of diffusers."""

from generators.codes_tiny import masked_pipeline, own_vq, raster_pipeline, text_pipeline
from generators.generator_contract import PipelineContract

from hf_mm import VQAutoregressivePipeline, VQMaskedPipeline


class TestAutoregressivePipeline(PipelineContract):
    """The components are stock: only the pipeline's code travels."""

    pipeline_class = VQAutoregressivePipeline

    def pipeline(self):
        return raster_pipeline()

    def call(self):
        return {"class_labels": ["bag", 2]}

    def picture(self):
        return 1, 8, 8


class TestAutoregressivePipelineOfText(TestAutoregressivePipeline):
    """With a tokenizer of words."""

    def pipeline(self):
        return text_pipeline()

    def call(self):
        return {"prompt": ["a red apple", "a bag"]}


class TestMaskedPipeline(TestAutoregressivePipeline):
    """The tokenizer of pictures is ours: two files of code travel."""

    pipeline_class = VQMaskedPipeline

    def pipeline(self):
        return masked_pipeline(own_vq())
