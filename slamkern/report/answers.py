"""What a report says of the answers: accuracy, its change as the gate judges it, their language, and examples.

The change, its intervals and the drift come as the JSON values of a comparison of the two evaluations, as `comparison`
takes them too; without it, the report has the scores and some samples.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slamkern.report import answer_figures as figures
from slamkern.report.comparison import DRIFT_HEAD, HEAD, MARKS, cells, cut_short, drift_cells, rows
from slamkern.report.page import figure_of
from slamkern.report.samples import changed_samples, sample_outputs, too_few

Section = dict[str, Any]
# Of the gate's table, all but what the accuracy beside it says (questions) and what only planning needs.
_SHOWN = [HEAD.index(name) for name in HEAD if name not in ("language", "questions", "detectable", "margin", "verdict")]


def answer_sections(
    folder: Path, before: Mapping[str, Any], after: Mapping[str, Any], comparison: Mapping[str, Any] | None
) -> list[Section]:
    """Sections from the scores of a run and the comparison of its answers before and after."""
    sections = [_accuracy(folder, before, after)]
    if comparison is not None:
        sections.append(_change(folder, comparison))
        if comparison["drift"]:
            sections.append(_responses(folder, comparison["drift"]))
    if comparison is None or not (comparison["gained"] or comparison["lost"]):
        if samples := sample_outputs(folder):
            text = "One question a language, if possible one that training changed; shortened."
            sections.append({"title": "Sample outputs", "text": text, "samples": samples})
        return sections
    for name, text in (("gained", "Wrong before, right after"), ("lost", "Right before, wrong after")):
        if chosen := changed_samples(comparison[name]):
            text = f"{text}: {len(chosen)} of {len(comparison[name])}, shortened."
            sections.append({"title": f"Examples {name}", "text": text, "samples": chosen})
    return sections


def _cells(values: Sequence[object]) -> list[dict[str, str]]:
    return [{"text": str(value), "mark": ""} for value in values]


def _verdict_second(row: Sequence[str], verdict: str) -> list[dict[str, str]]:
    """Beside the language, where a narrow screen shows it too."""
    marked = {"text": verdict, "mark": MARKS[verdict]}
    return [*_cells(row[:1]), marked, *_cells([row[column] for column in _SHOWN])]


def _accuracy(folder: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> Section:
    table: list[dict[str, Any]] = []
    for code in before["accuracy"]:
        row = [code, str(after["n"][code])]
        for part in (before, after):
            low, high = part["intervals"][code]
            row += [f"{part['accuracy'][code]:.1f}", f"{low:.0f} to {high:.0f}", f"{part['strict'][code]:.1f}"]
        table.append({"cells": _cells(row)})
    totals = ["average", str(sum(after["n"].values()))]
    for part in (before, after):
        low, high = part["average_interval"]
        totals += [f"{part['average']:.1f}", f"{low:.0f} to {high:.0f}", f"{part['strict_average']:.1f}"]
    table.append({"cells": _cells(totals), "total": True})
    return {
        "title": f"Answer accuracy on {after['task']}",
        "warning": too_few(after["n"]),
        "text": f"Greedy answers, zero-shot, prompt {after['prompt']!r}. Rule: {after['rule']}; the strict rule reads "
        "numbers as people write them. Intervals are 95 %; the average is unweighted over languages.",
        "figures": [
            figure_of(folder, "accuracy", figures.accuracy_dots(before, after), "accuracy by language with intervals")
        ],
        "table": {
            "head": ["language", "questions", "before %", "95 %", "strict %", "after %", "95 %", "strict %"],
            "rows": table,
        },
    }


def _change(folder: Path, result: Mapping[str, Any]) -> Section:
    named = list(rows(result))
    return {
        "title": "Gained and lost",
        "warning": cut_short(result),
        "text": "The same questions before and after, judged as slamkern compare does: paired bootstrap clustered by "
        "question; exact McNemar test of harm, Holm-corrected over the languages. Better, worse, and not worse within "
        f"the margin of {result['average']['margin']:g} points (dotted) are shown by the interval; else one cannot "
        "tell.",
        "figures": [
            figure_of(folder, "change", figures.difference_intervals(named), "change by language with intervals")
        ],
        "table": {
            "head": [HEAD[0], "verdict", *(HEAD[column] for column in _SHOWN)],
            "rows": [
                {
                    "cells": _verdict_second(cells(name, change), change["verdict"]),
                    "total": name == "average",
                }
                for name, change in named
            ],
        },
    }


def _responses(folder: Path, drift: Mapping[str, Any]) -> Section:
    return {
        "title": "Language of the responses",
        "text": "Training on translation into English can make a model answer in English. Before and after, in percent "
        "of the responses; length in characters; repetitive: more than half of the 10-character windows occurred "
        "before; echo: contains the question; truncated: cut at the longest length.",
        "figures": [
            figure_of(folder, "responses", figures.response_languages(drift), "language of the responses by question")
        ],
        "table": {
            "head": DRIFT_HEAD,
            "rows": [{"cells": _cells(drift_cells(code, *sides))} for code, sides in drift.items()],
        },
    }
