"""Charts as inline SVG: pure functions from numbers to markup.

Colours come from the page's style sheet (classes ``s0`` ... ``s6``), so one drawing serves light and dark pages. Every
series also differs by something other than colour: marker, dash, position or its label. Lengths are in SVG user units.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from nashtune.records import Interval

PALETTE_SIZE = 7
MARKERS = ("circle", "square", "diamond")
CURVE_POINTS = 240
"""About as many points as a training curve shows, all iterations together; more are averaged in equal blocks."""


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. Attribute ``stroke_width`` becomes ``stroke-width``, ``class_`` becomes ``class``; None is left out;
    text children and values are escaped unless they are Markup."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_number(value) if isinstance(value, (int, float)) else escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown}>") + Markup("").join(escape(child) for child in children) + Markup(f"</{name}>")


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def svg(label: str, width: float, height: float, *marks: str) -> Markup:
    """A drawing with an accessible name, scaled to the width of its container."""
    return tag("svg", *marks, viewBox=f"0 0 {_number(width)} {_number(height)}", role="img", aria_label=label)


def legend(names: Sequence[str], markers: bool = False) -> Markup:
    """Names with their swatches, in palette order: blocks, or the markers of a line chart."""
    shapes = MARKERS if markers else ("block",)
    swatches = [_marker(shapes[i % len(shapes)], 7, 7, f"s{i % PALETTE_SIZE}") for i in range(len(names))]
    drawn = [tag("svg", swatch, viewBox="0 0 14 14", aria_hidden="true") for swatch in swatches]
    return tag("ul", *(tag("li", d, name) for d, name in zip(drawn, names, strict=True)), class_="legend")


def _marker(shape: str, x: float, y: float, class_: str) -> Markup:
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=4, class_=class_)
    if shape == "diamond":
        return tag("path", d=f"M{_number(x)} {_number(y - 5.2)}l5.2 5.2l-5.2 5.2l-5.2-5.2z", class_=class_)
    side = 10 if shape == "block" else 7.4
    return tag("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=class_)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: multiples of 1, 2 or 5 times a power of ten, about ``wanted`` of them."""
    span = (high - low) or abs(high) or 1.0
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot area of a drawing and its linear scales."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 46
    right: float = 12
    top: float = 12
    bottom: float = 34

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def x_axis(self, labels: Mapping[float, str], title: str, grid: bool = False) -> Markup:
        """Labels under the plot, its base line, and vertical rules where ``grid``."""
        floor, marks = self.height - self.bottom, []
        for value, text in labels.items():
            if grid:
                marks.append(tag("line", x1=self.x(value), x2=self.x(value), y1=self.top, y2=floor, class_="grid"))
            marks.append(tag("text", text, x=self.x(value), y=floor + 14, text_anchor="middle"))
        marks.append(tag("line", x1=self.left, x2=self.width - self.right, y1=floor, y2=floor, class_="axis"))
        middle = (self.left + self.width - self.right) / 2
        marks.append(tag("text", title, x=middle, y=self.height - 4, text_anchor="middle", class_="quiet"))
        return Markup("").join(marks)

    def y_axis(self, labels: Mapping[float, str]) -> Markup:
        """Labels left of the plot, with a horizontal rule each."""
        marks = []
        for value, text in labels.items():
            y = self.y(value)
            marks.append(tag("line", x1=self.left, x2=self.width - self.right, y1=y, y2=y, class_="grid"))
            marks.append(tag("text", text, x=self.left - 7, y=y + 4, text_anchor="end"))
        return Markup("").join(marks)


def plain(value: float) -> str:
    """A tick label: 0.05, 12, 1,500, 3e−5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-").replace("-", "−")
    return (f"{value:,.0f}" if value == int(value) else f"{value:.6g}").replace("-", "−")


def win_rate_chart(label: str, names: Sequence[str], series: Mapping[str, Sequence[Interval | None]]) -> Markup:
    """Win rates (0 to 1) with their intervals; ``names`` label the iterations, each series holds one entry per name."""
    frame = Frame(600, 290, (-0.5, len(names) - 0.5), (0, 1), left=62)
    marks: list[Markup] = [
        frame.y_axis({v / 4: f"{v * 25} %" for v in range(5)}),
        frame.x_axis(dict(enumerate(names)), "iteration"),
        tag("line", x1=frame.left, x2=frame.width - frame.right, y1=frame.y(0.5), y2=frame.y(0.5), class_="even"),
    ]
    step = min(0.14, 0.5 / max(1, len(series)))
    for i, (name, intervals) in enumerate(series.items()):
        colour, shift = f"s{i % PALETTE_SIZE}", (i - (len(series) - 1) / 2) * step
        known = [(frame.x(t + shift), interval) for t, interval in enumerate(intervals) if interval is not None]
        path = "M" + "L".join(f"{_number(x)} {_number(frame.y(v.value))}" for x, v in known)
        marks.append(tag("path", d=path, class_=f"thread {colour}"))
        for x, interval in known:
            low, high = frame.y(interval.low), frame.y(interval.high)
            bar = f"M{_number(x - 3.5)} {_number(low)}h7m-3.5 0V{_number(high)}m-3.5 0h7"
            tip = f"{name}: {interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%}), {interval.n} prompts"
            dot = _marker(MARKERS[i % 3], x, frame.y(interval.value), colour)
            marks.append(tag("g", tag("title", tip), tag("path", d=bar, class_=f"whisker {colour}"), dot))
    return svg(label, frame.width, frame.height, *marks)


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics of an ascending, non-empty sequence."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def length_chart(label: str, lengths: Mapping[str, Sequence[float]]) -> Markup:
    """One strip per row: the distribution's silhouette, a bar over its middle half, a dot at the median."""
    row, bins = 46, 64
    longest = max(max(values) for values in lengths.values())
    scale = ticks(0, longest or 1)
    frame = Frame(600, 40 + row * len(lengths), (0, scale[-1]), (0, 1), left=66, right=110, top=2)
    marks: list[Markup] = [frame.x_axis({v: plain(v) for v in scale}, "words per answer", grid=True)]
    for i, (name, values) in enumerate(lengths.items()):
        ordered, middle = sorted(values), frame.top + row * (i + 0.5)
        low, median, high = (quantile(ordered, q) for q in (0.25, 0.5, 0.75))
        density = _smooth_counts(ordered, scale[-1], bins)
        peak = max(density)
        edge = [(frame.x(scale[-1] * (b + 0.5) / bins), 17 * d / peak) for b, d in enumerate(density)]
        outline = [f"{_number(x)} {_number(middle - h)}" for x, h in edge]
        outline += [f"{_number(x)} {_number(middle + h)}" for x, h in reversed(edge)]
        tip = f"{name}: median {median:g}, middle half {low:g} to {high:g} words, {len(ordered)} answers"
        marks.append(
            tag(
                "g",
                tag("title", tip),
                tag("path", d="M" + "L".join(outline) + "z", class_="violin"),
                tag("line", x1=frame.x(low), x2=frame.x(high), y1=middle, y2=middle, class_="middle-half"),
                tag("circle", cx=frame.x(median), cy=middle, r=4, class_="median"),
            )
        )
        marks.append(tag("text", name, x=frame.left - 10, y=middle + 4, text_anchor="end"))
        marks.append(tag("text", f"median {plain(median)}", x=frame.width - frame.right + 10, y=middle + 4))
    return svg(label, frame.width, frame.height, *marks)


def _smooth_counts(values: Iterable[float], top: float, bins: int) -> list[float]:
    """Counts in ``bins`` equal bins over [0, top], spread by a triangular kernel 5 bins wide, zero outside."""
    counts = [0.0] * bins
    for value in values:
        counts[min(bins - 1, int(value / top * bins))] += 1
    kernel = {-2: 1, -1: 2, 0: 3, 1: 2, 2: 1}
    return [sum(w * counts[b + o] for o, w in kernel.items() if 0 <= b + o < bins) for b in range(bins)]


def histogram_edges(values: Sequence[float], wanted: int = 14) -> list[float]:
    """Common bin edges: one bin per whole number where all values are whole and close, else round steps."""
    low, high = min(values), max(values)
    if all(v == int(v) for v in values) and high - low <= 24:
        return [v - 0.5 for v in range(int(low), int(high) + 2)]
    return ticks(low, high, wanted)


def histogram_counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Values per bin [edge, next edge); the last bin includes its upper edge."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(len(counts) - 1, max(0, bisect.bisect_right(edges, value) - 1))] += 1
    return counts


def margin_histogram(
    label: str, by_kind: Mapping[str, Sequence[float]], edges: Sequence[float], tallest: int
) -> Markup:
    """Stacked histogram; every kind keeps its place in ``by_kind``, so colours agree between drawings."""
    scale = ticks(0, tallest, 4)
    frame = Frame(290, 180, (edges[0], edges[-1]), (0, scale[-1]), left=40)
    whole = edges[0] != int(edges[0]) and edges[1] - edges[0] == 1
    shown = [e + 0.5 for e in edges[:-1]] if whole else ticks(edges[0], edges[-1], 5)
    shown = [v for v in shown if edges[0] <= v <= edges[-1]]
    marks: list[Markup] = [frame.y_axis({v: plain(v) for v in scale if v == int(v)})]
    base = [0] * (len(edges) - 1)
    for i, (kind, values) in enumerate(by_kind.items()):
        for b, count in enumerate(histogram_counts(values, edges)):
            if not count:
                continue
            left, right = frame.x(edges[b]) + 1, frame.x(edges[b + 1]) - 1
            top, floor = frame.y(base[b] + count), frame.y(base[b])
            tip = tag("title", f"{kind}: {count} pairs")
            box = tag(
                "rect", x=left, y=top, width=right - left, height=floor - top, class_=f"s{i % PALETTE_SIZE} block"
            )
            marks.append(tag("g", tip, box))
            base[b] += count
    marks.append(frame.x_axis({v: plain(v) for v in shown}, "margin"))
    return svg(label, frame.width, frame.height, *marks)


def block_means(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """The (x, y) points, averaged in blocks of equal size where there are more than ``most``."""
    size = math.ceil(len(points) / most) if points else 1
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks]


def training_curve(
    label: str, curves: Mapping[str, Sequence[tuple[float, float]]], even: float | None = None
) -> Markup:
    """Iterations side by side on one axis of optimizer steps; ``even`` draws a reference line. Non-finite points are
    left out of the line."""
    values = [y for points in curves.values() for _, y in points if math.isfinite(y)]
    if not values:
        return Markup("")
    scale = ticks(min(values), max(values), 4)
    total = sum(max(x for x, _ in points) for points in curves.values() if points)
    frame = Frame(290, 180, (0, total or 1), (scale[0], scale[-1]), left=52, top=22)
    marks: list[Markup] = [frame.y_axis({v: plain(v) for v in scale})]
    if even is not None and scale[0] <= even <= scale[-1]:
        marks.append(
            tag("line", x1=frame.left, x2=frame.width - frame.right, y1=frame.y(even), y2=frame.y(even), class_="even")
        )
    start = 0.0
    for name, points in curves.items():
        if not points:
            continue
        if start:
            marks.append(
                tag("line", x1=frame.x(start), x2=frame.x(start), y1=6, y2=frame.height - frame.bottom, class_="border")
            )
        drawn = block_means([(x, y) for x, y in points if math.isfinite(y)], max(12, CURVE_POINTS // len(curves)))
        path = "L".join(f"{_number(frame.x(start + x))} {_number(frame.y(y))}" for x, y in drawn)
        if len(drawn) == 1:
            marks.append(tag("circle", cx=frame.x(start + drawn[0][0]), cy=frame.y(drawn[0][1]), r=3, class_="s0"))
        elif drawn:
            marks.append(tag("path", tag("title", f"iteration {name}"), d="M" + path, class_="curve s0"))
        marks.append(tag("text", name, x=frame.x(start) + 5, y=14, class_="quiet"))
        start += max(x for x, _ in points)
    steps = [v for v in ticks(0, total or 1, 4) if v <= (total or 1)]
    marks.append(frame.x_axis({v: plain(v) for v in steps}, "optimizer steps, all iterations"))
    return svg(label, frame.width, frame.height, *marks)


@dataclass(frozen=True, slots=True)
class Unit:
    """How an axis names its quantity: values are divided by ``divisor``."""

    name: str
    divisor: float = 1


def unit_of(largest: float, units: Sequence[Unit]) -> Unit:
    """The largest unit of which there are at least two, else the first."""
    return next((u for u in reversed(units) if largest >= 2 * u.divisor), units[0])


DURATIONS = (Unit("seconds"), Unit("minutes", 60), Unit("hours", 3600))
COUNTS = (Unit("tokens"), Unit("thousand tokens", 1e3), Unit("million tokens", 1e6), Unit("billion tokens", 1e9))


def stacked_bars(
    label: str, rows: Mapping[str, Mapping[str, float]], parts: Sequence[str], units: Sequence[Unit]
) -> Markup:
    """One horizontal bar per row, its parts in the order (and colours) of ``parts``, the total at its end."""
    largest = max(sum(row.values()) for row in rows.values())
    unit, height = unit_of(largest, units), 30
    scale = ticks(0, largest / unit.divisor or 1)
    frame = Frame(420, 40 + height * len(rows), (0, scale[-1]), (0, 1), left=48, right=46, top=2)
    marks: list[Markup] = [frame.x_axis({v: plain(v) for v in scale}, unit.name, grid=True)]
    for i, (name, row) in enumerate(rows.items()):
        top, sums = frame.top + height * i + 5, [0.0]
        for part in parts:
            sums.append(sums[-1] + row.get(part, 0) / unit.divisor)
        for p, (part, (low, high)) in enumerate(zip(parts, pairwise(sums), strict=True)):
            if high > low:
                tip = tag("title", f"{part}: {high - low:,.4g} {unit.name}")
                colour = f"s{p % PALETTE_SIZE} block"
                box = tag("rect", x=frame.x(low), y=top, width=frame.x(high) - frame.x(low), height=20, class_=colour)
                marks.append(tag("g", tip, box))
        marks.append(tag("text", name, x=frame.left - 10, y=top + 14, text_anchor="end"))
        total = f"{sums[-1]:,.3g}" if sums[-1] >= 0.01 else "< 0.01"
        marks.append(tag("text", total, x=frame.x(sums[-1]) + 6, y=top + 14))
    return svg(label, frame.width, frame.height, *marks)
