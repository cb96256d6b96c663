"""Puts the tables made from the result files into the pages: ``python -m benchmarks.readme [--check] [FILE ...]``.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``: ``summary`` in README.md, all of them in
benchmarks/README.md. What lies between is replaced; ``--check`` replaces nothing and exits with 1 where a page or a
figure would change. Numbers are never written by hand.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures, results
from benchmarks.tables import File, table
from slamkern.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
_MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def fill(text: str, files: Sequence[File]) -> str:
    """``text`` with every marked table made again."""
    return _MARKED.sub(lambda match: f"{match[1]}\n{table(match[2], files)}\n\n{match[3]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: both READMEs and the figures")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where something is old")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the result files")
    options = parser.parse_args(argv)
    files = results.read_files(options.results)
    old = []
    for page in options.files or PAGES:
        text = page.read_text(encoding="utf-8")
        new = fill(text, files)
        if new != text:
            old.append(page)
            if not options.check:
                write_text(page, new)
    if not options.files:
        old += figures.update(files, options.results, write=not options.check)
    if options.check and old:
        print(f"not current: {', '.join(path.name for path in old)}; run python -m benchmarks.readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
