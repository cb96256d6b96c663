"""Random changes of a file: bits, cuts, odd words, and, where it is JSON, values of another kind or none at all."""

import json
import random
from contextlib import suppress
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.5, 1e308, -1e308, 5e-324, "", "x", "0",
    "de", "en", "1e5", "\u0000", "\x1b[2J", "\U0001f600", "x" * 300, [], {}, [[]], [0], [None], {"": None}, {"x": []},
)  # fmt: skip
WORDS = (
    b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"9" * 5000, b"null", b"true", b"[" * 3000, b'{"a":' * 3000, b'""',
    b"\x00", b"\xff", b"\xed\xa0\x80", b'"\\ud800"', b"\xef\xbb\xbf", b"\r\n", b"\n", b"\t", b"\xe2\x80\xa8",
    b"&a [*a]",
    b"!!python/name:os.system", b"<<: *x", b"%YAML 9.9", b"---\n", b"1:30", b"2001-01-01", b": ", b"- ", b"../",
    b"{{ 'x' * 10**10 }}", b"{% for i in range(10**9) %}x{% endfor %}", b"{{ messages.__class__ }}", b"{instruction}",
    b"{language}", b"/etc/passwd", b"\xe0\xa7\xa7\xe0\xa7\xa8", b"1,234.5", b"\n====\n",
)  # fmt: skip


def mutate(data: bytes, draw: random.Random) -> bytes:
    """``data`` changed once or a few times."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        kinds = (_flip, _cut, _insert, _remove, _repeat, _json, _json, _json)
        data = draw.choice(kinds)(data, draw)
    return data


def _place(data: bytes, draw: random.Random) -> int:
    return draw.randrange(len(data) + 1)


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: _place(data, draw)]


def _insert(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + draw.choice(WORDS) + data[place:]


def _remove(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + data[place + draw.randrange(1, 30) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + data[place : place + draw.randrange(1, 200)] * draw.choice((2, 3, 50)) + data[place:]


def _json(data: bytes, draw: random.Random) -> bytes:
    """Change one value of the JSON that the data are, or that one of their lines or of the texts after a line is."""
    lines = data.split(b"\n")
    first = draw.randrange(len(lines))
    for start, end in ((0, len(lines)), (first, len(lines)), (first, first + 1)):
        with suppress(ValueError, RecursionError):
            value = _changed(json.loads(b"\n".join(lines[start:end])), draw)
            text = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
            return b"\n".join([*lines[:start], text, *lines[end:]])
    return _flip(data, draw)


def _changed(value: Any, draw: random.Random) -> Any:
    """A JSON value with one part replaced, removed or repeated."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice(VALUES)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kind = draw.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2 and isinstance(value, list):
        value.insert(draw.randrange(len(value) + 1), value[key])
    elif kind < 0.25 and isinstance(value, dict):
        value[draw.choice(("x", "", "id", "0"))] = value[key]
    else:
        value[key] = _changed(value[key], draw)
    return value
