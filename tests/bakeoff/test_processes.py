"""A bake-off of several processes: each cell in one of them, once, and the table is that of one process."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from support.processes import launch
from support.tiny_bakeoff import in_one_process, tiny_bakeoff

from slamkern import distributed
from slamkern.bakeoff import supervisor
from slamkern.bakeoff.board import Board

CELLS = [{"name": "low", "layers": "lowest:1"}, {"name": "high", "layers": "highest:1"}]


def test_two_processes_share_the_cells_and_the_table_is_that_of_one(tmp_path, monkeypatch):
    bakeoff = tiny_bakeoff(tmp_path, CELLS)
    with monkeypatch.context() as patch:
        in_one_process(patch)
        assert supervisor.run(bakeoff, tmp_path / "one", say=lambda _: None) == []

    def work(rank):
        said = []
        assert supervisor.run(bakeoff, tmp_path / "two", threads=1, say=said.append) == []
        return said

    said = launch(2, work)
    assert all(line.split()[1:3] == ["process", f"{rank}:"] for rank in (0, 1) for line in said[rank])
    done = [[line.split()[-2] for line in lines if line.endswith("done")] for lines in said]
    assert sorted(done[0] + done[1]) == sorted(
        ["replies.json", *(f"{cell}-0-screen" for cell in ("base", "low", "high"))]
    )
    assert done[0] and done[1]
    one, two = (json.loads((tmp_path / name / "table.json").read_text())["rows"] for name in ("one", "two"))
    assert [row["cell"] for row in two] == [row["cell"] for row in one] == ["base", "low", "high"]
    for ours, theirs in zip(two, one, strict=True):
        assert ours["answers"] == theirs["answers"]
        for kind, losses in theirs["losses"].items():
            assert ours["losses"][kind] == pytest.approx(losses, rel=1e-5), kind


@pytest.fixture
def short_tasks(monkeypatch):
    """Tasks a, and then b to g, of 0.2 s each: in their files stands which process did them. c fails."""

    def tasks_of(_, out):
        first = supervisor.Task("a", (), out / "a")
        return [first, *(supervisor.Task(name, (), out / name, (first.file,)) for name in "bcdefg")]

    def start(task, out, threads):
        with (out / "started").open("a") as lines:
            lines.write(f"{task.name}\n")
        (out / "logs").mkdir(exist_ok=True)
        (out / "logs" / f"{task.name}.log").write_text("no luck\n")
        write = f"pathlib.Path({str(task.file)!r}).write_text('{distributed.rank()}')" if task.name != "c" else "1 / 0"
        code = f"import time, pathlib; time.sleep(0.2); {write}"
        task.process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)

    monkeypatch.setattr(supervisor, "_start", start)
    monkeypatch.setattr(supervisor, "write_results", lambda *_: None)
    monkeypatch.setattr(supervisor, "tasks_of", tasks_of)


def test_four_processes_do_every_task_once_and_agree_on_what_failed(tmp_path, short_tasks):
    bakeoff, out = tiny_bakeoff(tmp_path, CELLS), tmp_path / "out"
    assert launch(4, lambda _: supervisor.run(bakeoff, out, say=lambda _: None)) == [["c"]] * 4
    assert Counter((out / "started").read_text().split()) == Counter("abcdefg")
    assert len({(out / name).read_text() for name in "bdefg"}) > 1  # those that waited for the first were there

    (out / "started").unlink()  # the next job tries again what failed, and that alone
    assert launch(2, lambda _: supervisor.run(bakeoff, out, say=lambda _: None)) == [["c"]] * 2
    assert (out / "started").read_text().split() == ["c"]


def test_a_board_is_busy_until_what_was_taken_has_ended(monkeypatch):
    def work(rank):
        board = Board()
        states = [board.busy]
        distributed.wait()
        mine = board.take("task")
        distributed.wait()
        states += [board.busy, board.taken("task"), board.taken("other")]
        distributed.wait()
        if mine:
            board.end("task")
        distributed.wait()
        return mine, [*states, board.busy, board.take("task")]

    (first, ours), (second, theirs) = launch(2, work)
    assert first != second
    assert ours == theirs == [False, True, True, False, False, False]
    # A launcher that starts the processes of a job again keeps the store; what was taken before is not taken now.
    assert (Board().take("task"), Board().take("task")) == (True, True)


def test_a_program_beside_the_job_knows_nothing_of_it_but_its_gpu(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "1", "HOME_RANK": "x",
                        "TORCHELASTIC_RUN_ID": "r", "CUDA_VISIBLE_DEVICES": "4,6"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = distributed.environment_alone()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID"} & found.keys()
    assert found["CUDA_VISIBLE_DEVICES"] == "6" and found["HOME_RANK"] == "x"
