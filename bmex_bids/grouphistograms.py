"""Histograms as quantile functions: distances, and histogram matching as a control.

In one dimension the Wasserstein-1 distance of two distributions is the mean absolute difference of
their quantile functions, the Wasserstein-2 distance its root mean square (doi:10.1561/2200000073).
So one array of quantiles per run holds all that the group level needs of a histogram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "BRAIN",
    "LEVELS",
    "PARTS",
    "choose_pairs",
    "distances",
    "matched",
    "quantile_functions",
    "site_histograms",
]

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Histograms = Mapping[str, Single]

BRAIN = "Brain"
TISSUES = ("CSF", "GM", "WM")
PARTS = (BRAIN, *TISSUES)
LEVELS: Floats = (np.arange(50) + 0.5) / 50
"""Shares of the voxels below each stored quantile."""
FINE: Floats = np.linspace(0, 1, 501)
MOST_PAIRS = 100_000  # of a kind; more are sampled
SMALL = 700  # runs whose pairs are all taken


def quantile_functions(runs: Sequence[Histograms], when: str) -> dict[str, Single]:
    """Return the quantiles (runs, levels) of the brain and of each tissue; NaN where unknown.

    Args:
        runs: histograms of each run.
        when: ``Before`` or ``After``.

    Returns:
        Part (of :data:`PARTS`) -> quantiles in units of the scale; parts that no run has are left
        out.
    """
    found = {}
    for part in PARTS:
        name = when if part == BRAIN else when + part
        if not any(name in histograms for histograms in runs):
            continue
        rows = np.full((len(runs), len(LEVELS)), np.nan, np.float32)
        for row, histograms in zip(rows, runs, strict=True):
            if name in histograms:
                row[:] = _quantiles(histograms, name, LEVELS)
        found[part] = rows
    return found


def matched(
    runs: Sequence[Histograms], before: Mapping[str, Single], stages: Sequence[str]
) -> dict[str, Single]:
    """Match the brain's histogram of every run to the one of its stage, and nothing else.

    The map of intensities that makes a run's brain histogram equal to the target's is applied to
    the tissues too: being monotone, it maps each quantile to a quantile. The target is the
    stage's reference, or the mean of the stage's quantile functions where there is none.

    Args:
        runs: histograms of each run.
        before: what :func:`quantile_functions` gave for ``Before``.
        stages: stage of each run.
    """
    targets = {stage: _target(runs, stages, stage) for stage in dict.fromkeys(stages)}
    result = {part: np.full_like(rows, np.nan) for part, rows in before.items()}
    for i, (histograms, stage) in enumerate(zip(runs, stages, strict=True)):
        target = targets[stage]
        if target is None or "Before" not in histograms:
            continue
        edges, mass = _cumulative(histograms, "Before")
        for part, rows in before.items():
            share = LEVELS if part == BRAIN else np.interp(rows[i], edges, mass)
            result[part][i] = np.interp(share, FINE, target)
    return result


def choose_pairs(
    sites: Sequence[str], stages: Sequence[str], participants: Sequence[str], *, seed: int = 0
) -> tuple[dict[str, npt.NDArray[np.int64]], bool]:
    """Choose pairs of runs of one stage: within a site, between sites, and of one participant.

    Two runs of one participant count only under ``travelling`` (at different sites).

    Args:
        sites: of each run.
        stages: of each run.
        participants: of each run.
        seed: of the sample that is drawn from more than 700 runs.

    Returns:
        ``within``, ``between``, ``travelling`` -> (pairs, 2) indices, those that there are; and
        whether they are a sample.
    """
    site = np.unique(np.asarray(sites, object).astype(str), return_inverse=True)[1]
    stage = np.unique(np.asarray(stages, object).astype(str), return_inverse=True)[1]
    person = np.unique(np.asarray(participants, object).astype(str), return_inverse=True)[1]
    n = len(site)
    sampled = n > SMALL
    if sampled:
        rng = np.random.default_rng(seed)
        parts = [rng.integers(0, n, (4 * MOST_PAIRS, 2)), _inside(rng, site), _inside_all(person)]
        drawn = np.sort(np.concatenate(parts), axis=1)
        codes = np.unique(drawn[:, 0] * n + drawn[:, 1])  # each pair once
        pairs = np.column_stack(np.divmod(rng.permutation(codes), n))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    else:
        pairs = np.column_stack(np.triu_indices(n, 1))
    first, second = pairs[:, 0], pairs[:, 1]
    same_person, same_site = person[first] == person[second], site[first] == site[second]
    comparable = stage[first] == stage[second]
    kinds = {
        "within": comparable & ~same_person & same_site,
        "between": comparable & ~same_person & ~same_site,
        "travelling": comparable & same_person & ~same_site,
    }
    chosen = {kind: pairs[which][:MOST_PAIRS] for kind, which in kinds.items() if which.any()}
    return chosen, sampled


def distances(quantiles: Single, pairs: npt.NDArray[np.int64]) -> Floats:
    """Return Wasserstein-1 distances of (pairs, 2) rows of (runs, levels); NaN where unknown."""
    result = np.empty(len(pairs))
    for start in range(0, len(pairs), 20_000):
        block = pairs[start : start + 20_000]
        difference = quantiles[block[:, 0]] - quantiles[block[:, 1]]
        result[start : start + 20_000] = np.abs(difference).mean(axis=1)
    return result


def site_histograms(
    runs: Sequence[Histograms], name: str, members: Sequence[Sequence[int]], bins: int = 100
) -> tuple[Floats, list[Floats | None]]:
    """Average the histograms of the runs of each site, each run counting the same.

    Args:
        runs: histograms of each run.
        name: e.g. ``Before`` or ``AfterGM``.
        members: indices of the runs of each site.
        bins: number of bins over the range of all edges.

    Returns:
        Edges (bins + 1), and per site the share of voxels per unit (bins); None where no run has
        such a histogram.
    """
    edges = [histograms["Edges"] for histograms in runs if name in histograms]
    if not edges:
        return np.zeros(0), [None for _ in members]
    low, high = min(float(e[0]) for e in edges), max(float(e[-1]) for e in edges)
    grid = np.linspace(low, high, bins + 1)
    means: list[Floats | None] = []
    for rows in members:
        some = [_on(grid, runs[i], name) for i in rows if name in runs[i]]
        means.append(np.mean(some, axis=0) if some else None)
    return grid, means


def _on(grid: Floats, histograms: Histograms, name: str) -> Floats:
    edges, mass = _cumulative(histograms, name)
    return np.asarray(np.diff(np.interp(grid, edges, mass)) / np.diff(grid))


def _cumulative(histograms: Histograms, name: str) -> tuple[Floats, Floats]:
    """Return the edges and the share of voxels below each; all NaN for an empty histogram."""
    edges = histograms["Edges"].astype(np.float64)
    # pipelines store shares of voxels; on bins of equal width these and densities are the same
    mass = np.concatenate([[0.0], np.cumsum(np.maximum(histograms[name], 0) * np.diff(edges))])
    if mass[-1] <= 0:
        return edges, np.full_like(mass, np.nan)
    mass /= mass[-1]
    end = int(np.searchsorted(mass, 1 - 1e-9)) + 1  # without the empty bins above
    return edges[:end], mass[:end]


def _quantiles(histograms: Histograms, name: str, levels: Floats) -> Floats:
    edges, mass = _cumulative(histograms, name)
    if not np.isfinite(mass).all():
        return np.full(len(levels), np.nan)
    return np.asarray(np.interp(levels, mass, edges))


def _target(runs: Sequence[Histograms], stages: Sequence[str], stage: str) -> Floats | None:
    members = [histograms for histograms, own in zip(runs, stages, strict=True) if own == stage]
    for name, most in (("Reference", 1), ("Before", len(members))):
        rows = [_quantiles(h, name, FINE) for h in members if name in h][:most]
        rows = [row for row in rows if np.isfinite(row).all()]
        if rows:
            return np.asarray(np.mean(rows, axis=0))
    return None


def _inside(rng: np.random.Generator, site: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Draw pairs within sites, each site as often as it has pairs."""
    counts = np.bincount(site)
    starts = np.cumsum(counts) - counts
    weights = counts * (counts - 1.0)
    if weights.sum() == 0:
        return np.zeros((0, 2), np.int64)
    drawn = rng.choice(len(counts), 2 * MOST_PAIRS, p=weights / weights.sum())
    order = np.argsort(site, kind="stable")
    places = rng.integers(0, counts[drawn][:, None], (len(drawn), 2))
    return np.asarray(order[starts[drawn][:, None] + places])


def _inside_all(person: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return all pairs of runs of one participant."""
    order = np.argsort(person, kind="stable")
    found = [np.zeros((0, 2), np.int64)]
    for rows in np.split(order, np.flatnonzero(np.diff(person[order])) + 1):
        if 1 < len(rows) <= 100:
            found.append(np.sort(rows[np.column_stack(np.triu_indices(len(rows), 1))], axis=1))
    return np.concatenate(found)
