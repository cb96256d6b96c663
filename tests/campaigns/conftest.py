"""The campaigns themselves take minutes and run only with ``-m campaign``; their short samples are ordinary tests."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "campaign" in (config.option.markexpr or ""):
        return
    left = [item for item in items if item.get_closest_marker("campaign") is not None]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)
