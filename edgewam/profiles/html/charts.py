"""Charts as inline SVG that follow the width of the page without stretching their text: bars, intervals, lines, histograms.

Horizontal positions are percentages; paths live in a box of 1000 x 1000 that is stretched, with strokes that are not.
Text stands beside the drawings as HTML, so that it stays readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgewam.profiles.html.values import escape


def bars(values: Sequence[tuple[str, float]], largest: float, label: str) -> str:
    """Horizontal bars below each other, [0, largest]; each has the class that its name says."""
    height, rows = 12 * len(values) + 2, []
    for i, (kind, value) in enumerate(values):
        width = 100 * value / largest if largest > 0 else 0.0
        rows.append(f'<rect class="{kind}" x="0" y="{12 * i + 1}" width="{max(width, 0.15):.2f}%" height="10" rx="1.5"/>')
    return f'<svg class="bars" role="img" aria-label="{escape(label)}" width="100%" height="{height}">{"".join(rows)}</svg>'


def chart_row(name: str, drawn: str, figure: str) -> str:
    """One line of a chart: a name, its drawing, its number; on a phone the drawing stands below the other two."""
    return f'<div class="row"><div class="name">{name}</div>{drawn}<div class="what">{figure}</div></div>'


def interval(low: float, point: float, high: float, label: str) -> str:
    """A rate in [0, 1] with its interval, over a scale whose quarters are marked."""
    marks = "".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="22"/>' for x in (0, 25, 50, 75, 100))
    return (
        f'<svg class="interval" role="img" aria-label="{escape(label)}" width="100%" height="22">{marks}'
        f'<line class="whisker" x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" y1="11" y2="11"/>'
        f'<circle class="point" cx="{100 * point:.2f}%" cy="11" r="4.5"/></svg>'
    )


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, label: str) -> str:
    """Lines by class name over a logarithmic vertical axis with whole decades; values must be positive or are left out."""
    points = [(x, y) for line in series.values() for x, y in line if y > 0]
    if not points:
        return '<p class="absent">All values are zero: the two are equal bit for bit.</p>'
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    low = math.floor(math.log10(min(y for _, y in points)))
    high = max(math.ceil(math.log10(max(y for _, y in points))), low + 1)
    across, up = max(x1 - x0, 1e-9), high - low

    def place(x: float, y: float) -> str:
        return f"{1000 * (x - x0) / across:.1f},{1000 * (high - math.log10(y)) / up:.1f}"

    step = max(1, math.ceil(up / 6))  # six labels at most
    decades = list(range(low, high + 1, step))
    grid = "".join(
        f'<line class="grid" x1="0" x2="1000" y1="{1000 * (high - d) / up:.1f}" y2="{1000 * (high - d) / up:.1f}"/>'
        for d in decades
    )
    drawn = "".join(
        f'<polyline class="{name}" points="{" ".join(place(x, y) for x, y in line if y > 0)}"/>' for name, line in series.items()
    )
    ticks = "".join(f'<span style="top:{100 * (high - d) / up:.2f}%">10<sup>{d}</sup></span>' for d in decades)
    below = "".join(f'<span style="left:{100 * (x - x0) / across:.2f}%">{x:g}</span>' for x in _ticks(x0, x1))
    return _plot(f"{grid}{drawn}", ticks, below, x_label, y_label, label)


def histogram(edges: Sequence[float], counts: Sequence[int], x_label: str, label: str) -> str:
    """Counts in bins, drawn with equal widths; the height is the share of all samples, from 0 to the largest."""
    total, largest = sum(counts), max(counts, default=0)
    last = max((i for i, n in enumerate(counts) if n), default=0) + 1  # empty bins behind the last sample are cut
    first = min((i for i, n in enumerate(counts) if n), default=0)
    shown, width = counts[first:last], 1000 / max(last - first, 1)
    rects = "".join(
        f'<rect class="engine" x="{i * width + 0.06 * width:.1f}" y="{1000 - 1000 * n / largest:.1f}" width="{0.88 * width:.1f}" '
        f'height="{1000 * n / largest:.1f}"><title>{n} of {total}: {edges[first + i]:g} to {edges[first + i + 1]:g} ms</title>'
        "</rect>"
        for i, n in enumerate(shown)
        if n
    )
    grid = "".join(f'<line class="grid" x1="0" x2="1000" y1="{y}" y2="{y}"/>' for y in (0, 500, 1000))
    share = largest / total if total else 0.0
    ticks = "".join(f'<span style="top:{y}%">{100 * share * (100 - y) / 100:.0f} %</span>' for y in (0, 50, 100))
    every = max(1, math.ceil((last - first) / 8))
    below = "".join(
        f'<span style="left:{100 * i / max(last - first, 1):.2f}%">{edges[first + i]:g}</span>'
        for i in range(0, last - first + 1, every)
    )
    return _plot(grid + rects, ticks, below, x_label, "share of samples", label)


def _plot(inside: str, ticks: str, below: str, x_label: str, y_label: str, label: str) -> str:
    return (
        f'<div class="plot"><div class="ylabel">{escape(y_label)}</div><div class="yaxis">{ticks}</div>'
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 1000 1000" preserveAspectRatio="none">{inside}</svg>'
        f'<div class="xaxis">{below}</div><div class="xlabel">{escape(x_label)}</div></div>'
    )


def _ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (1, 2, 3, 5, 10, 20, 50, 100, 1000, 10000) if (high - low) / s <= 8)
    start = math.ceil(low / step) * step
    return [low, *[start + i * step for i in range(int((high - start) / step) + 1) if start + i * step > low]]
