"""What the plots of the group page share: names, colours, layouts, points and rounding.

A figure is plain data for plotly.js, traces and layout; the reader's browser draws it.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bmex_bids.groupruns import GroupRun

__all__ = [
    "CONDITION_NAMES",
    "CONDITION_STYLES",
    "KIND_NAMES",
    "MOST_POINTS",
    "PART_NAMES",
    "Figure",
    "Styles",
    "axis_name",
    "layout_of",
    "literal",
    "panels_of",
    "run_points",
    "sample",
    "short",
    "site_styles",
    "upright_line",
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
MOST_POINTS = 1500  # runs drawn as points; more are sampled


def literal(text: str) -> str:
    """Text as plotly.js shows it letter by letter; it takes tags, such as <b>, for markup."""
    return html.escape(text, quote=False)


def site_styles(runs: Sequence[GroupRun]) -> dict[str, dict[str, str]]:
    """Give each site a colour, a symbol and a dash, the largest site first."""
    sites = [site for site, _ in Counter(run.site for run in runs).most_common()]
    return {
        site: {
            "color": PALETTE[number % len(PALETTE)],
            "symbol": SYMBOLS[number % len(SYMBOLS)],  # 8 and 7: the first 56 pairs differ
            "dash": DASHES[(number // len(PALETTE)) % len(DASHES)],
        }
        for number, site in enumerate(sites)
    }


def run_points(
    x: Floats,
    y: Floats,
    numbers: Sequence[int],
    chosen: Sequence[int],
    sites: Sequence[str],
    styles: Styles,
) -> list[Figure]:
    """Return one trace per site; ``customdata`` is the run's number, by which the page names it."""
    traces = []
    for site, style in styles.items():
        own = [(i, number) for i, number in zip(chosen, numbers, strict=True)
               if sites[i] == site and math.isfinite(x[i] + y[i])]
        if own:
            traces.append(
                {"type": "scatter", "mode": "markers", "name": literal(site), "legendgroup": site,
                 "x": short([x[i] for i, _ in own]), "y": short([y[i] for i, _ in own]),
                 "customdata": [number for _, number in own],
                 "marker": {"color": style["color"], "symbol": style["symbol"],
                            "size": 8 if len(chosen) <= 300 else 5,
                            "opacity": 0.85 if len(chosen) <= 300 else 0.6}}
            )
    return traces


def layout_of(height: int, x: str, y: str) -> Figure:
    """Return the layout of one panel, ``height`` pixels high, with the titles of its axes."""
    return {"height": height, "hovermode": "closest", "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}}}


def panels_of(height: int, titles: tuple[str, str], x: str, y: str) -> Figure:
    """Return the layout of two panels that share their axes, so that they can be compared."""
    layout = layout_of(height, x, y)
    layout["xaxis"] |= {"domain": [0, 0.485]}
    layout["xaxis2"] = {"domain": [0.515, 1], "title": {"text": x}, "matches": "x", "anchor": "y"}
    layout["annotations"] = [
        {"text": f"<b>{title}</b>", "x": left, "y": 1, "xref": "paper", "yref": "paper",
         "xanchor": "left", "yanchor": "bottom", "showarrow": False}
        for title, left in zip(titles, (0, 0.515), strict=True)
    ]
    return layout


def upright_line(x: float) -> Figure:
    """Return a dotted line at ``x`` over the whole height."""
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": "#333333", "dash": "dot", "width": 1.4}}


def axis_name(letter: str, panel: int) -> str:
    """Return plotly's name of an axis: ``x``, ``x2`` ..."""
    return letter if panel == 1 else f"{letter}{panel}"


def sample(n: int) -> list[int]:
    """Choose the runs that are drawn as points: all, or a random 1500 (seed 0)."""
    if n <= MOST_POINTS:
        return list(range(n))
    chosen = np.random.default_rng(0).choice(n, MOST_POINTS, replace=False)
    return [int(i) for i in np.sort(chosen)]


def short(values: Any, digits: int = 4) -> list[float | None]:
    """Round to significant digits, to keep the page small; None (a gap) for what is not finite."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in map(float, values)]
