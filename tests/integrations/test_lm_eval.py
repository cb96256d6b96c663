"""Our tasks in lm-evaluation-harness: the files, our rules on what it misjudges, the real harness where installed."""

import json

import pytest
import yaml
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern.cli.main import main
from slamkern.data.prompts import Prompt, get_prompt
from slamkern.data.tasks import load_task
from slamkern.errors import SlamkernError
from slamkern.evaluation.accuracy import evaluate
from slamkern.evaluation.lm_eval_samples import read_samples
from slamkern.integrations.lm_eval import process_results, write_tasks

OPTIONS = {"limit": 4, "max_new_tokens": 12, "prompt": "authors"}


@pytest.fixture
def msvamp(tmp_path):
    """Two questions in two languages, in the format of its files."""
    folder = tmp_path / "msvamp"
    folder.mkdir()
    for name, text in (("German", "Wie viele Äpfel sind {0} und 3?"), ("Bengali", "{0} টি আপেল?")):
        rows = [{"m_query": text.format(number), "response": f"{number}.0"} for number in (18, 80000)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"test_{name}.json").write_text("".join(lines))
    return folder


def test_a_folder_has_a_task_a_language_under_one_tag(msvamp, tmp_path, capsys):
    assert main(["harness", "--task", "msvamp", "--data", str(msvamp), "--out", str(tmp_path / "tasks")]) == 0
    assert "--tasks slamkern_msvamp_metamath " in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "tasks").iterdir())
    names = [f"slamkern_msvamp_metamath_{code}" for code in ("bn", "de")]
    assert files == sorted([*(f"{n}.{end}" for n in names for end in ("yaml", "jsonl")), "slamkern_rules.py"])
    text = (tmp_path / "tasks" / f"{names[1]}.yaml").read_text()
    assert text.endswith("process_results: !function slamkern_rules.process_results\n")
    values = yaml.safe_load(text.partition("process_results: ")[0])
    assert (values["task"], values["tag"]) == (names[1], "slamkern_msvamp_metamath")
    documents = [json.loads(line) for line in (tmp_path / "tasks" / f"{names[1]}.jsonl").read_text().splitlines()]
    question = load_task("msvamp", ["de"], msvamp)[0]
    assert documents[0]["prompt"] == get_prompt("metamath").question(question.question, "de")
    assert documents[0]["gold"] == "18.0"
    first = values["metadata"]["data_revision"]
    write_tasks(tmp_path / "one", "msvamp", ["de"], data=msvamp, limit=1)
    other = (tmp_path / "one" / f"{names[1]}.yaml").read_text()
    assert first not in other  # other data, another revision
    with pytest.raises(SlamkernError, match="has tasks slamkern_msvamp_metamath"):
        write_tasks(tmp_path / "tasks", "msvamp", ["de"], data=msvamp)
    with pytest.raises(SlamkernError, match="applies chat templates itself"):
        write_tasks(tmp_path / "chat", "msvamp", ["de"], data=msvamp, prompt=Prompt("chat", None))


@pytest.mark.parametrize(
    ("gold", "output", "language", "acc", "strict"),
    [
        ("18", "The answer is 1.8", "en", 0, 0),  # flexible-extract of the harness says right
        ("18", "The answer is -18.", "en", 1, 0),
        ("18", "উত্তর হল ১৮", "bn", 1, 1),  # and has no number here
        ("70000", "Es sind 70 000.", "de", 0, 1),
    ],
)
def test_answers_are_judged_by_our_rules(gold, output, language, acc, strict):
    assert process_results({"gold": gold, "language": language}, [output]) == {"acc": acc, "strict": strict}


@pytest.mark.slow
def test_the_harness_gives_the_answers_and_scores_of_evaluate(tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.config.max_position_embeddings = 2048
    tag = write_tasks(tmp_path / "tasks", "corpus", ["de", "th"], **OPTIONS)
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer), tasks=[tag], log_samples=True,
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
    )  # fmt: skip
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.model_name_sanitized = "tiny"
    tracker.save_results_aggregated(results, samples=results["samples"])
    for name, samples in results["samples"].items():
        tracker.save_results_samples(name, samples)
    ours = evaluate(model, tokenizer, "corpus", ["de", "th"], progress=False, **OPTIONS)
    theirs = read_samples(tmp_path / "out")
    for code, number in theirs.answers:
        expected = [row for row in ours.predictions if row.language == code][int(number)]
        assert theirs.answers[code, number].output.strip() == expected.output.strip()
        assert theirs.answers[code, number].correct == expected.correct
    for code in ("de", "th"):
        scores = results["results"][f"{tag}_{code}"]
        assert scores["acc,none"] == pytest.approx(ours.accuracy[code] / 100)
        assert scores["strict,none"] == pytest.approx(ours.strict[code] / 100)
