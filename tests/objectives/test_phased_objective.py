"""What every objective of several phases has without saying so."""

import pytest
import torch
from torch import nn

from hf_mm import PhasedObjective


class Bare(PhasedObjective):
    """As little as there may be."""

    phases = ("one", "two")
    frozen = ("judge.inner",)

    def __init__(self):
        super().__init__()
        self.model = nn.Dropout()
        self.judge = nn.ModuleDict({"inner": nn.Sequential(nn.Dropout()), "outer": nn.Dropout()})

    def phase_parameters(self, phase):
        return []

    def loss(self, batch, phase):
        return torch.zeros(()), {}

    def pipeline(self):
        return None


def test_frozen_parts_stay_in_evaluation_mode():
    objective = Bare().train()
    assert objective.model.training
    assert objective.judge["outer"].training
    assert not objective.judge["inner"][0].training
    assert not objective.eval().model.training
    assert objective.train().training


def test_all_phases_are_active_and_nothing_is_shown_or_objected_to():
    objective = Bare()
    assert objective.active_phases(10**6) == ("one", "two")
    assert objective.preview(torch.Generator(), 4) is None
    objective.health({"one_loss": 1e9})
    assert objective.step == 0


def test_an_objective_without_a_loss_cannot_be_made():
    class NoLoss(PhasedObjective):
        def phase_parameters(self, phase):
            return []

        def pipeline(self):
            return None

    with pytest.raises(TypeError, match=r"abstract method '?loss'?"):
        NoLoss()
