"""Which tasks there are, what each waits for, and how often that is asked."""

import subprocess
import sys

from support.tiny_bakeoff import tiny_bakeoff

from slamkern.bakeoff import supervisor


def test_two_tasks_never_train_the_same_cell_at_once(tmp_path, monkeypatch):
    twice, thrice = ({"name": f"x{scale}", "train": "scaled", "of": "low", "scale": scale} for scale in (2, 3))
    cells = [twice, {"name": "low", "layers": "lowest:1"}, thrice]
    bakeoff = tiny_bakeoff(tmp_path, cells, finalists=2, final={"seeds": [7]})
    tasks = supervisor.tasks_of(bakeoff, tmp_path)
    for task in tasks:
        task.file.parent.mkdir(parents=True, exist_ok=True)
        task.file.touch()
    monkeypatch.setattr(supervisor, "finalists", lambda *_: ["x2", "x3"])
    tasks += [task for task in supervisor.tasks_of(bakeoff, tmp_path) if task.name.endswith("final")]
    names = {task.file: task.name for task in tasks}
    waits = {task.name: {names[file] for file in task.after} - {"replies.json"} for task in tasks}
    assert waits["x2-0-screen"] == set() and waits["low-0-screen"] == waits["x3-0-screen"] == {"x2-0-screen"}
    assert waits["x2-7-final"] == set() and waits["x3-7-final"] == {"x2-7-final"}


def test_finalists_are_chosen_once(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(supervisor, "finalists", lambda *_: chosen.append(1) or ["low"])
    monkeypatch.setattr(supervisor, "write_results", lambda *_: None)

    def start(task, out, threads):
        task.file.parent.mkdir(parents=True, exist_ok=True)
        wait = 1 if "final" in task.name else 0
        code = f"import time, pathlib; time.sleep({wait}); pathlib.Path({str(task.file)!r}).touch()"
        task.process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    monkeypatch.setattr(supervisor, "_start", start)
    bakeoff = tiny_bakeoff(tmp_path, [{"name": "low", "layers": "lowest:1"}], final={"seeds": [0]})
    assert supervisor.run(bakeoff, tmp_path / "out", lanes=3, say=lambda _: None) == []
    assert (tmp_path / "out/cells/low/seed-0/final.json").exists() and len(chosen) <= 2  # at its begin and at its end
