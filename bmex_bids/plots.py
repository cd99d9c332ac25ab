"""Line and point plots as SVG text, the same bytes for the same data."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["histogram_svg"]

Floats = npt.NDArray[np.float64]

BEFORE, AFTER, REFERENCE = "#D55E00", "#0072B2", "#555555"
# Okabe and Ito's colours, told apart by colour-blind readers; line styles repeat the message.
PALETTE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#0072B2", "#D55E00")
STYLES = ("-", "--", "-.", ":")
MANY_RUNS = 300  # beyond it, single runs are drawn as pixels, not as SVG elements


def histogram_svg(
    histograms: Mapping[str, Sequence[float]], metrics: Mapping[str, float | None]
) -> str:
    """Draw the densities ``Before``, ``After`` and ``Reference`` over ``Edges``.

    Args:
        histograms: ``Edges`` (n + 1) and any of the three densities (n).
        metrics: ``HistogramDistanceBefore`` and ``After`` go into the legend; the tissues' medians
            (``MedianGMBefore``, ...) are marked under the curves. Each where known.
    """
    figure = _figure(9.0, 3.6)
    axes = figure.add_subplot()
    edges = np.asarray(histograms["Edges"], float)
    top = _top(histograms)
    for row, (name, colour, dashes) in enumerate(
        (("Reference", REFERENCE, ":"), ("Before", BEFORE, "--"), ("After", AFTER, "-"))
    ):
        if name not in histograms:
            continue
        density = np.asarray(histograms[name], float)
        distance = metrics.get(f"HistogramDistance{name}")
        label = name if distance is None else f"{name} (distance to the reference {distance:.3g})"
        if name == "Reference":
            label = "Reference of the age stage"
            axes.stairs(density, edges, fill=True, color="#DDDDDD")
        axes.stairs(density, edges, color=colour, linestyle=dashes, linewidth=1.8, label=label)
        for tissue in ("CSF", "GM", "WM"):
            median = metrics.get(f"Median{tissue}{name}")
            if median is not None and edges[0] <= median <= edges[-1]:
                y = -0.055 * row * top
                axes.plot(median, y, "|", color=colour, markersize=9, markeredgewidth=2.4)
                style: dict[str, Any] = {"fontsize": 7.5, "color": colour, "va": "center"}
                style |= {"xytext": (4, 0), "textcoords": "offset points"}
                axes.annotate(tissue, (median, y), **style)
    axes.set_xlabel("Intensity in the brain mask, common scale; ticks: medians of the tissues")
    axes.set_ylabel("Share of voxels per bin")
    axes.set_ylim(-0.15 * top, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= top])
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def _top(histograms: Mapping[str, Sequence[float]]) -> float:
    """Return an upper limit that one spiky bin (a clipped background) does not decide."""
    curves = [histograms[key] for key in ("Before", "After", "Reference") if key in histograms]
    peaks = [float(np.sort(curve)[-3:].min()) for curve in curves if len(curve)]
    return 1.2 * max(peaks, default=1.0) or 1.0


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    """Return the figure as one ``<svg>`` element; the salt makes its ids the same every time."""
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
        axes.set_axisbelow(True)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "bmex", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", dpi=110, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
