"""Bar charts as SVG."""

import html
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT, BASE = 420, 150, 128


def bars(
    title: str, labels: Sequence[str], counts: np.ndarray, mark: float | None = None, note: str = ""
) -> str:
    """Draws one bar per label, and a line named `note` at `mark` bars from the left."""
    step = WIDTH / len(labels)
    every = -(-len(labels) // 12)
    top = max(1, int(counts.max()))
    pieces = []
    for place, (label, count) in enumerate(zip(labels, counts, strict=True)):
        high = (BASE - 24) * count / top
        left = place * step
        pieces.append(
            f'<rect x="{left + step * 0.1:.1f}" y="{BASE - high:.1f}" width="{step * 0.8:.1f}" '
            f'height="{high:.1f}"><title>{label}: {count}</title></rect>'
        )
        if place % every == 0:
            pieces.append(f'<text x="{left + step / 2:.1f}" y="{BASE + 15}">{label}</text>')
        if count and len(labels) <= 12:
            pieces.append(
                f'<text x="{left + step / 2:.1f}" y="{BASE - high - 4:.1f}">{count}</text>'
            )
    if mark is not None:
        x, side, shift = mark * step, "start", 5
        if x > WIDTH / 2:
            side, shift = "end", -5
        pieces.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{BASE}"/><text class="note" '
            f'style="text-anchor:{side}" x="{x + shift:.1f}" y="16">{note}</text>'
        )
    pieces.append(f'<path d="M0 {BASE + 0.5}H{WIDTH}"/>')
    drawn = "".join(pieces)
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="-10 0 {WIDTH + 20} {HEIGHT}" role="img">{drawn}</svg></figure>'
    )
