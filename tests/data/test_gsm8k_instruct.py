"""GSM8KInstruct_Parallel: records of many languages find their English problem."""

import json
import logging
import random

import pytest

from slamkern.data.pairs import load_pairs
from slamkern.errors import SlamkernError

NAMES = {"en": "English", "de": "German", "th": "Thai"}


def problem(code: str, index: int) -> dict:
    return {"lang": code, "query": f"{code}: {index} + {index * 7} = ?", "response": f"{code}. #### {index * 8}"}


def published(code: str, index: int) -> dict:
    """A record as the published file has it."""
    plain = problem(code, index)
    name = NAMES[code]
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request "
        f"in {name}. Please answer in {name}.\n\n### Instruction:\n{plain['query']}\n\n### Response:"
    )
    return {"prompt": prompt, "chosen": plain["response"], "reject": ""}


def load(tmp_path, records, lines=True, **arguments):
    path = tmp_path / "data.json"
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records), encoding="utf-8")
    return load_pairs(path, **arguments)


def is_matched(pair):
    return pair.source.split(":")[-1].split(".")[-1] == pair.target.split(":")[-1].split(".")[-1]


@pytest.mark.parametrize("lines", [True, False])
def test_published_records_in_one_order(tmp_path, lines):
    records = [published(code, index) for code in NAMES for index in range(1, 6)]
    pairs = load(tmp_path, records, lines, content="both")
    assert len(pairs) == 20 and all(map(is_matched, pairs))
    assert (pairs[5].source_language, pairs[5].source, pairs[5].target) == ("de", "de: 1 + 7 = ?", "en: 1 + 7 = ?")


def test_records_with_ids_match_by_id_whatever_their_order(tmp_path):
    records = [problem(code, index) | {"id": index, "lang": NAMES[code]} for code in NAMES for index in range(20)]
    random.Random(0).shuffle(records)
    pairs = load(tmp_path, records)
    assert len(pairs) == 40 and all(map(is_matched, pairs))


def test_shuffled_and_missing_rows_match_by_their_numbers(tmp_path, caplog):
    """As in the published file, where languages miss different rows. 3 and 3 are two problems with the same numbers."""
    orders = {"en": (1, 2, 3, 3, 4, 5), "de": (5, 3, 2, 9), "th": (5, 4, 3, 3, 2, 1)}  # Thai: all there, turned around
    records = [published(code, index) for code, order in orders.items() for index in order]
    with caplog.at_level(logging.WARNING):
        pairs = load(tmp_path, records)
    assert all(map(is_matched, pairs))
    assert [pair.source_language for pair in pairs] == ["de"] * 2 + ["th"] * 4
    assert "2 of 4 de records match no English one" in caplog.text


def test_bad_records(tmp_path):
    english = [problem("en", index) for index in range(3)]
    for records, message in [
        (english, "needs records in English and another language; it has en 3"),
        ([problem("de", 1)], "it has en 0, de 1"),
        ([*english, problem("de", 99), problem("de", 98)], "no de record matches an English one; it has en 3, de 2"),
        ([*english, {"lang": "de", "query": "?"}], "record 4 of .* has none of the fields response, answer"),
        ([*english, problem("de", 1) | {"lang": "Klingon"}], "unknown language 'klingon'"),
        ([*english, {"prompt": "Hi", "chosen": "Ho"}], "record 4 of .*: its prompt names no language"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            load(tmp_path, records)
