"""Figures of the experiments, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["boxes", "heat", "points"]

Rows = Sequence[dict[str, str]]


def boxes(rows: Rows, by: str, columns: Sequence[str], path: Path) -> None:
    """One box plot per column, one box per group, as the papers' figures."""
    figure = _figure(3.2 * min(len(columns), 3), 2.8 * -(-len(columns) // 3))
    names = list(dict.fromkeys(row[by] for row in rows))
    for number, column in enumerate(columns, 1):
        axes = figure.add_subplot(-(-len(columns) // 3), min(len(columns), 3), number)
        values = [np.array([float(r[column]) for r in rows if r[by] == name]) for name in names]
        axes.boxplot([v[np.isfinite(v)] for v in values], tick_labels=names)
        if min(v.min(initial=0) for v in values) < 0:
            axes.axhline(0, color="#555555", linewidth=0.8, linestyle=":")
        axes.set_title(column, fontsize=9)
        axes.tick_params(labelsize=7, axis="both")
        axes.tick_params(axis="x", rotation=30)
    figure.savefig(path, dpi=110)


def heat(rows: Rows, over: tuple[str, str], by: str, column: str, path: Path) -> None:
    """Means over two factors, one map per group, all on one scale."""
    names = list(dict.fromkeys(row[by] for row in rows))
    lines, places = (list(dict.fromkeys(row[k] for row in rows)) for k in over)
    maps = np.full((len(names), len(lines), len(places)), np.nan)
    for index in np.ndindex(maps.shape):
        chosen = [float(r[column]) for r in rows if r[by] == names[index[0]]
                  and r[over[0]] == lines[index[1]] and r[over[1]] == places[index[2]]]
        if chosen:
            maps[index] = np.mean(chosen)
    figure = _figure(2.6 * len(names) + 0.6, 2.6)
    low, high = float(np.nanmin(maps)), float(np.nanmax(maps))
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), number)
        axes.imshow(maps[number - 1], vmin=low, vmax=high, cmap="viridis", aspect="auto")
        axes.set_title(f"{name}: {column}", fontsize=9)
        axes.set_xticks(range(len(places)), places, fontsize=7)
        axes.set_yticks(range(len(lines)), lines, fontsize=7)
        axes.set_xlabel(over[1], fontsize=8)
        for y, x in np.ndindex(maps.shape[1:]):
            value = maps[number - 1, y, x]
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8,
                          color="white" if dark else "black")
    figure.savefig(path, dpi=110)


def points(
    rows: Rows, x: str, y: str, by: str, path: Path, *, panel: str | None = None,
    diagonal: bool = False,
) -> None:
    """One line per group through the means of ``y`` at each ``x``, one panel per value."""
    panels = dict.fromkeys(row[panel] for row in rows) if panel else {"": None}
    figure = _figure(1.4 + 3.2 * len(panels), 3.6)
    groups = list(dict.fromkeys(row[by] for row in rows))
    first = None
    for number, title in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number, sharey=first)
        first = first or axes
        for colour, name in enumerate(groups):
            found: dict[float, list[float]] = {}
            for row in rows:
                here = row[by] == name and (not panel or row[panel] == title)
                if here and np.isfinite(float(row[y])):
                    found.setdefault(float(row[x]), []).append(float(row[y]))
            at = sorted(found)
            means = [float(np.mean(found[v])) for v in at]
            if at:
                axes.plot(at, means, "o-", label=name, markersize=4, color=f"C{colour}")
        if diagonal:
            high = max(axes.get_xlim()[1], axes.get_ylim()[1])
            axes.plot([0, high], [0, high], ":", color="#555555", label="perfect")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(x)
        if number == 1:
            axes.set_ylabel(y)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
