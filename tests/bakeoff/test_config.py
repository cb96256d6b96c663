"""Cells: what has no meaning is refused, what they change is changed alone, rules find their layers."""

from pathlib import Path

import pytest
from support.tiny_bakeoff import tiny_bakeoff

from slamkern.bakeoff.config import Cell, build_bakeoff, load_bakeoff
from slamkern.bakeoff.layers import check_layers_of, choose, needed_files
from slamkern.errors import SlamkernError
from slamkern.files import write_checked
from slamkern.pipeline.config import RunConfig
from slamkern.selection.scores import SCORES

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"


def test_lists_may_be_bare():
    final = {"evaluate": {"questions": "60,140,8", "languages": "de"}, "seeds": 3}
    section = {"cells": [{"name": "a", "projections": "up", "seeds": "0,1"}], "seeds": "4", "final": final}
    built = build_bakeoff(RunConfig(), section)
    bakeoff, asked = built.bakeoff, built.of(built.cells["a"], 3, final=True).evaluate
    assert bakeoff.cells[0].projections == ("up",) and bakeoff.cells[0].seeds == (0, 1) and bakeoff.seeds == (4,)
    assert asked.questions == (60, 140, 8) and asked.languages == ("de",) and bakeoff.final.seeds == (3,)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([{"name": "a", "train": "full", "layers": "all"}], "layers has no meaning for a cell with train: full"),
        ([{"name": "a", "train": "none", "learning_rate": 1.0}], "learning_rate has no meaning"),
        ([{"name": "a"}, {"name": "a"}], "two cells are called a"),
        ([{"name": "a", "train": "scaled", "of": "b"}], "cell a is of 'b', which is no cell that is trained"),
        ([{"name": "base"}], "'base' is the untouched model"),
        ([{"name": "A b"}], "bakeoff.cells.0.name: String should match pattern"),
        ([{"name": "a", "align": {"target": "answer"}}], "target"),
        ([], "at least 1 item"),
    ],
)
def test_cells_that_are_wrong(tmp_path, cells, message):
    with pytest.raises(SlamkernError, match=message):
        tiny_bakeoff(tmp_path, cells)


def test_a_cell_changes_what_it_names(tmp_path):
    bakeoff = tiny_bakeoff(
        tmp_path, [{"name": "a", "learning_rate": 0.5, "align": {"examples": 3}}, {"name": "b"}],
        final={"evaluate": {"questions": [2, 4]}, "seeds": [5]},
    )  # fmt: skip
    a, b = (bakeoff.of(bakeoff.cells[name], 5) for name in "ab")
    assert (a.train.learning_rate, a.align.examples, a.align.target) == (0.5, 3, ("reply",))
    assert b.train.learning_rate == 0.01 and a.train.seed == b.train.seed == 5 and a.data == b.data
    final = bakeoff.of(bakeoff.cells["a"], 5, final=True).evaluate
    assert final.questions == (2, 4) and final.limit is None and b.evaluate.limit == 2
    assert bakeoff.seeds_of(bakeoff.cells["a"], final=True) == (5,) and bakeoff.seeds_of(bakeoff.cells["base"]) == (0,)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"task": "exam"}, "bakeoff.final.evaluate.task: unknown task .exam."),
        ({"question": [2, 4]}, "question"),
        ({"questions": [2, 4], "limit": 3}, "both choose"),
    ],
)
def test_a_final_that_cannot_be_asked(tmp_path, evaluate, message):
    with pytest.raises(SlamkernError, match=message):
        tiny_bakeoff(tmp_path, [{"name": "a"}], final={"evaluate": evaluate})


def test_a_file_is_a_run_with_cells(tmp_path):
    path = tmp_path / "bakeoff.yaml"
    path.write_text('data: {path: "corpus:"}\nbakeoff: {cells: [{name: low, layers: "lowest:4"}]}\n')
    loaded = load_bakeoff(path, ["train.learning_rate=3e-5"])
    assert loaded.cells["low"].layers == "lowest:4" and loaded.run.train.learning_rate == 3e-5
    for text, sections in [("data: {}\nmodle: x\n", "data modle"), ("", "none"), ("bakeoff: {cells: lowest}", "none")]:
        path.write_text(text)
        with pytest.raises(SlamkernError, match=f"expected a section bakeoff with cells, such .* sections: {sections}"):
            load_bakeoff(path)
    path.write_text("modle: {name: x}\nbakeoff: {cells: [{name: low}]}\n")
    with pytest.raises(SlamkernError, match=r"bakeoff.yaml: unknown key 'modle'; did you mean model"):
        load_bakeoff(path)


def test_rules_find_their_layers(tmp_path):
    write_checked(tmp_path / "weight_snr.json", {"scores": [1.0, 4.0, 3.0, 2.0]})
    for rule, layers in {"all": (0, 1, 2, 3), "list:3,0": (0, 3), "ends:2": (0, 3), "weight_snr:2": (1, 2),
                         "weight_snr:1:2-3": (2,), "highest:1:lower": (1,)}.items():  # fmt: skip
        assert choose(Cell(name="a", layers=rule), 4, tmp_path, 0).layers == layers, rule
    drawn = {choose(Cell(name="a", layers="random:2"), 4, tmp_path, seed).layers for seed in range(6)}
    assert len(drawn) > 1
    assert needed_files(Cell(name="a", layers="lape:2", neurons=0.1)) == ("stats.safetensors",)


@pytest.mark.parametrize(
    ("rule", "message"),
    [("best:2", "RULE of: lowest"), ("lowest", "expected all"), ("lowest:9", "k is 9"), ("list:7", "out of range: 7")],
)
def test_rules_that_no_model_can_keep(rule, message):
    with pytest.raises(SlamkernError, match=message):
        check_layers_of(Cell(name="a", layers=rule), 4)


def test_the_bake_offs_that_come_with_the_package_are_whole():
    configs = {path.stem: load_bakeoff(path) for path in CONFIGS.glob("*.yaml")}
    assert set(configs) == {"answers", "bakeoff", "screen"}
    for name, bakeoff in configs.items():
        for cell in bakeoff.cells.values():
            check_layers_of(cell, 24)
            for final in (False, True):
                bakeoff.of(cell, 0, final=final)
        if name == "answers":
            continue  # the best of the others
        layers = {cell.layers.partition(":")[0] for cell in bakeoff.cells.values()}
        assert layers >= {"lowest", "highest", "ends", "middle", "random", "weight_snr", "gradient_norm", *SCORES}
        assert {cell.train for cell in bakeoff.cells.values()} >= {"none", "full", "lora", "ffn", "attention"}
    base = configs["bakeoff"].cells["base"]
    screen, final = (configs["bakeoff"].of(base, 0, final=final).evaluate.questions for final in (False, True))
    assert screen is not None and final is not None and final[0] >= screen[1]  # no question judges what it chose
