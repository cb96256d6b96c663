"""The campaigns themselves take minutes and run only with ``-m campaign``; their short samples are ordinary tests."""

from pathlib import Path

import pytest
from support.tiny_run import tiny_run

from slamkern.pipeline import run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run, for those who copy it."""
    folder = tmp_path_factory.mktemp("finished")
    run.run(tiny_run(folder), folder / "run", progress=False)
    return folder / "run"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "campaign" in (config.option.markexpr or ""):
        return
    left = [item for item in items if item.get_closest_marker("campaign") is not None]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)
