"""The sections of the group page for one contrast: numbers, plots, or why there are none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bmex_bids import groupstats as gs
from bmex_bids import plots
from bmex_bids.measures import number_text

__all__ = ["UNKNOWN_SITE", "GroupRun", "suffix_sections"]

Floats = npt.NDArray[np.float64]

UNKNOWN_SITE = "unknown"
MOST_PAIRED_RUNS = 2000  # runs whose pairwise distances are computed; more are sampled
MOST_SITES_DRAWN = 10
OUTLIER_Z = 3.5  # Iglewicz and Hoaglin's limit for the robust z
SMALLEST_OUTLIER_GROUP = 8
MOST_OUTLIERS = 100
OUTLIER_MEASURES = {
    "TCTBefore": "TCT before",
    "TCTAfter": "TCT after",
    "QualityIndex": "quality index",
    "CJVAfter": "CJV after",
    "HistogramDistanceBefore": "histogram distance before",
    "HistogramDistanceAfter": "histogram distance after",
    "ResidualShare": "size of the change",
    "DataConsistency": "contradiction of the input",
    "VolumeCSF": "volume of CSF",
    "VolumeGM": "volume of GM",
    "VolumeWM": "volume of WM",
}


@dataclass(frozen=True)
class GroupRun:
    """One run as the group level sees it.

    Attributes:
        name: e.g. ``sub-01_run-1_T1w``.
        link: relative URL of its section in the subject's page, "" without one.
        site: institution and scanner, or ``unknown``.
        stage: age stage.
        age: months after birth, NaN when not known.
        metrics: measures by name.
        histograms: ``Edges`` (n + 1), ``Before``, ``After``, ``Reference`` (n), those there are.
        row: cells of the TSV by column.
    """

    name: str
    link: str
    site: str
    stage: str
    age: float
    metrics: dict[str, float]
    histograms: dict[str, npt.NDArray[np.float32]]
    row: dict[str, object]


def suffix_sections(runs: Sequence[GroupRun]) -> dict[str, Any]:
    """Return the page's parts of one contrast: tct, histograms, distances, shares, outliers.

    Each is a dict with ``words`` (sentences, also why something cannot be computed) and, where
    there is something to draw or list, ``svg``, ``alt``, ``table`` or ``found``.
    """
    grid = _common_grid(runs)
    return {
        "tct": _tct(runs),
        "histograms": _histograms(runs, grid),
        "distances": _distances(runs, grid),
        "shares": _shares(runs, grid),
        "outliers": _outliers(runs),
    }


def _tct(runs: Sequence[GroupRun]) -> dict[str, Any]:
    pairs = _values(runs, "TCTBefore"), _values(runs, "TCTAfter")
    complete = np.isfinite(pairs[0]) & np.isfinite(pairs[1])
    if not complete.any():
        return {"words": ["No run has TCT before and after: the runs were measured only."]}
    before, after = pairs[0][complete], pairs[1][complete]
    higher = int((after > before).sum())
    words = [f"TCT is higher after enhancement in {higher} of {len(before)} runs."]
    subjects = [str(run.row["participant_id"]) for run, c in zip(runs, complete, strict=True) if c]
    names, index = np.unique(subjects, return_inverse=True)
    counts = np.bincount(index)
    per_subject = [np.bincount(index, values) / counts for values in (before, after)]
    test = gs.paired_test(per_subject[0], per_subject[1])
    if test is None:
        words.append(
            f"A paired test needs at least {gs.SMALLEST_PAIRED} participants whose differences are "
            f"not all the same; there {_be(len(names), 'participant')} with values."
        )
    else:
        mean = "mean of a participant's runs" if len(names) < len(before) else "one run each"
        words.append(
            f"Over {test.n} participants ({mean}): mean difference {test.mean_difference:+.3g} "
            f"(95% CI {test.low:.3g} to {test.high:.3g}), Cohen's d_z {test.effect:.2f}, paired "
            f"t-test p {_p(test.t_p)}, Wilcoxon signed-rank p {_p(test.wilcoxon_p)}."
        )
    alt = f"TCT of {len(before)} runs before and after, one line per run; " + words[0]
    svg = plots.paired_svg(before, after, "Tissue contrast t-score (TCT)")
    return {"words": words, "svg": svg, "alt": alt}


def _histograms(runs: Sequence[GroupRun], grid: Floats | None) -> dict[str, Any]:
    if grid is None:
        return {"words": ["No sidecar holds histograms."]}
    words, densities = [], {}
    sites = Counter(run.site for run in runs if "Before" in run.histograms)
    drawn = [site for site, _ in sites.most_common(MOST_SITES_DRAWN)]
    for when in ("Before", "After"):
        parts = {}
        for site in drawn:
            rows = [_on(grid, r, when) for r in runs if r.site == site and when in r.histograms]
            if rows:
                parts[site] = np.stack(rows)
        if parts:
            densities[when] = parts
    if not densities:
        return {"words": ["No sidecar holds histograms."]}
    words.append("Median histogram of the runs of each site, on the common scale.")
    if len(sites) > len(drawn):
        words.append(f"The {len(drawn)} largest of {len(sites)} sites are drawn.")
    if "After" not in densities:
        words.append("There is no picture after: the runs were measured only.")
    stage, reference = _reference(runs, grid)
    if reference is not None:
        words.append(f"Grey: the reference of stage {stage}, the most frequent one here.")
    alt = f"Intensity histograms of {len(drawn)} sites, {' and '.join(densities).lower()}"
    svg = plots.group_histograms_svg(grid, densities, reference)
    return {"words": words, "svg": svg, "alt": alt}


def _distances(runs: Sequence[GroupRun], grid: Floats | None) -> dict[str, Any]:
    both = [run for run in runs if {"Before", "After"} <= run.histograms.keys()]
    if grid is None or len(both) < 2:
        return {
            "words": [
                "Distances between runs need at least two runs with histograms before and after; "
                f"there {_be(len(both), 'run')}."
            ]
        }
    words = []
    if len(both) > MOST_PAIRED_RUNS:
        chosen = np.random.default_rng(0).choice(len(both), MOST_PAIRED_RUNS, replace=False)
        words.append(
            f"Computed on a random sample of {MOST_PAIRED_RUNS} of {len(both)} runs (seed 0)."
        )
        both = [both[i] for i in np.sort(chosen)]
    sites = np.array([run.site for run in both])
    first, second = np.triu_indices(len(both), 1)
    known = (sites[first] != UNKNOWN_SITE) & (sites[second] != UNKNOWN_SITE)
    same = sites[first] == sites[second]
    groups: dict[str, Floats] = {}
    for when in ("Before", "After"):
        rows = np.stack([_on(grid, run, when) for run in both])
        pairs = gs.pairwise_distances(grid, rows)
        for name, chosen in (("within", known & same), ("between", known & ~same)):
            if chosen.any():
                groups[f"{when.lower()} {name}"] = pairs[chosen]
        if not known.any():
            groups[f"{when.lower()} all"] = pairs
    if not known.any():
        words.append(
            "The sidecars name no site or scanner (InstitutionName, Manufacturer ...), so pairs "
            "cannot be told apart by site; all pairs are shown."
        )
    elif "before between" not in groups:
        words.append("All runs come from one site: there are no distances between sites to reduce.")
    elif "before within" not in groups:
        words.append("No site has two runs: there are no distances within a site.")
    order = sorted(
        groups, key=lambda name: (name.split()[1] != "within", name.split()[0] == "after")
    )
    groups = {name: groups[name] for name in order}
    table = [
        {
            "name": name,
            "pairs": len(d),
            "median": f"{np.median(d):.3g}",
            "p90": f"{np.percentile(d, 90):.3g}",
        }
        for name, d in groups.items()
    ]
    words.append("Smaller after than before means that the images became more alike.")
    svg = plots.distance_svg(groups, "Wasserstein distance, common scale")
    alt = "; ".join(f"{row['name']} sites: median {row['median']}" for row in table)
    return {"words": words, "svg": svg, "alt": "Distances between runs: " + alt, "table": table}


def _shares(runs: Sequence[GroupRun], grid: Floats | None) -> dict[str, Any]:
    known = [run for run in runs if run.site != UNKNOWN_SITE]
    sites = {run.site for run in known}
    if len(sites) < 2:
        why = "one site only" if sites else "no site or scanner"
        return {
            "words": [
                f"How much of the intensities' variance site explains cannot be computed: the "
                f"sidecars name {why}. It takes at least two, and two runs in one of them."
            ]
        }
    ages = np.array([run.age for run in known])
    labels = [run.site for run in known]
    table, constant = [], []
    drawn: dict[str, tuple[float, float]] = {}
    chance, title = None, ""
    for name, before, after in _intensities(known, grid):
        both = np.isfinite(before) & np.isfinite(after)
        values = [np.where(both, v, math.nan) for v in (before, after)]
        fixed = [gs.is_constant(v) for v in values]
        if all(fixed):
            constant.append(name)
            continue
        first, second = (
            None if same else gs.variance_shares(v, labels, ages)
            for v, same in zip(values, fixed, strict=True)
        )
        if first is None and second is None:
            continue
        table.append(_share_row(name, first, second, fixed))
        if not drawn and first and second:
            chance, title, drawn = first.chance, name, _share_bars(first, second)
    words = []
    if constant:
        words.append(
            f"{', '.join(constant)}: the same in every run, because the common scale is defined by "
            "it; there is no variance to explain."
        )
    if not table:
        words.append("Too few runs per site, before and after, to split the variance.")
        return {"words": words}
    words.append(
        "Eta squared of site should fall towards chance, (sites - 1) / (runs - 1), while the share "
        "of age should survive. 'Beyond' is what one explains when the other is known already: "
        "where sites differ in age, only these two can be told apart."
    )
    if not any(run_age > -gs.MONTHS_TO_BIRTH for run_age in ages) or np.ptp(ages) == 0:
        words.append("The share of age cannot be computed: ages are missing or all the same.")
    part: dict[str, Any] = {"words": words, "table": table}
    if drawn:
        part |= {"svg": plots.shares_svg(drawn, chance), "title": title}
        part["alt"] = f"Explained variance of {title}, before and after"
    return part


def _share_bars(first: gs.Shares, second: gs.Shares) -> dict[str, tuple[float, float]]:
    bars = {"site\nalone": (first.site, second.site)}
    for title, key in (("age\nalone", "age"), ("age beyond\nsite", "age_beyond_site")):
        pair = getattr(first, key), getattr(second, key)
        if None not in pair:
            bars[title] = pair
    return bars


def _share_row(
    name: str, first: gs.Shares | None, second: gs.Shares | None, fixed: Sequence[bool]
) -> dict[str, str]:
    """Return one row of the table: each share before and after."""

    def text(shares: gs.Shares | None, same: bool, key: str) -> str:
        value = getattr(shares, key) if shares else None
        return "no variance" if same else "n/a" if value is None else f"{value:.0%}"

    def pair(key: str) -> str:
        texts = [text(s, f, key) for s, f in zip((first, second), fixed, strict=True)]
        return " \N{RIGHTWARDS ARROW} ".join(texts)

    known = first or second
    row = {key: pair(key) for key in ("site", "site_beyond_age", "age", "age_beyond_site")}
    row |= {"n": str(known.n), "chance": f"{known.chance:.0%}"} if known else {}
    return row | {"name": name}


def _intensities(runs: Sequence[GroupRun], grid: Floats | None) -> list[tuple[str, Floats, Floats]]:
    """Return name, before and after of the brain's quartiles and of the tissues' medians."""
    found = []
    if grid is not None:
        has = {w: [i for i, r in enumerate(runs) if w in r.histograms] for w in ("Before", "After")}
        rows = {w: [_on(grid, runs[i], w) for i in members] for w, members in has.items()}
        for name, share in (("25th percentile", 0.25), ("median", 0.5), ("75th percentile", 0.75)):
            pair = []
            for when, members in has.items():
                values = np.full(len(runs), math.nan)
                if members:
                    values[members] = gs.quantile(grid, np.stack(rows[when]), share)
                pair.append(values)
            found.append((f"Brain, {name}", pair[0], pair[1]))
    for tissue in ("CSF", "GM", "WM"):
        before, after = (_values(runs, f"Median{tissue}{when}") for when in ("Before", "After"))
        found.append((f"{tissue}, median", before, after))
    return found


def _outliers(runs: Sequence[GroupRun]) -> dict[str, Any]:
    if len(runs) < SMALLEST_OUTLIER_GROUP:
        return {
            "words": [
                f"Outliers are searched among at least {SMALLEST_OUTLIER_GROUP} runs; there "
                f"{_be(len(runs), 'run')}. Compare the rows of the table instead."
            ]
        }
    stages = np.array([run.stage for run in runs])
    counts = Counter(stages.tolist())
    large = [stage for stage, count in counts.items() if count >= SMALLEST_OUTLIER_GROUP]
    groups = {f"stage {stage}": np.flatnonzero(stages == stage).tolist() for stage in large}
    groups["all the rest"] = np.flatnonzero(~np.isin(stages, large)).tolist()
    items = []
    for group, members in groups.items():
        if len(members) < SMALLEST_OUTLIER_GROUP:
            continue
        for key, label in OUTLIER_MEASURES.items():
            values = _values([runs[i] for i in members], key)
            for i, value, z in zip(members, values, gs.robust_z(values), strict=True):
                if abs(z) > OUTLIER_Z:
                    item = {"name": runs[i].name, "link": runs[i].link, "measure": label}
                    items.append(item | {"value": number_text(value), "z": z, "group": group})
    items.sort(key=lambda item: -abs(float(item["z"])))
    words = [
        f"Robust z beyond {OUTLIER_Z} among the runs of the same stage "
        f"(0.6745 x distance from the median / median absolute deviation): {len(items)} found."
    ]
    if len(items) > MOST_OUTLIERS:
        words.append(f"The {MOST_OUTLIERS} farthest are listed.")
    shown = [item | {"z": f"{item['z']:+.1f}"} for item in items[:MOST_OUTLIERS]]
    return {"words": words, "found": shown}


def _common_grid(runs: Sequence[GroupRun]) -> Floats | None:
    """Return edges that all histograms are brought onto: theirs if equal, else 200 over all."""
    edges = [run.histograms["Edges"] for run in runs if "Before" in run.histograms]
    if not edges:
        return None
    if all(np.array_equal(edges[0], other) for other in edges[1:]):
        return edges[0].astype(np.float64)
    return np.linspace(min(float(e[0]) for e in edges), max(float(e[-1]) for e in edges), 201)


def _on(grid: Floats, run: GroupRun, when: str) -> Floats:
    own = run.histograms["Edges"].astype(np.float64)
    density = run.histograms[when].astype(np.float64)
    return density if np.array_equal(own, grid) else gs.densities_on(grid, own, density)


def _reference(runs: Sequence[GroupRun], grid: Floats) -> tuple[str, Floats | None]:
    stages = Counter(run.stage for run in runs if "Reference" in run.histograms)
    if not stages:
        return "", None
    stage = stages.most_common(1)[0][0]
    run = next(run for run in runs if run.stage == stage and "Reference" in run.histograms)
    return stage, _on(grid, run, "Reference")


def _values(runs: Sequence[GroupRun], key: str) -> Floats:
    return np.array([run.metrics.get(key, math.nan) for run in runs], float)


def _be(count: int, noun: str) -> str:
    return f"is 1 {noun}" if count == 1 else f"are {count or 'no'} {noun}s"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
