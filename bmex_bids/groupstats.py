"""Statistics over runs: arrays -> numbers; None or NaN where something cannot be computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "PairedTest",
    "Shares",
    "dummies",
    "eta_squared",
    "explained",
    "log_age",
    "paired_test",
    "permutation_p",
    "robust_z",
    "site_spread",
    "variance_shares",
]

Floats = npt.NDArray[np.float64]

SMALLEST_PAIRED = 5  # pairs below which a test would say nothing
MONTHS_TO_BIRTH = 9.2  # from conception, so that the logarithm of age exists before birth too
PERMUTATIONS = 999


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison.

    Attributes:
        n: number of pairs.
        mean_difference: after minus before.
        low: lower end of its 95 % confidence interval (Student's t).
        high: upper end.
        effect: Cohen's d_z, mean difference / standard deviation of the differences.
        t_p: two-sided p of the paired t-test.
        wilcoxon_p: two-sided p of Wilcoxon's signed-rank test.
    """

    n: int
    mean_difference: float
    low: float
    high: float
    effect: float
    t_p: float
    wilcoxon_p: float


@dataclass(frozen=True)
class Shares:
    """Shares of a variance, each 0 to 1.

    Attributes:
        n: runs used.
        sites: number of sites.
        site: eta squared, explained by site alone.
        chance: expectation of ``site`` when site has no effect, (sites - 1) / (n - 1).
        site_beyond: gained by site when all covariates are known already; None without any.
        alone: covariate -> what it explains alone.
        beyond_site: covariate -> what it gains when site is known already.
    """

    n: int
    sites: int
    site: float
    chance: float
    site_beyond: float | None
    alone: dict[str, float]
    beyond_site: dict[str, float]


def paired_test(before: Floats, after: Floats) -> PairedTest | None:
    """Compare (n,) values before and after; None below 5 complete pairs or without any spread."""
    from scipy import stats

    complete = np.isfinite(before) & np.isfinite(after)
    difference = (after - before)[complete]
    n = len(difference)
    if n < SMALLEST_PAIRED or np.ptp(difference) == 0:
        return None
    mean, spread = float(difference.mean()), float(difference.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * spread / np.sqrt(n)
    t_p = 2 * float(stats.t.sf(abs(mean) / (spread / np.sqrt(n)), n - 1))
    wilcoxon_p = float(stats.wilcoxon(difference).pvalue)
    return PairedTest(n, mean, mean - half, mean + half, mean / spread, t_p, wilcoxon_p)


def dummies(groups: Sequence[str]) -> Floats:
    """Return (n, groups - 1) columns of 0 and 1; the first group in sorted order has none."""
    names, index = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    return np.asarray(np.eye(len(names))[index][:, 1:])


def log_age(months: Floats) -> Floats:
    """Return (n,) logarithms of the time since conception; NaN where the age is not known."""
    since = np.asarray(months, float) + MONTHS_TO_BIRTH
    return np.log(np.where(since > 0, since, np.nan))


def explained(values: Floats, columns: Floats) -> float:
    """Return the share of the total variance of (n, f) values that (n, p) columns explain.

    Linear model with intercept; sums of squares are added over the f features, which for the
    columns of a factor is the R squared of PERMANOVA on Euclidean distances
    (doi:10.1111/j.1442-9993.2001.01070.pp.x), and for f = 1 the usual R squared.
    """
    design = np.hstack([np.ones((len(values), 1)), columns])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    total = float(((values - values.mean(axis=0)) ** 2).sum())
    return min(1.0, max(0.0, 1 - float(((values - fitted) ** 2).sum()) / total))


def eta_squared(values: Floats, groups: Sequence[str]) -> float | None:
    """Return the share of variance between groups, SS_between / SS_total, 0 to 1.

    Args:
        values: (n,) or (n, f); sums of squares are added over the f features.
        groups: n labels.

    Returns:
        None when there are fewer than two groups, no group with two values, or no spread.
    """
    values = values.reshape(len(values), -1)
    names, index = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    if len(names) < 2 or len(values) <= len(names):
        return None
    centred = values - values.mean(axis=0)
    total = float((centred**2).sum())
    if total == 0:
        return None
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, centred)
    return float((sums**2 / np.bincount(index)[:, None]).sum()) / total


def permutation_p(
    values: Floats,
    slices: Mapping[str, slice],
    sites: Sequence[str],
    blocks: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Return, for each feature, how often shuffled sites explain as much as the real ones.

    The labels of whole blocks are exchanged (999 times), so that several runs of one participant
    count as what they are. p = (1 + as large or larger) / 1000 (doi:10.2202/1544-6115.1585).

    Args:
        values: (n, f), finite.
        slices: name of a feature -> its columns of ``values``.
        sites: n labels.
        blocks: n labels of what is exchanged; every run of a block is of one site.
        seed: of the permutations.
    """
    block = np.unique(np.asarray(blocks, object).astype(str), return_inverse=True)[1]
    names, site = np.unique(np.asarray(sites, object).astype(str), return_inverse=True)
    count = np.bincount(block)
    sums = np.zeros((len(count), values.shape[1]))
    np.add.at(sums, block, values - values.mean(axis=0))
    label = np.zeros(len(count), np.int64)
    label[block] = site
    one_of = np.eye(len(names))

    def between(labels: npt.NDArray[np.int64]) -> Floats:
        member = one_of[labels].T
        return np.asarray(((member @ sums) ** 2 / (member @ count)[:, None]).sum(axis=0))

    rng = np.random.default_rng(seed)
    real = between(label)
    larger = dict.fromkeys(slices, 0)
    for _ in range(PERMUTATIONS):
        shuffled = between(rng.permutation(label))
        for name, part in slices.items():
            larger[name] += bool(shuffled[part].sum() >= real[part].sum() * (1 - 1e-12))
    return {name: (1 + hits) / (1 + PERMUTATIONS) for name, hits in larger.items()}


def variance_shares(
    values: Floats, sites: Sequence[str], covariates: Mapping[str, Floats]
) -> Shares | None:
    """Split the variance of (n, f) values between site and covariates.

    Args:
        values: finite; several features are added up as in :func:`explained`.
        sites: one label per run.
        covariates: name -> (n, p) columns; NaN leaves the run out of this covariate's shares.

    Returns:
        The shares; None where site has none (one site, one run each, no variance).
    """
    values = values.reshape(len(values), -1)
    site = eta_squared(values, sites)
    if site is None:
        return None
    count = len(set(sites))
    alone, beyond = {}, {}
    usable = {}
    for name, columns in covariates.items():
        known = np.isfinite(columns).all(axis=1)
        pair = _alone_and_beyond(values[known], _chosen(sites, known), columns[known])
        if pair is not None:
            alone[name], beyond[name] = pair
            usable[name] = columns
    everything = np.hstack(list(usable.values())) if usable else np.zeros((len(values), 0))
    known = np.isfinite(everything).all(axis=1)
    pair = None
    if usable and len(set(_chosen(sites, known))) > 1:
        pair = _alone_and_beyond(
            values[known], _chosen(sites, known), everything[known], swapped=True
        )
    chance = (count - 1) / (len(values) - 1)
    return Shares(len(values), count, site, chance, pair[1] if pair else None, alone, beyond)


def _alone_and_beyond(
    values: Floats, sites: Sequence[str], columns: Floats, *, swapped: bool = False
) -> tuple[float, float] | None:
    """Return what the columns explain alone and beyond site; ``swapped``: site beyond them."""
    design = dummies(sites)
    if len(values) < design.shape[1] + columns.shape[1] + 3 or not (columns.std(axis=0) > 0).any():
        return None
    if not ((values - values.mean(axis=0)) ** 2).sum() > 0:
        return None
    site, alone = explained(values, design), explained(values, columns)
    both = explained(values, np.hstack([design, columns]))
    return alone, max(0.0, both - (alone if swapped else site))


def site_spread(values: Floats, sites: Sequence[str]) -> tuple[float, float]:
    """Return the standard deviations of the sites' means, and of all (n,) values."""
    index = np.unique(np.asarray(sites, object).astype(str), return_inverse=True)[1]
    means = np.bincount(index, values) / np.bincount(index)
    return float(means.std(ddof=1)) if len(means) > 1 else 0.0, float(values.std(ddof=1))


def robust_z(values: Floats) -> Floats:
    """Return 0.6745 (x - median) / MAD; all NaN when the MAD is 0 or nothing is known."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return np.full(values.shape, np.nan)
    middle = np.median(known)
    mad = np.median(np.abs(known - middle))
    if mad == 0:
        return np.full(values.shape, np.nan)
    return np.asarray(0.6745 * (values - middle) / mad)


def _chosen(labels: Sequence[str], which: npt.ArrayLike) -> list[str]:
    return [label for label, keep in zip(labels, np.asarray(which), strict=True) if keep]
