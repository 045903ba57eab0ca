"""Latency against load as a small SVG, drawn by hand: no plotting library is needed for one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 30, 50
COLOURS = ("#1b6ca8", "#c0392b", "#27ae60", "#8e44ad", "#d68910", "#16a085", "#7f8c8d", "#2c3e50", "#b03a8c", "#5d6d1e")

Points = Sequence[tuple[float, float]]


def latency_plot(title: str, lines: Mapping[str, Points]) -> str:
    """Return an SVG: requests a second to the right, milliseconds upwards on a logarithmic scale, a line a system."""
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError("no point to draw")
    step = _step(max(x for x, _ in points))
    most = step * math.ceil(1.01 * max(x for x, _ in points) / step)
    low = math.floor(math.log10(min(y for _, y in points)))
    high = max(low + 1, math.ceil(math.log10(max(y for _, y in points))))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / most
        up = (math.log10(y) - low) / (high - low)
        return round(across, 1), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        _, y = place(0, 10**power)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{10**power:g} ms</text>')
    for number in range(round(most / step) + 1):
        value = step * number
        x, bottom = place(value, 10**low)
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{value:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">requests offered a second</text>')
    for number, (name, line) in enumerate(lines.items()):
        parts += _line(number, name, [place(x, y) for x, y in line])
    return "\n".join([*parts, "</svg>", ""])


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
    parts.append(f'<text x="{left + 28}" y="{y}">{escape(name)}</text>')
    return parts
