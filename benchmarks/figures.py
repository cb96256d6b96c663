"""The figures beside the result files, drawn from them: ``step.png`` and ``layers.png`` in benchmarks/results/.

Each PNG carries a digest of the numbers it shows, so that ``python -m benchmarks.readme --check`` knows whether it is
current without comparing pixels, which change with the version of matplotlib. Drawn for a width of 800 pixels.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.results import Row

WIDTH, DPI = 8.0, 100
INK, LIGHT, STRONG = "#1f2933", "#b0bac5", "#2f6db3"
STYLE: dict[Any, Any] = {
    "font.size": 11, "axes.edgecolor": "#cbd2d9", "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 12,
    "axes.titlelocation": "left", "figure.constrained_layout.use": True,
}  # fmt: skip
# What a bar says beside the name of the variant.
WAYS = {
    "full": "all weights trained, padded",
    "full_checkpointed": "all weights, checkpointing, padded",
    "authors": "selected layers, checkpointing, padded",
    "hf_freeze": "selected layers, padded",
    "hf_freeze_grouped": "selected layers, grouped by length",
    "hf_freeze_packed": "selected layers, packed",
    "liger_freeze": "selected layers, packed, Liger-Kernel",
    "lora": "adapters of rank 16, packed",
    "slamkern": "selected layers, packed, fused",
    "slamkern_fp8": "selected layers, packed, fused, FP8",
}


def _where(content: Mapping[str, Any], stage: str) -> str:
    environment = content["stages"][stage]["environment"]
    return f"{content['device']}, torch {environment['torch']}, {environment['date'][:10]}"


def step(content: Mapping[str, Any]) -> Figure:
    """Real tokens a second of every way to take a training step, as horizontal bars, the fastest at the bottom."""
    rows = [row for row in content["stages"]["train"]["rows"] if "absent" not in row]
    rows.sort(key=lambda row: -row["tokens_per_second"])
    figure = Figure(figsize=(WIDTH, 0.48 * len(rows) + 1.5), dpi=DPI)
    axes = figure.add_subplot()
    speeds = [row["tokens_per_second"] for row in rows]
    colors = [STRONG if row["variant"].startswith("slamkern") else LIGHT for row in rows]
    bars = axes.barh(range(len(rows)), speeds, height=0.66, color=colors)
    axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=4)
    axes.set_yticks(range(len(rows)), [f"{row['variant']}\n{WAYS[row['variant']]}" for row in rows], fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("real tokens a second (padding not counted)")
    axes.margins(x=0.09)
    title = f"A training step of {rows[0]['model']}, {rows[0]['trained_layers']} layers trained"
    figure.suptitle(f"{title}\n{_where(content, 'train')}", x=0.01, ha="left", fontsize=11)
    return figure


def layers(content: Mapping[str, Any]) -> Figure:
    """Score of every layer (across) for every language (down); a color scale a score, from 0 to its largest value."""
    rows: Sequence[Row] = content["stages"]["layers"]["rows"]
    names = list(dict.fromkeys(row["score"] for row in rows))
    figure = Figure(figsize=(WIDTH, 3.1 * len(names) + 0.8), dpi=DPI)
    first = rows[0]
    for place, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, place + 1)
        values = [row["values"] for row in rows if row["score"] == name]
        image = axes.imshow([*zip(*values, strict=True)], aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
        axes.set_yticks(range(len(first["languages"])), first["languages"])
        axes.set_xticks(range(0, len(values), 1 if len(values) <= 16 else 2))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="layer", ylabel="language", title=_SCORE_TITLES[name])
        figure.colorbar(image, ax=axes, pad=0.01).outline.set_visible(False)
    title = f"{first['model']} over {first['questions']} {first['texts']} questions a language: where languages differ"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


_SCORE_TITLES = {
    "active_msd": "active_msd: squared deviation of the number of active neurons",
    "rate_msd": "rate_msd: which neurons are active, mean squared deviation of their rates",
}
# File -> (stage, what draws it).
FIGURES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Figure]]] = MappingProxyType(
    {"step.png": ("train", step), "layers.png": ("layers", layers)}
)


def update(files: Sequence[Mapping[str, Any]], folder: Path, *, write: bool) -> list[Path]:
    """The figures that do not show the numbers of the first file that has them; with ``write`` they are drawn again."""
    old = []
    for name, (stage, draw) in FIGURES.items():
        content = next((content for content in files if content["stages"].get(stage, {}).get("rows")), None)
        if content is None:
            continue
        path, digest = folder / name, _digest(content["stages"][stage])
        if path.exists():
            with Image.open(path) as image:
                if image.info.get("Source") == digest:
                    continue
        old.append(path)
        if write:
            with matplotlib.rc_context(STYLE):
                figure = draw(content)
                FigureCanvasAgg(figure)
                figure.savefig(path, format="png", metadata={"Source": digest, "Software": None}, facecolor="white")
    return old


def _digest(stage: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stage, sort_keys=True).encode()).hexdigest()[:16]
