"""Plots of the comparison of sites: distances, shares of variance, the classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bmex_bids import grouphistograms as gh
from bmex_bids.groupdrawing import (
    CONDITION_NAMES,
    CONDITION_STYLES,
    KIND_NAMES,
    Figure,
    axis_name,
    layout_of,
    literal,
    panels_of,
    short,
    upright_line,
)
from bmex_bids.groupharmony import CONDITIONS, Harmony
from bmex_bids.groupruns import GroupRun

__all__ = [
    "MATRIX_RUNS",
    "classifier_figure",
    "distance_figures",
    "matrix_figures",
    "shares_figure",
]

Floats = npt.NDArray[np.float64]

MATRIX_RUNS = 100


def distance_figures(found: Harmony) -> dict[str, Figure]:
    """Draw a box of the distances of each kind of pair in each condition; part -> figure."""
    figures = {}
    for part in gh.PARTS:
        traces = []
        for condition in CONDITIONS:
            kinds = found.distances.get(condition, {}).get(part, {})
            if not kinds or (condition, part) == ("matching", gh.BRAIN):  # 0 by construction
                continue
            cuts = np.array([np.percentile(d, [5, 25, 50, 75, 95]) for d in kinds.values()]).T
            colour = CONDITION_STYLES[condition][0]
            keys = ("lowerfence", "q1", "median", "q3", "upperfence")
            traces.append(
                {"type": "box", "name": CONDITION_NAMES[condition],
                 "x": [KIND_NAMES[kind] for kind in kinds], "marker": {"color": colour},
                 "line": {"width": 1.4}, "whiskerwidth": 0.5,
                 **{key: short(row) for key, row in zip(keys, cuts, strict=True)}}
            )
        if traces:
            layout = layout_of(360, "", "Wasserstein-1 distance")
            layout |= {"boxmode": "group", "boxgap": 0.25}
            layout["yaxis"]["rangemode"] = "tozero"
            figures[part] = {"data": traces, "layout": layout}
    return figures


def matrix_figures(found: Harmony, runs: Sequence[GroupRun]) -> dict[str, Figure]:
    """Draw the distances of up to 100 runs, sorted by site, before beside after; part -> figure."""
    chosen = _stratified([run.site for run in runs], MATRIX_RUNS)
    if len(chosen) < 2:
        return {}
    names = [runs[i].name for i in chosen]
    sites = [runs[i].site for i in chosen]
    middles = {s: [n for n, own in zip(names, sites, strict=True) if own == s] for s in sites}
    ticks = {"tickvals": [some[len(some) // 2] for some in middles.values()],
             "ticktext": [literal(_cut(site, 26)) for site in middles], "showgrid": False,
             "type": "category"}
    ends = np.cumsum([len(some) for some in middles.values()])[:-1] - 0.5
    figures = {}
    pairs = np.array([(i, j) for i in chosen for j in chosen], np.int64)
    for part in gh.PARTS:
        traces, highest = [], 0.0
        for panel, condition in enumerate(("before", "after"), 1):
            values = found.quantiles.get(condition, {}).get(part)
            if values is None:
                continue
            z = gh.distances(values, pairs).reshape(len(chosen), len(chosen))
            highest = max(highest, float(np.nanpercentile(z, 99)) if np.isfinite(z).any() else 0)
            traces.append(
                {"type": "heatmap", "x": names, "y": names, "z": [short(row, 3) for row in z],
                 "coloraxis": "coloraxis",
                 "xaxis": axis_name("x", panel), "yaxis": axis_name("y", panel),
                 "hovertemplate": "%{x}<br>%{y}<br>distance %{z}<extra></extra>"}
            )
        if not traces:
            continue
        layout = panels_of(470, ("Before", "After"), "", "")
        layout["coloraxis"] = {"colorscale": "Cividis", "cmin": 0, "cmax": highest or 1,
                               "colorbar": {"thickness": 12, "title": {"text": "distance"}}}
        below = ticks | {"tickangle": -35, "showticklabels": len(middles) <= 8}
        layout["xaxis"] |= below
        layout["xaxis2"] |= below
        layout["yaxis"] |= ticks | {"autorange": "reversed"}
        layout["yaxis2"] = {"matches": "y", "showticklabels": False, "anchor": "x2",
                            "autorange": "reversed"}
        layout["shapes"] = [
            _separator(panel, float(end), len(chosen), upright)
            for panel in (1, 2) for end in ends for upright in (True, False)
        ]
        layout["margin"] = {"t": 34, "r": 10, "b": 110 if len(middles) <= 8 else 30, "l": 190}
        figures[part] = {"data": traces, "layout": layout}
    return figures


def shares_figure(found: Harmony, labels: Mapping[str, str], which: str) -> Figure | None:
    """Draw the share of variance of each feature that site, or a covariate beyond site, explains.

    Args:
        found: the comparison.
        labels: feature -> its name for people.
        which: ``site``, or the name of a covariate.
    """
    traces = []
    top = 0.0
    features = [name for name in labels if name in found.features]
    for condition in CONDITIONS:
        colour, symbol = CONDITION_STYLES[condition]
        x, y, text = [], [], []
        for name in features:
            shares = found.features[name].get(condition)
            if shares is None or shares.shares is None:
                continue
            value = (shares.shares.site if which == "site"
                     else shares.shares.beyond_site.get(which))
            if value is None:
                continue
            top = max(top, 100 * value)
            x.append(short([100 * value], 3)[0])
            y.append(labels[name])
            text.append(f"p = {shares.p:.3g}, " if which == "site" else "")
        if x:
            traces.append(
                {"type": "scatter", "mode": "markers", "x": x, "y": y, "text": text,
                 "name": CONDITION_NAMES[condition],
                 "marker": {"color": colour, "symbol": symbol, "size": 11,
                            "line": {"width": 2, "color": colour}},
                 "hovertemplate": "%{y}: %{x}% (%{text}%{fullData.name})<extra></extra>"}
            )
    if not traces:
        return None
    layout = layout_of(110 + 32 * len(features), "Variance explained (%)", "")
    layout["yaxis"] |= {"categoryorder": "array", "type": "category", "autorange": "reversed",
                        "categoryarray": [labels[name] for name in features]}
    layout["xaxis"] |= {"range": [-1.5 if top > 20 else -0.4, max(5.0, 1.08 * top)]}
    chance = next((s.shares.chance for f in found.features.values() for s in f.values()
                   if s.shares), None)
    if which == "site" and chance is not None:
        layout["shapes"] = [upright_line(100 * chance)]
    return {"data": traces, "layout": layout}


def classifier_figure(found: Harmony) -> Figure | None:
    """Draw the AUC of guessing the site in each condition, with its interval; None without any."""
    traces = []
    for condition in ("before", "matching", "after", "combat", "covariates"):
        result = found.classified.get(condition)
        if result is None:
            continue
        colour, symbol = CONDITION_STYLES[condition]
        error = {"type": "data", "symmetric": False, "array": short([result.high - result.auc]),
                 "arrayminus": short([result.auc - result.low]), "color": colour}
        traces.append(
            {"type": "scatter", "mode": "markers", "x": short([result.auc], 3),
             "y": [CONDITION_NAMES[condition]], "error_x": error, "showlegend": False,
             "marker": {"color": colour, "symbol": symbol, "size": 11,
                        "line": {"width": 2, "color": colour}},
             "hovertemplate": "%{y}: AUC %{x}<extra></extra>"}
        )
    if not traces:
        return None
    layout = layout_of(110 + 34 * len(traces), "AUC of guessing the site (0.5 is chance)", "")
    low = min(0.4, *(r.low for r in found.classified.values()))
    layout["xaxis"] |= {"range": [short([low - 0.02])[0], 1.02]}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    layout["shapes"] = [upright_line(0.5)]
    return {"data": traces, "layout": layout}


def _separator(panel: int, place: float, size: int, upright: bool) -> Figure:
    """Return a line between two sites of a matrix."""
    along = {"x0": place, "x1": place, "y0": -0.5, "y1": size - 0.5}
    across = {"y0": place, "y1": place, "x0": -0.5, "x1": size - 0.5}
    return {"type": "line", "xref": axis_name("x", panel), "yref": axis_name("y", panel),
            "line": {"color": "#FFFFFF", "width": 1}} | (along if upright else across)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _stratified(sites: Sequence[str], most: int) -> list[int]:
    """Choose up to ``most`` runs, of each site in proportion but at least one, sorted by site."""
    rng = np.random.default_rng(0)
    chosen: list[int] = []
    for site, count in Counter(sites).most_common(most):
        members = [i for i, own in enumerate(sites) if own == site]
        share = count if len(sites) <= most else max(1, round(most * count / len(sites)))
        picked = rng.choice(len(members), min(share, count), replace=False)
        chosen += [members[i] for i in sorted(picked)]
    return chosen[:most]
