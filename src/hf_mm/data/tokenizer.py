"""Tokenizers for language models that are trained from nothing."""

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["COMPACT_CHAT_TEMPLATE", "PLAIN_CHAT_TEMPLATE", "train_tokenizer"]

# One token per turn instead of several words: rows of short questions get a third shorter. The space makes a
# word the same token at the start of a turn as inside it: what is learnt of one serves the other. Images that
# open a turn stand before its token, so that questions about one image all begin alike, with the image.
COMPACT_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}"
    "{%- for part in parts -%}{{- '<image>' if part['type'] == 'image' else ' ' + part['text'] -}}"
    "{%- endfor -%}"
    "{{- eos_token -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{%- set turn = namespace(open=false) -%}"
    "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- else -%}"
    "{{- ('' if turn.open else '<|' + message['role'] + '|>') + ' ' + part['text'] -}}"
    "{%- set turn.open = true -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if not turn.open -%}{{- '<|' + message['role'] + '|>' -}}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
# For captions: they follow their image without roles, as in LLaVA's first stage.
PLAIN_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{%- for part in parts -%}{{- ' ' + part['text'] -}}{%- endfor -%}{{- eos_token -}}"
    "{%- endgeneration -%}"
    "{%- else -%}"
    "{%- for part in parts -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 1024,
    special_tokens: Sequence[str] = (),
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`; every digit is a token of its own and any text encodes.

    Args:
        texts: What to learn merges from.
        vocab_size: Most tokens, special ones and the 256 bytes included; fewer when `texts` run out of pairs.
        special_tokens: Tokens to add to "<pad>", "<bos>", "<eos>" and those of the turns of a chat, such as
            "<image>".
        chat_template: Jinja template; by default `COMPACT_CHAT_TEMPLATE`, one token before each turn and
            "<eos>" after the assistant's.

    Returns:
        A fast tokenizer with `pad_token`, `bos_token` and `eos_token`, that adds none of them by itself.

    Raises:
        ValueError: `vocab_size` has no room for the bytes and the special tokens.
    """
    special = list(dict.fromkeys(("<pad>", "<bos>", "<eos>", *ROLE_TOKENS, *special_tokens)))
    if vocab_size < len(special) + 256:
        raise ValueError(
            f"`vocab_size`={vocab_size} is less than 256 bytes and {len(special)} special tokens; "
            f"give at least {len(special) + 256}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=special[3:],
        chat_template=chat_template or COMPACT_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
