"""A disk that is full at each kind of file a run writes: one line that names it, what was there stays, and it goes on.

The disk is full again and again in one run, a file further each time; it ends bit by bit where the unbroken one ends.
"""

import builtins
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaigns.kills import lost
from support.full_disk import file_limit
from support.tiny_causal_lm import ending_model
from support.tiny_run import tiny_run

from slamkern.errors import SlamkernError
from slamkern.pipeline import run
from slamkern.pipeline.config import RunConfig

Place = tuple[str, str]  # a file of the run, and whether it is made, made anew, begun or gone on with
# Files of one kind are written in one way.
KINDS = ((r"\.?checkpoint-\d+[^/]*", "checkpoint-N"), ("before|after", "before"), (r"figures/.*", "figures"))
NEW, OLD = {"w": "made", "a": "begun"}, {"w": "made anew", "a": "gone on with"}


def configuration(folder: Path) -> RunConfig:
    """A tiny run on the model's own replies, so that these are files too, with a checkpoint after two steps."""
    config = tiny_run(folder)
    ending_model().save_pretrained(folder / "model")
    align = config.align.model_copy(
        update={"target": ("reply",), "examples": 4, "questions": 5, "max_new_tokens": 40, "replay": 0.5}
    )
    return config.model_copy(update={"align": align, "train": replace(config.train, save_steps=2)})


@contextmanager
def watched(out: Path, begin: Callable[[Place, Path], None]) -> Iterator[None]:
    """Call ``begin(place, path)`` whenever a file under ``out`` is about to be written."""
    make, open_file = tempfile.mkstemp, io.open

    def tell(path: Path, mode: str) -> None:
        if path.is_relative_to(out):
            name = path.relative_to(out).as_posix()
            for pattern, kind in KINDS:
                name = re.sub(pattern, kind, name)
            begin((name, (OLD if path.exists() else NEW)[mode]), path)

    def made(*_: Any, dir: Any = None, prefix: str = "", **rest: Any) -> Any:
        if dir is not None:
            tell(Path(dir) / prefix[1:-1], "w")
        return make(dir=dir, prefix=prefix, **rest)

    def opened(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode.startswith("a"):
            tell(Path(path), "a")
        return open_file(path, mode, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", made)
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        yield


def test_a_run_goes_on_after_a_full_disk_at_each_of_its_files(tmp_path: Path) -> None:
    config, whole, out = configuration(tmp_path), tmp_path / "whole", tmp_path / "out"
    places: list[Place] = []
    with watched(whole, lambda place, _: places.append(place)):
        run.run(config, whole, progress=False)
    places = list(dict.fromkeys(places))
    assert len(places) > 20

    for wanted in places:
        before: dict[Path, bytes | None] = {}
        with file_limit() as limit:

            def begin(place: Place, path: Path, wanted: Place = wanted, before: Any = before) -> None:
                if place == wanted and not before:
                    before[path] = path.read_bytes() if path.exists() else None
                    limit(16 + (path.stat().st_size if place[1] == OLD["a"] else 0))

            with watched(out, begin), pytest.raises((OSError, SlamkernError)) as caught:
                run.run(config, out, progress=False)
        ((path, content),) = before.items()
        message = str(caught.value)
        assert path.name in message and "\n" not in message, (wanted, message)
        left = path.read_bytes() if path.exists() else None
        if wanted[1] in NEW["w"] + OLD["w"]:
            assert left == content, wanted
        else:
            assert left is not None and left.startswith(content or b""), wanted
        assert not list(out.rglob("*.lock")) and not list(out.rglob("*.tmp"))
    run.run(config, out, progress=False)
    assert lost(out, whole) == "equal"
