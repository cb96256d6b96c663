"""Our tasks for lm-evaluation-harness: a folder for its ``--include_path``, with our prompts and our rules.

The harness has no MSVAMP, its MGSM asks in other words, and its number filter counts "1.8" and "-18." as 18 and reads
no Bengali digits. `write_tasks` writes, for each language, the questions with their prompts as JSON lines and a task
over them, under one tag. Prompts come from `prompts`, questions from `tasks` and verdicts from `scoring`, so that
``slamkern evaluate`` and the harness ask and judge the same. The folder holds the data: a run fetches nothing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slamkern.data.prompts import Prompt, get_prompt
from slamkern.data.tasks import Question, load_task
from slamkern.errors import SlamkernError
from slamkern.evaluation.scoring import judge, judge_strict
from slamkern.files import write_text
from slamkern.version import __version__

RULES_FILE = "slamkern_rules.py"
_RULES = '"""How slamkern judges an answer, for the tasks of this folder."""\n\n'
_RULES += "from slamkern.integrations.lm_eval import process_results  # noqa: F401\n"


def write_tasks(
    folder: str | Path,
    task: str,
    languages: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    prompt: str | Prompt = "metamath",
    limit: int | None = None,
    max_new_tokens: int = 512,
    stop: Sequence[str] = (),
) -> str:
    """Write the tasks ``slamkern_<task>_<prompt>_<language>`` into ``folder``; returns the tag of all of them.

    The arguments are those of ``evaluate``. For a chat model take ``prompt="{instruction}"`` and let the harness apply
    its template (``--apply_chat_template``). Raises SlamkernError for the prompt ``chat`` (its template is the
    tokenizer's), and for a folder that has such tasks.
    """
    prompt = get_prompt(prompt) if isinstance(prompt, str) else prompt
    if prompt.template is None:
        raise SlamkernError("the harness applies chat templates itself: use prompt '{instruction}' here")
    questions = load_task(task, languages, data, limit)
    folder, tag = Path(folder).resolve(), f"slamkern_{task}_{prompt.name}"
    if next(folder.glob(f"{tag}_*.yaml"), None) is not None:
        raise SlamkernError(f"{folder} has tasks {tag}; choose another folder or remove them")
    for language in dict.fromkeys(question.language for question in questions):
        name = f"{tag}_{language}"
        here = [question for question in questions if question.language == language]
        lines = [json.dumps(_document(question, prompt), ensure_ascii=False) + "\n" for question in here]
        write_text(folder / f"{name}.jsonl", "".join(lines))
        revision = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
        values = _task(name, tag, folder / f"{name}.jsonl", revision, max_new_tokens, stop)
        # Not a value of YAML but the harness' own tag: a function in a file beside this one.
        function = f"process_results: !function {Path(RULES_FILE).stem}.process_results\n"
        write_text(folder / f"{name}.yaml", yaml.safe_dump(values, allow_unicode=True, sort_keys=False) + function)
    write_text(folder / RULES_FILE, _RULES)
    return tag


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The metrics of one answer: ``acc`` by the standard rule and ``strict`` by the strict one (see `scoring`)."""
    output, gold = results[0], str(doc["gold"])
    return {"acc": float(judge(output, gold)[1]), "strict": float(judge_strict(output, gold, doc["language"]))}


def _document(question: Question, prompt: Prompt) -> dict[str, str]:
    return {
        "id": question.id,
        "language": question.language,
        "question": question.question,
        "prompt": prompt.question(question.question, question.language),
        "gold": question.gold,
    }


def _task(name: str, tag: str, file: Path, revision: str, max_new_tokens: int, stop: Sequence[str]) -> dict[str, Any]:
    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": name,
        "tag": tag,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {"do_sample": False, "until": list(stop), "max_gen_toks": max_new_tokens},
        "metric_list": [{"metric": metric, **mean} for metric in ("acc", "strict")],
        "metadata": {"version": 1.0, "slamkern": __version__, "data_revision": revision},
    }
