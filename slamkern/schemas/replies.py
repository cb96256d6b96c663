"""``replies.json``: a model's own replies to questions, and what they were made with."""

import json
from pathlib import Path
from typing import Any

from slamkern.files import read_checked
from slamkern.schemas.check import Count, Digest, Name, Schema, check


class Reply(Schema):
    """A line of the file while it is made; ended: not cut at the limit."""

    question: Name
    reply: str
    ended: bool


class Settings(Schema):
    weights: Digest
    dtype: Name
    prompt: Name
    max_new_tokens: Count
    questions: list[Name]


class Replies(Schema):
    settings: Settings
    replies: list[Reply]


def read_replies_file(path: str | Path) -> dict[str, Any]:
    """The values of a replies.json."""
    values: dict[str, Any] = read_checked(path)
    check(Replies, json.dumps(values), f"{path} is no replies.json")
    return values
