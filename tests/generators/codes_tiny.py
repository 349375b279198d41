"""Small pipelines over codes: real classes, random weights that are large enough to prefer some codes."""

import torch
from diffusers import VQModel
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from hf_mm import CodeVocabulary, MMVQAutoencoder, VQAutoregressivePipeline, VQMaskedPipeline
from hf_mm.data.tokenizer import train_bert_tokenizer

CLASSES = {0: "bag", 1: "boot", 2: "coat"}
CODES, SIDE = 16, 4  # codes, and codes of a side of a picture of 8 px
LENGTH = SIDE * SIDE
PROMPT = 5
BLOCKS = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "num_vq_embeddings": CODES,
    "sample_size": 8,
}
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCABULARY = CodeVocabulary(CODES, len(CLASSES))


def stock_vq(seed=0):
    torch.manual_seed(seed)
    return VQModel(**BLOCKS).eval()


def own_vq(seed=0):
    torch.manual_seed(seed)
    return MMVQAutoencoder(**BLOCKS).eval()


def words():
    return train_bert_tokenizer(["a red apple", "a green pear and a bag"])


@torch.no_grad()
def sharpened(model):
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(5)
    return model.eval()


def llama(vocabulary=VOCABULARY, seed=0):
    torch.manual_seed(seed)
    positions = vocabulary.prompt_length + LENGTH
    config = LlamaConfig(vocab_size=vocabulary.size, max_position_embeddings=positions, **WIDTHS)
    config.bos_token_id = config.eos_token_id = None  # `generate` would stop at a code
    return sharpened(LlamaForCausalLM(config))


def bert(vocabulary=VOCABULARY, seed=0):
    torch.manual_seed(seed)
    positions = vocabulary.prompt_length + LENGTH
    config = BertConfig(vocab_size=vocabulary.size + 1, max_position_embeddings=positions, **WIDTHS)
    config.pad_token_id = None
    return sharpened(BertForMaskedLM(config))


def raster_pipeline(vqvae=None):
    pipe = VQAutoregressivePipeline(vqvae or stock_vq(), llama(), None, CLASSES, SIDE, SIDE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def masked_pipeline(vqvae=None):
    pipe = VQMaskedPipeline(vqvae or stock_vq(), bert(), None, CLASSES, SIDE, SIDE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_pipeline():
    tokenizer = words()
    vocabulary = CodeVocabulary(CODES, 0, len(tokenizer), PROMPT)
    pipe = VQAutoregressivePipeline(stock_vq(), llama(vocabulary), tokenizer, None, SIDE, SIDE, PROMPT)
    pipe.set_progress_bar_config(disable=True)
    return pipe
