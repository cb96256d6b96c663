"""The files of a comparison: they say the same, and outputs of models cannot break them."""

import json
from xml.etree import ElementTree

from slamkern.evaluation.compare import compare
from slamkern.evaluation.scoring import summarize
from slamkern.report.comparison import cut_short, write_comparison
from slamkern.schemas.predictions import Prediction

EVIL = "<script>alert('x')</script> & \x00\x1b[31m ]]>"


def evaluation(rights, task="mgsm", output=""):
    rows = [
        Prediction(f"mgsm-{code}-{i}", code, f"question {i} {output}", "1", f"{output} {1 if right else 2}", 0.0, False)
        for code, row in rights.items()
        for i, right in enumerate(row)
    ]
    return summarize(rows, task=task, model="m", prompt="p", max_new_tokens=8)


def test_html_json_and_junit_agree(tmp_path):
    before = evaluation({"th": [1] * 300, "en": [1, 0] * 5})
    after = evaluation({"th": [1] * 200 + [0] * 100, "en": [1, 0] * 5})
    result = compare(before, after, drift=False)
    assert [change.verdict for change in result.languages.values()] == ["worse", "cannot tell"]
    values, page, suite = (path.read_text(encoding="utf-8") for path in write_comparison(result.to_dict(), tmp_path))
    values = json.loads(values)
    assert values["verdict"] == "worse" and values["exit_status"] == 1 and values["languages"]["th"]["lost"] == 100
    assert len(values["lost"]) == 100
    assert '<td>th</td><td class="worse">worse</td><td>300</td>' in page
    assert "After is <b" in page and page.count("<details>") == 100 and "http" not in page
    tree = ElementTree.fromstring(suite).find("testsuite")
    assert {key: tree.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "3", "failures": "2", "skipped": "1",
    }  # fmt: skip
    cases = {case.get("name"): case for case in tree}
    assert list(cases) == ["th", "en", "average"]
    assert cases["th"].find("failure").get("message").startswith("worse: questions 300, before % 100.0")
    assert cases["th"].find("failure").text.count("th ") == 100
    assert cases["en"].find("skipped") is not None


def test_settings_are_written_as_one_reads_them(tmp_path):
    same = evaluation({"th": [1] * 30})
    values = compare(same, same, drift=False).to_dict()
    values["settings"] |= {"data revision": {"th": {"rows": 300, "sha256": "0a" * 32}}, "stop": ["Q:", "A:"]}
    page = write_comparison(values, tmp_path)[1].read_text()
    assert "<dd>th: rows: 300, sha256: 0a0a0a0a0a0a</dd>" in page and "<dd>Q:, A:</dd>" in page


def test_outputs_of_models_are_escaped(tmp_path):
    before, after = (evaluation({"th": [right] * 200}, task=EVIL, output=EVIL) for right in (1, 0))
    _, page, suite = write_comparison(compare(before, after, drift=False).to_dict(), tmp_path)
    assert "<script" not in page.read_text() and "&lt;script&gt;" in page.read_text()
    failure = ElementTree.parse(suite).find(".//failure")
    assert "<script>alert('x')</script> & \ufffd\ufffd[31m ]]>" in failure.text


def test_answers_that_were_cut_are_said_beside_the_verdict(tmp_path):
    def sides(cut):
        rows = [
            Prediction(f"mgsm-de-{i}", "de", f"question {i}", "1", "Es sind 1", 1.0, True, truncated=i < cut)
            for i in range(20)
        ]
        return summarize(rows, task="mgsm", model="m", prompt="p", max_new_tokens=8)

    few, many = (compare(sides(1), sides(cut)).to_dict() for cut in (2, 3))
    assert cut_short(few) is None and cut_short(compare(sides(9), sides(9), drift=False).to_dict()) is None
    said = cut_short(many)
    assert said is not None and "cut at 8 new tokens" in said and "15 % (de, after)" in said
    assert said in write_comparison(many, tmp_path)[1].read_text()
