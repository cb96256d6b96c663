"""Commands under a launcher: several processes write and say what one does, and the first that fails says why."""

import pytest
from support.processes import launch
from support.tiny_causal_lm import save_folder

from slamkern.cli.main import main
from slamkern.selection.layers import LayerSelection


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_folder(folder)
    LayerSelection(layers=(0,)).save(folder / "selection.json")
    return folder


def arguments(command, model, out, *more):
    words = [command, "--model", str(model), "--data", "corpus:", "-l", "de,zh", "--out", str(out)]
    for value in ("data.limit=12", "data.held_out=2", "probe.questions=4", "train.prompt=authors", "train.max_steps=2"):
        words += ["-s", value]
    return [*words, *more]


@pytest.mark.parametrize(("command", "more"), [("probe", []), ("train", ["--selection"])])
def test_two_processes_speak_with_one_voice(model, tmp_path, capfd, command, more):
    more = [*more, str(model)] if more else []
    said = {}
    for name, run in [("one", main), ("two", lambda words: launch(2, lambda _: main(words)))]:
        assert run(arguments(command, model, tmp_path / name, *more)) in (0, [0, 0])
        out, err = capfd.readouterr()
        lines = out.replace(str(tmp_path / name), "OUT").splitlines()
        said[name] = [line.partition(" tokens/s")[0].rpartition(" at ")[0] or line for line in lines]
        # transformers reads that its bars are not wanted when it is first imported, which tests did before.
        ours = [line for line in err.splitlines() if line and not line.startswith("Loading weights")]
        assert len(ours) == len(set(ours)), err
    assert said["one"] == said["two"]
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]


def test_a_mistake_is_said_once(model, tmp_path, capfd):
    assert launch(2, lambda _: main(arguments("train", model, tmp_path, "--selection", str(tmp_path)))) == [2, 2]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: process ") and "selection.json" in line
    assert launch(2, lambda _: main(["export", "--model", str(model), "--out", str(tmp_path)])) == [2, 2]
    (line,) = capfd.readouterr().err.splitlines()
    assert "several processes do probe, train, evaluate, run, bakeoff; start export in one alone" in line
