"""Small strips that show one run's value among those of other runs, as SVG text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

__all__ = ["Lane", "strip_svg"]

Floats = npt.NDArray[np.float64]
Lane = tuple[str, float, Floats]  # class of the marker, value of this run, values of the others

WIDTH, LANE, PAD = 190, 15, 7  # pixels
MOST_TICKS = 60  # of single runs; of more, only their quartiles and range are drawn


def strip_svg(lanes: Sequence[Lane], text: str) -> Markup:
    """Draw one lane per value on a common axis, or nothing where no lane has other runs.

    A line spans the other runs, a band their middle half, ticks are single runs; the marker is
    this run: a diamond for ``before``, a disc for ``after`` and ``value``.

    Args:
        lanes: class, this run's value, values of the other runs.
        text: what the picture says, for those who cannot see it.
    """
    lanes = [lane for lane in lanes if len(lane[2]) and np.isfinite(lane[1])]
    if not lanes:
        return Markup("")
    low = min(min(value, float(others.min())) for _, value, others in lanes)
    high = max(max(value, float(others.max())) for _, value, others in lanes)
    span = high - low or 1.0

    def place(value: float) -> float:
        return round(PAD + (value - low) / span * (WIDTH - 2 * PAD), 1)

    parts = []
    for number, (kind, value, others) in enumerate(lanes):
        y = LANE * (number + 0.5)
        parts.append(_others(others, y, place))
        x = place(value)
        if kind == "before":
            shape = f"M{x} {y - 5.5}L{x + 5.5} {y}L{x} {y + 5.5}L{x - 5.5} {y}Z"
            parts.append(Markup('<path class="{}" d="{}"/>').format(kind, shape))
        else:
            parts.append(Markup('<circle class="{}" cx="{}" cy="{}" r="4.6"/>').format(kind, x, y))
    height = LANE * len(lanes)
    head = Markup('<svg class="strip" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(
        text, WIDTH, height
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _others(others: Floats, y: float, place: Callable[[float], float]) -> Markup:
    first, last = (place(float(v)) for v in (others.min(), others.max()))
    left, middle, right = (place(float(v)) for v in np.percentile(others, (25, 50, 75)))
    found = Markup('<path class="range" d="M{} {}H{}"/>').format(first, y, last)
    found += Markup('<rect class="half" x="{}" y="{}" width="{}" height="8"/>').format(
        left, y - 4, round(right - left, 1)
    )
    if len(others) <= MOST_TICKS:
        ticks = "".join(f"M{place(float(v))} {y - 4}v8" for v in others)
        found += Markup('<path class="single" d="{}"/>').format(ticks)
    return found + Markup('<path class="middle" d="M{} {}v12"/>').format(middle, y - 6)
