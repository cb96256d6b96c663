"""Rows as a Markdown table."""

from collections.abc import Iterable, Sequence

from benchmarks.stage import cell


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; columns of numbers are aligned to the right."""
    lines = [list(row) for row in rows]
    numeric = [any(isinstance(row[i], int | float) for row in lines) for i in range(len(header))]
    rule = ["---:" if right else "---" for right in numeric]
    cells = [list(header), rule, *([cell(value) for value in row] for row in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
