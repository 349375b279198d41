"""The table of presets that a reader of the family sees first."""

import re
from collections import Counter

import pytest

import hf_mm.models.region_bert as family
from hf_mm.models.region_bert.configuration_region_bert import MMRegionBertConfig
from hf_mm.models.region_bert.presets_region_bert import PRESETS


def rows(name):
    """Cells of the rows of a preset: columns are two spaces apart at the least."""
    lines = [line.strip() for line in family.__doc__.splitlines()]
    return [re.split(r" {2,}", line) for line in lines if line.startswith(f"{name}  ")]


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_says_what_the_preset_is(name):
    config = MMRegionBertConfig.preset(name)
    structure, training = rows(name)
    blocks, location, fusion, norms, added = structure[1:]
    assert Counter(config.layers) == {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", blocks)}
    assert (location, fusion) == (config.region_location, config.region_fusion)
    wanted = ["parts"] if config.region_norm_parts else []
    wanted += [config.region_norm] if config.region_norm != "none" else []
    assert norms == (", ".join(wanted) or "none")
    segment = None if config.region_type is None else str(config.region_type)
    assert (re.findall(r"segment (\d)", added) or [None]) == [segment]
    pooled, tasks, _ = training[1:]
    assert pooled.startswith(config.pooler_act)
    assert ("times" in pooled) == (config.pooling == "product")
    assert tasks.split() == list(config.task_weights)


def test_what_the_table_says_of_hidden_regions_and_drawn_tasks_is_so():
    learned = {name for name in PRESETS if MMRegionBertConfig.preset(name).region_mask_token}
    assert learned == {"uniter", "vl-bert"}
    drawn = {name for name in PRESETS if MMRegionBertConfig.preset(name).task_schedule == "draw"}
    assert drawn == {"uniter"}
