"""Damage that a check of a folder has to find: one byte of each of its files, one file after the other."""

from collections.abc import Callable, Sequence
from pathlib import Path


def change_each_byte(paths: Sequence[Path], problems_of: Callable[[], list[str]]) -> None:
    """Change a byte of each file and assert that a problem names it; the last one is left changed."""
    for path in paths:
        whole = path.read_bytes()
        digits = [index for index, byte in enumerate(whole) if byte in b"123456"] if "json" in path.suffix else []
        content = bytearray(whole)
        # Not a digit in the middle: the last ones of a float may mean nothing.
        content[digits[0] if digits else len(content) // 2] ^= 1
        path.write_bytes(content)
        problems = problems_of()
        assert any(path.name in problem or path.parent.name in problem for problem in problems), (path, problems)
        path.write_bytes(whole)
    path.write_bytes(content)
