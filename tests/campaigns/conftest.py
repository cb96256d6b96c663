"""Campaigns take minutes: they are collected only with ``-m campaign``."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    chosen = "campaign" in (config.option.markexpr or "")
    return True if collection_path.name.startswith("test_") and not chosen else None
