"""A play as a drawing: exploitability and KL by iteration, as an SVG file or an HTML page around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup

from nashtune.errors import GameError
from nashtune.games.matrices import Array
from nashtune.games.play import Played
from nashtune.report.charts import Frame, plain, svg, tag, ticks

POINTS = 600
FLOOR = 1e-12
"""Values below are drawn here: rounding."""
STYLE = """svg { background: #fff; font: 12px system-ui, sans-serif; max-width: 640px; } text { fill: #16191d; }
text.quiet { fill: #59626d; } .grid { stroke: #d9dee4; } .axis { stroke: #8b949e; } .line { fill: none; stroke-width: 1.6; }
.s0 { stroke: #1f5fa8; } .s1 { stroke: #b3541e; stroke-dasharray: 5 3; }"""


def check_plot(file: Path) -> None:
    """Raises GameError for a name that is neither .svg nor .html."""
    if file.suffix not in (".svg", ".html"):
        raise GameError(f"plot = {file}; accepted: a file name that ends in .svg or .html")


def write_plot(played: Played, file: Path) -> None:
    """Write the drawing of a play. Raises GameError for a name that is neither .svg nor .html, or that cannot be written."""
    check_plot(file)
    drawing = _drawing(played)
    if file.suffix == ".html":
        title = f"{played.algorithm.name} on {played.game.name}"
        head = tag("head", Markup('<meta charset="utf-8">'), tag("title", title))
        text = "<!doctype html>\n" + tag("html", head, tag("body", tag("h1", title), drawing), lang="en")
    else:
        text = str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    try:
        file.write_text(text + "\n")
    except OSError as error:
        raise GameError(f"plot = {file}: cannot be written: {error}") from None


def _drawing(played: Played) -> Markup:
    panels = (
        (
            "exploitability",
            {"average": played.mean("exploitability_average"), "last": played.mean("exploitability_last")},
            0,
        ),
        ("KL of each iteration's step, nats", {"": played.mean("kl")}, 1),
    )
    marks = [tag("style", Markup(STYLE))]
    for i, (title, series, first) in enumerate(panels):
        marks.append(tag("g", _panel(title, series, first), transform=f"translate(0 {i * 260})"))
    return svg(f"{played.algorithm.name} on {played.game.name}", 640, 520, *marks)


def _panel(title: str, series: dict[str, Array], first: int) -> Markup:
    """Lines over iterations on a logarithmic scale; a thinned line keeps the largest value of each block."""
    logs = {name: np.log10(np.maximum(values, FLOOR)) for name, values in series.items()}
    low, high = (f(float(f(v)) for v in logs.values()) for f in (min, max))
    low, high = np.floor(low), max(np.ceil(high), np.floor(low) + 1)
    last = max(len(v) for v in logs.values()) - 1 + first
    frame = Frame(640, 260, (first, max(last, first + 1)), (low, high), left=60, right=70, top=30)
    decades = np.arange(low, high + 1, max(1, np.ceil((high - low) / 6)))
    marks = [
        tag("text", title, x=frame.left, y=18),
        frame.y_axis({d: plain(float(10.0**d)) for d in decades}),
        frame.x_axis({v: plain(v) for v in ticks(first, last, 5) if first <= v <= last}, "iteration"),
    ]
    for i, (name, values) in enumerate(logs.items()):
        size = -(-len(values) // POINTS)
        starts = range(0, len(values), size)
        path = "L".join(f"{frame.x(a + first):.1f} {frame.y(float(values[a : a + size].max())):.1f}" for a in starts)
        marks.append(tag("path", d="M" + path, class_=f"line s{i}"))
        end = frame.y(float(values[-size:].max()))
        marks.append(tag("text", name, x=frame.width - frame.right + 6, y=end + 4 + 6 * (2 * i - 1) * (len(logs) > 1)))
    return Markup("").join(marks)
