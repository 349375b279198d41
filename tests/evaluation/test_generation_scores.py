"""Accuracy, PSNR, codes and bits: hand-computed cases, faults named."""

from math import e, log, log2

import pytest
import torch
from torch.testing import assert_close

from hf_mm import bits_per_dimension, class_accuracy, codebook_usage, psnr


def test_class_accuracy_counts_what_the_classifier_agrees_to():
    logits = torch.tensor([[2.0, 1, 0], [0, 3, 1], [5, 0, 1], [0, 0, 1]])
    found = class_accuracy(logits, torch.tensor([0, 1, 2, 2]))
    assert found.accuracy == 0.75
    assert found.by_class == {0: 1.0, 1: 1.0, 2: 0.5}


def test_psnr_of_a_known_error_and_of_none():
    reference = torch.zeros(3, 1, 4, 4)
    pictures = reference.clone()
    pictures[1] += 0.2  # a tenth of the range: 20 decibels
    pictures[2] -= 0.02
    assert_close(psnr(pictures, reference), torch.tensor([torch.inf, 20, 40]).double())
    levels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert psnr(levels, torch.zeros_like(levels)).item() == 0


def test_codebook_usage_of_alike_used_and_of_one_code():
    found = codebook_usage(torch.arange(8).repeat(5).reshape(5, 2, 4), 16)
    assert (found.used_codes, found.used_share) == (8, 0.5)
    assert found.perplexity == pytest.approx(8)
    assert codebook_usage(torch.full((9,), 3), 4)[:2] == (pytest.approx(1), 1)
    uneven = codebook_usage(torch.tensor([0, 0, 0, 1]), 2)
    assert uneven.perplexity == pytest.approx(e ** -(0.75 * log(0.75) + 0.25 * log(0.25)))


def test_a_uniform_guess_over_levels_costs_8_bits():
    pixels = 3 * 5 * 5
    assert bits_per_dimension(torch.full((4,), pixels * log(256)), pixels) == pytest.approx(8)
    nats = torch.tensor([1.0, 3.0])
    assert bits_per_dimension(nats, 2) == pytest.approx(1 / log(2))


def test_a_uniform_density_over_the_range_costs_8_bits_too():
    """The density over [-1, 1] is 1/2; 256 levels, each as wide as 2 / 256."""
    nats = torch.full((4,), 75 * log(2))
    assert bits_per_dimension(nats, 75, level_width=2 / 256) == pytest.approx(8)
    assert bits_per_dimension(nats, 75, level_width=2 / 255) == pytest.approx(log2(255))


def test_faults_are_named():
    logits = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="Row 1: label 4 is none of the classifier's 4 classes"):
        class_accuracy(logits, torch.tensor([0, 4, 1]))
    with pytest.raises(ValueError, match=r"got \(3, 4\) and \(2,\)"):
        class_accuracy(logits, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`logits` hold NaN or infinity"):
        class_accuracy(logits / 0, torch.tensor([0, 1, 2]))
    grey = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"are \(2, 1, 4, 4\) torch\.float32, `references` \(2, 3"):
        psnr(grey, torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"torch\.float32, `references` \(2, 1, 4, 4\) torch\.uint8"):
        psnr(grey, grey.byte())
    with pytest.raises(ValueError, match=r"`pictures` are torch\.int64; give floats in \[-1, 1\]"):
        psnr(grey.long(), grey.long())
    with pytest.raises(ValueError, match=r"from 0 to 16, the codebook from 0 to 15 \(`num_codes`=16\)"):
        codebook_usage(torch.tensor([0, 16]), 16)
    with pytest.raises(ValueError, match="`indices` run from -1 to 2"):
        codebook_usage(torch.tensor([-1, 2]), 16)
    with pytest.raises(ValueError, match=r"`indices` must be whole numbers, one at least, got \(0,\)"):
        codebook_usage(torch.zeros(0, dtype=torch.long), 16)
    with pytest.raises(ValueError, match=r"`nats` must be finite, a number for each picture, got \(1,\)"):
        bits_per_dimension(torch.tensor([torch.nan]), 3)
    with pytest.raises(ValueError, match=r"`dimensions`=0 must be at least 1 and `level_width`=1\.0 above 0"):
        bits_per_dimension(torch.ones(2), 0)
