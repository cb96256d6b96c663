"""``slamkern delta``: each command once, and one line for what is wrong."""

from pathlib import Path

import pytest
import torch
import transformers
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
    other = save_folder(tmp_path / "other", tiny_model(intermediate_size=80))
    assert main(["delta", "fold", adapter, "--model", str(other), "--out", str(tmp_path / "no")]) == 2
    assert "cannot be merged into this model" in capsys.readouterr().err


def test_a_selection_is_printed_for_axolotl(folders, capsys):
    base, trained = folders
    for file in Path(base).glob("*.safetensors"):
        file.unlink()  # names take no weights
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


def test_deltas_and_folders_are_looked_at_before_a_model_is_loaded(folders, tmp_path, capsys, monkeypatch):
    pytest.importorskip("peft")
    base, trained = folders
    missing, taken, out = str(tmp_path / "nope"), ["--out", trained], ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    before = sorted(tmp_path.rglob("*"))
    data = ["--data", "corpus:", "-l", "de", "-s", "data.limit=6", "-s", "data.held_out=2"]
    for arguments, words in (
        (["scale", missing, "--by", "0.5", *out], "nope"),
        (["scale", trained, "--by", "nan", *out], "is nan; expected a finite number"),
        (["scale", trained, "--by", "0.5", *taken], "delta.safetensors exists"),
        (["merge", trained, missing, *out], "nope"),
        (["merge", trained, trained, "--weights", "1,inf", *out], "is inf; expected a finite number"),
        (["sweep", missing, *data, *out], "nope"),
        (["sweep", trained, *data, *taken], "delta.safetensors exists"),
        (["sweep", trained, *data, "-s", "train.prompt=chat", *out], "has no chat template"),
        (["lora", missing, "--rank", "2", *out], "nope"),
        (["lora", trained, "--rank", "0", *out], "the rank is 0"),
        (["lora", trained, "--rank", "2", *taken], "trained exists"),
        (["fold", missing, *out], "nope holds no adapter_config.json"),
    ):
        assert main(["delta", *arguments, "--model", base]) == 2
        assert words in capsys.readouterr().err, arguments
    for arguments, words in ((["--delta", missing, *out], "nope"), (taken, "is not an empty folder")):
        assert main(["export", *arguments, "--model", base]) == 2
        assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
