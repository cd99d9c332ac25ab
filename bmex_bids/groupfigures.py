"""The plots of the group page as plain data for plotly.js: traces and layout, no drawing here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bmex_bids import grouphistograms as gh
from bmex_bids.groupharmony import CONDITIONS, Harmony
from bmex_bids.groupruns import GroupRun

__all__ = [
    "CONDITION_NAMES",
    "PART_NAMES",
    "classifier_figure",
    "distance_figures",
    "embedding_figures",
    "histogram_figures",
    "matrix_figures",
    "shares_figure",
    "site_styles",
    "tct_figure",
]

Floats = npt.NDArray[np.float64]
Figure = dict[str, Any]
Styles = Mapping[str, Mapping[str, str]]

# Okabe and Ito's colours, told apart by colour-blind readers; symbols and dashes say it again.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
CONDITION_STYLES = {
    "before": ("#D55E00", "circle-open"),
    "matching": ("#767676", "square-open"),
    "after": ("#0072B2", "circle"),
    "combat": ("#009E73", "diamond-open"),
    "covariates": ("#000000", "x-thin-open"),
}
CONDITION_NAMES = {
    "before": "before",
    "matching": "matching alone",
    "after": "after",
    "combat": "ComBat",
    "covariates": "age, sex, group alone",
}
KIND_NAMES = {
    "within": "within a site",
    "between": "between sites",
    "travelling": "same participant, two sites",
    "all": "all pairs",
}
PART_NAMES = {"Brain": "Whole brain", "CSF": "CSF", "GM": "Grey matter", "WM": "White matter"}
MOST_SITES = 12  # drawn as lines of their own
MOST_POINTS = 1500  # runs drawn as points; more are sampled
MATRIX_RUNS = 100
GREY = "#DDDDDD"


def site_styles(runs: Sequence[GroupRun]) -> dict[str, dict[str, str]]:
    """Give each site a colour, a symbol and a dash, the largest site first."""
    sites = [site for site, _ in Counter(run.site for run in runs).most_common()]
    return {
        site: {
            "color": PALETTE[number % len(PALETTE)],
            "symbol": SYMBOLS[(number + number // len(PALETTE)) % len(SYMBOLS)],
            "dash": DASHES[(number // len(PALETTE)) % len(DASHES)],
        }
        for number, site in enumerate(sites)
    }


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
    chosen = _sample(len(before))
    low = float(min(before.min(), after.min()))
    high = float(max(before.max(), after.max()))
    margin = 0.05 * (high - low) or 0.1
    ends = _short([low - margin, high + margin])
    line = {"x": ends, "y": ends, "mode": "lines", "hoverinfo": "skip", "showlegend": False,
            "line": {"color": "#767676", "dash": "dot", "width": 1}}
    points = _points(before, after, [index[i] for i in chosen], chosen, sites, styles)
    layout = _layout(420, "TCT before", "TCT after")
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
                traces.append(_curve(grid, curve, f"{site} ({len(rows)})", panel) | {
                    "legendgroup": site, "showlegend": panel == 1 or "Before" not in histograms[
                        rows[0]],
                    "line": {"color": styles[site]["color"], "dash": styles[site]["dash"],
                             "width": 2},
                })
        if not tops:
            continue
        layout = _panels(400, ("Before", "After"), "Intensity, common scale", "Share per unit")
        for axis in ("xaxis", "xaxis2"):
            layout[axis]["range"] = [0, _short([max(ends)])[0]]
        layout["yaxis"] |= {"range": [0, _short([1.2 * max(tops)])[0]], "hoverformat": ".2~e"}
        figures[part] = {"data": traces, "layout": layout}
    return figures


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
                 **{key: _short(row) for key, row in zip(keys, cuts, strict=True)}}
            )
        if traces:
            layout = _layout(360, "", "Wasserstein-1 distance")
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
             "ticktext": [_cut(site, 26) for site in middles], "showgrid": False, "type": "category"}
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
                {"type": "heatmap", "x": names, "y": names, "z": [_short(row, 3) for row in z],
                 "coloraxis": "coloraxis", "xaxis": _axis("x", panel), "yaxis": _axis("y", panel),
                 "hovertemplate": "%{x}<br>%{y}<br>distance %{z}<extra></extra>"}
            )
        if not traces:
            continue
        layout = _panels(470, ("Before", "After"), "", "")
        layout["coloraxis"] = {"colorscale": "Cividis", "cmin": 0, "cmax": highest or 1,
                               "colorbar": {"thickness": 12, "title": {"text": "distance"}}}
        layout["xaxis"] |= ticks | {"tickangle": -35}
        layout["xaxis2"] |= ticks | {"tickangle": -35}
        layout["yaxis"] |= ticks | {"autorange": "reversed"}
        layout["yaxis2"] = {"matches": "y", "showticklabels": False, "anchor": "x2",
                            "autorange": "reversed"}
        layout["shapes"] = [
            _separator(panel, float(end), len(chosen), upright)
            for panel in (1, 2) for end in ends for upright in (True, False)
        ]
        layout["margin"] = {"t": 34, "r": 10, "b": 110, "l": 190}
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
    chosen = _sample(len(sites))
    everything = np.concatenate(list(found.scores.values()))[:, :2]
    everything = everything[np.isfinite(everything).all(axis=1)]
    span = np.ptp(everything, axis=0).max() * 0.04
    low, high = everything.min(axis=0) - span, everything.max(axis=0) + span
    figures = {}
    for condition in ("after", "matching", "combat"):
        if condition not in found.scores:
            continue
        traces = []
        for panel, name in enumerate(("before", condition), 1):
            x, y = found.scores[name][:, 0], found.scores[name][:, 1]
            numbers = [index[i] for i in chosen]
            for trace in _points(x, y, numbers, chosen, sites, styles):
                traces.append(trace | {"xaxis": _axis("x", panel), "yaxis": "y",
                                       "showlegend": panel == 1})
        shares = [f"Component {i + 1} ({100 * share:.0f}%)" for i, share in enumerate(found.axes)]
        title = CONDITION_NAMES[condition]
        layout = _panels(430, ("Before", title[0].upper() + title[1:]), shares[0], shares[1])
        for axis in ("xaxis", "xaxis2"):
            layout[axis]["range"] = _short([low[0], high[0]])
        layout["yaxis"]["range"] = _short([low[1], high[1]])
        figures[condition] = {"data": traces, "layout": layout}
    return figures


def shares_figure(found: Harmony, labels: Mapping[str, str], which: str) -> Figure | None:
    """Draw the share of variance of each feature that site, or a covariate beyond site, explains.

    Args:
        found: the comparison.
        labels: feature -> its name for people.
        which: ``site``, or the name of a covariate.
    """
    traces = []
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
            x.append(_short([100 * value], 3)[0])
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
    layout = _layout(110 + 32 * len(features), "Variance explained (%)", "")
    layout["yaxis"] |= {"categoryorder": "array", "type": "category", "autorange": "reversed",
                        "categoryarray": [labels[name] for name in features]}
    top = max(max(trace["x"]) for trace in traces)
    layout["xaxis"] |= {"range": [-1.5 if top > 20 else -0.4, max(5.0, 1.08 * top)]}
    chance = next((s.shares.chance for f in found.features.values() for s in f.values()
                   if s.shares), None)
    if which == "site" and chance is not None:
        layout["shapes"] = [_line(100 * chance)]
    return {"data": traces, "layout": layout}


def classifier_figure(found: Harmony) -> Figure | None:
    """Draw the AUC of guessing the site in each condition, with its interval; None without any."""
    traces = []
    for condition in ("before", "matching", "after", "combat", "covariates"):
        result = found.classified.get(condition)
        if result is None:
            continue
        colour, symbol = CONDITION_STYLES[condition]
        error = {"type": "data", "symmetric": False, "array": _short([result.high - result.auc]),
                 "arrayminus": _short([result.auc - result.low]), "color": colour}
        traces.append(
            {"type": "scatter", "mode": "markers", "x": _short([result.auc], 3),
             "y": [CONDITION_NAMES[condition]], "error_x": error, "showlegend": False,
             "marker": {"color": colour, "symbol": symbol, "size": 11,
                        "line": {"width": 2, "color": colour}},
             "hovertemplate": "%{y}: AUC %{x}<extra></extra>"}
        )
    if not traces:
        return None
    layout = _layout(110 + 34 * len(traces), "AUC of guessing the site (0.5 is chance)", "")
    low = min(0.4, *(r.low for r in found.classified.values()))
    layout["xaxis"] |= {"range": [_short([low - 0.02])[0], 1.02]}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    layout["shapes"] = [_line(0.5)]
    return {"data": traces, "layout": layout}


def _points(
    x: Floats,
    y: Floats,
    numbers: Sequence[int],
    chosen: Sequence[int],
    sites: Sequence[str],
    styles: Styles,
) -> list[Figure]:
    """Return one trace per site; ``customdata`` is the run's number, from which the page names it."""
    traces = []
    for site, style in styles.items():
        own = [(i, number) for i, number in zip(chosen, numbers, strict=True)
               if sites[i] == site and math.isfinite(x[i] + y[i])]
        if own:
            traces.append(
                {"type": "scatter", "mode": "markers", "name": site, "legendgroup": site,
                 "x": _short([x[i] for i, _ in own]), "y": _short([y[i] for i, _ in own]),
                 "customdata": [number for _, number in own],
                 "marker": {"color": style["color"], "symbol": style["symbol"],
                            "size": 8 if len(chosen) <= 300 else 5,
                            "opacity": 0.85 if len(chosen) <= 300 else 0.6}}
            )
    return traces


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
    return {"type": "scatter", "mode": "lines", "name": name, "x0": _short([grid[0] + width / 2])[0],
            "dx": width, "y": _short(curve, 3), "xaxis": _axis("x", panel), "yaxis": "y",
            "hovertemplate": "%{fullData.name}<br>intensity %{x:.4~g}: %{y:.2~e}<extra></extra>"}


def _layout(height: int, x: str, y: str) -> Figure:
    return {"height": height, "hovermode": "closest", "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}}}


def _panels(height: int, titles: tuple[str, str], x: str, y: str) -> Figure:
    """Return the layout of two panels that share their axes, so that they can be compared."""
    layout = _layout(height, x, y)
    layout["xaxis"] |= {"domain": [0, 0.485]}
    layout["xaxis2"] = {"domain": [0.515, 1], "title": {"text": x}, "matches": "x", "anchor": "y"}
    layout["annotations"] = [
        {"text": f"<b>{title}</b>", "x": left, "y": 1, "xref": "paper", "yref": "paper",
         "xanchor": "left", "yanchor": "bottom", "showarrow": False}
        for title, left in zip(titles, (0, 0.515), strict=True)
    ]
    return layout


def _line(x: float) -> Figure:
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": "#333333", "dash": "dot", "width": 1.4}}


def _axis(letter: str, panel: int) -> str:
    return letter if panel == 1 else f"{letter}{panel}"


def _separator(panel: int, place: float, size: int, upright: bool) -> Figure:
    """Return a line between two sites of a matrix."""
    along = {"x0": place, "x1": place, "y0": -0.5, "y1": size - 0.5}
    across = {"y0": place, "y1": place, "x0": -0.5, "x1": size - 0.5}
    return {"type": "line", "xref": _axis("x", panel), "yref": _axis("y", panel),
            "line": {"color": "#FFFFFF", "width": 1}} | (along if upright else across)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _sample(n: int) -> list[int]:
    if n <= MOST_POINTS:
        return list(range(n))
    chosen = np.random.default_rng(0).choice(n, MOST_POINTS, replace=False)
    return [int(i) for i in np.sort(chosen)]


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


def _short(values: Any, digits: int = 4) -> list[float | None]:
    """Round to significant digits, to keep the page small; None (a gap) for what is not finite."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in map(float, values)]
