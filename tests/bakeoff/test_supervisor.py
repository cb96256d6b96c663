"""A whole bake-off on a tiny model: every kind of cell, the table and the page; resumed, extended, paused, failed."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from safetensors.torch import load_file, save_file
from support.tiny_bakeoff import in_one_process, tiny_bakeoff

from benchmarks import bakeoff as bakeoff_results
from benchmarks import results, tables
from slamkern.bakeoff import rows as measured
from slamkern.bakeoff import supervisor, table
from slamkern.bakeoff.config import changed
from slamkern.errors import SlamkernError
from slamkern.files import read_checked, write_checked

CELLS = [
    {"name": "full", "train": "full", "learning_rate": 1e-4},
    {"name": "lora", "train": "lora", "rank": 2},
    {"name": "low", "layers": "lowest:1", "why": "reading is low"},
    {"name": "attention", "train": "attention", "layers": "lowest:1"},
    {"name": "snr", "layers": "weight_snr:1", "projections": ["up"]},
    {"name": "gradient", "layers": "gradient_norm:1"},
    {"name": "rate", "layers": "rate_msd:1"},
    {"name": "neurons", "neurons": 0.1},
    {"name": "translation", "layers": "lowest:1", "align": {"target": "translation"}},
    {"name": "half", "train": "scaled", "of": "low", "scale": 0.5},
    {"name": "english-start", "train": "none", "reply_start": "So"},
]
FINAL = {"seeds": [0, 1], "evaluate": {"questions": [2, 4], "chrf_limit": 1}}


def test_every_kind_of_cell_comes_into_one_table(tmp_path, monkeypatch):
    started = in_one_process(monkeypatch)
    bakeoff = tiny_bakeoff(tmp_path, CELLS, finalists=1, final=FINAL)
    out = tmp_path / "out"
    assert supervisor.run(bakeoff, out, say=lambda _: None) == []

    rows = json.loads((out / "table.json").read_text())["rows"]
    screen = {row["cell"]: row for row in rows if row["round"] == "screen"}
    assert list(screen) == ["base", *(cell["name"] for cell in CELLS)]
    trained = {name: row["training"].get("trained_parameters") for name, row in screen.items() if row["training"]}
    up, attention = 32 * 64, 2 * 32 * 32 + 2 * 32 * 16
    assert trained == {
        "full": screen["full"]["training"]["total_parameters"], "low": 2 * up, "attention": attention, "snr": up,
        "gradient": 2 * up, "rate": 2 * up, "neurons": 2 * 2 * 6 * 32, "translation": 2 * up,
        "half": 2 * up,
        "lora": 2 * 2 * (3 * (32 + 64) + 2 * (32 + 32) + 2 * (32 + 16)),
    }  # fmt: skip
    base = screen["base"]["losses"]
    for name in trained:
        losses, distance = screen[name]["losses"], screen[name]["training"]["distance"]
        assert 0 < distance["relative_to_model"] <= distance["relative"] < 1
        if name != "translation":
            assert losses["reply"]["de"] < base["reply"]["de"], name
    low, half = (screen[name]["training"]["distance"] for name in ("low", "half"))
    assert low["tensors"] == half["tensors"] == 2 and half["relative"] == pytest.approx(low["relative"] / 2)
    assert screen["english-start"]["losses"] == base and not screen["english-start"]["training"]
    answers = screen["low"]["answers"]
    assert answers["languages"]["en"]["n"] == 2 and set(answers["responses"]) == {"en", "de"}

    final = [row for row in rows if row["round"] == "final"]
    best = {row["cell"] for row in final} - {"base"}
    assert len(best) == 1 and [row["seed"] for row in final] == [0, 0, 1] and final[0]["chrf"]
    with (out / "table.csv").open() as lines:
        assert [row["cell"] for row in csv.DictReader(lines)] == [row["cell"] for row in rows]
    page = (out / "report.html").read_text()
    assert "reading is low" in page and "Final: answers" in page and "data:image/png" in page

    # Done: nothing is started again. One more cell, and that one alone is.
    del started[:]
    assert supervisor.run(bakeoff, out, say=lambda _: None) == [] and started == []
    more = tiny_bakeoff(tmp_path, [*CELLS, {"name": "high", "layers": "highest:1"}], finalists=1,
                        final=FINAL)  # fmt: skip
    assert supervisor.run(more, out, say=lambda _: None) == []
    assert started[0] == "high-0-screen"
    other = [{**cell, "layers": "highest:1"} if cell["name"] == "low" else cell for cell in CELLS]
    with pytest.raises(SlamkernError, match="cell low was run, and layers was 'lowest:1', now 'highest:1'"):
        supervisor.run(tiny_bakeoff(tmp_path, other, finalists=1, final=FINAL), out)


def test_a_screen_without_questions_is_ranked_by_replies(tmp_path, monkeypatch):
    in_one_process(monkeypatch)
    cells = [{"name": "low", "layers": "lowest:1"}, {"name": "up", "layers": "lowest:1", "projections": ["up"]}]
    bakeoff = tiny_bakeoff(tmp_path, cells, finalists=1)
    bakeoff = bakeoff.model_copy(update={"run": bakeoff.run.model_copy(
        update={"evaluate": bakeoff.run.evaluate.model_copy(update={"task": None})})})  # fmt: skip
    supervisor.run(bakeoff, tmp_path / "out", say=lambda _: None)
    rows = {row["cell"]: table.flat(row) for row in measured.read_rows(bakeoff, tmp_path / "out")}
    assert rows["low"]["accuracy"] is None
    best = min(("low", "up"), key=lambda name: rows[name]["reply loss"])
    assert measured.finalists(bakeoff, tmp_path / "out") == [best]
    assert bakeoff_results.main([str(tmp_path / "out"), "--name", "tiny", "--results", str(tmp_path)]) == 0
    lines = tables.table("bakeoff", results.read_files(tmp_path))
    assert "| screen | low | 0 | 0 | 10.8 |" in lines and "accuracy" not in lines


def test_a_final_in_english_alone_says_nothing_of_other_languages(tmp_path, monkeypatch):
    in_one_process(monkeypatch)
    final = {"seeds": [0], "evaluate": {"languages": ["en"], "limit": 3}}
    bakeoff = tiny_bakeoff(tmp_path, [{"name": "low", "layers": "lowest:1"}], finalists=1, final=final)
    out = tmp_path / "out"
    assert supervisor.run(bakeoff, out, say=lambda _: None) == []
    rows = [table.flat(row) for row in measured.read_rows(bakeoff, out) if row["round"] == "final"]
    assert [row["questions"] for row in rows] == [3, 3] and all(row["accuracy"] is None for row in rows)
    assert all(row["English gained"] - row["English lost"] == pytest.approx(3 * (row["English"] - row["English base"])
                                                                            / 100) for row in rows)  # fmt: skip
    assert "Final: answers" in (out / "report.html").read_text()


def test_a_final_comes_after_the_screen_that_it_was_not_planned_with(tmp_path, monkeypatch):
    started = in_one_process(monkeypatch)
    cells = [{"name": "low", "layers": "lowest:1"}, {"name": "high", "layers": "highest:1"}]
    out, no_questions = tmp_path / "out", {"task": None}

    def go(**section):
        bakeoff = tiny_bakeoff(tmp_path, cells, **section)
        assert supervisor.run(changed_bakeoff(bakeoff, no_questions), out, say=lambda _: None) == []
        done = started[:]
        del started[:]
        return done

    def changed_bakeoff(bakeoff, evaluate):
        return bakeoff.model_copy(update={"run": changed(bakeoff.run, evaluate=evaluate)})

    go()
    asked = {"task": "corpus", "limit": 2}
    names = go(finalists=2, final={"seeds": [0, 1], "evaluate": asked})
    assert names[0] == "base-0-final" and sorted(names[1:3]) == ["high-0-final", "low-0-final"]
    assert sorted(names[3:]) == ["high-1-final", "low-1-final"]  # each once before any twice
    assert len(go(finalists=2, final={"seeds": [0, 1, 2], "evaluate": asked})) == 2
    rows = [row for row in json.loads((out / "table.json").read_text())["rows"] if row["round"] == "final"]
    assert len(rows) == 7 and all(row["answers"]["languages"]["de"]["n"] == 2 for row in rows)
    with pytest.raises(SlamkernError, match=r"bakeoff\.final\.evaluate\.limit was 2, now 3"):
        go(finalists=2, final={"seeds": [0, 1, 2], "evaluate": {"task": "corpus", "limit": 3}})
    with pytest.raises(SlamkernError, match=r"bakeoff\.final was .* now None"):
        go()


def test_a_base_model_that_changed_is_refused_by_every_task(tmp_path, monkeypatch):
    in_one_process(monkeypatch)
    low, high = {"name": "low", "layers": "lowest:1"}, {"name": "high", "layers": "weight_snr:1"}
    out, weights = tmp_path / "out", tmp_path / "model/model.safetensors"
    assert supervisor.run(tiny_bakeoff(tmp_path, [low]), out, say=lambda _: None) == []
    record = read_checked(out / "bakeoff.json")
    assert len(record.pop("base_weights")) == 64
    write_checked(out / "bakeoff.json", record)  # a folder of before goes on, and has its note from then on
    (out / "cells/low/seed-0/screen.json").unlink()
    assert supervisor.run(tiny_bakeoff(tmp_path, [low]), out, say=lambda _: None) == []
    more = tiny_bakeoff(tmp_path, [low, high])
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    said: list[str] = []
    assert supervisor.run(more, out, say=said.append) == ["weight_snr.json"]
    assert not list(out.glob("cells/high/*")) and not (out / "weight_snr.json").exists()
    log = (out / "logs/weight_snr.json.log").read_text()
    assert f"was begun with other weights of {tmp_path / 'model'}" in log


def test_layers_are_said_as_ranges():
    assert [table.ranges(layers) for layers in ([], [4], [0, 1, 2, 3, 17], [0, 2, 3])] == ["", "4", "0-3 17", "0 2-3"]


def test_what_fails_is_said_with_its_last_words_and_stops_nothing_else(tmp_path, monkeypatch):
    in_one_process(monkeypatch)
    bakeoff = tiny_bakeoff(tmp_path, [{"name": "low", "layers": "lowest:1"}])
    monkeypatch.setattr("slamkern.bakeoff.work.learn", lambda *_: 1 / 0)
    said: list[str] = []
    assert supervisor.run(bakeoff, tmp_path / "out", say=said.append) == ["low-0-screen"]
    assert any("low-0-screen FAILED: division by zero" in line for line in said)
    assert (tmp_path / "out/cells/base/seed-0/screen.json").exists()


def test_while_the_pause_file_exists_processes_are_stopped(tmp_path, monkeypatch):
    pause, told = tmp_path / "pause", []
    bakeoff = tiny_bakeoff(tmp_path, [{"name": "low", "layers": "lowest:1"}])

    def start(task, out, threads):
        assert threads == 3
        code = f"import time, pathlib; time.sleep(0.4); pathlib.Path({str(task.file)!r}).write_text('')"
        task.process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        told.append(task.process.pid)

    monkeypatch.setattr(supervisor, "_start", start)
    monkeypatch.setattr(supervisor, "write_results", lambda *_: None)
    monkeypatch.setattr(supervisor, "tasks_of", lambda _, out: [supervisor.Task("one", (), out / "one")])
    pause.touch()
    thread = threading.Thread(target=supervisor.run, args=(bakeoff, tmp_path / "out"),
                              kwargs={"threads": 3, "pause": pause, "say": lambda _: None})  # fmt: skip
    thread.start()
    time.sleep(0.5)
    assert not told
    pause.unlink()
    while not told:
        time.sleep(0.02)
    pause.touch()
    for _ in range(200):
        state = (tmp_path.__class__(f"/proc/{told[0]}/stat")).read_text().split()[2]
        if state == "T":
            break
        time.sleep(0.02)
    assert state == "T"
    os.killpg(told[0], signal.SIGCONT)
    pause.unlink()
    thread.join(timeout=30)
    assert not thread.is_alive() and (tmp_path / "out/one").exists()


def test_a_signal_stops_the_processes_too(tmp_path, monkeypatch):
    bakeoff = tiny_bakeoff(tmp_path, [{"name": "low", "layers": "lowest:1"}])
    started = []

    def start(task, out, threads):
        task.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        started.append(task.process)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(supervisor, "_start", start)
    with pytest.raises(SystemExit) as stopped:
        supervisor.run(bakeoff, tmp_path / "out", say=lambda _: None)
    assert stopped.value.code == 143
    assert started[0].wait(timeout=30) == -signal.SIGTERM


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path):
    bakeoff = tiny_bakeoff(tmp_path, [{"name": "low", "layers": "lowest:9"}])
    with pytest.raises(SlamkernError, match="k is 9"):
        supervisor.run(bakeoff, tmp_path / "out")
    absent = bakeoff.run.model_copy(update={"data": bakeoff.run.data.model_copy(update={"path": "absent"})})
    with pytest.raises(SlamkernError, match="no data at absent"):
        supervisor.run(bakeoff.model_copy(update={"run": absent}), tmp_path / "out")
    final = {"evaluate": {"english": "absent.txt"}}
    with pytest.raises(SlamkernError, match=r"absent\.txt"):
        supervisor.run(tiny_bakeoff(tmp_path, [{"name": "low"}], final=final), tmp_path / "out")
    assert not (tmp_path / "out").exists()
