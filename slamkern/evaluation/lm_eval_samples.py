"""``samples_<task>_<date>.jsonl`` of lm-evaluation-harness (``--log_samples``) as a recorded evaluation.

A line is one document under one filter: ``doc_id, doc, target, arguments, resps, filtered_resps, filter, metrics`` and
the value of each metric (0.4.13). The language is the end of the task's name (``mgsm_direct_de``), the question id is
``doc_id``, so the languages of a parallel task share their questions. ``results_<date>.json`` beside it tells dtype,
chat template and versions; without it they count as unknown.

``rule="recorded"`` takes the harness' own verdict; ``standard`` and ``strict`` judge the whole response by our rules:
its ``flexible-extract`` counts "1.8" and "-18." as 18 and reads no Bengali digits.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from slamkern.data.languages import LANGUAGES
from slamkern.errors import SlamkernError
from slamkern.evaluation.recorded import RULES, Answer, Recorded
from slamkern.evaluation.scoring import judge, judge_strict
from slamkern.reading import iterate_lines, parse_json, read_text
from slamkern.schemas.check import Schema, check

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")


class _Arguments(Schema):
    gen_args_0: dict[str, Any]


class _Sample(Schema):
    doc_id: int | str
    filter: str
    target: Any
    resps: Annotated[list[Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    arguments: _Arguments
    metrics: Annotated[list[str], Field(min_length=1)]


class _Results(Schema):
    config: dict[str, Any]
    versions: dict[str, Any] = Field(default_factory=dict)
    shots: dict[str, Any] = Field(default_factory=dict, alias="n-shot")


def is_samples(path: str | Path) -> bool:
    """Whether this is a samples file of the harness or a folder that holds some."""
    path = Path(path)
    return bool(_NAME.fullmatch(path.name)) or (path.is_dir() and next(path.rglob("samples_*.jsonl"), None) is not None)


def read_samples(path: str | Path, rule: str = "recorded", filter_name: str | None = None) -> Recorded:
    """The samples in a file, or in all files below a folder (one a task: an older one of the same task is refused).

    SlamkernError, naming ``file:line``, for a line that is none of the harness, several filters and none chosen, a
    metric that is not right or wrong, and two tasks in one language.
    """
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("samples_*.jsonl"))
    tasks: dict[str, Path] = {}
    answers: dict[tuple[str, str], Answer] = {}
    settings: dict[str, Any] = {}
    model = "unknown"
    for file in files:
        named = _NAME.fullmatch(file.name)
        if named is None:
            raise SlamkernError(f"{file} is not named like samples_<task>_<date>.jsonl of lm-eval")
        task = named["task"]
        if task in tasks:
            raise SlamkernError(f"{path} holds two runs of {task} ({tasks[task].name}, {file.name}); give one file")
        tasks[task] = file
        stem, _, language = task.rpartition("_")
        if language not in LANGUAGES:
            stem, language = task, task
        if any(code == language for code, _ in answers):
            raise SlamkernError(f"{path} holds two tasks in {language}: {', '.join(tasks)}; compare one task at a time")
        rows = list(_rows(file, filter_name))
        model, run = _run_settings(file.with_name(f"results_{named['date']}.json"), task)
        for place, row in rows:
            answer = _answer(row, language, rule, place)
            answers[language, answer.question_id] = answer
            run |= _generation(row)
        run |= {"task": stem, "rule": RULES.get(rule) or f"{rows[0][1]['metrics'][0]} of {rows[0][1]['filter']}"}
        _merge(settings, run, language)
    return Recorded(str(path), model, settings, answers)


def _rows(file: Path, filter_name: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(file:line, sample)`` of every document once, under the filter asked for."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for number, line in enumerate(iterate_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        row = parse_json(line, place, constants=True)
        check(_Sample, line, f"{place}: not a sample of lm-eval")
        found.setdefault(row["filter"], []).append((place, row))
    if not found:
        raise SlamkernError(f"{file} holds no samples")
    if filter_name is None and len(found) > 1:
        raise SlamkernError(f"{file} holds the filters {', '.join(found)}; choose one (--filter)")
    if filter_name is not None and filter_name not in found:
        raise SlamkernError(f"{file} has no filter {filter_name!r}; it has {', '.join(found)}")
    yield from found[filter_name or next(iter(found))]


def _answer(row: dict[str, Any], language: str, rule: str, place: str) -> Answer:
    output, gold = row["resps"][0][0], str(row["target"])
    output = output if isinstance(output, str) else json.dumps(output)  # log-likelihoods of the choices
    if rule == "recorded":
        value = row.get(row["metrics"][0])
        if value not in (0, 1):
            raise SlamkernError(f"{place}: {row['metrics'][0]} is {value!r}, not right or wrong; use another rule")
        correct = bool(value)
    else:
        correct = judge(output, gold)[1] if rule == "standard" else judge_strict(output, gold, language)
    prompt = str(row["arguments"]["gen_args_0"].get("arg_0", ""))
    doc = row.get("doc")
    doc = doc if isinstance(doc, dict) else {}
    question = next((str(doc[name]) for name in ("m_query", "question", "query") if doc.get(name)), prompt)
    return Answer(str(row["doc_id"]), language, question, gold, output, correct, prompt=prompt)


def _generation(row: dict[str, Any]) -> dict[str, Any]:
    """How the harness let the model generate, from the arguments of a request."""
    options = row["arguments"]["gen_args_0"].get("arg_1")
    if not isinstance(options, dict):
        return {}
    settings = {"max_new_tokens": options.get("max_gen_toks"), "do_sample": options.get("do_sample")}
    return {name: value for name, value in settings.items() if value is not None} | {"stop": options.get("until", [])}


def _run_settings(results: Path, task: str) -> tuple[str, dict[str, Any]]:
    """Model and settings from the results file of the same run; nothing where there is none."""
    if not results.is_file():
        return "unknown", {}
    text = read_text(results)
    values = parse_json(text, str(results), constants=True)
    check(_Results, text, f"{results} is not a results file of lm-eval")
    found = {
        "dtype": str(values["config"].get("model_dtype", "")).removeprefix("torch.") or None,
        "chat template": values.get("chat_template_sha") or "none",
        "system instruction": values.get("system_instruction_sha") or "none",
        "few-shot examples": values.get("n-shot", {}).get(task),
        "task version": values.get("versions", {}).get(task),
        "lm-eval": values.get("lm_eval_version"),
    }
    return str(values.get("model_name", "unknown")), {name: value for name, value in found.items() if value is not None}


def _merge(settings: dict[str, Any], run: dict[str, Any], language: str) -> None:
    """Settings of all files; what differs by language (stop strings do) is kept by language."""
    for name, value in run.items():
        if name == "stop":
            settings.setdefault("stop", {})[language] = value
        elif settings.setdefault(name, value) != value:
            raise SlamkernError(
                f"the samples in {language} have another {name} than the others: {value!r} and {settings[name]!r}"
            )
