"""What a comparison found as files: ``comparison.json``, a self-contained ``comparison.html``, and ``junit.xml``.

It comes as the JSON values of a `Comparison`, so that the page can also be made from the file.
JUnit XML has a test case a language, one for the average and one a held-out loss: worse is a failure (of a language
with the questions lost), cannot tell is skipped with its reason, as pipelines show it. The HTML escapes everything
(outputs of models hold anything).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from slamkern.files import atomic_write, write_json, write_text

Values = Mapping[str, Any]

FILES = ("comparison.json", "comparison.html", "junit.xml")
HEAD = (
    "language", "questions", "before %", "after %", "difference", "95 % interval", "gained", "lost", "p harm",
    "detectable", "margin", "verdict",
)  # fmt: skip
LOSS_HEAD = ("loss, nats a token", "before", "after", "difference", "margin", "verdict")
DRIFT_HEAD = ("language", "same language", "in English", "length", "empty", "repetitive", "echo", "truncated")
MARKS = {"better": "better", "not worse": "", "worse": "worse", "cannot tell": "unclear"}
PHRASES = {
    "better": "better in every language",
    "not worse": "not worse within the margin",
    "worse": "worse",
    "cannot tell": "not decided: these questions cannot tell",
}
AVERAGE = "average"
CUT = 10.0  # percent of the answers to questions in one language
_NOT_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_comparison(result: Values, folder: str | Path) -> list[Path]:
    """Write the three files into ``folder`` (replacing those of an earlier comparison); returns their paths."""
    folder = Path(folder)
    write_json(folder / FILES[0], dict(result))
    write_text(folder / FILES[1], _page(result))
    with atomic_write(folder / FILES[2]) as temporary:
        ElementTree.ElementTree(_junit(result)).write(temporary, encoding="utf-8", xml_declaration=True)
    return [folder / name for name in FILES]


def rows(result: Values) -> Iterator[tuple[str, Values]]:
    """The languages by name and, last, their average."""
    yield from result["languages"].items()
    yield AVERAGE, result["average"]


def cells(name: str, change: Values) -> list[str]:
    """A row of the table as text, in the order of ``HEAD`` without the verdict."""
    low, high = change["interval"]
    p = change["p_harm_holm"]
    before, after, difference = change["before"], change["after"], change["difference"]
    return [
        name, str(change["n"]), f"{before:.1f}", f"{after:.1f}", f"{difference:+.1f}", f"{low:+.1f} to {high:+.1f}",
        str(change["gained"]), str(change["lost"]), "" if p is None else f"{p:.3f}",
        "{detectable:.1f}".format(**change), "{margin:g}".format(**change),
    ]  # fmt: skip


def loss_cells(name: str, change: Values) -> list[str]:
    """A row of the table of losses as text, in the order of ``LOSS_HEAD`` without the verdict."""
    numbers = [f"{change[field]:.4f}" for field in ("before", "after")]
    return [name, *numbers, "{difference:+.4f}".format(**change), "{margin:g}".format(**change)]


def drift_cells(name: str, old: Values, new: Values) -> list[str]:
    """A row of the table of responses as text, in the order of ``DRIFT_HEAD``."""
    ratio = f" (x{new['characters'] / old['characters']:.2f})" if old["characters"] else ""
    columns = [(old[field], new[field]) for field in ("same_language", "english")]
    columns += [(old[field], new[field]) for field in ("empty", "repetitive", "echo", "truncated")]
    texts = ["" if None in pair else f"{pair[0]:.0f} → {pair[1]:.0f}" for pair in columns]
    return [name, *texts[:2], f"{old['characters']:.0f} → {new['characters']:.0f}{ratio}", *texts[2:]]


def cut_short(result: Values) -> str | None:
    """What answers that were cut at the longest length leave open, in words; None where a tenth or fewer were."""
    shares = {(code, when): side["truncated"] or 0.0 for code, sides in result["drift"].items()
              for when, side in zip(("before", "after"), sides, strict=True)}  # fmt: skip
    code, when = max(shares, key=shares.__getitem__, default=("", ""))
    if not shares or shares[code, when] <= CUT:
        return None
    limit = result["settings"].get("max_new_tokens")
    return (
        f"Answers were cut at {limit} new tokens and judged as they stand, at most {shares[code, when]:.0f} % ({code}, "
        f"{when}): training that makes answers longer or shorter looks worse or better than it is. Raise "
        "evaluate.max_new_tokens."
    )


def _page(result: Values) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("slamkern.report", ""), autoescape=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["words"] = _words
    return environment.get_template("comparison.html.j2").render(
        result=result, phrase=PHRASES[result["verdict"]], marks=MARKS, head=HEAD, plot=_plot(result),
        cut=cut_short(result),
        rows=[
            {"cells": cells(name, change), "verdict": change["verdict"], "total": name == AVERAGE}
            for name, change in rows(result)
        ],
        loss_head=LOSS_HEAD,
        loss_rows=[
            {"cells": loss_cells(name, change), "verdict": change["verdict"]}
            for name, change in result["losses"].items()
        ],
        drift_head=DRIFT_HEAD, drift_rows=[drift_cells(code, *sides) for code, sides in result["drift"].items()],
    )  # fmt: skip


def _plot(result: Values) -> dict[str, Any]:
    """Coordinates of the interval plot, in a drawing 640 wide."""
    named = list(rows(result))
    bounds = [bound for _, change in named for bound in (*change["interval"], -change["margin"], 0.0)]
    step = next(step for step in (1, 2, 5, 10, 25, 50, 100) if (max(bounds) - min(bounds)) / step <= 10)
    low, high = step * int(min(bounds) // step), step * -int(-max(bounds) // step)

    def x(value: float) -> float:
        return round(70 + 555 * (value - low) / max(high - low, step), 1)

    marks = [
        {
            "name": name, "total": name == AVERAGE, "y": 22 + 26 * row, "at": x(change["difference"]),
            "low": x(change["interval"][0]), "high": x(change["interval"][1]), "margin": x(-change["margin"]),
        }
        for row, (name, change) in enumerate(named)
    ]  # fmt: skip
    ticks = [{"value": value, "x": x(value)} for value in range(low, high + 1, step)]
    return {"rows": marks, "ticks": ticks, "height": 22 + 26 * len(named) + 22}


def _junit(result: Values) -> ElementTree.Element:
    named = list(rows(result))
    losses = result["losses"]
    verdicts = [change["verdict"] for change in (*(change for _, change in named), *losses.values())]
    task = _xml_text(str(result["settings"].get("task", "task")))
    suite = ElementTree.Element(
        "testsuite", name="slamkern compare", tests=str(len(verdicts)), errors="0",
        failures=str(verdicts.count("worse")), skipped=str(verdicts.count("cannot tell")),
    )  # fmt: skip
    for name, change in named:
        case = ElementTree.SubElement(suite, "testcase", name=name, classname=f"slamkern.compare.{task}")
        message = f"{change['verdict']}: " + ", ".join(
            f"{label} {cell}" for label, cell in zip(HEAD[1:], cells(name, change)[1:], strict=False) if cell
        )
        if change["verdict"] == "worse":
            failure = ElementTree.SubElement(case, "failure", message=message, type="worse")
            lost = [new for _, new in result["lost"] if name in (new["language"], AVERAGE)]
            failure.text = _xml_text(
                "lost:\n" + "\n".join(f"{new['language']} {new['question_id']}: {new['question']}" for new in lost)
            )
        elif change["verdict"] == "cannot tell":
            ElementTree.SubElement(case, "skipped", message=message)
        else:
            ElementTree.SubElement(case, "system-out").text = message
    for name, change in losses.items():
        case = ElementTree.SubElement(suite, "testcase", name=name, classname="slamkern.compare.losses")
        message = f"{change['verdict']}: " + ", ".join(
            f"{label} {cell}" for label, cell in zip(LOSS_HEAD[1:], loss_cells(name, change)[1:], strict=False)
        )
        if change["verdict"] == "worse":
            ElementTree.SubElement(case, "failure", message=message, type="worse")
        else:
            ElementTree.SubElement(case, "system-out").text = message
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    return suites


def _words(value: Any) -> str:
    """A setting as one reads it: nothing of how Python writes it down, and of a digest what tells two apart."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_words(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _xml_text(text: str) -> str:
    """XML 1.0 has no control characters, not even escaped ones."""
    return _NOT_XML.sub("\ufffd", text)
