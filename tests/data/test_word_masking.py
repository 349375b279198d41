"""Whole words are hidden, in the share that was asked for, and the same ones from the same seed."""

import pytest
import torch
from transformers import BertTokenizer

from hf_mm import mask_whole_words
from hf_mm.data.word_masking import ordinary_ids, word_numbers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "dog", "cat", "the", "."]
MASK = 4
TEXTS = ["the dog playing", "cats", "playings the cat .", ""]


def encoded():
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    return tokenizer, tokenizer(TEXTS, padding=True, return_tensors="pt")


def hide(ids, words, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return mask_whole_words(ids, words, MASK, torch.arange(5, 12), generator=generator, **options)


def single_words(texts, length):
    """Texts of one-token words, (texts, length) ids from 5 on, and their numbers."""
    ids = torch.randint(5, 12, (texts, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(length).expand(texts, -1)


def test_words_are_numbered_as_the_tokenizer_splits_them():
    _, encoding = encoded()
    assert word_numbers(encoding).tolist() == [
        [-1, 0, 1, 2, 2, -1, -1, -1],
        [-1, 0, 0, -1, -1, -1, -1, -1],
        [-1, 0, 0, 0, 1, 2, 3, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1],
    ]


def test_all_tokens_of_a_word_are_hidden_or_none():
    _, encoding = encoded()
    ids, words = encoding["input_ids"], word_numbers(encoding)
    seen = set()
    for seed in range(60):
        _, labels = hide(ids, words, seed, share=0.4)
        hidden = labels != -100
        assert not (hidden & (words < 0)).any()
        for row in range(len(ids)):
            for word in set(words[row].tolist()) - {-1}:
                tokens = hidden[row][words[row] == word]
                assert tokens.all() or not tokens.any()
                seen |= {(row, word)} if tokens.all() else set()
    assert seen == {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)}


def test_labels_are_the_hidden_tokens_and_visible_ones_are_untouched():
    ids, words = single_words(20, 30)
    masked, labels = hide(ids, words)
    hidden = labels != -100
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(masked[~hidden], ids[~hidden])


def test_the_share_is_of_tokens_and_each_text_with_a_word_has_one_hidden():
    ids, words = single_words(50, 40)
    assert set((hide(ids, words)[1] != -100).sum(1).tolist()) == {6}
    _, encoding = encoded()
    counts = (hide(encoding["input_ids"], word_numbers(encoding))[1] != -100).sum(1)
    assert (counts[:3] >= 1).all()
    assert counts[3] == 0


def test_hidden_tokens_become_the_mask_or_another_or_stay():
    ids, words = single_words(2000, 20)
    masked, labels = hide(ids, words)
    hidden = labels != -100
    assert hidden.sum() == 6000
    as_mask, same = (masked == MASK) & hidden, (masked == ids) & hidden
    assert abs(as_mask.sum() / 6000 - 0.8) < 0.02
    assert abs(same.sum() / 6000 - (0.1 + 0.1 / 7)) < 0.02  # one random token in seven is the same one
    assert masked.min() >= MASK
    whole, _ = hide(ids, words, masked_share=1.0, random_share=0.0)
    assert (whole[hidden] == MASK).all()


def test_a_generator_or_torchs_own_reproduces_the_draw():
    ids, words = single_words(8, 20)
    first, again, other = (hide(ids, words, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(mask_whole_words(ids, words, MASK, torch.arange(5, 12)))
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_batch_without_words_hides_nothing():
    ids = torch.full((2, 3), 0)
    masked, labels = hide(ids, torch.full_like(ids, -1))
    assert torch.equal(masked, ids)
    assert (labels == -100).all()


def test_random_tokens_are_never_special():
    tokenizer, _ = encoded()
    assert ordinary_ids(tokenizer).tolist() == list(range(5, 12))


def test_what_does_not_fit_is_named():
    ids, words = single_words(2, 4)
    with pytest.raises(ValueError, match=r"must both be \(texts, tokens\), got \(2, 4\) and \(2, 3\)"):
        hide(ids, words[:, :3])
    with pytest.raises(ValueError, match=r"`share`=1\.0 of the tokens must hide some and leave some"):
        hide(ids, words, share=1.0)
    with pytest.raises(
        ValueError, match=r"`masked_share`=0\.8 and `random_share`=0\.3 are parts of the hidden"
    ):
        hide(ids, words, random_share=0.3)
    _, encoding = encoded()
    slow = type(encoding)({"input_ids": [[1, 2]]})
    with pytest.raises(ValueError, match="Whole words need a fast tokenizer"):
        word_numbers(slow)


def test_words_of_a_second_text_are_counted_on():
    tokenizer, _ = encoded()
    assert word_numbers(tokenizer(["the dog"], ["cats ."])).tolist() == [[-1, 0, 1, -1, 2, 2, 3, -1]]
