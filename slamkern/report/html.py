"""One self-contained HTML page (figures inlined, also saved as PNG) from the files of a run's folder.

Reads whatever is there of ``stats.safetensors``, ``selection.json`` and ``metrics.json``; a part that is missing is
left out and named at the top. Computes nothing but the two views of the statistics that it draws (active neurons and
overlap with English): no model, no data.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slamkern.errors import SlamkernError
from slamkern.files import write_text
from slamkern.report import figures
from slamkern.report.answers import answer_sections
from slamkern.report.page import figure_of, render_page
from slamkern.report.samples import few_texts
from slamkern.schemas.metrics import read_metrics
from slamkern.selection.layers import LayerSelection
from slamkern.version import __version__

PARTS = ("stats.safetensors", "selection.json", "metrics.json")


def write_report(folder: str | Path, comparison: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a run's folder and return the page's path.

    comparison: of the answers before and after, the JSON values of a `Comparison`.
    """
    folder = Path(folder)
    present = [name for name in PARTS if (folder / name).is_file()]
    if not present:
        raise SlamkernError(f"{folder} holds nothing to report: expected {', '.join(PARTS)}")
    selection: dict[str, Any] = {}
    if "selection.json" in present:
        selection = LayerSelection.load(folder / "selection.json").to_dict()
    metrics = read_metrics(folder / "metrics.json", required=False) if "metrics.json" in present else {}
    sections = []
    if "stats.safetensors" in present:
        sections += _activity_sections(folder, selection)
    if selection:
        sections.insert(0, _selection_section(folder, selection, metrics))
    if metrics:
        sections = [
            *_result_sections(folder, metrics, comparison),
            _training_section(folder, metrics),
            *sections,
            _setting(metrics),
        ]
    missing = [name for name in PARTS if name not in present]
    page = render_page(
        title=f"Language alignment of {_name(metrics.get('model') or selection.get('model') or folder.name)}",
        subtitle=_subtitle(metrics) + (f" Not in this folder: {', '.join(missing)}." if missing else ""),
        facts=_facts(metrics, selection),
        sections=sections,
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _name(model: str) -> str:
    """Of a folder its last part: where it lies says nothing of it, and is among the settings."""
    return Path(model).name if Path(model).is_absolute() else model


def _cells(values: Sequence[Any], **marks: str) -> list[dict[str, str]]:
    return [{"text": str(value), "mark": marks.get(f"c{index}", "")} for index, value in enumerate(values)]


def _mark(gain: float) -> str:
    return "better" if gain > 0 else "worse" if gain < 0 else ""


def _subtitle(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return f"Selective language alignment, partial run; this page is of slamkern {__version__}."
    return f"Selective language alignment with slamkern {metrics['slamkern']}: {metrics['model_description']}."


def _facts(metrics: Mapping[str, Any], selection: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("selected layers", ", ".join(map(str, selection["layers"])))] if selection else []
    if metrics:
        trained, total = metrics["trained_parameters"], metrics["total_parameters"]
        before, after = metrics["before"], metrics["after"]
        if before["evaluation"] and after["evaluation"]:
            averages = (part["evaluation"]["average"] for part in (before, after))
            facts.append(("answers correct, average over languages", "{:.1f} → {:.1f} %".format(*averages)))
        facts += [
            ("loss on English text, nats a token", f"{before['english_loss']:.3f} → {after['english_loss']:.3f}"),
            (f"parameters trained ({trained:,} of {total:,})", f"{100 * trained / total:.2f} %"),
            ("real tokens per second", f"{metrics['tokens_per_second']:,.0f}"),
            (
                f"training loss after {metrics['steps']} steps",
                f"{metrics['losses'][0]:.2f} → {metrics['losses'][-1]:.2f}",
            ),
        ]
    return facts


def _result_sections(
    folder: Path, metrics: Mapping[str, Any], comparison: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    sections = [_translation_section(folder, metrics)]
    before, after = metrics["before"]["evaluation"], metrics["after"]["evaluation"]
    if before and after:
        sections = [*answer_sections(folder, before, after, comparison), *sections]
    return sections


def _translation_section(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    before, after = metrics["before"]["translation"], metrics["after"]["translation"]
    rows: list[dict[str, Any]] = []
    for code in before:
        old, new = before[code], after[code]
        cells = [code, f"{old['loss']:.3f}", f"{new['loss']:.3f}"]
        marks = {"c2": _mark(old["loss"] - new["loss"])}
        if "chrf" in old:
            cells += [f"{old['chrf']:.1f}", f"{new['chrf']:.1f}"]
            marks["c4"] = _mark(new["chrf"] - old["chrf"])
        rows.append({"cells": _cells(cells, **marks)})
    head = ["language", "loss before", "loss after"]
    head += ["chrF before", "chrF after"] if any("chrf" in row for row in before.values()) else []
    losses = ({code: row["loss"] for code, row in part.items()} for part in (before, after))
    image = figures.before_after(next(losses), next(losses), "held-out loss")
    old, new = metrics["before"]["english_loss"], metrics["after"]["english_loss"]
    return {
        "title": "Held-out translation into English",
        "warning": few_texts(metrics["data"]["held_out_pairs"] // len(before)),
        "text": f"Questions that training never saw ({metrics['data']['held_out_pairs']} pairs). Loss is per token of "
        f"the English question; lower is better. chrF compares generated with true English; higher is better. Colors "
        f"show the direction of a change, not that it is more than chance. "
        f"English itself: loss per token on English reasoning text {old:.3f} before, {new:.3f} after.",
        "figures": [figure_of(folder, "translation_loss", image, "held-out loss per language")],
        "table": {"head": head, "rows": rows},
    }


def _training_section(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    memory = metrics["peak_memory_bytes"]
    return {
        "title": "Training",
        "figures": [figure_of(folder, "loss", figures.loss_curve(metrics["losses"]), "training loss")],
        "facts": [
            ("steps", f"{metrics['steps']:,}"),
            ("real tokens", f"{metrics['tokens']:,}"),
            ("tokens per second", f"{metrics['tokens_per_second']:,.0f}"),
            ("padding", f"{100 * metrics['padding_share']:.1f} %"),
            ("peak memory", f"{memory / 2**20:,.0f} MiB"),
            (
                "pairs",
                f"{metrics['data']['train_pairs']:,} for training, {metrics['data']['held_out_pairs']:,} held out",
            ),
            ("training prompt", metrics["training_prompt"]),
        ],
    }


def _selection_section(folder: Path, selection: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    layers, scores, stability = selection["layers"], selection["scores"], selection.get("stability")
    if not scores:
        return {"title": "Selected layers", "text": f"Rule {selection['rule']!r}: {', '.join(map(str, layers))}."}
    means = [sum(row) / len(row) for row in scores]
    image = figures.layer_bars(means, layers, selection["score"], stability)
    chosen = ", ".join(map(str, layers))
    region = metrics.get("config", {}).get("select", {}).get("region")
    where = f" among the layers of the region {region!r}" if region else ""
    text = f"Score {selection['score']!r}, mean over languages; rule {selection['rule']!r}{where}. Chosen: {chosen}."
    if stability:
        text += " Stability is the share of bootstrap resamples of the probe's questions in which a layer is chosen."
    return {
        "title": "Selected layers",
        "text": text,
        "figures": [figure_of(folder, "selection", image, "score per layer")],
    }


def _activity_sections(folder: Path, selection: Mapping[str, Any]) -> list[dict[str, Any]]:
    from slamkern.probe.stats import ActivationStats
    from slamkern.selection.scores import SCORES

    stats = ActivationStats.load(folder / "stats.safetensors")
    languages, layers = list(stats.languages), selection.get("layers", ())
    counts = stats.active_rate.sum(-1).T.tolist()
    tokens = ", ".join(f"{code} {int(n):,}" for code, n in zip(languages, stats.count, strict=True))
    sections = []
    if selection.get("scores"):
        image = figures.layer_heatmap(selection["scores"], languages, selection["score"], layers)
        text = "How far each language's activity in a layer lies from the others'. Orange layer numbers are selected."
        sections.append(_map_section(folder, "scores", "Score per layer and language", text, image))
    image = figures.layer_heatmap(counts, languages, "active neurons per token", layers)
    text = f"Mean number of FFN neurons with a positive {stats.observe} value, per token (tokens read: {tokens})."
    sections.append(_map_section(folder, "active_neurons", "Active neurons", text, image))
    if "en" in languages:
        distance = SCORES["english_overlap"](stats)
        others = [index for index, code in enumerate(languages) if code != "en"]
        overlap = (1 - distance[:, others]).tolist()
        image = figures.layer_heatmap(
            overlap, [languages[i] for i in others], "share of English's active neurons", layers
        )
        text = "Of the neurons most active on English, the share that is active on the other language, too."
        sections.append(_map_section(folder, "english_overlap", "Overlap with English", text, image))
    return sections


def _map_section(folder: Path, name: str, title: str, text: str, image: bytes) -> dict[str, Any]:
    return {"title": title, "text": text, "figures": [figure_of(folder, name, image, title.lower())]}


def _setting(metrics: Mapping[str, Any]) -> dict[str, Any]:
    time = ", ".join(f"{stage} {value:.0f} s" for stage, value in metrics["seconds"].items())
    facts = [("model", metrics["model"]), ("data", metrics["data"]["path"]), ("time", time)]
    if counted := ", ".join(f"{count} {code}" for code, count in metrics.get("examples", {}).items()):
        facts.insert(2, ("trained on", f"{counted}; {metrics['unfinished_replies']} unfinished replies dropped"))
    if weights := metrics.get("base_weights"):
        facts.insert(1, ("base weights", weights))
    if made := metrics.get("made"):
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        facts += [("finished", made["date"]), ("command", made["command"]), ("versions", versions)]
    configuration = json.dumps(metrics["config"], indent=2, ensure_ascii=False)
    return {
        "title": "Setting",
        "facts": facts,
        "details": {"summary": "full configuration", "text": configuration},
    }
