"""Statistics over runs: arrays -> numbers; None or NaN where something cannot be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "PairedTest",
    "Shares",
    "cumulative",
    "densities_on",
    "eta_squared",
    "is_constant",
    "paired_test",
    "pairwise_distances",
    "quantile",
    "robust_z",
    "variance_shares",
]

Floats = npt.NDArray[np.float64]

SMALLEST_PAIRED = 5  # pairs below which a test would say nothing
MONTHS_TO_BIRTH = 9.2  # from conception, so that the logarithm of age exists before birth too


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
        site: explained by site alone (eta squared).
        chance: what eta squared is on average when site means nothing, (sites - 1) / (n - 1).
        age: explained by the logarithm of age since conception alone; None without ages.
        site_beyond_age: gained by site when age is known already; None without ages.
        age_beyond_site: gained by age when site is known already; None without ages.
    """

    n: int
    sites: int
    site: float
    chance: float
    age: float | None
    site_beyond_age: float | None
    age_beyond_site: float | None


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


def eta_squared(values: Floats, groups: Sequence[str]) -> float | None:
    """Return the share of variance between groups, SS_between / SS_total, 0 to 1.

    None when there are fewer than two groups, no group with two values, or no spread.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or len(values) <= len(names):
        return None
    total = float(((values - values.mean()) ** 2).sum())
    if total == 0:
        return None
    counts = np.bincount(index)
    means = np.bincount(index, values) / counts
    return float((counts * (means - values.mean()) ** 2).sum()) / total


def variance_shares(values: Floats, sites: Sequence[str], ages: Floats) -> Shares | None:
    """Split the variance of (n,) values between site and age; None when site has no share.

    Args:
        values: one per run; NaN leaves the run out.
        sites: one label per run.
        ages: months after birth, negative before; runs without (NaN) do not count for age's part.
    """
    known = np.isfinite(values)
    values, ages = values[known], ages[known]
    labels = [site for site, keep in zip(sites, known, strict=True) if keep]
    site = eta_squared(values, labels)
    if site is None:
        return None
    k = len(set(labels))
    chance = (k - 1) / (len(values) - 1)
    with_age = np.isfinite(ages) & (ages > -MONTHS_TO_BIRTH)
    dated = [label for label, keep in zip(labels, with_age, strict=True) if keep]
    enough = len(dated) > len(set(dated)) + 1 and len(set(dated)) > 1
    if not enough or np.ptp(ages[with_age]) == 0 or np.ptp(values[with_age]) == 0:
        return Shares(len(values), k, site, chance, None, None, None)
    y = values[with_age]
    age = np.log(ages[with_age] + MONTHS_TO_BIRTH)[:, None]
    dummies = (np.asarray(dated)[:, None] == np.unique(dated)[None, 1:]).astype(float)
    r_age, r_site = _r_squared(y, age), _r_squared(y, dummies)
    r_both = _r_squared(y, np.hstack([age, dummies]))
    beyond = max(0.0, r_both - r_age), max(0.0, r_both - r_site)
    return Shares(len(values), k, site, chance, r_age, *beyond)


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


def densities_on(grid: Floats, edges: Floats, density: Floats) -> Floats:
    """Bring a histogram (edges n + 1, density n) onto other edges (m + 1), mass kept."""
    mass = np.concatenate([[0.0], np.cumsum(density * np.diff(edges))])
    return np.asarray(np.diff(np.interp(grid, edges, mass)) / np.diff(grid))


def cumulative(grid: Floats, densities: Floats) -> Floats:
    """Return the cumulative distributions (runs, m), each ending at 1, of densities (runs, m)."""
    mass = np.cumsum(densities * np.diff(grid), axis=-1)
    return np.asarray(mass / np.maximum(mass[..., -1:], 1e-12))


def quantile(grid: Floats, densities: Floats, share: float) -> Floats:
    """Return a quantile (share 0.5: the median) of each of (runs, m) histograms, linear in bins."""
    shares = cumulative(grid, densities)
    found = [np.interp(share, np.concatenate([[0.0], row]), grid) for row in shares]
    return np.asarray(found, float)


def is_constant(values: Floats) -> bool:
    """Tell whether the known values spread by less than 0.1 % of their mean."""
    known = values[np.isfinite(values)]
    return len(known) > 0 and float(known.std()) <= 1e-3 * abs(float(known.mean()))


def pairwise_distances(grid: Floats, densities: Floats) -> Floats:
    """Return the Wasserstein distances of all pairs of (runs, m) histograms, condensed as pdist.

    In one dimension it is the area between the cumulative distributions, in units of the scale.
    """
    from scipy.spatial.distance import pdist

    return np.asarray(pdist(cumulative(grid, densities) * np.diff(grid), "cityblock"))


def _r_squared(values: Floats, columns: Floats) -> float:
    """Share of variance that a linear model with intercept explains."""
    design = np.hstack([np.ones((len(values), 1)), columns])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    total = float(((values - values.mean()) ** 2).sum())
    return min(1.0, max(0.0, 1 - float(((values - fitted) ** 2).sum()) / total))
