"""What `layer_gain` measured, made into rows: gains, their rank correlation with every score, stability of choices.

Scores known before training, larger = train this layer: those of ``selection.scores`` over the probed questions;
``snr``, the signal-to-noise ratio of Spectrum (arXiv 2406.06623), from the weights alone; ``gradient_norm`` of the base
model on the first training batches (GRASS); and ``lowest``, the place of the layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.rank_correlation import kendall, spearman, spearman_interval
from slamkern.files import write_json
from slamkern.probe.stats import ActivationStats
from slamkern.reading import read_json
from slamkern.selection.bootstrap import reweighted
from slamkern.selection.scores import SCORES
from slamkern.selection.weight_snr import weight_snr

FOLDER = results.FOLDER
TOP = 6
QUESTIONS, DRAWS = (1, 2, 4, 8, 16, 32), 40
Row = dict[str, Any]


def write(work: Path, model: nn.Module, settings: Mapping[str, Any], folder: Path) -> Path:
    """``layer-gain-NAME.json`` of everything that is in the folder so far, in the form of the files of the devices."""
    stats = ActivationStats.load(work / "stats.safetensors")
    known = {name: score(stats).mean(1).numpy() for name, score in SCORES.items()}
    known["snr"] = _snr_once(work, model)
    known["lowest"] = -np.arange(stats.num_layers, dtype=np.float64)
    gains = {task: found for task in ("translate", "reply") if (found := _gains(work, task))}
    name = str(settings["model"])
    rows: dict[str, list[Row]] = {
        "layer-gain": _gain_rows(name, gains, known, stats.num_layers),
        "layer-correlation": _correlations(work, name, gains, known),
        "layer-stability": _stability(name, stats),
    }
    stage = {
        "environment": results.environment(torch.device("cpu")),
        "command": "python -m benchmarks.layer_gain --model MODEL --pairs FOLDER --work FOLDER",
        "study": dict(settings),
    }
    path = folder / f"layer-gain-{name.split('/')[-1].lower()}.json"
    stages = {key: stage | {"rows": value} for key, value in rows.items() if value}
    write_json(path, {"device": results.device_name(torch.device("cpu")), "stages": stages})
    return path


def _snr_once(work: Path, model: nn.Module) -> np.ndarray:
    """Mean over up and down of every layer; the decompositions are kept, for they take as long as training a layer."""
    path = work / "snr.json"
    if not path.exists():
        write_json(path, weight_snr(model))
    return np.array(read_json(path))


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path))


def _gains(work: Path, task: str) -> dict[int, list[Row]]:
    """Layer -> its held-out examples with ``gain``, the fall of their summed loss, where the layer was trained."""
    found: dict[int, list[Row]] = {}
    for path in sorted(work.glob(f"{task}-[0-9]*.json")):
        before, after = _read(work / f"base-{task}.json")["losses"], _read(path)["losses"]
        found[int(path.stem.rsplit("-", 1)[1])] = [
            {**old, "gain": old["loss"] - new["loss"]} for old, new in zip(before, after, strict=True)
        ]
    return found


def _mean_gain(examples: list[Row], kind: str, parity: int | None = None) -> float:
    """Nats a token over the held-out examples of a kind; of every other question where ``parity`` says which."""
    chosen = [row for row in examples if row["kind"] == kind and parity in (None, row["question"] % 2)]
    return float(sum(row["gain"] for row in chosen) / sum(row["tokens"] for row in chosen))


def _gain_rows(
    model: str, gains: Mapping[str, dict[int, list[Row]]], known: Mapping[str, np.ndarray], layers: int
) -> list[Row]:
    rows = []
    for layer in range(layers):
        measured = {
            f"{task}, {kind} loss": _mean_gain(found[layer], kind)
            for task, found in gains.items()
            if layer in found
            for kind in ("translate", "reply")
        }
        if measured:
            scores = {name: float(values[layer]) for name, values in known.items()}
            rows.append({"model": model, "layer": layer, "gains": measured, "scores": scores})
    return rows


def _correlations(
    work: Path, model: str, gains: Mapping[str, dict[int, list[Row]]], known: Mapping[str, np.ndarray]
) -> list[Row]:
    """A row for every score and every way to train and to measure, over all layers and over the lower half."""
    rows = []
    depth = len(known["lowest"])
    cases = [(task, found, region) for task, found in gains.items() for region in ("all", "lower")]
    for task, found, region in cases:
        among = depth if region == "all" else (depth + 1) // 2
        layers = [layer for layer in sorted(found) if layer < among]
        if len(layers) <= TOP:
            continue
        norms = np.array(_read(work / f"base-{task}.json")["gradient_norm"])
        for kind in ("translate", "reply"):
            gain = np.array([_mean_gain(found[layer], kind) for layer in layers])
            halves = [np.array([_mean_gain(found[layer], kind, parity) for layer in layers]) for parity in (0, 1)]
            best = float(np.sort(gain)[-TOP:].mean())
            for name, values in {**known, "gradient_norm": norms}.items():
                score = values[layers]
                order = np.argsort(-score, kind="stable")[:TOP]
                low, high = spearman_interval(score, gain)
                rows.append(
                    {
                        "model": model, "trained": task, "measured": kind, "region": region, "layers": len(layers),
                        "of": among, "score": name,
                        "spearman": _number(spearman(score, gain)), "low": _number(low), "high": _number(high),
                        "kendall": _number(kendall(score, gain)), "top_gain": float(gain[order].mean()),
                        "mean_gain": float(gain.mean()), "best_gain": best,
                        "halves_agree": _number(spearman(*halves)),
                    }
                )  # fmt: skip
    return rows


def _number(value: Any) -> float | None:
    """None for a correlation that is not defined: a score that is the same for all layers orders nothing."""
    return None if np.isnan(value) else float(value)


def _stability(model: str, stats: ActivationStats) -> list[Row]:
    """Overlap (Jaccard index) of the six layers chosen from some questions a language with those of all of them."""
    assert stats.groups is not None
    total = len(stats.groups.count)
    generator = torch.Generator().manual_seed(0)
    full = {name: _top(score(stats)) for name, score in SCORES.items()}
    rows = []
    for number in (n for n in QUESTIONS if n < total):
        overlap: dict[str, list[float]] = {name: [] for name in SCORES}
        drawn = (torch.randperm(total, generator=generator)[:number] for _ in range(DRAWS))
        weights = (torch.bincount(groups, minlength=total) for groups in drawn)
        for some in reweighted(stats, weights, with_means=True):
            for name, score in SCORES.items():
                chosen = _top(score(some))
                overlap[name].append(len(chosen & full[name]) / len(chosen | full[name]))
        means = {name: float(np.mean(values)) for name, values in overlap.items()}
        rows.append({"model": model, "questions": number, "of": total, "top": TOP, "overlap": means})
    return rows


def _top(scores: Tensor) -> set[int]:
    return set(scores.mean(1).argsort(descending=True, stable=True)[:TOP].tolist())
