"""What a bake-off will take: the parameters that cells really train, the sum of its work, and nothing written."""

import re

import pytest
import torch
from support.tiny_bakeoff import tiny_bakeoff
from support.tiny_causal_lm import ending_model

from slamkern.bakeoff.config import Cell
from slamkern.bakeoff.plan import plan_bakeoff, trained_parameters_of
from slamkern.bakeoff.trainable import make_trainable
from slamkern.errors import SlamkernError
from slamkern.pipeline.launch import Launch
from slamkern.pipeline.loading import load_tokenizer
from slamkern.pipeline.plan import longest_examples
from slamkern.pipeline.stages import alignment_pairs, reply_questions
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trained_parameters
from slamkern.training.batches import tokenize
from slamkern.training.footprint import gigabytes
from slamkern.training.shape_memory import shape_footprint

CELLS = [
    {"name": "full", "train": "full"},
    {"name": "lora", "train": "lora", "rank": 3},
    {"name": "one", "layers": "lowest:1"},
    {"name": "scored", "layers": "active_msd:1", "projections": ["gate", "up", "down"]},
    {"name": "attention", "train": "attention", "layers": "highest:1"},
    {"name": "half", "train": "scaled", "of": "one", "scale": 0.5},
]


@pytest.mark.parametrize("values", [cell for cell in CELLS if cell["name"] != "half"], ids=lambda cell: cell["name"])
def test_the_parameters_of_a_cell_are_those_it_trains(values):
    cell = Cell(**values)
    with torch.device("meta"):
        unread = ending_model()
    model = ending_model()
    make_trainable(model, cell, LayerSelection((0,), k=1), 0)
    assert trained_parameters_of(unread, cell) == sum(p.numel() for p in trained_parameters(model).values())


def test_a_plan_counts_trainings_and_answers_and_writes_nothing(tmp_path):
    bakeoff = tiny_bakeoff(tmp_path, CELLS, seeds=[0, 1], finalists=2, final={"seeds": [1, 2]})
    done = tmp_path / "out" / "cells" / "one" / "seed-1"
    done.mkdir(parents=True)
    (done / "screen.json").touch()
    before = sorted(tmp_path.rglob("*"))
    plan = dict(plan_bakeoff(bakeoff, tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before
    one = trained_parameters_of(ending_model(), Cell(name="one", layers="lowest:1"))
    assert plan["one"].startswith(f"{one:,} parameters (") and plan["one"].endswith("; seed 0 to do, seed 1 done")
    assert plan["half"] == "what one trained, times 0.5; seed 0 to do, seed 1 to do"
    # Five cells are trained, with seeds 0 and 1 in the screen and 2 in the final.
    flops = re.compile(r"([\d.e+]+) FLOPs")
    work = sum(float(flops.search(plan[cell["name"]])[1]) for cell in CELLS if cell["name"] != "half")
    assert plan["all trainings"].startswith("15, if every cell came into the final, and up to ")
    assert float(flops.search(plan["all trainings"])[1]) == pytest.approx(3 * work, rel=0.01)
    # base once, six cells with two seeds each; then base and two finalists with two seeds each.
    assert (plan["screen"], plan["final"]) == ("answers of 13 models", "answers of 5 models")
    assert plan["tasks"] == "1 of 15 done, without the final"


def test_memory_of_a_cell_is_that_of_its_step_and_processes_shorten_the_sum(tmp_path):
    cells = [*CELLS, {"name": "neurons", "neurons": 0.25}, {"name": "whole"}]
    bakeoff = tiny_bakeoff(tmp_path, cells)
    alone = dict(plan_bakeoff(bakeoff, tmp_path / "out"))
    of_eight = dict(plan_bakeoff(bakeoff, tmp_path / "out", Launch(8, 1)))
    assert {name for name in alone if alone[name] != of_eight[name]} == {"all trainings"}
    assert "on 8 H100s" in of_eight["all trainings"] and "on an H100" in alone["all trainings"]
    assert "and activations" in alone["lora"] and "and activations" not in alone["full"]

    config = ending_model().config
    examples = tokenize(longest(bakeoff), tokenizer_of(bakeoff), bakeoff.run.train)
    lengths, labels = examples.lengths.tolist(), examples.supervised.tolist()
    assert sum(lengths) <= 1024  # one batch
    for name, part, layers, projections in [
        ("full", "full", range(2), ()),
        ("one", "ffn", range(1), ("up", "down")),
        ("scored", "ffn", range(1), ("gate", "up", "down")),
        ("attention", "attention", range(1), ()),
        ("whole", "ffn", range(2), ("up", "down")),
    ]:
        step = shape_footprint(config, layers, part=part, projections=projections, itemsize=4)
        total = gigabytes(step.total(sum(lengths), supervised=sum(labels)))
        assert f" FLOPs, {total}; seed" in alone[name], name
    memory = {name: float(re.search(r"FLOPs, ([\d.e-]+) GB", alone[name])[1]) for name in ("neurons", "whole", "one")}
    assert memory["one"] < memory["neurons"] < memory["whole"]


def longest(bakeoff):
    aligned, _ = alignment_pairs(bakeoff.run)
    return longest_examples(bakeoff.run, aligned, reply_questions(bakeoff.run, aligned, []))


def tokenizer_of(bakeoff):
    return load_tokenizer(bakeoff.run.model.name)


def test_what_a_bakeoff_would_refuse_its_plan_refuses(tmp_path):
    bakeoff = tiny_bakeoff(tmp_path, [{"name": "many", "layers": "lowest:99"}])
    with pytest.raises(SlamkernError, match="k is 99"):
        plan_bakeoff(bakeoff, tmp_path / "out")
