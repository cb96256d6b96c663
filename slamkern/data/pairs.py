"""Translation pairs: what alignment trains on, read from every form the data comes in.

    folder            ``{lang}-en/train.{lang}`` beside ``{lang}-en/train.en``, line by line parallel; or a folder of
                      two of these, ``*question`` and ``*answer`` (QAlign; answers may be JSON strings, one a line)
    JSON, JSON lines  ``source, target, source_language[, target_language, kind, id]``, or problems with their solutions
                      in many languages (GSM8KInstruct_Parallel, see ``parallel``)
    ``corpus:``       the embedded generator; ``corpus:500`` makes 500 problems
    ``hf:owner/name`` a dataset of the Hugging Face hub with the fields of either JSON form

Rows that are English on the source side teach nothing here, nor do rows with an empty side: both are dropped, counted
and logged. Over-long rows are dropped at tokenization (``packing``), where lengths are known.
"""

import logging
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from slamkern.data.gsm8k_instruct import match_to_english
from slamkern.data.languages import language
from slamkern.data.readers import Record, field, hub_records, iterate_nonempty, iterate_records
from slamkern.data.record_table import RecordTable
from slamkern.errors import SlamkernError, refuse_string
from slamkern.reading import parse_json

LOGGER = logging.getLogger(__name__)
KINDS = {"question": ("question",), "answer": ("answer",), "both": ("question", "answer")}
CORPUS_PROBLEMS = 1000


@dataclass(frozen=True)
class Pair:
    """One text in two languages (ISO 639-1 codes). ``kind`` is ``question`` or ``answer``.

    The kind ``response`` is no translation: ``source`` is a question and ``target`` is the reply to learn. Only code
    makes such pairs; files do not hold them.
    """

    source: str
    target: str
    source_language: str
    target_language: str = "en"
    kind: str = "question"
    id: str = ""


def load_pairs(
    path: str | Path,
    languages: Sequence[str] | None = None,
    *,
    content: str = "question",
    limit: int | None = None,
) -> RecordTable[Pair]:
    """All pairs of ``path`` whose source language is in ``languages`` (default: every one there), sorted by language.

    They are read one by one and lie in an Arrow table (see ``arrow_table``), so there may be millions of them; only a
    JSON list and problems with their solutions are read whole.

    ``content`` is ``question``, ``answer`` or ``both``. ``limit`` keeps the first pairs of each language and kind.
    ``SlamkernError`` for a missing, empty, ragged or malformed file, an unknown language, a language without pairs.
    """
    if content not in KINDS:
        raise SlamkernError(f"content={content!r}; use question, answer or both")
    if limit is not None and limit < 1:
        raise SlamkernError(f"limit={limit}; use at least 1 pair per language, or None for all")
    refuse_string(languages, "languages")
    wanted = None if languages is None else {language(code).code for code in languages} - {"en"}
    counts: Counter[tuple[str, str]] = Counter()  # (language, kind)
    keys: dict[tuple[str, str], int] = {}
    key_of = array("H")  # of each pair that is kept
    dropped: Counter[str] = Counter()

    def kept() -> Iterator[Pair]:
        for pair in _read(str(path), wanted, KINDS[content], limit):
            language(pair.source_language), language(pair.target_language)
            key = pair.source_language, pair.kind
            if pair.kind not in KINDS[content] or (wanted is not None and pair.source_language not in wanted | {"en"}):
                continue
            if pair.source_language == "en":
                dropped["with English as the source"] += 1
            elif not pair.source.strip() or not pair.target.strip():
                dropped["with an empty side"] += 1
            elif limit is None or counts[key] < limit:
                counts[key] += 1
                key_of.append(keys.setdefault(key, len(keys)))
                yield pair

    pairs = RecordTable.collect(Pair, kept())
    for reason, count in dropped.items():
        LOGGER.warning("%s: dropped %d rows %s", path, count, reason)
    found = sorted({code for code, _ in counts})
    missing = sorted((wanted or set()) - set(found))
    if missing or not found:
        lacking = f"in {' '.join(missing)}" if missing else "of any language but English"
        raise SlamkernError(f"{path} has no {content} pairs {lacking}; it has: {' '.join(found) or 'none'}")
    place = np.array([sorted(keys).index(key) for key in keys])
    return pairs.select(np.argsort(place[np.array(key_of)], kind="stable"))


def split_pairs(pairs: Sequence[Pair], held_out_per_language: int, seed: int) -> tuple[Sequence[Pair], list[Pair]]:
    """(train, held out), each in the order of ``pairs``; no target text is in both.

    Exactly ``held_out_per_language`` pairs of each language are held out. Their target texts leave training in every
    language, so a few pairs of other languages may be in neither part.
    """
    if held_out_per_language < 0:
        raise SlamkernError(f"cannot hold out {held_out_per_language} pairs per language")
    # Targets in the order of a keyed hash: a random one that adding pairs does not change; equal ones lie together.
    hashes = np.empty(len(pairs), dtype=np.uint64)
    codes: list[str] = []
    key = f"hold out {seed}".encode()
    for index, pair in enumerate(pairs):
        hashes[index] = int.from_bytes(blake2b(pair.target.strip().encode(), digest_size=8, key=key).digest())
        codes.append(sys.intern(pair.source_language))
    order = np.argsort(hashes, kind="stable")
    need, have = Counter(dict.fromkeys(codes, held_out_per_language)), Counter(codes)
    held, gone = set(), set()
    for _, same in groupby(order.tolist(), key=lambda index: hashes[index]):
        if not need.total():
            break
        group = list(same)
        if any(need[codes[index]] for index in group):
            gone.update(group)
            for index in group:
                if need[codes[index]]:
                    need[codes[index]] -= 1
                    held.add(index)
    left = have - Counter(codes[index] for index in gone)
    for code in have:
        if need[code] or not left[code]:
            raise SlamkernError(f"{code} has {have[code]} pairs: too few to hold out {held_out_per_language} and train")
    train = [index for index in range(len(pairs)) if index not in gone]
    return _select(pairs, train), [pairs[index] for index in sorted(held)]


def _select(pairs: Sequence[Pair], indices: Sequence[int]) -> Sequence[Pair]:
    return pairs.select(indices) if isinstance(pairs, RecordTable) else [pairs[index] for index in indices]


def _read(path: str, wanted: set[str] | None, kinds: tuple[str, ...], limit: int | None) -> Iterator[Pair]:
    """Every pair of the source; ``wanted``, ``kinds`` and ``limit`` only spare work."""
    if path.startswith("corpus:"):
        yield from _corpus(path.removeprefix("corpus:"), wanted, limit)
    elif path.startswith("hf:"):
        yield from _from_records(hub_records(path.removeprefix("hf:"), "train"), path)
    elif Path(path).is_dir():
        yield from _folder(Path(path), wanted, kinds)
    elif Path(path).exists():
        yield from _from_records(iterate_records(Path(path)), path)
    else:
        raise SlamkernError(f"no data at {path}: use a folder, a .json or .jsonl file, corpus: or hf:owner/name")


def _folder(folder: Path, wanted: set[str] | None, kinds: Iterable[str]) -> Iterator[Pair]:
    parts = {kind: sorted(folder.glob(f"*{kind}")) for kind in ("question", "answer")}
    if not any(parts.values()):
        parts["answer" if folder.name.endswith("answer") else "question"] = [folder]
    for kind in kinds:
        if not parts[kind]:
            raise SlamkernError(f"{folder} has no {kind}s: they would be in a folder {kind} with {{lang}}-en inside")
        directions = sorted(entry for entry in parts[kind][0].glob("*-*") if entry.is_dir())
        if not directions:
            raise SlamkernError(f"{parts[kind][0]} has no folders like de-en with train.de and train.en inside")
        there = [direction.name.split("-", 1)[0] for direction in directions]
        if missing := sorted((wanted or set()) - set(there)):
            raise SlamkernError(f"{parts[kind][0]} has no {kind}s in {' '.join(missing)}; it has: {' '.join(there)}")
        for direction in directions:
            source, target = direction.name.split("-", 1)
            if wanted is None or source in wanted:
                yield from _parallel_lines(direction, source, target, kind)


def _parallel_lines(direction: Path, source: str, target: str, kind: str) -> Iterator[Pair]:
    files = direction / f"train.{source}", direction / f"train.{target}"
    counts = [sum(1 for _ in iterate_nonempty(file)) for file in files]
    if counts[0] != counts[1]:
        raise SlamkernError(
            f"{files[0]} has {counts[0]} lines but {files[1].name} beside it has {counts[1]}: not parallel"
        )
    for number, (line, other) in enumerate(zip(*map(iterate_nonempty, files), strict=True), 1):
        texts = [_unquoted(text, f"{direction}:{number}") if kind == "answer" else text for text in (line, other)]
        yield Pair(texts[0].strip(), texts[1].strip(), source, target, kind, f"{direction.name}-{kind}-{number}")


def _unquoted(line: str, where: str) -> str:
    """Solutions have several lines, so they may be written as JSON strings."""
    if not line.startswith('"'):
        return line
    return str(parse_json(line, f"{where} starts with a quote"))


def _from_records(records: Iterator[Record], name: str) -> Iterator[Pair]:
    first = next(records, None)
    if first is None:
        return
    records = chain([first], records)
    if "source" not in first:
        for number, (problem, english) in enumerate(match_to_english(list(records), name), 1):
            identity = problem.id or str(number)
            question = Pair(problem.question, english.question, problem.language, id=identity)
            yield question
            yield replace(question, source=problem.solution, target=english.solution, kind="answer")
        return
    for number, record in enumerate(records, 1):
        where = f"record {number} of {name}"
        source, target, code = (field(record, (key,), where) for key in ("source", "target", "source_language"))
        kind, identity = str(record.get("kind") or "question"), str(record.get("id") or number)
        if kind not in KINDS["both"]:
            raise SlamkernError(f"{where} has kind {kind!r}; use question or answer")
        yield Pair(source, target, code, str(record.get("target_language") or "en"), kind, identity)


def _corpus(count: str, wanted: set[str] | None, limit: int | None) -> Iterator[Pair]:
    from slamkern.data import synthetic

    if count and not (count.isdecimal() and int(count)):
        raise SlamkernError(f"corpus:{count} is not a number of problems; use corpus: or corpus:500")
    number = int(count) if count else limit or CORPUS_PROBLEMS
    codes = [code for code in synthetic.LANGUAGES if code != "en"] if wanted is None else sorted(wanted)
    for problem in synthetic.generate(number, 0, ["en", *codes], "train"):
        for code in codes:
            yield Pair(problem.questions[code], problem.questions["en"], code, id=problem.id)
            yield Pair(problem.solutions[code], problem.solutions["en"], code, kind="answer", id=problem.id)
