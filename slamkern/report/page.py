"""The self-contained page of a report, from sections: a title, a text, figures, a table, samples, facts, details."""

import base64
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slamkern.files import atomic_write


def render_page(*, title: str, subtitle: str, facts: Sequence[Any], sections: Sequence[Mapping[str, Any]]) -> str:
    """The self-contained page of these sections; everything in it is escaped."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("slamkern.report", ""), autoescape=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("report.html.j2").render(
        title=title, subtitle=subtitle, facts=facts,
        sections=[{"text": "", "figures": [], **section} for section in sections],
    )  # fmt: skip


def figure_of(folder: Path, name: str, data: bytes, alt: str) -> dict[str, Any]:
    """Save the PNG and hand it to the page at its design size (figures are drawn at 150 dpi; a page has 96)."""
    with atomic_write(folder / "figures" / f"{name}.png") as temporary:
        temporary.write_bytes(data)
    (pixels,) = struct.unpack(">I", data[16:20])
    return {"data": base64.b64encode(data).decode(), "alt": alt, "width": round(pixels * 96 / 150 * 1.15)}
