"""Every command that writes a folder, on a full disk: one line that names the place, and nothing is left there."""

from pathlib import Path

import pytest
from support.commands import COMMANDS, arguments, fails
from support.full_disk import file_limit


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("fold", "revert")])  # as scale
def test_full_disk(name: str, model: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    with file_limit() as limit:
        limit(256)  # enough to say who holds the folder
        fails(arguments(name, model, work, tmp_path / "out"), capsys, "File too large", str(tmp_path))
    assert not list(tmp_path.iterdir())
