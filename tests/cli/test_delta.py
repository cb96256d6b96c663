"""``slamkern delta``: each command once, and one line for what is wrong."""

import pytest
import torch
from support.tiny_causal_lm import save_folder, tiny_model

from slamkern.cli.main import main
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.checkpoint import save_delta


@pytest.fixture
def folders(tmp_path):
    model = tiny_model()
    save_folder(tmp_path / "base", model)
    selection = LayerSelection(layers=(0, 1))
    with torch.no_grad():
        for tensor in apply_selection(model, selection):
            tensor.parameter.mul_(1.5)
    save_delta(model, tmp_path / "trained", selection)
    return str(tmp_path / "base"), str(tmp_path / "trained")


def test_each_command_writes_a_delta(folders, tmp_path, capsys):
    base, trained = folders
    half, one, both, best = (str(tmp_path / name) for name in ("half", "one", "both", "best"))
    assert main(["delta", "scale", trained, "--by", "0.5", "--model", base, "--out", half]) == 0
    assert main(["delta", "revert", trained, "--layers", "1", "--out", one]) == 0
    assert main(["delta", "merge", half, one, "--model", base, "--out", both]) == 0
    data = ["--data", "corpus:", "-l", "de", "-s", "data.limit=6", "-s", "data.held_out=2"]
    prompt = ["-s", "train.prompt=authors"]
    sweep = ["delta", "sweep", trained, "--scales", "0,1", "--model", base, *data, *prompt, "--out", best]
    assert main(sweep) == 0
    assert "best" in capsys.readouterr().out
    assert main(["export", "--model", base, "--delta", both, "--out", str(tmp_path / "full")]) == 0


def test_a_delta_goes_to_an_adapter_and_back(folders, tmp_path, capsys):
    pytest.importorskip("peft")
    base, trained = folders
    adapter, folded = str(tmp_path / "adapter"), str(tmp_path / "folded")
    assert main(["delta", "lora", trained, "--rank", "8", "--model", base, "--out", adapter]) == 0
    assert "rank 8 leaves out" in capsys.readouterr().out
    assert main(["delta", "fold", adapter, "--model", base, "--out", folded]) == 0
    assert main(["export", "--model", base, "--delta", folded, "--out", str(tmp_path / "full")]) == 0
    assert main(["delta", "fold", trained, "--model", base, "--out", str(tmp_path / "no")]) == 2
    assert "cannot be merged into this model" in capsys.readouterr().err


def test_a_selection_is_printed_for_axolotl(folders, capsys):
    base, trained = folders
    assert main(["unfrozen", trained, "--model", base]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "unfrozen_parameters:" and len(lines) == 5
    assert lines[1] == r"- ^model\.layers\.0\.mlp\.up_proj\.weight$"


def test_one_line_for_what_is_wrong(folders, tmp_path, capsys):
    base, trained = folders
    out = ["--out", str(tmp_path / "out")]
    for arguments, words in (
        (["merge", trained, "--model", base, *out], "use slamkern delta scale"),
        (["merge", trained, trained, "--weights", "1", "--model", base, *out], "1 weights for 2 deltas"),
        (["revert", trained, "--layers", "one", *out], "'one' are not numbers"),
        (["revert", trained, "--layers", "5", *out], "it changes 0, 1"),
    ):
        assert main(["delta", *arguments]) == 2
        assert words in capsys.readouterr().err
