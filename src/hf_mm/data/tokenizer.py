"""Tokenizers for models that are trained from nothing: of chats, of captions, and of whole words."""

from collections.abc import Iterable, Sequence

from tokenizers import (
    BertWordPieceTokenizer,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, PreTrainedTokenizerFast

from .chat_templates import COMPACT_CHAT_TEMPLATE

__all__ = [
    "train_bert_tokenizer",
    "train_caption_tokenizer",
    "train_tokenizer",
    "train_word_tokenizer",
    "word_tokenizer",
]

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CAPTION_TOKENS = ("<|startoftext|>", "<|endoftext|>", "<pad>")
WORD_TOKENS = ("<pad>", "<unk>")
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


def train_caption_tokenizer(
    texts: Iterable[str], vocab_size: int = 4096, max_length: int = 77
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-cased `texts`, for a text tower like CLIP's; any text encodes.

    "A  Red dog" becomes "<|startoftext|> a red dog<|endoftext|>". A word is the same token at the start of
    a caption as inside it. The ids of start, end and padding are 0, 1 and 2; give them to the text config.

    Args:
        texts: What to learn merges from.
        vocab_size: Most tokens, the 256 bytes and the 3 special ones included; fewer when `texts` run out of
            pairs.
        max_length: Most tokens of a caption, start and end included: the context of the text tower.

    Returns:
        A fast tokenizer with `bos_token`, `eos_token` and `pad_token` that puts the first two around a text,
        also around one that it truncates.

    Raises:
        ValueError: `vocab_size` has no room for the bytes and the special tokens.
    """
    start, end, pad = CAPTION_TOKENS
    if vocab_size < len(CAPTION_TOKENS) + 256:
        raise ValueError(
            f"`vocab_size`={vocab_size} is less than 256 bytes and {len(CAPTION_TOKENS)} special tokens; "
            f"give at least {len(CAPTION_TOKENS) + 256}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CAPTION_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 0), (end, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def train_bert_tokenizer(texts: Iterable[str], vocab_size: int = 1024, max_length: int = 40) -> BertTokenizer:
    """WordPiece over lower-cased `texts`, the kind of tokenizer that BERT and ViLT have.

    "A red dog" becomes "[CLS] a red dog [SEP]". The ids of [PAD], [UNK], [CLS], [SEP] and [MASK] are 0 to 4;
    give them to the config. The same texts give the same ids, in any order and in any process.

    Args:
        texts: What to learn pieces of words from.
        vocab_size: Most pieces, the special ones included; fewer when `texts` run out of pairs.
        max_length: Most tokens of a text, [CLS] and [SEP] included: the positions of the model.

    Raises:
        ValueError: `texts` has no word.
    """
    texts = list(texts)
    trained = BertWordPieceTokenizer(lowercase=True)
    # The trainer numbers these in the order of a hash map, another in each run, and equal pairs by numbers.
    first = [*BERT_TOKENS, *_continuing_letters(texts, trained)]
    trained.train_from_iterator(texts, vocab_size, min_frequency=1, special_tokens=first, show_progress=False)
    vocab = trained.get_vocab()
    if len(vocab) <= len(BERT_TOKENS):
        raise ValueError("`texts` has no word to learn; give texts as the model will read them.")
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=max_length)


def _continuing_letters(texts: Sequence[str], tokenizer: BertWordPieceTokenizer) -> list[str]:
    """The letters that go on with a word, as pieces, in the order of the alphabet."""
    words = {
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    }
    return sorted({f"##{letter}" for word in words for letter in word[1:]})


def train_word_tokenizer(texts: Iterable[str], vocab_size: int = 10_000) -> PreTrainedTokenizerFast:
    """The commonest words of `texts` as tokens, all others as "<unk>"; for a bag of words.

    Args:
        texts: Where to count words, see `word_tokenizer`.
        vocab_size: Most tokens, "<pad>" and "<unk>" included; of equally common words the first in the
            alphabet stay.

    Raises:
        ValueError: `vocab_size` has no room for a word.
    """
    if vocab_size <= len(WORD_TOKENS):
        raise ValueError(
            f"`vocab_size`={vocab_size} has no room for a word beside {' and '.join(WORD_TOKENS)}."
        )
    counter = word_tokenizer([]).backend_tokenizer
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(WORD_TOKENS), show_progress=False
    )
    counter.train_from_iterator(texts, trainer)
    words = sorted(counter.get_vocab().items(), key=lambda item: item[1])
    return word_tokenizer([word for word, _ in words[len(WORD_TOKENS) :]])


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each word: lower-cased, split at blanks and around each mark of punctuation.

    Args:
        words: Different ones; their ids follow those of "<pad>" (0) and "<unk>" (1), which stands for any
            other word.

    Returns:
        A fast tokenizer that adds no tokens by itself.
    """
    vocabulary = {word: index for index, word in enumerate((*WORD_TOKENS, *words))}
    pad, unknown = WORD_TOKENS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
