"""Tables of what was measured on models: recipes, cells of a bake-off, architectures, single layers."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from benchmarks import alignment_table
from benchmarks import bakeoff as bakeoff_stage
from benchmarks.markdown import markdown
from benchmarks.results import Row
from slamkern.bakeoff.table import flat


def alignment(rows: Sequence[Row]) -> str:
    """One line a recipe: accuracy in percent (questions gained and lost against the base model) per language."""
    names = alignment_table.columns(rows)
    flat = [alignment_table.flat(row) for row in rows]
    return markdown(names, ([line.get(name) for name in names] for line in flat))


def bakeoff(rows: Sequence[Row]) -> str:
    """One line a cell and seed."""
    lines = [flat(row) for row in rows]
    names = bakeoff_stage.columns(lines)
    return markdown(names, ([line[name] for name in names] for line in lines))


def families(rows: Sequence[Row]) -> str:
    """Model types with the same outcome share a line; differences are the largest among them."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        packed = row.get("packed")
        fused = "" if not row.get("fused") else "all" if not row["left"] else "some"
        left = row.get("absent") or "; ".join(filter(None, (row.get("left"), row.get("failed"), row.get("selection"))))
        said = ("exact" if isinstance(packed, float) else packed or "", left)
        # BartDecoder and MarianDecoder are told of as one.
        reasons = [re.sub(r"\b[A-Z]\w*?(Model|Decoder|Attention|Intermediate)\b", r"its \1", text) for text in said]
        key = (row.get("ffn") or "", row.get("activation") or "", fused, *reasons)
        groups.setdefault(key, []).append(row)
    lines = []
    for (ffn, activation, fused, packed, left), same in groups.items():
        worst = [
            max((row[key] for row in same if isinstance(row.get(key), float)), default=None)
            for key in ("logits", "gradients", "packed")
        ]
        names = " ".join(row["family"] for row in same)
        where = "not run" if "absent" in same[0] else fused or "none"
        cells = [names, ffn, activation, where, *(None if x is None else f"{x:.0e}" for x in worst)]
        lines.append([*cells, "; ".join(filter(None, (left, packed if packed != "exact" else "")))])
    header = ("architectures", "FFN", "activation", "fused", "logits", "gradients", "packed", "left alone, or why not")
    order = ["all", "some", "none", "not run"]
    return markdown(header, sorted(lines, key=lambda line: (order.index(str(line[3])), line[1:3])))


def layer_correlation(rows: Sequence[Row]) -> str:
    """A line a score and way to measure, the best first; what is not in it is in the file."""
    ordered = sorted(rows, key=lambda r: (r["model"], r["trained"], r["measured"] != r["trained"], r["region"],
                                          -(r["spearman"] if r["spearman"] is not None else -2)))  # fmt: skip
    lines = []
    for r in ordered:
        place = f"{r['layers']} of {r['of']}" + (", lower half" if r["region"] == "lower" else "")
        interval = "" if r["low"] is None else f"{r['low']:.2f} to {r['high']:.2f}"
        means = [f"{r[key]:.3f}" for key in ("top_gain", "mean_gain", "best_gain")]
        lines.append([r["model"], place, r["trained"], f"{r['measured']} loss", r["score"], r["spearman"], interval,
                      r["kendall"], *means])  # fmt: skip
    return markdown(
        ("model", "layers", "trained on", "gain in", "score", "Spearman", "95 %", "Kendall", "mean gain of its best 6",
         "of all", "of the best 6"),
        lines,
    )  # fmt: skip


def layer_stability(rows: Sequence[Row]) -> str:
    """A line a number of questions, a column a score."""
    names = list(dict.fromkeys(name for row in rows for name in row["overlap"]))
    return markdown(
        ("model", "questions a language", *names),
        ([r["model"], f"{r['questions']} of {r['of']}", *(r["overlap"].get(name) for name in names)] for r in rows),
    )


def recipe(rows: Sequence[Row]) -> str:
    """One line a language, and one for the mean of all but English."""
    return markdown(
        ("language", "questions", "before, %", "after, %", "difference", "95 %", "gained", "lost", "cut before, %",
         "cut after, %", "verdict"),
        ([row["language"], row["questions"], row["before"], row["after"], f"{row['difference']:+.1f}",
          f"{row['low']:+.1f} to {row['high']:+.1f}", row["gained"], row["lost"], row.get("cut_before"),
          row.get("cut_after"), row["verdict"]] for row in rows),
    )  # fmt: skip


def recipe_costs(rows: Sequence[Row]) -> str:
    """What a run took, in all and stage by stage."""
    return markdown(("what", "measured"), ([row["what"], f"{row['value']:.3g} {row['unit']}"] for row in rows))


# name -> (stage, what makes a table of its rows)
TABLES: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = MappingProxyType(
    {
        "alignment": ("alignment", alignment),
        "alignment-long": ("alignment_long", alignment),
        "bakeoff": ("bakeoff", bakeoff),
        "bakeoff-answers": ("bakeoff-answers", bakeoff),
        "layer-correlation": ("layer-correlation", layer_correlation),
        "layer-stability": ("layer-stability", layer_stability),
        "families": ("families", families),
        "recipe": ("recipe", recipe),
        "recipe-costs": ("recipe_costs", recipe_costs),
    }
)
