"""What the commands share: their options, and how these become a configuration and a loaded model."""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slamkern import distributed
from slamkern.errors import SlamkernError, printable

if TYPE_CHECKING:
    from slamkern.pipeline.config import RunConfig
    from slamkern.pipeline.plan import Plan

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the sections of a run.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="Override: section.key=value. Repeatable.")]


def check_out(path: Path | None) -> Path | None:
    """Refuse an output folder that nothing can be written to, before there is anything to write."""
    if path is None:
        return None
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SlamkernError(f"--out {str(path)!r} is not UTF-8; use another name") from error
    if path.is_symlink() and not path.exists():
        raise SlamkernError(f"--out {path} is a link to {path.readlink()}, which does not exist")
    return path


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", callback=check_out)]
Recipe = Annotated[str | None, typer.Option("--recipe", "-r", help="Begin with a measured configuration: reply.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="HF folder, .gguf file, hub id, or smollm2.")]
Data = Annotated[
    str | None, typer.Option("--data", "-d", help="Parallel text: folder, JSON(L), corpus:, hf:owner/name.")
]
Languages = Annotated[str | None, typer.Option("--languages", "-l", help="Codes with commas: de,fr,sw.")]
Delta = Annotated[Path | None, typer.Option("--delta", help="Trained weights: the folder of a training run.")]
TrustRemoteCode = Annotated[
    bool | None, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
AllowPickle = Annotated[bool | None, typer.Option("--allow-pickle", help="Also read pickled weights (.bin).")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check options and data, say what it will take, and stop; loads no weights.")
]
DryRunOn = Annotated[
    Path | None,
    typer.Option("--dry-run-on", help="A dry run for the job that this configuration of accelerate launch describes."),
]

MemoryBudget = Annotated[
    str | None,
    typer.Option(
        help="Like 24GB: recomputes as few FFNs as it takes; where all are too few, the optimizer is in host memory."
    ),
]
OnOom = Annotated[
    str | None, typer.Option("--on-oom", help="Where memory is not enough: stop, or halve micro-batches and go on.")
]
FrozenPrecision = Annotated[str | None, typer.Option(help="Frozen weights in training: model (their dtype) or fp8.")]


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a result, or (err) what is said beside it; a name in it cannot steer the terminal."""
    typer.echo(printable(text), err=err, nl=nl)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(verbose: bool) -> None:
    """Of all processes of a job the main one logs; the others say what is theirs alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("slamkern").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("slamkern.training.memory_budget").setLevel(logging.INFO)  # what a budget costs is always said
    if not distributed.is_main():
        for name, level in ((None, "ERROR"), ("slamkern", "ERROR"), ("slamkern.training.accumulate", "WARNING")):
            logging.getLogger(name).setLevel(level)
    if not verbose:  # transformers' own bars and remarks drown ours
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def configure(
    config: Path | None, overrides: list[str] | None, recipe: str | None = None, **options: Mapping[str, Any]
) -> "RunConfig":
    """The configuration; ``options`` holds a command's own options by section (None: not given)."""
    from slamkern.pipeline import recipes
    from slamkern.pipeline.config import load_config

    return load_config(config, overrides or (), options, base=recipes.recipe(recipe) if recipe else {})


def model_options(name: str | None, trust_remote_code: bool | None, allow_pickle: bool | None) -> dict[str, Any]:
    """The options of the section ``model`` that most commands have."""
    return {"name": name, "trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}


def load(config: "RunConfig", delta: Path | None = None, *, on_host: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer; ``on_host`` in host memory, in the dtype that its device asks for."""
    from slamkern.pipeline.loading import describe, load_model, resolve_device, resolve_dtype
    from slamkern.training.checkpoint import load_delta

    arguments = config.model.arguments()
    if distributed.launched_with_fsdp() and not on_host and distributed.is_main():
        say("FSDP shards training alone: here each process holds the whole model", err=True)
    if on_host:
        dtype = resolve_dtype(arguments["dtype"], resolve_device(arguments["device"]))
        arguments |= {"device": "cpu", "dtype": str(dtype).removeprefix("torch.")}
    model, tokenizer = load_model(**arguments)
    if delta is not None:
        load_delta(model, delta)
    if distributed.is_main():
        say(f"{config.model.name}: {describe(model)}" + (f", with {delta}" if delta else ""), err=True)
    return model, tokenizer


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise SlamkernError(f"{path} exists; choose another --out or remove it")


def plan_for(config: "RunConfig", launch: Path | None) -> "Plan":
    """What a dry run fills: for the job that a file describes, or the one that this process is part of."""
    from slamkern.pipeline.launch import read_launch
    from slamkern.pipeline.plan import Plan

    return Plan(config, read_launch(launch))


def print_plan(lines: Iterable[tuple[str, str]]) -> None:
    """A plan of a dry run."""
    for name, what in lines:
        say(f"{name + ':':<20} {what}")
    say("dry run: no weights were loaded and nothing was written")
