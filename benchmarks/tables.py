"""Rows of the result files as Markdown tables, by name; ``benchmarks.readme`` puts them into the pages."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from benchmarks import alignment_table, bakeoff
from benchmarks.providers import PROVIDERS
from benchmarks.results import Row
from benchmarks.stage import cell
from benchmarks.summary import summary
from slamkern.errors import SlamkernError

File = dict[str, Any]  # one result file


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; columns of numbers are aligned to the right."""
    lines = [list(row) for row in rows]
    numeric = [any(isinstance(row[i], int | float) for row in lines) for i in range(len(header))]
    rule = ["---:" if right else "---" for right in numeric]
    cells = [list(header), rule, *([cell(value) for value in row] for row in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _kernels(rows: Sequence[Row], shape: str) -> str:
    """Median milliseconds of every operation and provider at one shape, and slamkern's share of the ceiling."""
    chosen = [row for row in rows if row["shape"] == shape]
    timed = {row["provider"] for row in chosen if "absent" not in row}
    providers = [name for name in PROVIDERS if name in timed]
    lines: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in chosen:
        key = (row["op"], row["languages"], row["layout"], row["tokens"], row["dtype"])
        lines.setdefault(key, {})[row["provider"]] = row
    body = []
    for (op, languages, layout, tokens, dtype), by_provider in lines.items():
        detail = ", ".join([f"{languages} languages"] * bool(languages) + [str(layout)] * (layout == "mixed"))
        shares = [row["share"] for name, row in by_provider.items() if "slamkern" in name and row.get("share")]
        times = [by_provider.get(name, {}).get("median_ms") for name in providers]
        body.append([f"{op}{f', {detail}' if detail else ''}", tokens, dtype, *times, max(shares, default=None)])
    return markdown(["op", "tokens", "dtype", *(f"{name}, ms" for name in providers), "share of ceiling"], body)


def _columns(*columns: tuple[str, str]) -> Callable[[Sequence[Row]], str]:
    """A table of (heading, key) columns, one line a row."""
    return lambda rows: markdown([name for name, _ in columns], ([row.get(key) for _, key in columns] for row in rows))


def _goals(rows: Sequence[Row]) -> str:
    verdict = {True: "met", False: "missed"}
    return markdown(
        ("goal", "limit", "measured", "", "command"),
        (
            (
                r["goal"],
                f"{r['limit']} {r['unit']}",
                r["measured"],
                verdict.get(r["met"], r["note"]),
                f"`{r['command']}`",
            )
            for r in rows
        ),
    )


def _fp8(rows: Sequence[Row]) -> str:
    """Losses of the two runs; in percent how far those of FP8 are from the other's."""
    percent = {key: f"{100 * rows[1][key]:.2f} %" for key in ("largest", "mean", "limit")}
    verdict = f"<= {percent['limit']}: {'met' if rows[1]['met'] else 'missed'}"
    differences = [["", "", ""], [percent["largest"], percent["mean"], verdict]]
    own = [[r["loss_first"], r["loss_last"], r["held_out_first"], r["held_out_last"]] for r in rows]
    afterwards = [rows[0]["held_out_last"], rows[1]["held_out_unquantized"]]
    names = ["in FP8, emulated" if row["emulated"] else "in FP8" for row in rows]
    names[0] = rows[0]["dtype"]
    return markdown(
        ("frozen weights", "model", "steps", "first loss", "last loss", "held-out before", "held-out after",
         "the same, FP8 off", "steps differ by at most", "on average", "limit"),
        ([names[i], row["model"], row["steps"], *(f"{x:.4f}" for x in (*own[i], afterwards[i])), *differences[i]]
         for i, row in enumerate(rows)),
    )  # fmt: skip


def _alignment(rows: Sequence[Row]) -> str:
    """One line a recipe: accuracy in percent (questions gained and lost against the base model) per language."""
    names = alignment_table.columns(rows)
    flat = [alignment_table.flat(row) for row in rows]
    return markdown(names, ([line.get(name) for name in names] for line in flat))


def _bakeoff(rows: Sequence[Row]) -> str:
    """One line a cell and seed."""
    names = bakeoff.columns(rows)
    return markdown(names, ([row["flat"].get(name) for name in names] for row in rows))


def _families(rows: Sequence[Row]) -> str:
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


def _layer_correlation(rows: Sequence[Row]) -> str:
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


def _layer_stability(rows: Sequence[Row]) -> str:
    """A line a number of questions, a column a score."""
    names = list(dict.fromkeys(name for row in rows for name in row["overlap"]))
    return markdown(
        ("model", "questions a language", *names),
        ([r["model"], f"{r['questions']} of {r['of']}", *(r["overlap"].get(name) for name in names)] for r in rows),
    )


# name -> (stage, what makes a table of its rows)
TABLES: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = MappingProxyType(
    {
        "alignment": ("alignment", _alignment),
        "bakeoff": ("bakeoff", _bakeoff),
        "layer-correlation": ("layer-correlation", _layer_correlation),
        "layer-stability": ("layer-stability", _layer_stability),
        "kernels": ("kernels", lambda rows: _kernels(rows, "Llama-2-7B")),
        "kernels-small": ("kernels", lambda rows: _kernels(rows, "SmolLM2-135M")),
        "ceilings": (
            "ceilings",
            _columns(("ceiling", "ceiling"), ("dtype", "dtype"), ("GB/s", "gbps"), ("TFLOP/s", "tflops")),
        ),
        "probe": (
            "probe",
            _columns(
                ("variant", "variant"),
                ("model", "model"),
                ("texts", "texts"),
                ("real tokens", "real_share"),
                ("real tokens/s", "tokens_per_second"),
                ("against unpatched", "against_unpatched"),
                ("against forward hooks", "against_hooks"),
            ),
        ),
        "headline": (
            "headline",
            _columns(
                ("variant", "variant"),
                ("model", "model"),
                ("real tokens/s", "tokens_per_second"),
                ("slamkern is faster by", "against_slamkern"),
                ("at least", "against_slamkern_low"),
                ("at most", "against_slamkern_high"),
                ("peak, GB", "peak_gb"),
                ("useful utilization", "useful_utilization"),
                ("absent because", "absent"),
            ),
        ),
        "generation": (
            "generation",
            _columns(
                ("provider", "provider"),
                ("model", "model"),
                ("dtype", "dtype"),
                ("rows", "rows"),
                ("answers", "answers"),
                ("tokens / processor s", "tokens/processor s"),
                ("against batches of 16", "x generate 16"),
                ("against one by one", "x generate 1"),
                ("texts that differ", "differ"),
            ),
        ),
        "families": ("families", _families),
        "goals": ("goals", _goals),
        "fp8": ("fp8", _fp8),
        "dry-run": (
            "dry_run",
            _columns(
                ("configuration", "configuration"),
                ("processes", "processes"),
                ("way", "way"),
                ("parameters, 10^9", "billions"),
                ("trained, 10^6", "trained_millions"),
                ("memory of each, GB", "memory_gb"),
                ("weights", "weights_gb"),
                ("optimizer", "optimizer_gb"),
                ("saved", "saved_for_backward_gb"),
                ("workspace", "workspace_gb"),
                ("fits 80 GB", "fits"),
                ("measured, GB", "measured_gb"),
                ("off by", "off_percent"),
                ("TFLOPs a step", "teraflops_a_step"),
                ("s a step at 40 % of 989 TFLOP/s", "seconds_a_step"),
                ("sent a step, GB", "wire_gb"),
                ("checkpoints, GB", "checkpoints_gb"),
            ),
        ),
        "streaming": (
            "streaming",
            _columns(
                ("phase", "phase"),
                ("pairs", "pairs"),
                ("s", "seconds"),
                ("pairs/s", "rows_per_second"),
                ("resident at most, GB", "peak_rss_gb"),
                ("processor ms", "ms"),
                ("share that data take of it", "share"),
            ),
        ),
        "scaling": (
            "scaling",
            _columns(
                ("property", "property"),
                ("value", "value"),
                ("variant", "variant"),
                ("real tokens/s", "tokens_per_second"),
                ("slamkern is faster by", "against_slamkern"),
                ("peak, GB", "peak_gb"),
                ("useful utilization", "useful_utilization"),
            ),
        ),
        "train": (
            "train",
            _columns(
                ("variant", "variant"),
                ("real tokens/s", "tokens_per_second"),
                ("slamkern is faster by", "against_slamkern"),
                ("step, s", "step_seconds"),
                ("peak, GB", "peak_gb"),
                ("padding", "padding_share"),
                ("FLOPs / minimum", "flops_vs_minimum"),
                ("last loss", "loss_last"),
                ("absent because", "absent"),
            ),
        ),
    }
)


def table(name: str, files: Sequence[File]) -> str:
    """One table a machine that has rows for it, each under a line that says where and when it was measured."""
    if name == "summary":
        lines = summary(files)
        return markdown(tuple(lines[0]), [tuple(line.values()) for line in lines])
    if name not in TABLES:
        raise SlamkernError(f"unknown table {name!r}; known: summary {' '.join(TABLES)}")
    stage, make = TABLES[name]
    parts = []
    for content in files:
        measured = content["stages"].get(stage)
        if measured is None or not measured["rows"]:
            continue
        env = measured["environment"]
        versions = ", ".join(
            f"{package} {env[package]}" for package in ("torch", "triton", "transformers") if env.get(package)
        )
        where = f"{content['device']}; {versions}; commit {env['commit']}, {env['date'][:10]}"
        parts.append(f"*{where}* (`{measured['command']}`)\n\n{make(measured['rows'])}")
    command = {"scaling": "train --scaling only"}.get(stage, "layer_gain" if name.startswith("layer-") else stage)
    return "\n\n".join(parts) or f"*not measured yet: `python -m benchmarks.{command}`*"
