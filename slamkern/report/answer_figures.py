"""The figures of answers before and after: accuracy with intervals, its change, and the language of the responses."""

from collections.abc import Mapping, Sequence
from typing import Any

from slamkern.report.figures import BLUE, INK, MUTED, ORANGE, STYLE, figure_of_size, png

WIDTH = 5.0  # inches: legible on a telephone too, where a page is as wide as its figures
GRAY, LIGHT = "#b0bac5", "#e4e7eb"


def accuracy_dots(before: Mapping[str, Any], after: Mapping[str, Any]) -> bytes:
    """Percent correct by language with its 95 % interval, before in gray and after in blue, and the average.

    before and after: the scores of an evaluation (``accuracy``, ``intervals``, ``average``, ``average_interval``).
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        names = [*before["accuracy"], "average"]
        figure, axes = figure_of_size(WIDTH, 0.42 * len(names) + 1.0)
        for shift, scores, color, label in ((-0.13, before, GRAY, "before"), (0.13, after, BLUE, "after")):
            values = [*(scores["accuracy"][name] for name in names[:-1]), scores["average"]]
            bounds = [*(scores["intervals"][name] for name in names[:-1]), scores["average_interval"]]
            places = [index + shift for index in range(len(names))]
            axes.hlines(places, [low for low, _ in bounds], [high for _, high in bounds], color=color, linewidth=2)
            axes.plot(values, places, "o", color=color, markersize=5, label=label)
        axes.set_yticks(range(len(names)), names)
        axes.get_yticklabels()[-1].set_fontweight("bold")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("correct, %, with 95 % interval")
        axes.set_xlim(left=0)
        axes.grid(axis="x", color=LIGHT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8, borderaxespad=0)
        return png(figure)


def difference_intervals(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
    """Change in percentage points by language with its paired 95 % interval; the margin as a dashed tick.

    rows: (name, change with ``difference``, ``interval``, ``margin``), the average last.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of_size(WIDTH, 0.36 * len(rows) + 0.9)
        for place, (_, change) in enumerate(rows):
            low, high = change["interval"]
            color = ORANGE if change["verdict"] == "worse" else BLUE if change["verdict"] == "better" else MUTED
            axes.hlines(place, low, high, color=color, linewidth=2.2)
            axes.plot([change["difference"]], [place], "o", color=color, markersize=5)
            axes.plot([-change["margin"]] * 2, [place - 0.35, place + 0.35], color=ORANGE, linewidth=1, linestyle=":")
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.get_yticklabels()[-1].set_fontweight("bold")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("change, percentage points, with 95 % interval")
        axes.grid(axis="x", color=LIGHT, linewidth=0.7)
        axes.set_axisbelow(True)
        return png(figure)


def response_languages(drift: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """In which language each language's questions are answered: two bars each, before above after.

    drift: language -> (before, after), each with ``languages``, response language -> percent.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of_size(WIDTH, 0.5 * len(drift) + 1.1)
        colors = {"its own": BLUE, "English": ORANGE, "another": GRAY, "too short to tell": LIGHT}
        for index, (code, sides) in enumerate(drift.items()):
            for offset, side in ((-0.19, sides[0]), (0.19, sides[1])):
                left = 0.0
                for kind, share in _kinds(code, side["languages"]).items():
                    axes.barh(index + offset, share, left=left, height=0.34, color=colors[kind])
                    left += share
                axes.text(101, index + offset, "before" if offset < 0 else "after", va="center", fontsize=6.5)
        axes.set_yticks(range(len(drift)), list(drift))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 109)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("responses, %")
        handles = [matplotlib.patches.Patch(color=color, label=kind) for kind, color in colors.items()]
        axes.legend(
            handles=handles, title="language of the response", title_fontsize=8, fontsize=8, frameon=False, ncols=4,
            alignment="left", columnspacing=1.2, handlelength=1.2, loc="lower left", bbox_to_anchor=(0, 1.0),
            borderaxespad=0,
        )  # fmt: skip
        return png(figure)


def _kinds(code: str, languages: Mapping[str, float]) -> dict[str, float]:
    own, unknown = languages.get(code, 0.0), languages.get("unknown", 0.0)
    english = languages.get("en", 0.0) if code != "en" else 0.0
    return {
        "its own": own, "English": english, "another": max(0.0, 100 - own - english - unknown),
        "too short to tell": unknown,
    }  # fmt: skip
