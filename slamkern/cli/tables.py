"""What the command line prints as tables (rich): a selection, and a run before and after."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from slamkern.cli.screen import Screen
from slamkern.selection.layers import LayerSelection


def selection_table(selection: LayerSelection) -> None:
    """One row a layer: mean score, bootstrap stability, whether it is selected."""
    if not selection.scores:
        return
    table = Table("layer", f"mean {selection.score_name}", "stability", "selected", box=None)
    for layer, row in enumerate(selection.scores):
        stability = "" if selection.stability is None else f"{100 * selection.stability[layer]:.0f} %"
        mark = "yes" if layer in selection.layers else ""
        table.add_row(str(layer), f"{sum(row) / len(row):.4g}", stability, mark)
    Screen().print(table)


def before_after(metrics: Mapping[str, Any]) -> None:
    """Held-out translation and accuracy per language, before and after, from a run's metrics."""
    before, after = metrics["before"], metrics["after"]
    old_scores, new_scores = before["evaluation"], after["evaluation"]
    table = Table(box=None, header_style="bold")
    table.add_column("language")
    for name in ("loss before", "after", "chrF before", "after", "correct % before", "after"):
        table.add_column(name, justify="right")
    codes = list(before["translation"])
    codes += [code for code in (old_scores or {"n": ()})["n"] if code not in codes]
    for code in codes:
        old, new = before["translation"].get(code, {}), after["translation"].get(code, {})
        cells = [_number(old, "loss", 3), _number(new, "loss", 3), _number(old, "chrf", 1), _number(new, "chrf", 1)]
        cells += [_number(scores["accuracy"], code, 0) if scores else "" for scores in (old_scores, new_scores)]
        table.add_row(code, *cells)
    console = Screen()
    console.print(table)
    trained, total = metrics["trained_parameters"], metrics["total_parameters"]
    layers = ", ".join(map(str, metrics["selected_layers"]))
    console.print(
        f"layers {layers}: {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %) for {metrics['steps']} "
        f"steps, {metrics['tokens_per_second']:,.0f} tokens/s; loss on English reasoning "
        f"{before['english_loss']:.3f} -> {after['english_loss']:.3f}",
        soft_wrap=True,
    )  # fmt: skip
    if before.get("reply_loss"):
        parts = [f"{code} {loss:.3f} -> {after['reply_loss'][code]:.3f}" for code, loss in before["reply_loss"].items()]
        console.print(f"loss of the model's own English replies: {', '.join(parts)}", soft_wrap=True)
    if new_scores:
        console.print(
            f"accuracy: {new_scores['task']}, prompt {new_scores['prompt']}, {new_scores['rule']}",
            soft_wrap=True,
        )  # fmt: skip


def _number(values: Mapping[str, float], key: str, digits: int) -> str:
    return f"{values[key]:.{digits}f}" if key in values else ""
