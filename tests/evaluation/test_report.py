"""Results reach the disk whole, tables are tables, and cards carry the numbers the Hub reads."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from hf_mm import environment, eval_results, markdown_table, model_card, write_results


def test_results_come_back_and_replace_the_old_ones(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, {"exact_match": 0.5})
    write_results(path, {"exact_match": 0.98, "by_type": [{"type": "a", "n": 3}], "note": None})
    assert json.loads(path.read_text())["exact_match"] == 0.98
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_value_that_cannot_be_written_is_named_and_costs_no_earlier_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"loss": 1.0})
    with pytest.raises(TypeError, match=r"results\['steps'\]\[1\] is a Tensor"):
        write_results(path, {"steps": [1, torch.tensor(2)]})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_the_environment_names_versions_and_machine():
    found = environment()
    assert found["torch"] == torch.__version__
    assert {"hf_mm", "transformers", "python", "cores", "device"} <= set(found)
    assert found["cores"] >= 1


def test_tables_line_up():
    rows = [
        {"type": "colour", "n": 1280, "exact_match": 0.98765},
        {"type": "all", "n": 9673, "exact_match": 1.0},
    ]
    assert markdown_table(rows, shares=["exact_match"]).splitlines() == [
        "| type   |     n | exact_match |",
        "| ------ | ----: | ----------: |",
        "| colour | 1,280 |     98.77 % |",
        "| all    | 9,673 |    100.00 % |",
    ]
    with pytest.raises(ValueError, match=r"Row 1 has the columns \['b'\], the first one \['a'\]"):
        markdown_table([{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="`rows` is empty"):
        markdown_table([])


def test_cards_carry_results_as_text_and_as_metadata(tmp_path):
    results = eval_results({"exact_match": 0.98}, "easy-vqa")
    card = model_card("# Demo\n\n{{ table }}\n", "demo", results, {"table": "| 98 % |"}, license="apache-2.0")
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert "# Demo\n\n| 98 % |" in again.text
    assert again.data.license == "apache-2.0"
    (result,) = again.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("exact_match", 0.98, "test")


def test_places_and_values_of_a_card_must_match():
    with pytest.raises(ValueError, match="asks for 'steps'; `values` has"):
        model_card("{{ steps }}", "demo")
    with pytest.raises(ValueError, match=r"no place {{ table }} for the value of 'table'"):
        model_card("text", "demo", values={"table": 1})
