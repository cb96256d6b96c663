"""A whole run small enough to make in seconds: one layer of a tiny model, three steps with a checkpoint each."""

from pathlib import Path
from typing import Any

from support.tiny_causal_lm import save_folder

from slamkern.pipeline.config import RunConfig, build_config


def tiny_run(folder: Path) -> RunConfig:
    """The configuration of a run on a model that is saved under ``folder`` first."""
    save_folder(folder / "model")
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "data": {"path": "corpus:", "languages": ["de"], "limit": 8, "held_out": 2},
        "probe": {"questions": 4},
        "select": {"k": 1, "bootstrap": 0},
        "train": {"max_steps": 3, "save_steps": 1, "prompt": "authors", "tokens_per_batch": 512},
        "evaluate": {"task": "corpus", "limit": 1, "languages": ["en"], "prompt": "authors", "max_new_tokens": 2,
                     "chrf_limit": 0, "english": "corpus:"},
    }  # fmt: skip
    return build_config(sections)
