"""Word vectors from text files: what is wanted is found, what is wrong is named by its line."""

import gzip
import logging

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from hf_mm import MMBagOfWordsModel, load_word_vectors

CAT, DOG, RED = [0.5, -1.0, 2.0], [1.0, 0.0, 0.25], [0.0, 3.0, -0.5]
GLOVE = "cat 0.5 -1.0 2\ndog 1 0 0.25\nred 0 3e0 -0.5\n"


@pytest.fixture
def file(tmp_path):
    def write(text, name="vectors.txt"):
        path = tmp_path / name
        data = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def vectors_of(loaded):
    model, tokenizer = loaded
    table = model.embeddings.weight.detach()
    return {word: table[index].tolist() for word, index in tokenizer.get_vocab().items()}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (GLOVE, "glove.txt"),
        ("3 3\n" + GLOVE, "word2vec.txt"),
        ("3 3 \n" + GLOVE.replace("\n", " \n"), "trailing.vec"),
        (GLOVE.replace("\n", "\r\n"), "windows.txt"),
        (GLOVE.rstrip(), "no_last_break.txt"),
        (GLOVE, "glove.txt.gz"),
    ],
)
def test_every_form_of_the_file_gives_the_same_vectors(file, text, name):
    mean = [0.5, 2 / 3, 1.75 / 3]
    loaded = vectors_of(load_word_vectors(file(text, name)))
    assert {word: loaded[word] for word in ("cat", "dog", "red")} == {"cat": CAT, "dog": DOG, "red": RED}
    assert loaded["<pad>"] == [0.0] * 3
    assert_close(torch.tensor(loaded["<unk>"]), torch.tensor(mean))
    assert len(loaded) == 5


def test_a_caption_is_the_mean_of_its_words(file, tmp_path):
    loaded = load_word_vectors(file(GLOVE))
    for part in loaded:
        part.save_pretrained(tmp_path)
    again = MMBagOfWordsModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    unknown, red, cat, dog = (
        torch.tensor(vectors_of(loaded)[word]) for word in ("<unk>", "red", "cat", "dog")
    )
    for model, tokenizer in (loaded, again):
        rows = tokenizer(["A red CAT", "dog"], padding=True, return_tensors="pt")
        with torch.no_grad():
            pooled = model(**rows).pooler_output
        assert_close(pooled, torch.stack([(unknown + red + cat) / 3, dog]))


def test_only_the_wanted_words_are_loaded_be_they_words_or_captions(file):
    for vocabulary in (["dog", "cat"], ["A dog, and a Cat!"], iter(["CAT dog"])):
        assert set(vectors_of(load_word_vectors(file(GLOVE), vocabulary))) == {"<pad>", "<unk>", "cat", "dog"}


def test_reading_ends_when_all_is_found(file):
    text = GLOVE + "torn 1\n"
    assert "cat" in vectors_of(load_word_vectors(file(text), ["cat", "red"]))
    assert "dog" in vectors_of(load_word_vectors(file(text), max_words=2))
    with pytest.raises(ValueError, match="line 4: there are 1 numbers after the word, expected were 3"):
        load_word_vectors(file(text), ["cat", "blue"])


def test_of_several_lines_for_a_word_the_lower_case_one_counts_else_the_first(file, caplog):
    text = "Cat 9 9 9\nDOG 7 7 7\n" + GLOVE + "cat 8 8 8\nRed 5 5 5\n"
    with caplog.at_level(logging.INFO, "hf_mm"):
        loaded = vectors_of(load_word_vectors(file(text)))
    assert {word: loaded[word] for word in ("cat", "dog", "red")} == {"cat": CAT, "dog": DOG, "red": RED}
    assert "has 4 more lines for words that it gives before or after" in caplog.text
    assert vectors_of(load_word_vectors(file("Cat 9 9 9\nCAT 8 8 8\n")))["cat"] == [9.0] * 3


def test_words_with_blanks_in_them_are_words(file):
    text = GLOVE + ". . . 1 2 3\nat name@domain.com 4 5 6\nto infinity 7 8 9\n"
    loaded = vectors_of(load_word_vectors(file(text)))
    assert loaded[". . ."] == [1.0, 2.0, 3.0]
    assert loaded["at name@domain.com"] == [4.0, 5.0, 6.0]
    assert loaded["to infinity"] == [7.0, 8.0, 9.0]


def test_words_of_other_blanks_and_scripts_are_words(file):
    loaded = vectors_of(
        load_word_vectors(file("a\u00a0b 1 2\n\u65e5\u672c 3 4\nCAFE\u0301 5 6\n\u2028 7 8\n"))
    )
    assert loaded["a\u00a0b"] == [1.0, 2.0]
    assert loaded["\u65e5\u672c"] == [3.0, 4.0]
    assert loaded["caf\u00e9"] == [5.0, 6.0]
    assert loaded["\u2028"] == [7.0, 8.0]


def test_words_that_are_not_utf8_are_left_out_and_counted(file, caplog):
    loaded = vectors_of(load_word_vectors(file(b"cat 1 2\n\xff\xfe 3 4\ndog 5 6\n")))
    assert set(loaded) == {"<pad>", "<unk>", "cat", "dog"}
    assert "has 1 words that are not UTF-8; they are left out" in caplog.text


def test_the_tokens_of_the_tokenizer_in_a_file_are_passed_over(file):
    loaded = vectors_of(load_word_vectors(file(GLOVE + "<unk> 9 9 9\n<pad> 9 9 9\n")))
    assert loaded["<pad>"] == [0.0] * 3
    assert loaded["<unk>"] != [9.0] * 3
    assert len(loaded) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GLOVE + "blue 1 2\n", "line 4: there are 2 numbers after the word, expected were 3"),
        (GLOVE + "blue 1 2 3 4\n", "line 4: there are 4 numbers after the word, expected were 3"),
        ("3 4\n" + GLOVE, "line 2: there are 3 numbers after the word, expected were 4"),
        (GLOVE + "\n", "line 4: there are 0 numbers"),
        ("cat\n", "line 1: there are 0 numbers after the word, expected were some"),
        ("2 2\ncat \x00\x01\x02\x03\n", "line 2: there are 1 numbers.*no binary one"),
        (GLOVE + "blue 1 two 3\n", "line 4: could not convert string to float.*'two'; single blanks stand"),
        (GLOVE + "blue 1  2\n", "line 4: could not convert string to float.*single blanks"),
        (GLOVE + "blue 1 nan 3\n", "line 4: its vector has numbers that are not finite"),
        (GLOVE + "blue 1 1e50 3\n", "line 4: its vector has numbers that are not finite"),
        (GLOVE + " 1 2 3\n", "line 4: there is no word before the numbers"),
        ("4 3\n" + GLOVE, "has 3 words, expected were 4; download it again"),
        ("", "has 0 words, expected were some"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(file, text, message):
    with pytest.raises(ValueError, match=message):
        load_word_vectors(file(text))


def test_a_torn_or_false_gzip_file_is_named(file, tmp_path):
    whole = gzip.compress(GLOVE.encode() * 500)
    for data in (whole[:-20], b"PK\x03\x04 no gzip"):
        path = tmp_path / "torn.gz"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"torn.gz breaks off or is no gzip file \(.*download it again"):
            load_word_vectors(path)


def test_what_is_asked_for_in_vain_is_named(file, tmp_path):
    with pytest.raises(ValueError, match=r"has none of the 2 wanted words, such as \['blue', 'green'\]"):
        load_word_vectors(file(GLOVE), ["green", "blue"])
    with pytest.raises(ValueError, match="`vocabulary` holds no word; leave it out"):
        load_word_vectors(file(GLOVE), [" "])
    with pytest.raises(ValueError, match="`vocabulary` is one text, 'a cat'; give a list"):
        load_word_vectors(file(GLOVE), "a cat")
    with pytest.raises(ValueError, match="`max_words`=0 must be at least 1"):
        load_word_vectors(file(GLOVE), max_words=0)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere.txt; check the path"):
        load_word_vectors(tmp_path / "nowhere.txt")
