"""A run among the results: what it gained, judged by `compare`, and what it took."""

import json
from pathlib import Path

import pytest
from support.tiny_run import tiny_run

pytest.importorskip("scipy")

from benchmarks import readme, recipe
from slamkern.pipeline.run import run


def test_a_run_becomes_rows_and_tables(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    evaluate = config.evaluate.model_copy(update={"languages": ("en", "de"), "limit": 2})
    config = config.model_copy(update={"evaluate": evaluate})
    metrics = run(config, tmp_path / "run", progress=False)
    assert recipe.main([str(tmp_path / "run"), "--name", "tiny", "--results", str(tmp_path)]) == 0
    stages = json.loads((tmp_path / "recipe-tiny.json").read_text())["stages"]
    rows = {row["language"]: row for row in stages["recipe"]["rows"]}
    assert set(rows) == {"en", "de", "all but English"} and rows["de"]["questions"] == 2
    assert rows["all but English"]["after"] == rows["de"]["after"] and rows["en"]["cut_after"] is not None
    assert "English text" in rows["all but English"]["losses"] and str(tmp_path) not in json.dumps(stages)
    costs = {row["what"]: row["value"] for row in stages["recipe_costs"]["rows"]}
    stages_of_a_run = ("probe", "select", "before", "train", "after", "report")
    assert costs["all stages"] == pytest.approx(sum(costs[name] for name in stages_of_a_run)) and costs["train"] > 0
    assert costs["trained parameters"] == pytest.approx(
        100 * metrics["trained_parameters"] / metrics["total_parameters"]
    )
    page = tmp_path / "page.md"
    page.write_text("<!-- table:recipe -->\n<!-- /table -->\n<!-- table:recipe-costs -->\n<!-- /table -->\n")
    assert readme.main([str(page), "--results", str(tmp_path)]) == 0
    assert "| all but English | 2 |" in page.read_text() and "| all stages |" in page.read_text()
