"""Logs and metadata of a training: what was written comes back, anything else is refused by its place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from slamkern.errors import SlamkernError
from slamkern.files import save_tensors, sealed, write_checked
from slamkern.schemas.training import read_delta, read_held_out, read_state, read_steps

ROW = {
    "step": 1, "loss": 2.5, "lr": 1e-5, "grad_norm": 1.5, "tokens": 90, "supervised_tokens": 40,
    "tokens_per_second": 100.0, "peak_memory_bytes": 1000, "padding_share": 0.25,
}  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(sealed(row)) + "\n" for row in rows))
    return path


def test_every_changed_bit_of_a_line_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", ROW, ROW | {"step": 2})
    assert read_steps(path) == [ROW, ROW | {"step": 2}]
    whole = path.read_bytes()
    for position in range(whole.index(b"\n")):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 7
        path.write_bytes(damaged)
        try:
            assert read_steps(path) == [ROW, ROW | {"step": 2}], position
        except SlamkernError as error:
            assert str(path) in str(error) and "\n" not in str(error)  # noqa: PT017  (not every flip is an error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 2}, "step 2 where step 1 should be"), ({"step": True}, "step: "), ({"tokens": 0}, "tokens: "),
        ({"tokens": 1.5}, "tokens: "), ({"loss": None}, "loss: "), ({"lr": -1.0}, "lr: "), ({"lr": "1"}, "lr: "),
        ({"tokens_per_second": 0}, "tokens_per_second: "), ({"padding_share": 1}, "padding_share: "),
    ],
)  # fmt: skip
def test_steps_that_no_training_takes(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "metrics.jsonl", ROW | change)
    with pytest.raises(SlamkernError) as caught:
        read_steps(path)
    assert str(caught.value).startswith(f"{path}:1: {words}")


def test_a_line_without_its_hash_or_a_value(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    with pytest.raises(SlamkernError, match=r"jsonl:1 is not what slamkern wrote"):
        read_steps(path)
    write(path, {name: value for name, value in ROW.items() if name != "lr"})
    with pytest.raises(SlamkernError, match=r"jsonl:1: lr: Field required"):
        read_steps(path)


@pytest.mark.parametrize("values", [{}, {"before": "1"}, {"before": -1.0}, {"before": 1.0, "after": True}])
def test_held_out_losses(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "held_out.json"
    write_checked(path, {"before": 2.5, "after": 1.5})
    assert read_held_out(path) == {"before": 2.5, "after": 1.5}
    path.write_text(path.read_text().replace("2.5", "2.4"))
    with pytest.raises(SlamkernError, match="damaged"):
        read_held_out(path)
    write_checked(path, values)
    with pytest.raises(SlamkernError, match=r"held_out\.json: (before|after): "):
        read_held_out(path)


@pytest.mark.parametrize(
    ("read", "good", "change"),
    [
        (read_delta, {"format": "slamkern-delta", "signature": "s", "base_model": "", "frozen_weights": {}},
         {"frozen_weights": {"w": "0"}}),
        (read_delta, {"format": "slamkern-delta", "signature": "s", "base_model": "", "frozen_weights": {}},
         {"made_from": "elsewhere"}),
        (read_state, {"format": "training-state", "step": 3, "fingerprint": "f"}, {"step": 0}),
        (read_state, {"format": "training-state", "step": 3, "fingerprint": "f"}, {"format": "slamkern-delta"}),
    ],
)  # fmt: skip
def test_metadata_beside_tensors(tmp_path: Path, read: Any, good: dict[str, Any], change: dict[str, Any]) -> None:
    path = tmp_path / "x.safetensors"
    for values in (good, good | change):
        save_tensors(path, {"w": torch.zeros(2)}, {"slamkern_version": "1"} | values)
        if values is good:
            assert "w" in next(part for part in read(path) if isinstance(part, dict))
            continue
        with pytest.raises(SlamkernError, match=rf"x\.safetensors is not a .*: {next(iter(change))}"):
            read(path)
