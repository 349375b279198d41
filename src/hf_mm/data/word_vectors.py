"""Word vectors from the text files of word2vec, GloVe and fastText, as a text tower and its tokenizer.

Mikolov et al. 2013, "Efficient Estimation of Word Representations in Vector Space"
(https://arxiv.org/abs/1301.3781); Pennington et al. 2014, "GloVe: Global Vectors for Word Representation"
(https://aclanthology.org/D14-1162).

A line is a word and its numbers, with single blanks between. word2vec and fastText begin with a line of two
numbers, words and width; GloVe does not, and has words with blanks in them. Files are read line by line, so a
file larger than the memory is no trouble as long as the wanted words fit.
"""

import gzip
import logging
import math
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from unicodedata import normalize

import torch
from transformers import PreTrainedTokenizerFast

from ..models.bag_of_words.configuration_bag_of_words import MMBagOfWordsConfig
from ..models.bag_of_words.modeling_bag_of_words import MMBagOfWordsModel
from .tokenizer import WORD_TOKENS, word_tokenizer

__all__ = ["load_word_vectors"]

logger = logging.getLogger(__name__)


def load_word_vectors(
    path: str | Path, vocabulary: Iterable[str] | None = None, max_words: int | None = None
) -> tuple[MMBagOfWordsModel, PreTrainedTokenizerFast]:
    """A bag of words with vectors that others have trained.

    Words are lower-cased, as the tokenizer does with captions. Of several lines for one word the one that is
    written in lower case counts, else the first: files are sorted by frequency.

    Args:
        path: A text file of word2vec, GloVe or fastText, or the same compressed (.gz).
        vocabulary: Words, or whole captions, whose words are wanted; all others are passed over. By default
            every word is.
        max_words: Stop after so many words.

    Returns:
        The text tower, and a tokenizer with a token for each word found. "<pad>" is the zero vector, "<unk>",
        for all other words, the mean of all.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file breaks off, or a line is not a word and as many finite numbers as the others; the
            line is named. Or none of the wanted words is there.
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"`max_words`={max_words} must be at least 1.")
    wanted = None if vocabulary is None else _words_of(vocabulary)
    if wanted is not None and not wanted:
        raise ValueError("`vocabulary` holds no word; leave it out to load all.")
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; check the path, from {Path.cwd()}.")
    words, vectors = _read(path, wanted, max_words)
    if not words:
        raise ValueError(
            f"{path} has none of the {len(wanted or ())} wanted words, such as {sorted(wanted or ())[:3]}."
        )
    if wanted is not None:
        logger.info("%s has %d of the %d wanted words.", path, len(words), len(wanted))
    unknown = vectors.mean(dim=0, keepdim=True)
    table = torch.cat([torch.zeros_like(unknown), unknown, vectors])  # as WORD_TOKENS
    config = MMBagOfWordsConfig(vocab_size=len(table), hidden_size=table.shape[1], pad_token_id=0)
    model = MMBagOfWordsModel(config).eval()
    model.load_state_dict({"embeddings.weight": table})
    return model, word_tokenizer(words)


def _words_of(texts: Iterable[str]) -> set[str]:
    if isinstance(texts, str):
        raise ValueError(f"`vocabulary` is one text, {texts[:40]!r}; give a list of words or captions.")
    tokenizer = word_tokenizer([]).backend_tokenizer
    lowered = (tokenizer.normalizer.normalize_str(text) for text in texts)
    return {word for text in lowered for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}


def _read(path: Path, wanted: set[str] | None, max_words: int | None) -> tuple[list[str], torch.Tensor]:
    """The words, lower-cased, and their vectors (words, width) float32."""
    rows: dict[str, int] = {}
    settled: set[str] = set()  # words that stood there in lower case: no later line counts
    numbers, passed_over = array("f"), 0
    for written, vector in _lines(path, wanted):
        word = _lowered(written)
        if word in settled or (word in rows and word != written):
            passed_over += 1
            continue
        if word == written:
            settled.add(word)
        if word in rows:
            start = rows[word] * len(vector)
            numbers[start : start + len(vector)] = vector
            passed_over += 1
        else:
            rows[word] = len(rows)
            numbers.extend(vector)
        if len(rows) == max_words or (wanted is not None and len(settled) == len(wanted)):
            break
    if passed_over:
        logger.info("%s has %d more lines for words that it gives before or after.", path, passed_over)
    vectors = torch.frombuffer(numbers, dtype=torch.float32) if rows else torch.empty(0)
    return list(rows), vectors.view(len(rows), -1) if rows else vectors


def _lines(path: Path, wanted: set[str] | None) -> Iterator[tuple[str, array]]:
    """Word and vector of each line whose word is wanted; all lines are checked for their width."""
    promised, width, count, unreadable = None, 0, 0, 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line, where = line.rstrip(b" \r\n"), f"{path}, line {number}"
                if number == 1:
                    promised, width = _header(line)
                    if promised is not None:
                        continue
                count += 1
                encoded, values = _split(line, width, where)
                try:
                    word = encoded.decode()
                except UnicodeDecodeError:
                    unreadable += 1
                    continue
                if word not in WORD_TOKENS and (wanted is None or _lowered(word) in wanted):
                    yield word, _numbers(values, where)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} breaks off or is no gzip file ({error}); download it again.") from error
    if unreadable:
        logger.warning("%s has %d words that are not UTF-8; they are left out.", path, unreadable)
    if count == 0 or promised not in (None, count):
        raise ValueError(
            f"{path} has {count} words, expected were {promised or 'some'}; download it again, whole."
        )


def _header(line: bytes) -> tuple[int | None, int]:
    """What the first line says: how many words, `None` if it is a word itself; and how many numbers each."""
    fields = line.split(b" ")
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1])
    return None, len(fields) - 1


def _split(line: bytes, width: int, where: str) -> tuple[bytes, bytes]:
    """A line's word, which may hold blanks, and its numbers."""
    blanks = line.count(b" ")
    word, values = line, b""
    if blanks == width:
        word, _, values = line.partition(b" ")
    elif blanks > width:
        start = len(line) - sum(len(value) + 1 for value in line.rsplit(b" ", width)[1:])
        word, values = line[:start], line[start + 1 :]
    if not width or blanks < width or _is_number(word.rpartition(b" ")[2] if blanks > width else b""):
        raise ValueError(
            f"{where}: there are {blanks} numbers after the word, expected were {width or 'some'}; give a "
            "whole text file of word2vec, GloVe or fastText, no binary one."
        )
    if not word:
        raise ValueError(f"{where}: there is no word before the numbers.")
    return word, values


def _is_number(text: bytes) -> bool:
    """Whether it is written with digits and can be read as a number: "nan" and "infinity" are words."""
    try:
        float(text)
    except ValueError:
        return False
    return any(48 <= byte <= 57 for byte in text)


def _numbers(values: bytes, where: str) -> array:
    try:
        numbers = array("f", map(float, values.split(b" ")))
    except ValueError as error:
        raise ValueError(f"{where}: {error}; single blanks stand between the numbers of a vector.") from error
    if not math.isfinite(sum(numbers)):  # one that is not makes the sum so
        raise ValueError(f"{where}: its vector has numbers that are not finite; train or download it again.")
    return numbers


def _lowered(word: str) -> str:
    """As the tokenizer sees it."""
    return normalize("NFC", word).lower()
