"""Samples of lm-evaluation-harness (lines as version 0.4.13 writes them) as a side of the comparison."""

import json

import pytest

from slamkern.errors import SlamkernError
from slamkern.evaluation.compare import compare
from slamkern.evaluation.lm_eval_samples import is_samples, read_samples

DATE = "2026-11-24T23-24-39.611301"
UNTIL = {"de": ["Frage:", "</s>"], "bn": ["প্রশ্ন:", "</s>"]}


def sample(
    number, response, target="18", language="de", prompt="Frage: Wie viele?\nAntwort:", exact=0.0, kind="flexible"
):
    filtered = response if kind != "flexible" else response.split()[-1]
    options = {"do_sample": False, "until": UNTIL[language], "max_gen_toks": 16}
    return {
        "doc_id": number, "doc": {"question": "Wie viele?", "answer_number": 18}, "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": options}},
        "resps": [[response]], "filtered_resps": [filtered], "filter": f"{kind}-extract", "metrics": ["exact_match"],
        "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "exact_match": exact,
    }  # fmt: skip


def write(folder, rows, task="mgsm_direct_de", dtype="torch.bfloat16", **more):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{DATE}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    results = {"config": {"model_dtype": dtype}, "model_name": folder.name, "chat_template_sha": None, **more}
    results |= {"n-shot": {task: 0}, "versions": {task: 4.0}, "lm_eval_version": "0.4.13"}
    (folder / f"results_{DATE}.json").write_text(json.dumps(results))
    return path


def test_both_sides_are_read_with_the_settings_of_their_run(tmp_path):
    before = write(tmp_path / "base", [sample(i, "Das sind 18", exact=1.0) for i in range(4)])
    write(tmp_path / "tuned", [sample(i, f"Das sind {17 + (i > 0)}", exact=float(i > 0)) for i in range(4)])
    result = compare(before, tmp_path / "tuned", drift=False)
    change = result.languages["de"]
    assert (change.n, change.before, change.after, change.lost) == (4, 100.0, 75.0, 1)
    assert result.lost[0][1].question_id == "0" and result.lost[0][1].question == "Wie viele?"
    assert result.unverified == ()
    assert result.settings["task"] == "mgsm_direct" and result.settings["rule"] == "exact_match of flexible-extract"
    assert result.settings["dtype"] == "bfloat16" and result.settings["max_new_tokens"] == 16


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "torch.float32"}, "dtype"),
        ({"chat_template_sha": "abc"}, "chat template"),
        ({"rows": [sample(0, "Das sind 18", prompt="Frage: Wie viele Eier?\nAntwort:")]}, "prompt"),
        ({"rows": [sample(0, "Das sind 18", target="19")]}, "data revision"),
        ({"rows": [sample(1, "Das sind 18")]}, "questions in de"),
    ],
)
def test_what_differs_is_refused(tmp_path, changed, named):
    before = write(tmp_path / "base", [sample(0, "Das sind 18")])
    after = write(tmp_path / "tuned", changed.pop("rows", [sample(0, "Das sind 18")]), **changed)
    with pytest.raises(SlamkernError, match=rf"cannot be compared.*: {named}"):
        compare(before, after)


def test_our_rules_read_what_the_filter_of_the_harness_misjudges(tmp_path):
    # Its flexible-extract and punctuation strip turn "1.8" into 18, and it reads no Bengali digits.
    path = write(tmp_path / "a", [sample(0, "Das sind 1.8", exact=1.0)])
    bengali = [sample(0, "উত্তর হল ১৮", language="bn", prompt="p", exact=0.0)]
    write(tmp_path / "a", bengali, task="mgsm_direct_bn")
    judged = {rule: read_samples(tmp_path / "a", rule) for rule in ("recorded", "standard", "strict")}
    verdicts = {rule: [side.answers[code, "0"].correct for code in ("de", "bn")] for rule, side in judged.items()}
    assert verdicts == {"recorded": [True, False], "standard": [False, True], "strict": [False, True]}
    assert judged["strict"].settings["stop"] == UNTIL
    assert is_samples(path) and is_samples(tmp_path / "a") and not is_samples(tmp_path / "none")


def test_several_filters_need_a_choice(tmp_path):
    rows = [sample(0, "Das sind 18", exact=1.0), sample(0, "Das sind 18", kind="strict")]
    path = write(tmp_path / "a", rows)
    with pytest.raises(SlamkernError, match="flexible-extract, strict-extract; choose one"):
        read_samples(path)
    assert [
        read_samples(path, filter_name=f"{k}-extract").answers["de", "0"].correct for k in ("flexible", "strict")
    ] == [
        True,
        False,
    ]
    with pytest.raises(SlamkernError, match="no filter 'x'"):
        read_samples(path, filter_name="x")


def test_damaged_and_ambiguous_files_are_refused_by_place(tmp_path):
    path = write(tmp_path / "a", [sample(0, "18"), {"filter": "flexible-extract"}])
    with pytest.raises(SlamkernError, match=rf"{path.name}:2: not a sample of lm-eval: doc_id: Field required"):
        read_samples(path)
    for change in ({"metrics": [["a"]]}, {"arguments": {"gen_args_0": []}}, {"resps": [[]]}, {"doc_id": None}):
        write(tmp_path / "a", [sample(0, "18") | change])
        with pytest.raises(SlamkernError, match=rf"{path.name}:1: not a sample of lm-eval: {next(iter(change))}"):
            read_samples(path)
    path.write_text("")
    with pytest.raises(SlamkernError, match="holds no samples"):
        read_samples(path)
    write(tmp_path / "a", [sample(0, "18", exact=0.5)])
    with pytest.raises(SlamkernError, match=r"exact_match is 0\.5, not right or wrong"):
        read_samples(path)
    write(tmp_path / "a", [sample(0, "18")])
    write(tmp_path / "a", [sample(0, "18")], task="msvamp_de")
    with pytest.raises(SlamkernError, match="two tasks in de"):
        read_samples(tmp_path / "a")
    (tmp_path / "a" / "samples_mgsm_direct_de_2026-11-25T01-00-00.000000.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(SlamkernError, match="two runs of mgsm_direct_de"):
        read_samples(tmp_path / "a")
