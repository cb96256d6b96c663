"""Rows of the result files as Markdown tables, by name; ``benchmarks.readme`` puts them into the pages."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from benchmarks import fp8_tables, model_tables, published
from benchmarks.markdown import markdown
from benchmarks.providers import ENGINE, LIGER_MLP, PROVIDERS, WASTED_PRODUCTS
from benchmarks.results import Row
from benchmarks.summary import summary
from slamkern.errors import SlamkernError

File = dict[str, Any]  # one result file


def _kernels(rows: Sequence[Row], shape: str) -> str:
    """Median milliseconds of every operation and provider at one shape, and slamkern's share of the ceiling."""
    chosen = [row for row in rows if row["shape"] == shape]
    timed = {row["provider"] for row in chosen if "absent" not in row}
    providers = [name for name in (*PROVIDERS, LIGER_MLP, ENGINE) if name in timed]
    lines: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in chosen:
        key = (row["op"], row["languages"], row["layout"], row["tokens"], row["dtype"])
        lines.setdefault(key, {})[row["provider"]] = row

    def heading(name: str) -> str:
        return f"{name} ({WASTED_PRODUCTS[name]} products wasted)" if name in WASTED_PRODUCTS else name

    body = []
    for (op, languages, layout, tokens, dtype), by_provider in lines.items():
        detail = ", ".join([f"{languages} languages"] * bool(languages) + [str(layout)] * (layout == "mixed"))
        shares = [row["share"] for name, row in by_provider.items() if "slamkern" in name and row.get("share")]
        times = [by_provider.get(name, {}).get("median_ms") for name in providers]
        body.append([f"{op}{f', {detail}' if detail else ''}", tokens, dtype, *times, max(shares, default=None)])
    return markdown(
        ["op", "tokens", "dtype", *(f"{heading(name)}, ms" for name in providers), "share of ceiling"], body
    )


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


# name -> (stage, what makes a table of its rows)
TABLES: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = MappingProxyType(
    {
        **model_tables.TABLES,
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
        "memory": (
            "memory",
            _columns(
                ("model", "shape"),
                ("frozen weights", "frozen"),
                ("tokens", "tokens"),
                ("budget, GB", "budget_gb"),
                ("expected", "expected_gb"),
                ("measured", "measured_gb"),
                ("off by, %", "off_percent"),
                ("FFNs recomputed", "recomputed"),
                ("optimizer in", "optimizer"),
                ("absent because", "absent"),
            ),
        ),
        "graphs": (
            "graphs",
            _columns(
                ("what", "what"),
                ("model", "shape"),
                ("tokens", "tokens"),
                ("without, ms", "eager_ms"),
                ("as a graph, ms", "graph_ms"),
                ("faster by", "faster_by"),
                ("results differ by", "off"),
                ("absent because", "absent"),
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
        "host-time": (
            "host_time",
            _columns(
                ("forward", "mode"),
                ("languages", "languages"),
                ("stock, us", "stock_us"),
                ("fused, us", "fused_us"),
                ("more, us", "extra_us"),
                ("absent because", "absent"),
            ),
        ),
        "machine-code": (
            "machine_code",
            _columns(*((name, name) for name in ("what", "unit", "before", "after", "limit", "absent"))),
        ),
        "goals": ("goals", _goals),
        "fp8": ("fp8", fp8_tables.runs),
        "fp8-products": ("fp8_accumulation", fp8_tables.products),
        "fp8-accumulation": ("fp8_accumulation", fp8_tables.accumulation),
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
    if name == "published":
        return published.table()
    if name == "summary":
        lines = summary(files)
        return markdown(tuple(lines[0]), [tuple(line.values()) for line in lines])
    if name not in TABLES:
        raise SlamkernError(f"unknown table {name!r}; known: summary published {' '.join(TABLES)}")
    stage, make = TABLES[name]
    parts = []
    for content in files:
        measured = content["stages"].get(stage)
        if measured is None or not measured["rows"]:
            continue
        env = measured["environment"]
        packages = ("torch", "triton", "transformers")
        versions = ", ".join(f"{package} {env[package]}" for package in packages if env.get(package))
        where = f"{content['device']}; {versions}; commit {env['commit']}, {env['date'][:10]}"
        parts.append(f"*{where}* (`{measured['command']}`)\n\n{make(measured['rows'])}")
    command = {"scaling": "train --scaling only"}.get(stage, "layer_gain" if name.startswith("layer-") else stage)
    return "\n\n".join(parts) or f"*not measured yet: `python -m benchmarks.{command}`*"
