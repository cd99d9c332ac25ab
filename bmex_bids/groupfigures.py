"""Plots of the runs: TCT, histograms by site, and the map of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bmex_bids import grouphistograms as gh
from bmex_bids.groupdrawing import (
    CONDITION_NAMES,
    Figure,
    Styles,
    axis_name,
    layout_of,
    literal,
    panels_of,
    run_points,
    sample,
    short,
)
from bmex_bids.groupharmony import Harmony
from bmex_bids.groupruns import GroupRun

__all__ = ["MOST_SITES", "embedding_figures", "histogram_figures", "tct_figure"]

Floats = npt.NDArray[np.float64]

MOST_SITES = 12  # drawn as lines of their own


def tct_figure(before: Floats, after: Floats, index: Sequence[int], sites: Sequence[str],
               styles: Styles) -> Figure:
    """Draw TCT after over TCT before, one point per run; above the line it rose.

    Args:
        before: of each run.
        after: of each run.
        index: number of each run on the page.
        sites: of each run.
        styles: of :func:`site_styles`.
    """
    chosen = sample(len(before))
    low = float(min(before.min(), after.min()))
    high = float(max(before.max(), after.max()))
    margin = 0.05 * (high - low) or 0.1
    ends = short([low - margin, high + margin])
    line = {"x": ends, "y": ends, "mode": "lines", "hoverinfo": "skip", "showlegend": False,
            "line": {"color": "#767676", "dash": "dot", "width": 1}}
    points = run_points(before, after, [index[i] for i in chosen], chosen, sites, styles)
    layout = layout_of(420, "TCT before", "TCT after")
    layout["xaxis"]["range"] = layout["yaxis"]["range"] = ends
    return {"data": [line, *points], "layout": layout}


def histogram_figures(runs: Sequence[GroupRun], styles: Styles) -> dict[str, Figure]:
    """Draw the mean histogram of each site, before and after; part -> figure."""
    histograms = [run.histograms for run in runs]
    drawn = [site for site in styles if any(run.site == site for run in runs)][:MOST_SITES]
    members = [[i for i, run in enumerate(runs) if run.site == site] for site in drawn]
    figures = {}
    for part in gh.PARTS:
        traces, ends, tops = [], [], []
        for panel, when in enumerate(("Before", "After"), 1):
            name = when if part == gh.BRAIN else when + part
            grid, curves = gh.site_histograms(histograms, name, members)
            if part == gh.BRAIN:
                traces += _reference(runs, panel)
            for site, curve, rows in zip(drawn, curves, members, strict=True):
                if curve is None:
                    continue
                used = np.flatnonzero(curve > 0.004 * curve.max())
                ends.append(float(grid[used[-1] + 1]) if len(used) else float(grid[-1]))
                tops.append(float(np.sort(curve)[-3:].min()))  # one spiky bin does not decide
                traces.append(_curve(grid, curve, literal(f"{site} ({len(rows)})"), panel) | {
                    "legendgroup": site, "showlegend": panel == 1 or "Before" not in histograms[
                        rows[0]],
                    "line": {"color": styles[site]["color"], "dash": styles[site]["dash"],
                             "width": 2},
                })
        if not tops:
            continue
        layout = panels_of(400, ("Before", "After"), "Intensity, common scale", "Share per unit")
        for axis in ("xaxis", "xaxis2"):
            layout[axis]["range"] = [0, short([max(ends)])[0]]
        layout["yaxis"] |= {"range": [0, short([1.2 * max(tops)])[0]], "hoverformat": ".2~e"}
        figures[part] = {"data": traces, "layout": layout}
    return figures


def embedding_figures(
    found: Harmony, index: Sequence[int], sites: Sequence[str], styles: Styles
) -> dict[str, Figure]:
    """Draw the runs on the first two components, before beside another condition.

    Args:
        found: the comparison.
        index: number of each of its runs on the page.
        sites: of each of its runs.
        styles: of :func:`site_styles`.

    Returns:
        Condition beside ``before`` -> figure, ``after`` first.
    """
    if "before" not in found.scores or found.axes.size < 2:
        return {}
    chosen = sample(len(sites))
    everything = np.concatenate(list(found.scores.values()))[:, :2]
    everything = everything[np.isfinite(everything).all(axis=1)]
    span = np.ptp(everything, axis=0).max() * 0.04
    low, high = everything.min(axis=0) - span, everything.max(axis=0) + span
    figures: dict[str, Figure] = {}
    for condition in ("after", "matching", "combat"):
        if condition not in found.scores:
            continue
        traces = []
        for panel, name in enumerate(("before", condition), 1):
            x, y = found.scores[name][:, 0], found.scores[name][:, 1]
            numbers = [index[i] for i in chosen]
            for trace in run_points(x, y, numbers, chosen, sites, styles):
                traces.append(trace | {"xaxis": axis_name("x", panel), "yaxis": "y",
                                       "showlegend": panel == 1})
        shares = [f"Component {i + 1} ({100 * share:.0f}%)" for i, share in enumerate(found.axes)]
        title = CONDITION_NAMES[condition]
        layout = panels_of(430, ("Before", title[0].upper() + title[1:]), shares[0], shares[1])
        for axis in ("xaxis", "xaxis2"):
            layout[axis]["range"] = short([low[0], high[0]])
        layout["yaxis"]["range"] = short([low[1], high[1]])
        figures[condition] = {"data": traces, "layout": layout}
    return figures


def _reference(runs: Sequence[GroupRun], panel: int) -> list[Figure]:
    stages = Counter(run.stage for run in runs if "Reference" in run.histograms)
    if not stages:
        return []
    stage = stages.most_common(1)[0][0]
    run = next(r for r in runs if r.stage == stage and "Reference" in r.histograms)
    grid, (curve,) = gh.site_histograms([run.histograms], "Reference", [[0]])
    if curve is None:
        return []
    trace = _curve(grid, curve, f"reference of stage {stage}", panel)
    return [trace | {"fill": "tozeroy", "fillcolor": "rgba(120,120,120,.22)", "legendgroup": "ref",
                     "showlegend": panel == 1, "line": {"width": 0, "color": "#999999"}}]


def _curve(grid: Floats, curve: Floats, name: str, panel: int) -> Figure:
    width = float(grid[1] - grid[0])
    return {"type": "scatter", "mode": "lines", "name": name, "x0": short([grid[0] + width / 2])[0],
            "dx": width, "y": short(curve, 3), "xaxis": axis_name("x", panel), "yaxis": "y",
            "hovertemplate": "%{fullData.name}<br>intensity %{x:.4~g}: %{y:.2~e}<extra></extra>"}
