"""Dataset records from JSON files, JSON lines and the Hugging Face hub, with errors that name the place.

What the records mean is the business of those who read them (``data``, ``parallel``, ``tasks``).
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from slamkern.errors import SlamkernError
from slamkern.reading import LARGEST, iterate_lines, parse_json, read_text

Record = dict[str, Any]


def iterate_nonempty(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, one by one; SlamkernError at its end where all are blank."""
    blank = True
    for line in iterate_lines(path):
        blank = blank and not line.strip()
        yield line
    if blank:
        raise SlamkernError(f"{path} is empty")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that is there and not empty."""
    return list(iterate_nonempty(path))


def iterate_records(path: Path) -> Iterator[Record]:
    """The objects of JSON lines, one by one, or of a JSON list, whichever the file holds (upstream calls both
    ``.json``). A list is read whole.
    """
    lines = iterate_nonempty(path)
    first = next(lines)
    if first.lstrip().startswith("["):
        values = parse_json(read_text(path, limit=LARGEST), str(path))
    else:
        numbered = enumerate(chain([first], lines), 1)
        values = (parse_json(line, f"{path}:{number}") for number, line in numbered if line.strip())
    for number, record in enumerate(values, 1):
        if not isinstance(record, dict):
            raise SlamkernError(f"record {number} of {path} is not a JSON object")
        yield record


def read_records(path: Path) -> list[Record]:
    """All of :func:`iterate_records`."""
    return list(iterate_records(path))


def hub_records(name: str, split: str, config: str | None = None) -> Iterator[Record]:
    """The rows, one by one, of a split of a dataset of the Hugging Face hub (or of its local cache)."""
    try:
        import datasets
    except ImportError as error:
        raise SlamkernError(f"the hub dataset {name} needs the package datasets: pip install datasets") from error
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds for one unreachable dataset
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SlamkernError(f"cannot load {name} from the hub: {reason[:200]}; use local files instead") from error
    yield from map(dict, rows)


def field(record: Record, names: tuple[str, ...], where: str) -> str:
    """The first of the named fields, as text; ``SlamkernError`` if the record has none of them."""
    for name in names:
        value = record.get(name)
        if isinstance(value, dict | list | bool):
            raise SlamkernError(f"{where} has {value!r:.80} as its {name}; expected text or a number")
        if value is not None:
            return str(value).strip()
    raise SlamkernError(f"{where} has none of the fields {', '.join(names)}; it has {', '.join(map(str, record))}")
