"""Dataset records from JSON files, JSON lines and the Hugging Face hub, with errors that name the place.

What the records mean is the business of those who read them (``data``, ``parallel``, ``tasks``).
"""

from pathlib import Path
from typing import Any

from slamkern.errors import SlamkernError
from slamkern.reading import LARGEST, parse_json, read_text

Record = dict[str, Any]


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that is there and not empty.

    Split at newlines only: sentences do contain U+2028 and other characters that ``splitlines`` would break at.
    """
    text = read_text(path, limit=LARGEST)
    if not text.strip():
        raise SlamkernError(f"{path} is empty")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def read_records(path: Path) -> list[Record]:
    """The objects of a JSON list or of JSON lines, whichever the file holds (upstream calls both ``.json``)."""
    lines = read_lines(path)
    if lines[0].lstrip().startswith("["):
        records = parse_json("\n".join(lines), str(path))
    else:
        records = [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise SlamkernError(f"record {number} of {path} is not a JSON object")
    return records


def hub_records(name: str, split: str, config: str | None = None) -> list[Record]:
    """All rows of a split of a dataset of the Hugging Face hub (or of its local cache)."""
    try:
        import datasets
    except ImportError as error:
        raise SlamkernError(f"the hub dataset {name} needs the package datasets: pip install datasets") from error
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds for one unreachable dataset
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SlamkernError(f"cannot load {name} from the hub: {reason[:200]}; use local files instead") from error
    return [dict(row) for row in rows]


def field(record: Record, names: tuple[str, ...], where: str) -> str:
    """The first of the named fields, as text; ``SlamkernError`` if the record has none of them."""
    for name in names:
        value = record.get(name)
        if isinstance(value, dict | list | bool):
            raise SlamkernError(f"{where} has {value!r:.80} as its {name}; expected text or a number")
        if value is not None:
            return str(value).strip()
    raise SlamkernError(f"{where} has none of the fields {', '.join(names)}; it has {', '.join(map(str, record))}")
