"""The metadata of ``stats.safetensors``; its tensors are checked where they are read."""

from typing import Annotated

from pydantic import Field

from slamkern.schemas.check import Name, Schema, Unique


class StatsMetadata(Schema):
    """What a probe looked at."""

    slamkern_version: str
    languages: Annotated[tuple[Name, ...], Field(min_length=1), Unique]
    model: str
    signature: str
    observe: Name
