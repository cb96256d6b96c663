"""The model's own greedy replies to questions: what it says where it understands, for training on (self-distillation).

A reply that was not brought to its end would teach the model not to stop, so it is kept in the file and used nowhere.
While they are made, replies are appended to ``<name>.jsonl`` beside the file, and the same call goes on behind them.
Every process of a job makes a share; the main one writes.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slamkern import distributed
from slamkern.data.prompts import Prompt
from slamkern.digests import state_digest
from slamkern.errors import SlamkernError
from slamkern.evaluation.generation import generate
from slamkern.files import named_errors, sealed, unsealed, write_checked, write_text
from slamkern.progress import progress_bar
from slamkern.reading import parse_json, read_text
from slamkern.run_folder import difference
from slamkern.schemas.check import check
from slamkern.schemas.replies import Reply, read_replies_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def own_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    prompt: Prompt,
    path: Path,
    *,
    language: str = "en",
    max_new_tokens: int = 280,
    batch_size: int = 48,
    progress: bool = True,
) -> dict[str, str]:
    """Question -> the model's own reply, for those that ended; all of them are in the file ``path`` afterwards.

    SlamkernError where the file, or what was made of it so far, is of other weights, prompt, questions or length.
    """
    wanted = list(dict.fromkeys(questions))
    settings = {
        "weights": state_digest(model.state_dict()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt": prompt.question("<question>", language),
        "max_new_tokens": max_new_tokens,
        "questions": wanted,
    }
    distributed.require_equal(settings)
    if distributed.on_main(path.exists):
        distributed.on_main(lambda: _same(read_replies_file(path)["settings"], settings, path))
        return distributed.on_main(lambda: read_replies(path))
    part = path.with_suffix(".jsonl")
    rows = distributed.on_main(lambda: _read_part(part, settings))
    open_questions = [question for question in wanted if question not in rows]
    answers = generate(
        model, tokenizer, [prompt.question(question, language) for question in open_questions],
        max_new_tokens=max_new_tokens, batch_size=batch_size, names=[text[:40] for text in open_questions],
    )  # fmt: skip
    with (
        named_errors(part),
        # The main process alone gets answers, so it alone opens the file.
        open(part if distributed.is_main() else os.devnull, "a", encoding="utf-8", newline="\n", buffering=1) as out,
        progress_bar(total=len(wanted), initial=len(rows), desc="replies", unit="reply", show=progress) as bar,
    ):
        for index, text, ended in answers:
            row: dict[str, Any] = {"question": open_questions[index], "reply": text.strip(), "ended": ended}
            rows[row["question"]] = row
            out.write(json.dumps(sealed(row), ensure_ascii=False) + "\n")
            bar.update()
    return distributed.on_main(lambda: _finish(path, settings, [rows[question] for question in wanted]))


def _finish(path: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    write_checked(path, {"settings": settings, "replies": rows})
    path.with_suffix(".jsonl").unlink()
    return read_replies(path)


def read_replies(path: Path) -> dict[str, str]:
    """Question -> reply of those in the file that ended and say something. SlamkernError where there is none."""
    rows = read_replies_file(path)["replies"]
    replies = {row["question"]: row["reply"] for row in rows if row["ended"] and row["reply"]}
    if not replies:
        raise SlamkernError(f"none of the {len(rows)} replies in {path} came to its end; raise align.max_new_tokens")
    return replies


def count_unfinished(path: Path) -> int:
    """How many replies in the file are not used, because they did not end or are empty."""
    return sum(not (row["ended"] and row["reply"]) for row in read_replies_file(path)["replies"])


def _read_part(part: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a stopped run left, without a torn last line; begins the file where there is none."""
    head = json.dumps(sealed({"settings": settings}), ensure_ascii=False) + "\n"
    lines = read_text(part).split("\n")[:-1] if part.exists() else []
    if not lines:
        write_text(part, head)
        return {}
    places = [f"{part}:{number}" for number in range(1, len(lines) + 1)]
    head_values, *rows = (unsealed(parse_json(line, at), at) for line, at in zip(lines, places, strict=True))
    _same(head_values.get("settings"), settings, part)
    for row, at in zip(rows, places[1:], strict=True):
        check(Reply, json.dumps(row), at)
    write_text(part, "".join(line + "\n" for line in lines))
    return {row["question"]: row for row in rows}


def _same(found: Any, wanted: dict[str, Any], path: Path) -> None:
    if change := difference(found, wanted):
        raise SlamkernError(f"{path} holds replies of something else: {change}; remove it or choose another folder")
