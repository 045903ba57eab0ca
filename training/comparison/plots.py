"""Plots of a report as SVG elements, without a library and without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW, HEAD, FOOT = 760, 220, 70, 24, 34, 26
COLOURS = ("#2f81f7", "#e5534b", "#2da44e", "#a371f7", "#bf8700", "#1b9aaa", "#db61a2")
GREY = "#8b949e"


def accuracy_plot(runs: Sequence[Mapping[str, Any]]) -> str:
    """NDCG@10 of every run with its interval, baselines in grey."""
    bars = [(run["name"], run["ndcg@10"], GREY if run["kind"] == "baseline" else COLOURS[0]) for run in runs]
    return _bars("NDCG@10, seen items removed, with 95 % interval", bars)


def group_plots(runs: Sequence[Mapping[str, Any]], key: str, title: str) -> list[str]:
    """One plot a group of questions: NDCG@10 of every run that is no baseline."""
    chosen = [run for run in runs if run["kind"] != "baseline"]
    names = list(dict.fromkeys(name for run in chosen for name in run[key]))
    return [
        _bars(
            f"{title}: {name}",
            [(run["name"], run[key][name]["ndcg@10"], COLOURS[0]) for run in chosen if name in run[key]],
        )
        for name in names
    ]


def latency_plot(runs: Sequence[Mapping[str, Any]]) -> str | None:
    """NDCG@10 over the median latency of a request, which is on a logarithmic scale; None without a latency."""
    dots = [
        (run["name"], run["serving"]["p50_ms"], run["ndcg@10"]["value"])
        for run in runs
        if (run.get("serving") or {}).get("p50_ms")
    ]
    if not dots:
        return None
    height, most = 320, 1.15 * max(max(y for _, _, y in dots), 1e-9)
    low = math.floor(math.log10(min(x for _, x, _ in dots)))
    high = max(low + 1, math.ceil(math.log10(max(x for _, x, _ in dots))))
    wide, tall = WIDTH - LEFT - RIGHT, height - HEAD - FOOT
    parts = [_title("NDCG@10 against the median latency of one request (ms)")]
    for power in range(low, high + 1):
        x = LEFT + wide * (power - low) / (high - low)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD}" y2="{HEAD + tall}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{10.0**power:g}</text>')
    for step in range(5):
        y = HEAD + tall * (1 - step / 4)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{most * step / 4:.3f}</text>')
    for number, (name, x_ms, value) in enumerate(dots):
        x, y = LEFT + wide * (math.log10(x_ms) - low) / (high - low), HEAD + tall * (1 - value / most)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLOURS[number % len(COLOURS)]}"/>')
        side, anchor = (-8, "end") if x > LEFT + wide * 0.7 else (8, "start")
        parts.append(f'<text x="{x + side:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return _svg(height, parts)


def _bars(title: str, bars: Sequence[tuple[str, Mapping[str, float], str]]) -> str:
    """Horizontal bars from zero with the interval of each as a line."""
    most = max((figure["high"] for _, figure, _ in bars), default=0.0) or 1.0
    wide = WIDTH - LEFT - RIGHT
    parts = [_title(title)]
    for number, (name, figure, colour) in enumerate(bars):
        y = HEAD + ROW * number
        end, low, high = (LEFT + wide * figure[key] / most for key in ("value", "low", "high"))
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y + 3}" width="{end - LEFT:.1f}" height="{ROW - 8}" fill="{colour}"/>',
            f'<line class="mark" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}"/>',
            f'<text x="{high + 6:.1f}" y="{y + 15}">{figure["value"]:.4f}</text>',
        ]
    return _svg(HEAD + ROW * len(bars) + 8, parts)


def _title(text: str) -> str:
    return f'<text x="8" y="20" font-weight="600">{escape(text)}</text>'


def _svg(height: int, parts: Sequence[str]) -> str:
    return "\n".join(
        [f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">', *parts, "</svg>"]
    )
