"""Files of others: read as they are meant, or refused in one line; and nothing else in the project parses them."""

import ast
import os
import time
from pathlib import Path

import pytest

from slamkern.errors import SlamkernError
from slamkern.reading import parse_json, parse_yaml, read_json, read_text, read_yaml

DEEP, LONG = "[" * 200_000, "9" * 5_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[de, no, on, y, off]", ["de", "no", "on", "y", "off"]),
        ("{a: 2e-5, b: 1E3, c: 010, d: 0x1f, e: 0o17, f: 1_000}",
         {"a": 2e-5, "b": 1000.0, "c": 10, "d": 31, "e": 15, "f": "1_000"}),
        ("[1:30, 2024-01-01, 1.5, -3, .5, 3.]", ["1:30", "2024-01-01", 1.5, -3, 0.5, 3.0]),
        ("{a: , b: ~, c: null, d: true, e: 'null', f: -.inf}",
         {"a": None, "b": None, "c": None, "d": True, "e": "null", "f": float("-inf")}),
        ("", None),
    ],
)  # fmt: skip
def test_yaml_is_what_people_mean(text: str, value: object) -> None:
    read = parse_yaml(text, "x")
    assert read == value and repr(read) == repr(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"), (DEEP, "nested too deeply"), (LONG, "thousands of digits"),
        ("{a: 1, a: 2}", "the key 'a' stands there twice"), ("a: 1\nb: 2\na: 3", "the key 'a' stands there twice"),
        ("&a [*a]", "aliases (*a)"), ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("{[a]: 1}", "unhashable"), ("\x00", "not YAML"),
    ],
)  # fmt: skip
def test_bad_yaml(text: str, words: str) -> None:
    with pytest.raises(SlamkernError) as caught:
        parse_yaml(text, "here")
    assert str(caught.value).startswith("here: ") and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"), (DEEP, "nested too deeply"), ('{"a": ' * 100_000, "nested too deeply"),
        (LONG, "thousands of digits"), ("NaN", "NaN is no number of JSON"), ("[-Infinity]", "-Infinity"),
        ("1e999", "beyond the range"), ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ('["\\ud800"]', "surrogate"), (b"\xff", "not UTF-8"), ("", "not JSON"),
    ],
)  # fmt: skip
def test_bad_json(text: str | bytes, words: str) -> None:
    with pytest.raises(SlamkernError) as caught:
        parse_json(text, "here")
    assert str(caught.value).startswith("here: ") and words in str(caught.value) and "\n" not in str(caught.value)


def test_good_json() -> None:
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"]}', "x") == {"a": [1, 2.5, None, "😀"]}


def test_only_regular_files_of_a_bounded_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "latin").write_bytes(b"\xe4")
    (tmp_path / "long").write_text("[" + "1," * 1000 + "1]")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf{}")
    for name, words in (
        ("pipe", "is a named pipe"), ("dangling", "is a link to nowhere, which does not exist"), (".", "is a folder"),
        ("absent", "no file"), ("latin", "is not UTF-8 text (byte 0)"), ("long", "bytes; at most 1,000 are read"),
    ):  # fmt: skip
        for read in (read_json, read_yaml, read_text):
            with pytest.raises(SlamkernError) as caught:
                read(tmp_path / name, limit=1000)
            assert words in str(caught.value)
    assert read_json(tmp_path / "marked") == {}


def test_a_key_among_very_many_is_found_in_one_pass() -> None:
    names = [f"key{number}" for number in range(30_000)]
    started = time.process_time()
    with pytest.raises(SlamkernError, match="the key 'key29999' stands there twice"):
        parse_json("{" + ", ".join(f'"{name}": 1' for name in (*names, names[-1])) + "}", "x")
    with pytest.raises(SlamkernError, match="the key 'key2999' stands there twice"):
        parse_yaml("".join(f"{name}: 1\n" for name in (*names[:3000], names[2999])), "x")
    assert time.process_time() - started < 6  # a pass takes 1 s; comparing each with each took 20


# Who may call what parses: the readers themselves, and those who check against a schema what a reader has read.
PARSERS = {
    "json": {"load", "loads", "JSONDecoder"}, "yaml": {"load", "safe_load", "full_load", "unsafe_load"},
    "pickle": {"load"}, "marshal": {"load", "loads"}, "ast": {"literal_eval"}, "tomllib": {"load", "loads"},
}  # fmt: skip
VALIDATORS = {"validate_json", "model_validate_json"}
READERS = {"slamkern/reading.py"}
SCHEMAS = {"slamkern/schemas/check.py", "slamkern/pipeline/config.py", "slamkern/bakeoff/config.py"}


def foreign_parsers(text: str) -> list[str]:
    """Calls in a program that parse text, but for those that take their own JSON apart again."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in PARSERS:
            found += [f"from {node.module}" for alias in node.names if alias.name in PARSERS[node.module]]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = node.func.value, node.func.attr
        inner = node.args[0] if node.args else None
        own = isinstance(inner, ast.Call) and ast.unparse(inner.func) in ("json.dumps", "pickle.dumps")
        if name in VALIDATORS or (isinstance(owner, ast.Name) and name in PARSERS.get(owner.id, ()) and not own):
            found.append(f"{node.lineno}: {ast.unparse(node.func)}")
    return found


def test_one_reader_for_json_and_one_for_yaml() -> None:
    assert foreign_parsers("import json\njson.loads(text)") == ["2: json.loads"]
    assert not foreign_parsers("import json\njson.loads(json.dumps(value))")
    root = Path(__file__).resolve().parents[1]
    for path in (*root.glob("slamkern/**/*.py"), *root.glob("benchmarks/**/*.py"), root / "setup.py"):
        name = path.relative_to(root).as_posix()
        found = [] if name in READERS else foreign_parsers(path.read_text(encoding="utf-8"))
        if name in SCHEMAS:
            found = [call for call in found if not call.endswith(tuple(VALIDATORS))]
        assert not found, f"{name}: {found}; read it with slamkern.reading, check it with slamkern.schemas.check"
