"""Safetensors files of ours: what was written comes back, and any other content is refused."""

import json
import os
import struct
import time
import traceback
from pathlib import Path

import pytest
import torch

from slamkern import files
from slamkern.errors import SlamkernError
from slamkern.evaluation.predictions import PredictionLog
from slamkern.files import atomic_folder, load_tensors, save_tensors, write_json, write_text
from slamkern.schemas.predictions import Prediction

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.ones(5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(7),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}
METADATA = {"slamkern_version": "1", "languages": ["de", "th"]}


def test_tensors_and_metadata_come_back(tmp_path):
    save_tensors(tmp_path / "x", TENSORS, METADATA)
    tensors, metadata = load_tensors(tmp_path / "x", "test")
    assert metadata == METADATA and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, TENSORS[name]) and tensor.dtype == TENSORS[name].dtype
               for name, tensor in tensors.items())  # fmt: skip


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, TENSORS, METADATA)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            tensors, metadata = load_tensors(path, "test")
        except SlamkernError as error:
            assert str(path) in str(error) and "\n" not in str(error)  # noqa: PT017  (not every flip is an error)
        else:
            assert metadata == METADATA and tensors.keys() == TENSORS.keys(), position
            assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items()), position
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(SlamkernError):
            load_tensors(path, "test")


def test_a_shape_changed_in_the_header_is_refused(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, TENSORS, METADATA)
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    header["a"]["shape"] = [4, 3]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises(SlamkernError, match="'a' is not what was written"):
        load_tensors(path, "test")


@pytest.fixture
def synced(monkeypatch):
    """What reaches the disk, in order: names of files that were synced, and of the targets of renames."""
    events, fsync, replace = [], os.fsync, os.replace

    def record_sync(handle):
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name.strip('.').split('.')[0]}")
        fsync(handle)

    def record_rename(source, target):
        events.append(f"rename {Path(target).name.split('.')[0]}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    return events


def test_content_is_on_disk_before_its_name_and_the_name_before_what_follows(tmp_path, synced):
    write_json(tmp_path / "values.json", {})
    assert synced == ["sync values", "rename values", f"sync {tmp_path.name}"]
    synced.clear()
    with atomic_folder(tmp_path / "checkpoint-1") as folder:
        (folder / "inner").mkdir()
        (folder / "inner/state.txt").write_text("1")
    assert sorted(synced[:2]) == ["sync inner", "sync state"]
    assert synced[2:] == ["sync checkpoint-1", "rename checkpoint-1", f"sync {tmp_path.name}"]


def test_predictions_are_on_disk_before_the_record_that_knows_their_hash(tmp_path, synced):
    with PredictionLog(tmp_path, {"task": "mgsm"}) as log:
        log.add(Prediction("q", "de", "?", "1", "1", 1.0, True))
        synced.clear()
        log.finish(["q"], dict.fromkeys(("task", "prompt", "rule"), "x"))
    folder = f"sync {tmp_path.name}"
    assert synced == ["sync predictions", "rename predictions", folder, "sync evaluation", "rename evaluation", folder]


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "x"
    opened = files.safe_open

    def replaced_meanwhile(*arguments, **options):
        file = opened(*arguments, **options)  # has read the header, no tensor
        if contents:
            save_tensors(path, {"a": torch.full((5,), contents.pop())}, METADATA)
        return file

    monkeypatch.setattr(files, "safe_open", replaced_meanwhile)
    contents = [3.0, 2.0]
    save_tensors(path, {"a": torch.full((5,), 1.0)}, METADATA)
    assert load_tensors(path, "test")[0]["a"].tolist() == [3.0] * 5 and not contents


def in_processes(count, work):
    """``work(number)`` in so many processes at once; whether each ended without an error."""
    begin, go = os.pipe()
    children = []
    for number in range(count):
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.close(go)
                os.read(begin, 1)  # until the last one is there
                work(number)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    os.close(begin)
    os.close(go)
    return [os.waitpid(child, 0)[1] == 0 for child in children]


def test_processes_that_write_one_name_never_mix(tmp_path):
    """Whoever reads finds one of the contents as a whole, at any moment, and no temporary file is left."""
    texts = [str(number) * 50_000 for number in range(3)]
    path, tensors = tmp_path / "values.txt", tmp_path / "values.safetensors"
    write_text(path, texts[0])
    save_tensors(tensors, {"a": torch.zeros(5_000)}, METADATA | {"of": 0})

    def work(number):
        for _ in range(15):
            write_text(path, texts[number])
            save_tensors(tensors, {"a": torch.full((5_000,), float(number))}, METADATA | {"of": number})
            assert path.read_text() in texts
            found, metadata = load_tensors(tensors, "test")
            assert set(found["a"].tolist()) == {float(metadata["of"])}

    assert in_processes(3, work) == [True] * 3
    assert sorted(tmp_path.iterdir()) == [tensors, path]


def test_of_processes_that_make_one_folder_one_does(tmp_path):
    def work(number):
        with atomic_folder(tmp_path / "made") as folder:
            for name in "ab":
                write_text(folder / name, str(number))
            time.sleep(0.1)  # so that none is done before the others begin

    assert sorted(in_processes(3, work)) == [False, False, True]
    assert len({(tmp_path / "made" / name).read_text() for name in "ab"}) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]
