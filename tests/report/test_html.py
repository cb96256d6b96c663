"""The report: self-contained, true to the files it reads, honest about what is missing."""

import base64
import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from slamkern.errors import SlamkernError
from slamkern.pipeline.stages import compare_run
from slamkern.probe.stats import ActivationStats
from slamkern.report import figures
from slamkern.report.html import write_report
from slamkern.report.samples import few_texts, too_few
from slamkern.selection.layers import select_layers

PNG = b"\x89PNG\r\n\x1a\n"
LANGUAGES = ("en", "de", "th")


def statistics() -> ActivationStats:
    draw = torch.Generator().manual_seed(0)
    count = torch.tensor([100, 120, 300])
    active = (torch.rand(3, 4, 16, generator=draw) * count[:, None, None]).long()
    mean = torch.randn(3, 4, 16, generator=draw, dtype=torch.float64)
    return ActivationStats(LANGUAGES, "tiny<b>", "llama-4-8-16", "gate", count, mean, mean.square(), active)


def metrics() -> dict[str, Any]:
    evaluation = {
        "task": "mgsm", "prompt": "metamath", "rule": "last number", "n": {"en": 4, "de": 4},
        "accuracy": {"en": 75.0, "de": 25.0}, "strict": {"en": 75.0, "de": 0.0},
        "intervals": {"en": [30.1, 95.4], "de": [4.6, 69.9]}, "average": 50.0, "average_interval": [26.0, 74.0],
        "strict_average": 37.5,
    }  # fmt: skip
    before = {
        "translation": {"de": {"loss": 3.25, "chrf": 11.5}, "th": {"loss": 4.5, "chrf": 3.5}},
        "english_loss": 1.125, "evaluation": evaluation,
    }  # fmt: skip
    after = {
        "translation": {"de": {"loss": 1.75, "chrf": 40.5}, "th": {"loss": 4.75, "chrf": 3.5}},
        "english_loss": 1.25, "evaluation": evaluation | {"accuracy": {"en": 75.0, "de": 62.5}},
    }  # fmt: skip
    return {
        "slamkern": "0.1.0", "model": "tiny<b>", "model_description": "Tiny, 1,000 parameters",
        "data": {"path": "corpus:", "train_pairs": 90, "held_out_pairs": 10}, "training_prompt": "alpaca",
        "selected_layers": [1, 2],
        "steps": 3, "losses": [5.0, 4.0, 3.5], "tokens": 12345, "tokens_per_second": 678.9, "padding_share": 0.015,
        "peak_memory_bytes": 2**30, "trained_parameters": 256, "total_parameters": 1000, "seconds": {"probe": 2.0},
        "before": before, "after": after, "config": {"select": {"k": 2}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stats = statistics()
    stats.save(tmp_path / "stats.safetensors")
    select_layers(stats, 2, region="all").save(tmp_path / "selection.json")
    (tmp_path / "metrics.json").write_text(json.dumps(metrics()))
    return tmp_path


def test_page_is_self_contained_and_complete(folder: Path) -> None:
    page = write_report(folder).read_text()
    names = {"translation_loss", "accuracy", "loss", "selection", "scores", "active_neurons", "english_overlap"}
    assert {path.stem for path in (folder / "figures").iterdir()} == names
    inlined = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert {base64.b64decode(data) for data in inlined} == {p.read_bytes() for p in (folder / "figures").iterdir()}
    assert all((folder / "figures" / f"{name}.png").read_bytes().startswith(PNG) for name in names)
    # Base64 spells anything somewhere.
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "http" not in re.sub(r'base64,[^"]+', "", page)
    assert "tiny&lt;b&gt;" in page and "tiny<b>" not in page
    for expected in (
        "25.60 %",
        "256 of 1,000",
        "679",
        "1,024 MiB",
        "metamath",
        "last number",
        "alpaca",
        "62.5",
        "30 to 95",
    ):
        assert expected in page


def test_better_and_worse_are_marked_as_measured(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert '<td class="better">1.750</td>' in page and '<td class="better">40.5</td>' in page
    assert '<td class="worse">4.750</td>' in page and "<td>3.5</td>" in page


def test_partial_folder_says_what_is_missing(folder: Path) -> None:
    (folder / "metrics.json").unlink()
    page = write_report(folder).read_text()
    assert "Not in this folder: metrics.json." in page and "Active neurons" in page
    (folder / "stats.safetensors").unlink()
    page = write_report(folder).read_text()
    assert "Selected layers" in page and "Active neurons" not in page


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(SlamkernError, match="holds nothing to report"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(SlamkernError, match="not JSON"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": []}, "losses: .*at least 1 item"),
        ({"losses": [1.0, "x"]}, r"losses\.1: "),
        ({"total_parameters": 0}, "total_parameters"),
        ({"before": None}, "before: "),
        ({"padding_share": True}, "padding_share: .*valid number"),
        (
            {"before": metrics()["after"] | {"translation": {}}},
            "translation before and after is of different languages",
        ),
        ({"after": metrics()["after"] | {"english_loss": -1}}, r"after\.english_loss"),
        ({"steps": None}, "steps: "),
    ],
)
def test_metrics_that_are_none(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics() | change))
    with pytest.raises(SlamkernError, match=rf"is no metrics\.json of a run: {message}"):
        write_report(folder)


def test_samples_origin_and_what_cannot_be_concluded(folder: Path) -> None:
    made = {"date": "2026-01-01T10:00:00", "command": "slamkern run -o 'a b'", "versions": {"torch": "9.9"}}
    (folder / "metrics.json").write_text(json.dumps(metrics() | {"made": made, "base_weights": "0123abcd" * 8}))
    page = write_report(folder).read_text()
    assert "4 questions in a language are too few to conclude anything" in page and "Sample outputs" not in page
    for expected in ("0123abcd", "2026-01-01T10:00:00", "torch 9.9", "slamkern run -o &#39;a b&#39;"):
        assert expected in page
    for when, output in (("before", "I do not know <script>"), ("after", "It is 3")):
        (folder / "evaluation" / when).mkdir(parents=True)
        rows = [
            {"id": f"{code}{number}", "language": code, "question": f"{code} {number}?", "gold": "3",
             "output": output if number else "same", "prediction": 3, "correct": bool(number) and when == "after"}
            for code in ("en", "de") for number in range(2)
        ]  # fmt: skip
        (folder / "evaluation" / when / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = write_report(folder).read_text()
    assert page.count("I do not know &lt;script&gt;") == page.count("It is 3") == 2 and "en 0?" not in page
    assert "Sample outputs" in page and "Gained and lost" not in page


def write_answers(folder: Path, when: str, outputs: Sequence[str]) -> None:
    """These answers in each of two languages, whose gold answer is 3."""
    (folder / "evaluation" / when).mkdir(parents=True)
    rows = [
        {"id": f"x-{code}-{number}", "language": code, "question": f"{code} {number}?", "gold": "3",
         "output": output, "prediction": 3, "correct": True}
        for code in ("en", "de") for number, output in enumerate(outputs)
    ]  # fmt: skip
    (folder / "evaluation" / when / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_a_comparison_becomes_change_languages_and_examples(folder: Path) -> None:
    for when in ("before", "after"):
        numbers = [3 if (number < 16) == (when == "after") else 4 for number in range(20)]
        write_answers(folder, when, [f"<b>{number}</b>" for number in numbers])
    result = compare_run(folder)
    assert result is not None
    page = write_report(folder, result).read_text()
    assert {"change.png", "accuracy.png"} <= {path.name for path in (folder / "figures").iterdir()}
    assert page.count('<td class="better">better</td>') == 3 and "+60.0" in page
    assert "Wrong before, right after: 6 of 32, shortened." in page and "wrong after: 6 of 8" in page
    assert "<b>3</b>" not in page and page.count("&lt;b&gt;3&lt;/b&gt;") == 12
    if find_spec("py3langid"):
        assert "Language of the responses" in page and (folder / "figures" / "responses.png").is_file()
    path = folder / "evaluation" / "after" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"gold": "3"', '"gold": "4"'))
    assert compare_run(folder) is None  # other questions: nothing to compare
    assert compare_run(folder / "evaluation") is None


def test_outputs_are_shown_where_no_verdict_changed(folder: Path) -> None:
    for when in ("before", "after"):
        write_answers(folder, when, [f"It is 3, {when}"] * 20)
    result = compare_run(folder)
    assert result is not None and not result["gained"] and not result["lost"]
    page = write_report(folder, result).read_text()
    assert "Gained and lost" in page and "Sample outputs" in page and page.count("It is 3, after") == 2


def test_how_many_questions_are_enough() -> None:
    assert few_texts(20) is None and "With 4 texts" in (few_texts(4) or "")
    assert too_few({"en": 60, "de": 250}) is None
    assert "less than 30 points" in (too_few({"en": 20, "de": 250}) or "")


def test_the_pareto_front_is_what_nothing_beats() -> None:
    points = [("base", 1.0, 1.0), ("gain", 0.5, 3.0), ("worse", 0.4, 2.0), ("kept", 1.5, 0.0), ("twin", 0.5, 3.0)]
    front = figures.pareto_front(points, larger_is_better=True)
    assert [points[index][0] for index in front] == ["gain", "twin", "base", "kept"]
    assert [points[i][0] for i in figures.pareto_front(points, larger_is_better=False)] == ["worse", "base", "kept"]
    assert figures.trade_off(points, "x", "y", larger_is_better=True).startswith(PNG)


def test_names_of_points_that_are_near_do_not_cover_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "png", drawn.append)
    points = [(f"layers-{number}", 1.0 + 0.01 * number, 1.0 + 0.01 * (number % 3)) for number in range(6)]
    figures.trade_off([*points, ("far", 3.0, 3.0), ("base", 0.0, 0.0)], "x", "y", larger_is_better=True)
    drawn[0].draw_without_rendering()
    names = {text.get_text(): text.get_window_extent() for text in drawn[0].axes[0].texts}
    assert len(names) == 8
    assert not [pair for pair in combinations(names, 2) if names[pair[0]].overlaps(names[pair[1]])]


def test_figures_of_real_depth_and_of_one_layer() -> None:
    for layers in (1, 40):
        values = [[float(layer + column) for column in range(10)] for layer in range(layers)]
        assert figures.layer_heatmap(values, list("abcdefghij"), "label", (0,)).startswith(PNG)
        assert figures.layer_bars([row[0] for row in values], [0], "score", [1.0] * layers).startswith(PNG)
    assert figures.loss_curve([1.0]).startswith(PNG)
    assert figures.before_after({"de": 0.0}, {"de": 0.0}, "chrF").startswith(PNG)
