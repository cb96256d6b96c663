"""Text, JSON and YAML that somebody else may have written: what is wrong with it becomes one line that names the place.

Only regular files are opened (a named pipe would block for ever), up to a size, as UTF-8. JSON is RFC 8259 and nothing
more: no NaN, no infinity, no key twice, no half of a surrogate pair. YAML is its 1.2 core schema without aliases, so
``no`` is Norwegian, ``1:30`` is text and ``2e-5`` is a number, as people mean them. Both refuse nesting too deep to
parse and numbers of thousands of digits. What the values mean is for those who ask.
"""

import json
import math
import os
import re
import stat
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from slamkern.errors import SlamkernError

MIB = 2**20
LARGEST = 4096 * MIB  # of data and predictions, which are read whole


def read_bytes(path: str | Path, *, limit: int = 64 * MIB) -> bytes:
    """The content of a regular file of at most ``limit`` bytes."""
    with _opened(Path(path)) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise SlamkernError(f"{path} has {size:,} bytes; at most {limit:,} are read")
        return file.read(limit)


def iterate_lines(path: str | Path, *, longest: int = 64 * MIB) -> Iterator[str]:
    """The lines of a regular UTF-8 file of any size, one by one, without their ends and without a byte-order mark.

    Split at newlines only: sentences do contain U+2028 and other characters that ``splitlines`` would break at.
    """
    with _opened(Path(path)) as file:
        start = 0
        while raw := file.readline(longest + 1):
            if len(raw) > longest:
                raise SlamkernError(f"{path} has a line of more than {longest:,} bytes (from byte {start})")
            try:
                line = raw.decode("utf-8-sig" if start == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise SlamkernError(f"{path} is not UTF-8 text (byte {start + error.start})") from error
            start += len(raw)
            yield line.removesuffix("\n").removesuffix("\r")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        # Without O_NONBLOCK the open itself waits for a pipe's other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        broken = f"{path} is a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else None
        raise SlamkernError(broken or f"no file {path}{_listing(path.parent)}") from None
    except OSError as error:
        raise SlamkernError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SlamkernError(f"{path} is {_kind(status.st_mode)}, not a file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_text(path: str | Path, *, limit: int = 64 * MIB) -> str:
    """The content of a UTF-8 file, without a byte-order mark."""
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SlamkernError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_json(path: str | Path, *, limit: int = 64 * MIB) -> Any:
    """The value of a JSON file."""
    return parse_json(read_text(path, limit=limit), str(path))


def parse_json(text: str | bytes, where: str, *, constants: bool = False) -> Any:
    """The value of a JSON text; ``where`` begins the message of what is wrong with it.

    constants: let NaN and infinities pass, which Python's own writer makes by default.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        constant = float if constants else _constant
        value = json.loads(text, object_pairs_hook=_object, parse_constant=constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise SlamkernError(f"{where}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise SlamkernError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise SlamkernError(f"{where}: not JSON: half of a surrogate pair in a string") from error
    except RecursionError as error:
        raise SlamkernError(f"{where}: not JSON that can be read: nested too deeply") from error
    except ValueError as error:
        raise SlamkernError(f"{where}: not JSON: {_reason(error)}") from error
    return value


def read_yaml(path: str | Path, *, limit: int = MIB) -> Any:
    """The value of a YAML file; None for an empty one."""
    return parse_yaml(read_text(path, limit=limit), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; ``where`` begins the message of what is wrong with it."""
    try:
        return yaml.load(text, _CoreLoader)
    except RecursionError as error:
        raise SlamkernError(f"{where}: not YAML that can be read: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SlamkernError(f"{where}: not YAML: {_reason(error)}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"the key {_repeated(name for name, _ in pairs)!r} stands there twice")
    return values


def _repeated(names: Iterable[Hashable]) -> Hashable | None:
    """The first of them that was there before; in one pass, for a file may have millions."""
    seen: set[Hashable] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is beyond the range of a float")
    return value


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "a number of thousands of digits" if text.startswith("Exceeds the limit") else text


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def _listing(folder: Path) -> str:
    """What there is instead, for a name that was mistyped."""
    near = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return f"; {folder} holds {', '.join(near[:12])}" if near else ""


class _CoreLoader(yaml.SafeLoader):
    """YAML 1.2's core schema: fewer words that are not text than in 1.1, no aliases, no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - yaml's own mechanism; not those of the base class

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{self.peek_event().anchor}) are not read: write the value again")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            key = _repeated(self.construct_object(key, deep=True) for key, _ in node.value)
            raise yaml.YAMLError(f"the key {key!r} stands there twice ({node.start_mark})")
        return mapping

    def construct_integer(self, node: Any) -> int:
        return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)

    def construct_float(self, node: Any) -> float:
        return float(node.value.replace(".inf", "inf").replace(".nan", "nan").replace(".Inf", "inf"))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf)|\.nan", list("-+.")),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_CoreLoader.add_constructor("tag:yaml.org,2002:int", _CoreLoader.construct_integer)
_CoreLoader.add_constructor("tag:yaml.org,2002:float", _CoreLoader.construct_float)
