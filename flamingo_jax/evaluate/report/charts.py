"""Charts as SVG text, for pages that load nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 46, 150, 14, 40

Height = Callable[[float], float]  # of a score, in the picture


@dataclass(frozen=True)
class Line:
    """Scores against shots.

    Attributes:
      points: (shots, score, deviation or None).
      kind: a class of the page's style: "own-0", "own-1", … or "published", "flamingo".
      dashed: RICES lines are.
    """

    label: str
    points: Sequence[tuple[int, float, float | None]]
    kind: str
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """A value with its interval; NaN where there is none. `note` stands after the value."""

    label: str
    value: float
    low: float
    high: float
    note: str = ""


def line_chart(lines: Sequence[Line], title: str) -> str:
    """Draws lines over categories of shots, with error bars; labels stand at the ends, apart."""
    shots = sorted({s for line in lines for s, _, _ in line.points})
    values = [v + sign * (d or 0) for ln in lines for _, v, d in ln.points for sign in (-1, 1)]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    step = (WIDTH - LEFT - RIGHT) / max(1, len(shots) - 1)
    x = {s: LEFT + 12 + i * (step - 24 / max(1, len(shots) - 1)) for i, s in enumerate(shots)}

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [_grid(ticks, y)]
    parts += [_text("tick", x[s], HEIGHT - BOTTOM + 18, str(s), "middle") for s in shots]
    parts.append(_text("axis", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "shots", "middle"))
    ends = {i: y(line.points[-1][1]) for i, line in enumerate(lines)}
    placed = _apart(ends, 13, TOP + 4, HEIGHT - BOTTOM)
    for i, line in enumerate(lines):
        end = x[line.points[-1][0]]
        leader = f"M{end + 5:.1f} {ends[i]:.1f} L{WIDTH - RIGHT + 12} {placed[i]:.1f}"
        label = _text("name", WIDTH - RIGHT + 15, placed[i] + 4, line.label, "start")
        marks = "".join(_mark(line.label, x[s], s, v, d, y) for s, v, d in line.points)
        corners = " ".join(f"{x[s]:.1f},{y(v):.1f}" for s, v, _ in line.points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(
            f'<g class="line {line.kind}"><polyline points="{corners}" fill="none"{dash}/>{marks}'
            f'<path class="leader" d="{leader}"/>{label}</g>'
        )
    return _svg(WIDTH, HEIGHT, title, parts)


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Draws horizontal bars from zero, with their intervals."""
    left, right, row = 170, 120, 24
    height = row * len(bars) + 8
    top = max(1e-9, *(float(np.nanmax([b.value, b.high])) for b in bars))
    scale = (WIDTH - left - right) / top
    parts = []
    for i, bar in enumerate(bars):
        middle = 4 + row * (i + 0.5)
        parts.append(
            f"{_text('name', left - 8, middle + 4, bar.label[:26], 'end')}"
            f'<rect class="bar" x="{left}" y="{middle - 8}" height="16" '
            f'width="{max(0, bar.value) * scale:.1f}" rx="2"/>'
        )
        end = bar.value
        if bar.high > bar.low:
            x1, x2 = left + max(0, bar.low) * scale, left + bar.high * scale
            parts.append(f'<path class="interval" d="M{x1:.1f} {middle} H{x2:.1f}"/>')
            end = max(end, bar.high)
        parts.append(
            f'<text class="value" x="{left + max(0, end) * scale + 8:.1f}" y="{middle + 4}">'
            f'{bar.value:.1f} <tspan class="muted">{escape(bar.note)}</tspan></text>'
        )
    return _svg(WIDTH, height, title, parts)


def _svg(width: int, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _grid(ticks: Sequence[float], y: Height) -> str:
    return "".join(
        f'<path class="grid" d="M{LEFT} {y(t):.1f} H{WIDTH - RIGHT}"/>'
        f"{_text('tick', LEFT - 8, y(t) + 4, f'{t:g}', 'end')}"
        for t in ticks
    )


def _mark(
    label: str, x: float, shots: int, value: float, deviation: float | None, y: Height
) -> str:
    """Returns a point with its error bar and a hint for the pointer."""
    bar = ""
    if deviation:
        low, high = y(value - deviation), y(value + deviation)
        ends = f"M{x - 4:.1f} {low:.1f} h8 M{x - 4:.1f} {high:.1f} h8"
        bar = f'<path d="M{x:.1f} {low:.1f} V{high:.1f} {ends}"/>'
    spread = "" if deviation is None else f" ± {deviation:.1f}"
    hint = escape(f"{label}, {shots} shots: {value:.1f}{spread}")
    return f'{bar}<circle cx="{x:.1f}" cy="{y(value):.1f}" r="3.2"><title>{hint}</title></circle>'


def _ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers that enclose the values."""
    span = max(high - low, 1.0)
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 25, 50, 100, 1000) if span / s <= 6)
    first = step * (low // step)
    count = int(-((first - high) // step)) + 1
    return [first + step * i for i in range(max(2, count))]


def _apart(ends: dict[int, float], gap: float, top: float, bottom: float) -> dict[int, float]:
    """Returns the heights of labels, moved so that they do not cover each other."""
    order = sorted(ends, key=lambda i: ends[i])
    placed, least, most = {}, top, bottom
    for i in order:
        placed[i] = max(ends[i], least)
        least = placed[i] + gap
    for i in reversed(order):
        placed[i] = min(placed[i], most)
        most = placed[i] - gap
    return placed
