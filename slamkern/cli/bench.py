"""``slamkern bench``: ``train``, the training profile on a model and data of one's own; ``all``, every benchmark.

``bench train`` prints the tables of ``slamkern.bench.tables`` and, with ``--out``, writes their rows as JSON. Its
status is 1 when the loss curves of exact variants differ by more than rounding.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from slamkern.cli.options import say
from slamkern.errors import SlamkernError

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """Measure on this machine."""


@bench.command()
def train(
    shape: Annotated[
        str | None, typer.Option(help="Random weights of this shape: SmolLM2-135M, Llama-2-7B, ...")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Or a checkpoint: folder, .gguf, hub id.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Parallel text, as for train.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id; without it SmolLM2's, or bytes.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Pairs in a step.")] = None,
    padded_batch_size: Annotated[int | None, typer.Option(help="Pairs that are padded together.")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(help="Of these, computed at a time.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps; the first is counted, not timed.")] = None,
    layers: Annotated[int | None, typer.Option(help="How many of the lowest layers are trained.")] = None,
    variants: Annotated[str | None, typer.Option(help="With commas: full,authors,hf_freeze,slamkern.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: as torch has them.")] = 0,
    scale: Annotated[bool, typer.Option("--scaling", help="Also how the step scales.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for train.json and scaling.json.")] = None,
) -> None:
    """Real tokens a second, memory and FLOPs of every way to take a training step, on the same pairs."""
    import torch

    from slamkern.bench import tables as profile
    from slamkern.files import write_json
    from slamkern.pipeline.loading import resolve_device

    if threads:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    options = profile.TrainOptions.for_device(
        where,
        shape=shape,
        model=model,
        data=data,
        tokenizer=tokenizer,
        pairs=pairs,
        padded_batch_size=padded_batch_size,
        micro_batch_size=micro_batch_size,
        steps=steps,
        trained_layers=layers,
        variants=variants.split(",") if variants else None,
    )
    *_, rows = profile.profile_rows(options, progress=_tell)
    numbers, absences = profile.measured(rows)
    _table(f"training step, {options.model or options.shape} on {where}", numbers, profile.COLUMNS)
    for line in absences:
        say(line)
    message, failed = profile.curve_check(rows)
    say(message)
    tables = {"train": rows}
    if scale:
        tables["scaling"] = [row for point in profile.scaling_rows(where, progress=_tell) for row in point]
        _table(f"scaling on {where}", profile.measured(tables["scaling"])[0], profile.SCALING_COLUMNS)
    if out is not None:
        for name, table in tables.items():
            write_json(out / f"{name}.json", table)
    if failed:
        raise typer.Exit(1)


@bench.command()
def memory(
    shape: Annotated[str, typer.Option(help="SmolLM2-135M, Llama-2-7B, ...")] = "Llama-2-7B",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a micro-batch.")] = 4096,
    layers: Annotated[int, typer.Option(min=1, help="How many of the lowest layers are trained.")] = 6,
    gpu: Annotated[str | None, typer.Option(help="Memory to fit into, like 24GB.")] = None,
) -> None:
    """What a training step needs, computed without a GPU: weights, optimizer, activations, each way to save some."""
    from slamkern.bench.memory_table import COLUMNS, budget_lines, memory_rows
    from slamkern.bench.workload import SHAPES, shape_config
    from slamkern.training.memory_budget import parse_bytes

    shape_config(shape)
    if layers > SHAPES[shape][3]:
        raise SlamkernError(f"{shape} has {SHAPES[shape][3]} layers; {layers} of them cannot be trained")
    rows = memory_rows(shape, tokens, range(layers), budget=None if gpu is None else parse_bytes(gpu))
    columns = [name for name in COLUMNS if name in rows[0]]
    _table(f"a training step of {shape}, {layers} layers trained, {tokens:,} tokens, in GB (10^9 bytes)", rows, columns)
    for line in [] if gpu is None else budget_lines(shape, tokens, range(layers), gpu):
        say(line)
    say("A CUDA context (about 0.5 GB) and what the allocator cannot reuse come on top.")


@bench.command(
    "all", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def everything(context: typer.Context) -> None:
    """Kernels, probe, training and goals, from a checkout: the options of python -m benchmarks.gpu."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks").is_dir():
        raise SlamkernError("the benchmarks are not installed with the package: run this from a source checkout")
    command = [sys.executable, "-m", "benchmarks.gpu", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=checkout, check=False).returncode)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.table import Table

    from slamkern.cli.screen import Screen

    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    Screen(150).print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
