"""One owner a folder: the same settings go on, others are refused, and one process at a time."""

import json
import subprocess
import sys

import pytest
from support.full_disk import file_limit

from slamkern.errors import SlamkernError
from slamkern.files import write_checked
from slamkern.run_folder import RunFolder, difference

SETTINGS = {"k": 3, "layers": (0, 1), "data": {"path": "corpus:", "limit": None}}


def begin(path, settings=SETTINGS, **notes):
    with RunFolder(path, "pipeline") as folder:
        folder.claim(settings)
        folder.notes = notes
        folder.save()
        (path / "result").write_text("1")


def test_the_same_settings_go_on_with_what_was_noted(tmp_path):
    begin(tmp_path / "a", seconds={"probe": 1.5})
    with RunFolder(tmp_path / "a", "pipeline") as folder:
        assert folder.began
        folder.claim(SETTINGS)
        assert folder.notes == {"seconds": {"probe": 1.5}}
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert list(record) == ["slamkern_version", "kind", "settings", "seconds", "sha256"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["result", "run.json"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SETTINGS, "k": 4}, "k was 3, now 4"),
        ({**SETTINGS, "data": {"path": "corpus:", "limit": 2}}, r"data\.limit was None, now 2"),
        ({**SETTINGS, "seed": 0}, "seed was None, now 0"),
        ({**SETTINGS, "layers": list(range(50))}, r"layers was \[0, 1\], now .* \.\.\. \(190 characters\)"),
    ],
)
def test_other_settings_are_refused_with_the_first_that_differs(tmp_path, settings, words):
    begin(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SlamkernError, match=f"holds another run: {words}"), RunFolder(tmp_path, "pipeline") as folder:
        folder.claim(settings)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_record_without_results_binds_nobody(tmp_path):
    begin(tmp_path)
    (tmp_path / "result").unlink()
    begin(tmp_path, {"k": 9})
    assert difference(json.loads((tmp_path / "run.json").read_text())["settings"], {"k": 9}) is None


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "holds result, but no run.json"),
        ("{", "not JSON"),
        ("[]", "not what slamkern wrote: it has no sha256"),
        ({"kind": "training", "settings": {}}, "is of a slamkern training run; expected one of kind pipeline"),
    ],
)
def test_folders_of_others_are_refused(tmp_path, record, words):
    (tmp_path / "result").write_text("mine")
    if isinstance(record, dict):
        write_checked(tmp_path / "run.json", record)
    elif record is not None:
        (tmp_path / "run.json").write_text(record)
    with pytest.raises(SlamkernError, match=words), RunFolder(tmp_path, "pipeline") as folder:
        folder.claim(SETTINGS)
    assert not (tmp_path / ".lock").exists()


def test_a_folder_in_which_nothing_was_written_is_gone(tmp_path):
    with RunFolder(tmp_path / "new", "pipeline") as folder:
        folder.claim(SETTINGS)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    begin(tmp_path)
    (tmp_path / ".checkpoint-3.x.tmp").mkdir()
    (tmp_path / ".run.json.x.tmp").write_text("{")
    for name in ("figures", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".loss.png.x.tmp").touch()
    with RunFolder(tmp_path, "pipeline", inside=["figures", "evaluation"]) as folder:
        folder.claim(SETTINGS)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["figures", "notes", "notes/.loss.png.x.tmp", "result", "run.json"]


def test_a_full_disk_leaves_no_lock(tmp_path):
    with file_limit() as limit:
        limit(0)
        with pytest.raises(OSError, match="File too large"):
            begin(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    begin(tmp_path / "a")


HOLD = """
import sys
from slamkern.files import write_checked
from slamkern.run_folder import RunFolder
with RunFolder(sys.argv[1], "pipeline"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends_or_dies(tmp_path):
    for ending in ("close", "kill"):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(SlamkernError, match=f"in use by process {holder.pid} on .*; wait until") as caught:
                begin(tmp_path)
            assert "\n" not in str(caught.value)
            if ending == "kill":
                holder.kill()
            else:
                holder.stdin.close()
            holder.wait()
        begin(tmp_path)
