"""``slamkern harness``: our tasks, prompts and rules for lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated

import typer

from slamkern.cli.options import Languages, Out, say
from slamkern.run_folder import HeldFolder


def harness(
    out: Out,
    task: Annotated[str, typer.Option(help="mgsm, mgsm-rev2, msvamp or corpus.")],
    data: Annotated[Path | None, typer.Option("--data", "-d", help="The task's files; without it, the hub.")] = None,
    languages: Languages = None,
    prompt: Annotated[str, typer.Option(help="A preset of ours, a template or its file.")] = "metamath",
    limit: Annotated[int | None, typer.Option(help="Questions per language.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 512,
) -> None:
    """Tasks for lm-evaluation-harness with our prompts and rules: a folder for its --include_path."""
    from slamkern.integrations.lm_eval import write_tasks

    codes = None if languages is None else [code.strip() for code in languages.split(",")]
    with HeldFolder(out):
        tag = write_tasks(out, task, codes, data=data, prompt=prompt, limit=limit, max_new_tokens=max_new_tokens)
    say(f"lm-eval run --include_path {out} --tasks {tag} --log_samples --output_path OUT --model hf ...")
