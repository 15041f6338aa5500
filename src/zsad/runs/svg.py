"""Small drawings as inline SVG: a histogram of scores, and which experts spoke for an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

_BINS = 25
_WIDTH, _HEIGHT, _BASE, _LEFT = 640, 194, 156, 34


def histogram(
    scores: Sequence[float], labels: Sequence[int | None], *, threshold: float | None = None
) -> Markup:
    """Counts of scores in 25 bins over [0, 1], stacked by label where labels are known.

    Args:
        scores: image scores.
        labels: 0, 1 or None for each.
        threshold: score at which a line is drawn.
    """
    groups = [
        ("h-normal", "normal", [s for s, label in zip(scores, labels, strict=True) if label == 0]),
        ("h-anomalous", "anomalous", [s for s, label in zip(scores, labels, strict=True) if label == 1]),
        ("h-unknown", "", [s for s, label in zip(scores, labels, strict=True) if label is None]),
    ]
    counts = [np.histogram(np.clip(values, 0, 1), bins=_BINS, range=(0, 1))[0] for _, _, values in groups]
    top = int(max(1, np.sum(counts, axis=0).max()))
    step = (_WIDTH - _LEFT) / _BINS
    parts = []
    floor = np.zeros(_BINS)
    for (style, name, _), count in zip(groups, counts, strict=True):
        for index in np.flatnonzero(count):
            height = count[index] / top * (_BASE - 18)
            low, high = index / _BINS, (index + 1) / _BINS
            said = f"{low:.2f} to {high:.2f}: {count[index]} {name}".strip()
            parts.append(
                f'<rect class="{style}" x="{_LEFT + index * step + 1:.1f}" y="{_BASE - floor[index] - height:.1f}" '
                f'width="{step - 2:.1f}" height="{height:.1f}" rx="2"><title>{said}</title></rect>'
            )
            floor[index] += height
    summary = f"Histogram of {len(scores)} image scores between {min(scores):.2f} and {max(scores):.2f}"
    if threshold is not None:
        summary += f", threshold {threshold:.3f}"
        parts.append(_mark(threshold))
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(summary)}">'
        f"{_axis(top)}{''.join(parts)}</svg>"
    )


def _mark(threshold: float) -> str:
    """A line at the threshold, its name on the side where there is room."""
    x = _LEFT + min(max(threshold, 0.0), 1.0) * (_WIDTH - _LEFT)
    anchor, gap = ("end", -6) if threshold > 0.5 else ("start", 6)
    return (
        f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{_BASE}"/>'
        f'<text x="{x + gap:.1f}" y="13" text-anchor="{anchor}">threshold {threshold:.3f}</text>'
    )


def _axis(top: int) -> str:
    width = _WIDTH - _LEFT
    ticks = "".join(
        f'<text x="{_LEFT + share * width:.0f}" y="{_BASE + 16}" text-anchor="{anchor}">{share:g}</text>'
        for share, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    )
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="18" y2="18"/>'
        f'<text x="{_LEFT - 6}" y="22" text-anchor="end">{top}</text>'
        f'<text x="{_LEFT - 6}" y="{_BASE + 4}" text-anchor="end">0</text>'
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{_BASE}" y2="{_BASE}"/>{ticks}'
        f'<text x="{_LEFT + width / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">image score</text>'
    )


def routing_bars(weights: npt.NDArray[np.float32], *, pool: str, layers: Sequence[int]) -> Markup:
    """A row of bars for each layer: an expert a bar, as high as its weight.

    Args:
        weights: (L, E), each row adding up to about 1.
        pool: name of the pool, for the description.
        layers: numbers of the L layers.
    """
    rows, experts = weights.shape
    cell, height, left = max(9, min(20, 132 // experts)), 22, 26
    parts = []
    for row in range(rows):
        base = (row + 1) * (height + 4)
        parts.append(
            f'<text x="{left - 6}" y="{base - 2}" text-anchor="end">{layers[row]}</text>'
            f'<line class="axis" x1="{left}" x2="{left + experts * cell}" y1="{base}" y2="{base}"/>'
        )
        for expert in np.flatnonzero(weights[row] > 0):
            tall = max(1.0, float(min(1.0, weights[row, expert])) * height)
            parts.append(
                f'<rect x="{left + expert * cell + 2}" y="{base - tall:.1f}" width="{cell - 4}" height="{tall:.1f}">'
                f"<title>layer {layers[row]}, expert {expert + 1}: {weights[row, expert]:.2f}</title></rect>"
            )
    strongest = ", ".join(
        f"layer {layers[row]} expert {int(weights[row].argmax()) + 1} ({weights[row].max():.2f})"
        for row in range(rows)
    )
    width, total = left + experts * cell, rows * (height + 4) + 2
    return Markup(
        f'<svg class="routing" viewBox="0 0 {width} {total}" width="{width}" height="{total}" role="img" '
        f'aria-label="{escape(pool)} pool, strongest: {escape(strongest)}">{"".join(parts)}</svg>'
    )
