"""Translation pairs: what alignment trains on, read from every form the data comes in.

    folder            ``{lang}-en/train.{lang}`` beside ``{lang}-en/train.en``, line by line parallel
    ``.jsonl``        one ``{"source", "target", "source_language"[, "target_language", "kind", "id"]}`` a line
    ``.json``         records of questions with their solutions in many languages (GSM8KInstruct_Parallel)
    ``corpus:``       the embedded generator; ``corpus:500`` makes 500 problems
    ``hf:owner/name`` a dataset of the Hugging Face hub with the columns of one of the two JSON forms

Rows that are English on the source side teach nothing here and are dropped; so are rows with an empty side. Both are
counted and logged. Over-long rows are dropped at tokenisation (``packing``), where length is known.
"""

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One text in two languages (ISO 639-1 codes). ``kind`` is ``question`` or ``answer``."""

    source: str
    target: str
    source_language: str
    target_language: str = "en"
    kind: str = "question"
    id: str = ""
