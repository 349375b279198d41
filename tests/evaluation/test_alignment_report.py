import json

import numpy as np
import torch

from hf_mm import load_rgb
from hf_mm.evaluation.alignment_report import matches, write_alignment_report

PICTURE = np.full((8, 8, 3), 200, np.uint8)


def test_a_card_tells_the_first_text_and_the_rank_of_the_right_one():
    similarities = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1]])
    first, second = matches([PICTURE] * 2, ["a", "b", "c"], similarities, [2, 1])
    assert (first.question, first.answer, first.verdict()) == ("first of 3: a", "rank 2: c", False)
    assert (second.question, second.answer, second.verdict()) == ("first of 3: b", "rank 1: b", True)
    assert matches([PICTURE], ["a", "b", "c"], similarities[:1], [2], within=2)[0].verdict()


def test_the_report_is_results_picture_and_card(tmp_path):
    cards = matches([PICTURE], ["a", "b"], torch.tensor([[0.1, 0.2]]), [1])
    texts = {
        "dataset": "walls",
        "weights": "1 M",
        "measured": "One picture.",
        "training": "None.",
        "licence": "",
    }
    table = [{"model": "this one", "R@1": 0.125}]
    written = write_alignment_report(tmp_path, {"steps": 2}, {"R@1": 0.125}, cards, table, texts)
    assert json.loads((tmp_path / "results.json").read_text()) == written
    assert written["steps"] == 2
    assert "torch" in written["environment"]
    card = (tmp_path / "README.md").read_text()
    assert "12.50 %" in card
    assert "zero-shot-image-classification" in card
    assert "value: 0.125" in card
    assert load_rgb(tmp_path / "matches.png").size
