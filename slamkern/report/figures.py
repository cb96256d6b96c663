"""The figures of a report, each a pure function from numbers to PNG bytes (matplotlib's Agg, imported when called).

Matrices are (layers, languages). Colors: one blue for single-hue maps, orange for what was selected.
Only language codes are drawn, so no font beyond matplotlib's own is needed.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

INK, MUTED, BLUE, ORANGE = "#1f2933", "#7b8794", "#2f6db3", "#d9730d"
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.edgecolor": "#cbd2d9", "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.titlelocation": "left", "figure.constrained_layout.use": True,
}  # fmt: skip


def figure_of_size(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def png(figure: Any) -> bytes:
    """The figure as it is shown and saved."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def layer_heatmap(
    values: Sequence[Sequence[float]], languages: Sequence[str], label: str, selected: Sequence[int] = ()
) -> bytes:
    """A (layers, languages) matrix with layer 0 at the bottom; selected layers have an orange, bold tick label.

    Cells are annotated while they are few enough to stay legible.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        layers, columns = len(values), len(languages)
        figure, axes = figure_of_size(max(4.8, 0.62 * columns + 1.6), max(2.2, min(0.27 * layers + 0.9, 9.5)))
        image = axes.imshow(values, aspect="auto", origin="lower", cmap="Blues", interpolation="nearest")
        axes.set_xticks(range(columns), languages)
        axes.set_yticks(range(layers), [str(layer) for layer in range(layers)], fontsize=9 if layers <= 24 else 7)
        axes.set_ylabel("layer")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for layer in selected:
            axes.get_yticklabels()[layer].set(color=ORANGE, fontweight="bold")
        axes.set_title(label)
        figure.colorbar(image, ax=axes, pad=0.02).outline.set_visible(False)
        if layers <= 16 and columns <= 12:
            top, low = max(map(max, values)), min(map(min, values))
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    dark = value - low > 0.6 * (top - low)
                    axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=6.5,
                              color="white" if dark else INK)  # fmt: skip
        return png(figure)


def layer_bars(
    scores: Sequence[float], selected: Sequence[int], score_name: str, stability: Sequence[float] | None
) -> bytes:
    """One bar a layer (its mean score), selected ones in orange; above it, how often the bootstrap chose the layer."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        layers = len(scores)
        figure, axes = figure_of_size(max(4.8, min(0.3 * layers + 1.5, 11)), 2.6)
        axes.bar(
            range(layers), scores, width=0.72, color=[ORANGE if i in selected else "#c3d4e8" for i in range(layers)]
        )
        axes.set_xticks(range(layers), [str(i) for i in range(layers)], fontsize=9 if layers <= 24 else 7)
        axes.set_xlabel("layer")
        axes.set_ylabel(score_name)
        axes.set_title("orange: selected" + ("; above: share of bootstrap draws that choose it" if stability else ""))
        axes.tick_params(axis="x", length=0)
        axes.margins(x=0.01, y=0.15)
        for layer, chance in enumerate(stability or ()):
            if chance >= 0.005:
                axes.annotate(f"{100 * chance:.0f}%", (layer, scores[layer]), xytext=(0, 2), textcoords="offset points",
                              ha="center", fontsize=7, color=ORANGE if layer in selected else MUTED)  # fmt: skip
        return png(figure)


def loss_curve(losses: Sequence[float]) -> bytes:
    """Training loss per supervised token over the steps: every step in light, its running mean in dark."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of_size(6.4, 2.6)
        steps = range(1, len(losses) + 1)
        window = max(1, len(losses) // 20)
        recent = [losses[max(0, i - window + 1) : i + 1] for i in range(len(losses))]
        mean = [sum(values) / len(values) for values in recent]
        axes.plot(steps, losses, color="#b8cbe2", linewidth=1, marker="o" if len(losses) < 3 else None)
        axes.plot(steps, mean, color=BLUE, linewidth=1.8)
        axes.set(xlabel="step", ylabel="loss per supervised token")
        axes.set_ylim(0, 1.05 * max(losses))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        return png(figure)


def before_after(before: Mapping[str, float], after: Mapping[str, float], label: str, decimals: int = 2) -> bytes:
    """Grouped bars per language: before in gray, after in blue, each with its value."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        languages = [code for code in before if code in after]
        figure, axes = figure_of_size(max(4.6, 0.72 * len(languages) + 1.2), 2.6)
        for offset, values, color, name in ((-0.2, before, "#b0bac5", "before"), (0.2, after, BLUE, "after")):
            heights = [values[code] for code in languages]
            places = [index + offset for index in range(len(languages))]
            bars = axes.bar(places, heights, width=0.38, color=color, label=name)
            axes.bar_label(bars, fmt=f"%.{decimals}f", fontsize=6.5, padding=1, color=INK)
        axes.set_xticks(range(len(languages)), languages)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(label)
        # Where everything is 0, a range of its own: that of 1e-9 has an offset text, which lies in the legend.
        axes.set_ylim(0, 1.12 * max(*before.values(), *after.values()) or 1)
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8, borderaxespad=0)
        return png(figure)


def pareto_front(points: Sequence[tuple[str, float, float]], *, larger_is_better: bool) -> list[int]:
    """Indices, by x, of the points that no other point beats in x or y without losing in the other; ties all stay."""
    sign = 1 if larger_is_better else -1
    values = [(sign * x, sign * y) for _, x, y in points]
    beaten = [any(a >= x and b >= y and (a, b) != (x, y) for a, b in values) for x, y in values]
    return sorted((i for i, lost in enumerate(beaten) if not lost), key=lambda i: points[i][1:])


def trade_off(
    points: Sequence[tuple[str, float, float]], x_label: str, y_label: str, *, larger_is_better: bool
) -> bytes:
    """A named point each: (name, x, y); ``base`` in orange with lines through it, the Pareto front as a blue line."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of_size(6.8, 4.6)
        for name, x, y in points:
            base = name == "base"
            axes.scatter([x], [y], s=30 if base else 18, color=ORANGE if base else BLUE, zorder=3)
            if base:
                axes.axhline(y, color="#cbd2d9", linewidth=0.8)
                axes.axvline(x, color="#cbd2d9", linewidth=0.8)
        front = [points[index] for index in pareto_front(points, larger_is_better=larger_is_better)]
        axes.plot([x for _, x, _ in front], [y for _, _, y in front], color=BLUE, linewidth=1, alpha=0.6)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(0.12)
        _name_points(axes, points)
        return png(figure)


def _name_points(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each name beside its point, where no name stands yet; where there is no such place, to the right."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()  # lays out: points are where they stay
    renderer = figure.canvas.get_renderer()
    dots = [axes.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in dots]
    for name, x, y in sorted(points, key=lambda point: -point[1]):  # names go to the right: the rightmost first
        text = axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7,
                             color=ORANGE if name == "base" else INK, in_layout=False)  # fmt: skip
        width = text.get_window_extent(renderer).width * 72 / figure.dpi
        for place in [(side, up) for up in (3, -9, 11, -17, 19, -25) for side in (4, -4 - width)]:
            text.set_position(place)
            box = text.get_window_extent(renderer)
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        else:
            text.set_position((4, 3))
        taken.append(text.get_window_extent(renderer))
