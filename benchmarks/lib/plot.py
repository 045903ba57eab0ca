"""Plots as small SVG files, without a plotting library: latency against load, quality against latency, bars.

The colours follow the reader's light or dark scheme: a style sheet inside the file sets ground, text and grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50
BAR_HEIGHT, BAR_LEFT = 22, 260
COLOURS = ("#2f81f7", "#e5534b", "#2da44e", "#a371f7", "#bf8700", "#1b9aaa", "#8b949e", "#db61a2", "#f0883e", "#57ab5a")
STYLE = (
    "<style>.ground{fill:#ffffff}.ink{fill:#1f2328}.grid{stroke:#d0d7de}"
    "@media(prefers-color-scheme:dark){.ground{fill:#0d1117}.ink{fill:#e6edf3}.grid{stroke:#3d444d}}</style>"
)

Points = Sequence[tuple[float, float]]


class Dot(NamedTuple):
    """One method of a scatter plot: its place and, where known, the interval of its height."""

    name: str
    x: float
    y: float
    low: float | None
    high: float | None


def latency_plot(title: str, lines: Mapping[str, Points]) -> str:
    """Return an SVG: requests a second to the right, milliseconds upwards on a logarithmic scale, a line a system."""
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError("no point to draw")
    step = _step(max(x for x, _ in points))
    most = step * math.ceil(1.01 * max(x for x, _ in points) / step)
    low, high = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        return _across(x / most), _up((math.log10(y) - low) / (high - low))

    parts = _begin(title)
    for power in range(low, high + 1):
        parts += _level(place(0, 10**power)[1], f"{10**power:g} ms")
    for number in range(round(most / step) + 1):
        parts += _mark(place(step * number, 10**low)[0], f"{step * number:.3g}")
    parts += _below("offered load (requests/s)")
    for number, (name, line) in enumerate(lines.items()):
        parts += _line(number, name, [place(x, y) for x, y in line])
    return "\n".join([*parts, "</svg>", ""])


def scatter_plot(title: str, across: str, dots: Sequence[Dot], levels: Sequence[tuple[str, float]] = ()) -> str:
    """Return an SVG: `across` in milliseconds on a logarithmic scale, quality upwards from zero, a dot a method.

    `levels` are methods without a measured latency: dashed lines, named at the right.
    """
    if not dots:
        raise ValueError("no point to draw")
    low, high = _decades([dot.x for dot in dots])
    heights = [dot.high if dot.high is not None else dot.y for dot in dots]
    top = max([*heights, *(value for _, value in levels)])
    step = _step(top)
    most = step * math.ceil(1.01 * top / step)
    parts = _begin(title)
    for number in range(round(most / step) + 1):
        parts += _level(_up(step * number / most), f"{step * number:.2f}")
    for power in range(low, high + 1):
        parts += _mark(_across((power - low) / (high - low)), f"{10**power:g}")
    parts += _below(across)
    for name, value in levels:
        y = _up(value / most)
        parts.append(f'<path class="grid" stroke-dasharray="5 4" d="M{LEFT} {y}H{WIDTH - RIGHT + 6}"/>')
        parts.append(f'<text class="ink" x="{WIDTH - RIGHT + 10}" y="{y + 4}" font-size="11">{escape(name)}</text>')
    for number, dot in enumerate(dots):
        x, y = _across((math.log10(dot.x) - low) / (high - low)), _up(dot.y / most)
        colour = COLOURS[number % len(COLOURS)]
        if dot.low is not None and dot.high is not None:
            ends = f"M{x} {_up(dot.low / most)}V{_up(dot.high / most)}"
            parts.append(f'<path d="{ends}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')
        parts.append(f'<text class="ink" x="{x + 9}" y="{y + 4}">{escape(dot.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def bar_plot(title: str, unit: str, bars: Sequence[tuple[str, float]]) -> str:
    """Return an SVG: a horizontal bar a system from zero, with its figure at its end."""
    if not bars:
        raise ValueError("no bar to draw")
    height = TOP + BAR_HEIGHT * len(bars) + 16
    most = max(value for _, value in bars)
    parts = _begin(f"{title} ({unit})", height)
    for number, (name, value) in enumerate(bars):
        y = TOP + BAR_HEIGHT * number
        width = round((WIDTH - BAR_LEFT - 70) * value / most, 1)
        parts += [
            f'<text class="ink" x="{BAR_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{BAR_LEFT}" y="{y}" width="{width}" height="{BAR_HEIGHT - 6}"'
            f' fill="{COLOURS[0 if name.startswith("anyo") else 6]}"/>',
            f'<text class="ink" x="{BAR_LEFT + width + 6}" y="{y + 13}">{value:,.4g}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _begin(title: str, height: int = HEIGHT) -> list[str]:
    """The head of a file: size, style sheet, ground and title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' role="img" aria-label="{escape(title)}" font-family="sans-serif" font-size="12">',
        STYLE,
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'<text class="ink" x="16" y="22" font-size="14">{escape(title)}</text>',
    ]


def _across(share: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)


def _up(share: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)


def _level(y: float, text: str) -> list[str]:
    """A horizontal grid line and its value at the left."""
    return [
        f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>',
        f'<text class="ink" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>',
    ]


def _mark(x: float, text: str) -> list[str]:
    return [f'<text class="ink" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>']


def _below(text: str) -> list[str]:
    """The name of the horizontal axis."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [f'<text class="ink" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(text)}</text>']


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten below and above all values."""
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def _step(most: float) -> float:
    """A round distance between marks, about five of them up to `most`."""
    power = 10 ** math.floor(math.log10(most / 5))
    return float(min(power * each for each in (1, 2, 5, 10) if power * each >= most / 5))


def _line(number: int, name: str, places: Points) -> list[str]:
    """The line, its points and its name at the right."""
    colour, dash = COLOURS[number % len(COLOURS)], "6 4" if name.endswith("documented") else "none"
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>']
    parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
    y = TOP + 12 + 18 * number
    left = WIDTH - RIGHT + 12
    parts.append(f'<path d="M{left} {y - 4}h22" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
    parts.append(f'<text class="ink" x="{left + 28}" y="{y}">{escape(name)}</text>')
    return parts
