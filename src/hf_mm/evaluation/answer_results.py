"""All that can be measured on the answers to a mixture of questions, by what each row has.

Exact match of every answer and by type of question; caption scores where the type ends in "caption", sets of
keywords where it ends in "keywords", points where rows have `masks`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .captioning import caption_results
from .keywords import keyword_results
from .pointing import pointing_results
from .vqa_report import vqa_results

__all__ = ["answer_results", "answer_samples", "answer_table"]

PUBLIC = {"model": "CNN + LSTM, public", "exact match": 0.876}


def answer_results(rows: Sequence[Mapping], said: Sequence[str]) -> dict[str, Any]:
    """Results of answers, see the module.

    Args:
        rows: `answer`, and where there are, `question_type`, `references` (of captions) and `masks`.
        said: What was said to each.

    Returns:
        What `vqa_results` returns; `captions`, `keywords` and `pointing`, each if there are such rows.
    """
    results = vqa_results(rows, said)
    pairs = list(zip(rows, said, strict=True))
    captions = [(row["references"], text) for row, text in pairs if _is(row, "caption")]
    if captions:
        results["captions"] = caption_results(
            [text for _, text in captions], [right for right, _ in captions]
        )
    keywords = [(row["answer"], text) for row, text in pairs if _is(row, "keywords")]
    if keywords:
        results["keywords"] = keyword_results(
            [text for _, text in keywords], [right for right, _ in keywords]
        )
    pointed = [(row, text) for row, text in pairs if row.get("masks") is not None]
    if pointed:
        results["pointing"] = pointing_results([row for row, _ in pointed], [text for _, text in pointed])
    return results


def answer_samples(rows: Sequence[Mapping], said: Sequence[str], count: int = 24) -> list[dict[str, str]]:
    """What was asked, what is right and what was said, of rows at even distances.

    Args:
        rows: Questions with answers.
        said: What was said to each.
        count: Most samples.
    """
    step = max(1, len(rows) // count) | 1  # odd: rows that come in pairs are both among them
    chosen = list(zip(rows, said, strict=True))[::step][:count]
    return [{"question": row["question"], "right": row["answer"], "said": text} for row, text in chosen]


def answer_table(results: Mapping[str, Any]) -> list[dict[str, str | float]]:
    """Results as rows of a table: the model or the questions, and a share of 1 ("exact match" or "right")."""
    if "absent" in results.get("pointing", {}):  # the same words need not be the same point
        kinds = {"present": "to point at what is there", "absent": "to point at what is not there"}
        pointed = results["pointing"]
        return [{"questions": kinds[kind], "right": pointed[kind]} for kind in kinds if kind in pointed]
    table: list[dict[str, str | float]] = [{"model": "this one", "exact match": results["exact_match"]}]
    table += [
        {"model": f"questions of {row['type']}", "exact match": row["exact_match"]}
        for row in results.get("by_type", [])[:-1]
    ]
    if "question_alone" in results:
        table.append({"model": "the question alone", "exact match": results["question_alone"]["exact_match"]})
    if "question_prior" in results:
        table += [{"model": "the question alone", "exact match": results["question_prior"]}, PUBLIC]
    return table


def _is(row: Mapping, kind: str) -> bool:
    return str(row.get("question_type", "")).endswith(kind)
