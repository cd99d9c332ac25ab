"""Figures of a comparison: box plots as SVG text, slices of one example as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["boxes_svg", "slices_png"]

Array = npt.NDArray[np.float32]
# Okabe and Ito's colours, told apart by colour-blind readers; the order of the boxes says the same.
PALETTE = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MOST_POINTS = 40  # per box, beyond which single participants are not drawn
MOST_BOXES = 36  # per line of the figure


def boxes_svg(
    values: Mapping[str, Mapping[str, Sequence[float]]], methods: Sequence[str], label: str
) -> str:
    """Draw one group of boxes per condition, one box per method, a point per participant.

    Boxes from the first to the third quartile with the median, whiskers to the last point within
    1.5 times that range.

    Args:
        values: condition -> method -> values.
        methods: all methods in the order of the colours.
        label: of the axis.
    """
    conditions = list(values)
    per_line = max(MOST_BOXES // max(len(methods), 1), 1)
    lines = [conditions[i : i + per_line] for i in range(0, len(conditions), per_line)]
    widest = len(lines[0]) if lines else 1
    turned = max(map(len, conditions), default=0) > 95 / widest
    width = min(11.0, 2.2 + 0.28 * widest * (len(methods) + 1))
    height = 3.0 + (1.0 if turned else 0)
    figure = Figure(figsize=(width, height * max(len(lines), 1)), layout="constrained")
    panels = figure.subplots(max(len(lines), 1), 1, sharey=True, squeeze=False)[:, 0]
    for axes, line in zip(panels, lines, strict=False):
        _boxes(axes, line, values, methods)
        axes.set_xticks(range(len(line)), line, rotation=25 if turned else 0,
                        ha="right" if turned else "center")
        axes.set_xlim(-0.6, widest - 0.4)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
        axes.set_axisbelow(True)
    handles = [
        matplotlib.patches.Patch(color=_colour(i), alpha=0.6, label=method)
        for i, method in enumerate(methods)
    ]
    legend = figure.legend(handles=handles, loc="outside upper left", ncols=min(len(methods), 6),
                           frameon=False, fontsize=9)
    for text in [*legend.get_texts(), *(t for a in panels for t in a.get_xticklabels())]:
        text.set_parse_math(False)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "bmex", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", dpi=110, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _boxes(
    axes: Axes, conditions: Sequence[str], values: Mapping[str, Mapping[str, Sequence[float]]],
    methods: Sequence[str],
) -> None:
    step = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        shift = (number - (len(methods) - 1) / 2) * step
        there = [(i, values[c][method]) for i, c in enumerate(conditions) if method in values[c]]
        if not there:
            continue
        drawn = axes.boxplot(
            [list(v) for _, v in there], positions=[i + shift for i, _ in there],
            widths=0.82 * step, patch_artist=True, showfliers=True, manage_ticks=False,
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": _colour(number)},
        )
        for box in drawn["boxes"]:
            box.set(facecolor=_colour(number), alpha=0.55, edgecolor=_colour(number))
        for name in ("medians", "whiskers", "caps"):
            for artist in drawn[name]:
                artist.set(color="#000000" if name == "medians" else _colour(number))
        for i, points in there:
            if len(points) <= MOST_POINTS:
                spread = np.linspace(-0.25, 0.25, len(points)) * step if len(points) > 1 else [0]
                axes.plot(i + shift + np.asarray(spread), points, ".", markersize=3,
                          color="#222222", alpha=0.7)


def slices_png(
    reference: Array, mask: npt.NDArray[np.bool_], results: Mapping[str, Array], top: float,
    aspect: float,
) -> bytes:
    """Show one slice of the reference and of every result, and below how each differs.

    Args:
        reference: (x, y) slice, x to the right.
        mask: (x, y) where the comparison is made.
        results: method -> (x, y) slice on the intensity scale of the reference.
        top: intensity that is white; differences are coloured up to a fifth of it.
        aspect: height of a pixel over its width.
    """
    names = ["reference", *results]
    size = reference.shape[1] * aspect / reference.shape[0]
    figure = Figure(figsize=(2.1 * len(names), 2 * 2.1 * size + 0.5), layout="constrained",
                    facecolor="white")
    panels = figure.subplots(2, len(names), squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()
    coloured = None
    for column, name in enumerate(names):
        shown = reference if name == "reference" and column == 0 else results[name]
        panels[0, column].imshow(shown.T, cmap="gray", vmin=0, vmax=top, origin="lower",
                                 aspect=aspect)
        panels[0, column].set_title(name, fontsize=10, parse_math=False)
        if column:
            difference = np.where(mask, shown - reference, 0)
            coloured = panels[1, column].imshow(
                difference.T, cmap="RdBu_r", vmin=-top / 5, vmax=top / 5, origin="lower",
                aspect=aspect,
            )
    if coloured is not None:
        bar = figure.colorbar(coloured, ax=panels[1, 0], location="left", fraction=0.5, shrink=0.8)
        bar.set_label("result - reference", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]
