"""Line and point plots as SVG text, the same bytes for the same data."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["distance_svg", "group_histograms_svg", "histogram_svg", "paired_svg", "shares_svg"]

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
    for row, (name, colour, style) in enumerate(
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
        axes.stairs(density, edges, color=colour, linestyle=style, linewidth=1.8, label=label)
        for tissue in ("CSF", "GM", "WM"):
            median = metrics.get(f"Median{tissue}{name}")
            if median is not None and edges[0] <= median <= edges[-1]:
                y = -0.055 * row * top
                axes.plot(median, y, "|", color=colour, markersize=9, markeredgewidth=2.4)
                place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(tissue, (median, y), fontsize=7.5, color=colour, **place)
    axes.set_xlabel("Intensity in the brain mask, common scale; ticks: medians of the tissues")
    axes.set_ylabel("Share of voxels per bin")
    axes.set_ylim(-0.15 * top, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= top])
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def paired_svg(before: Floats, after: Floats, label: str) -> str:
    """Draw one line per run from before to after, with the medians."""
    figure = _figure(4.4, 3.6)
    axes = figure.add_subplot()
    many = len(before) > MANY_RUNS
    lines = np.stack([before, after])
    alpha = 0.6 if not many else max(0.02, 30 / len(before))
    axes.plot([0, 1], lines, color="#777777", linewidth=0.8, alpha=alpha, rasterized=many)
    if not many:
        axes.plot(np.zeros(len(before)), before, "o", color=BEFORE, markersize=4, alpha=0.8)
        axes.plot(np.ones(len(after)), after, "o", color=AFTER, markersize=4, alpha=0.8)
    medians = np.median(lines, axis=1)
    axes.plot([0, 1], medians, color="#000000", linewidth=2.4, marker="D", markersize=6)
    for x, value, side in ((0, medians[0], "right"), (1, medians[1], "left")):
        offset = -0.06 if side == "right" else 0.06
        axes.text(x + offset, value, f"median\n{value:.2f}", ha=side, va="center", fontsize=9)
    axes.set_xlim(-0.45, 1.45)
    axes.set_xticks([0, 1], ["Before", "After"])
    axes.set_ylabel(label)
    return _svg(figure)


def group_histograms_svg(
    grid: Floats,
    densities: Mapping[str, Mapping[str, Floats]],
    reference: Floats | None,
) -> str:
    """Draw the median density of each site, before and after side by side on the same axes.

    Args:
        grid: (n + 1) edges of the bins.
        densities: ``Before`` and perhaps ``After``: site -> (runs, n) densities.
        reference: (n) density of the reference, or None.
    """
    figure = _figure(9.6, 3.9)
    panels = figure.subplots(1, len(densities), sharey=True, squeeze=False)[0]
    for axes, (title, sites) in zip(panels, densities.items(), strict=True):
        if reference is not None:
            axes.stairs(reference, grid, fill=True, color="#DDDDDD", label="reference")
        for number, (site, rows) in enumerate(sites.items()):
            colour = PALETTE[number % len(PALETTE)]
            style = STYLES[number // len(PALETTE) % len(STYLES)]
            if 1 < len(rows) <= 20:
                for row in rows:
                    axes.stairs(row, grid, color=colour, linewidth=0.5, alpha=0.35)
            label = f"{site[:44]} ({len(rows)})"
            middle = np.median(rows, axis=0)
            axes.stairs(middle, grid, color=colour, linewidth=1.7, linestyle=style, label=label)
        axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
        axes.set_xlabel("Intensity, common scale")
    panels[0].set_ylabel("Share of voxels per unit")
    tops = [np.percentile(rows, 99.5) for part in densities.values() for rows in part.values()]
    panels[0].set_ylim(0, 1.15 * max(tops, default=1.0) or 1.0)
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure)


def distance_svg(groups: Mapping[str, Floats], label: str) -> str:
    """Draw one box per entry: pairwise distances within and between sites, before and after."""
    figure = _figure(5.2, 3.4)
    axes = figure.add_subplot()
    names = list(groups)
    boxes = axes.boxplot(
        [groups[name] for name in names], widths=0.55, showfliers=False, patch_artist=True
    )
    for name, box in zip(names, boxes["boxes"], strict=True):
        box.set_facecolor(BEFORE if "before" in name else AFTER)
        box.set_alpha(0.45)
    for line in boxes["medians"]:
        line.set_color("#000000")
    axes.set_xticks(range(1, len(names) + 1), [name.replace(" ", "\n", 1) for name in names])
    axes.tick_params(axis="x", labelsize=9)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    return _svg(figure)


def shares_svg(shares: Mapping[str, tuple[float, float]], chance: float | None) -> str:
    """Draw the explained variance of each factor, before beside after, in percent."""
    figure = _figure(5.2, 3.2)
    axes = figure.add_subplot()
    positions = np.arange(len(shares))
    for shift, which, colour, label in ((-0.19, 0, BEFORE, "before"), (0.19, 1, AFTER, "after")):
        heights = [100 * pair[which] for pair in shares.values()]
        bars = axes.bar(positions + shift, heights, width=0.36, color=colour, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize=9)
    if chance is not None:
        axes.axhline(100 * chance, color="#333333", linestyle=":", linewidth=1.2)
        axes.text(len(shares) - 0.45, 100 * chance, "chance\n(site)", fontsize=8, va="bottom")
    axes.set_xticks(positions, list(shares))
    axes.set_ylabel("Variance explained (%)")
    axes.set_ylim(0, 108)
    axes.set_xlim(-0.6, len(shares) - 0.1)
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
