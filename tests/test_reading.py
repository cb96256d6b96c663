"""Files of others: read as they are meant, or refused in one line."""

import os
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
