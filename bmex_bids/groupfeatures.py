"""What explains mean intensities and components of the histograms, in every condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bmex_bids import grouphistograms as gh
from bmex_bids import groupstats as gs
from bmex_bids.groupruns import UNKNOWN_SITE, GroupRun

__all__ = ["FeatureShares", "shares_of_features"]

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

FLAT = 1e-3  # of the brain's mean intensity: features that spread less are called constant


@dataclass(frozen=True)
class FeatureShares:
    """What explains one feature in one condition.

    Attributes:
        shares: None when the feature hardly varies or site cannot be judged.
        p: of the permutation test of site; NaN without shares.
        site_sd: standard deviation of the sites' means, intensity units; NaN for several columns.
        total_sd: standard deviation over runs.
        flat: whether the feature hardly varies.
    """

    shares: gs.Shares | None
    p: float
    site_sd: float
    total_sd: float
    flat: bool


def shares_of_features(
    runs: Sequence[GroupRun],
    quantiles: Mapping[str, Mapping[str, Single]],
    scores: Mapping[str, Floats],
    covariates: Mapping[str, Floats],
) -> dict[str, dict[str, FeatureShares]]:
    """Split the variance of mean intensities and components, in every condition."""
    brain = quantiles["before"].get(gh.BRAIN)
    flat = FLAT * float(np.nanmean(brain)) if brain is not None else 0.0
    result: dict[str, dict[str, FeatureShares]] = {}
    for condition in quantiles:
        columns = _columns(runs, condition, quantiles[condition], scores.get(condition))
        for names in _alike(columns):  # features that the same runs have, tested together
            values = np.hstack([columns[name] for name in names])
            known = np.isfinite(values).all(axis=1)
            known &= np.array([run.site != UNKNOWN_SITE for run in runs])
            ends = np.cumsum([columns[name].shape[1] for name in names])
            starts = [0, *ends[:-1]]
            slices = {n: slice(a, b) for n, a, b in zip(names, starts, ends, strict=True)}
            some = [run for run, keep in zip(runs, known, strict=True) if keep]
            few = {name: c[known] for name, c in covariates.items()}
            for name, shares in _shares(values[known], slices, some, few, flat).items():
                result.setdefault(name, {})[condition] = shares
    return result


def _alike(columns: Mapping[str, Floats]) -> list[list[str]]:
    """Group the features by the runs in which they are known."""
    groups: dict[bytes, list[str]] = {}
    for name, values in columns.items():
        groups.setdefault(np.isfinite(values).all(axis=1).tobytes(), []).append(name)
    return list(groups.values())


def _columns(
    runs: Sequence[GroupRun], condition: str, parts: Mapping[str, Single], scores: Floats | None
) -> dict[str, Floats]:
    """Return the features (rows, columns) of one condition."""
    found = {f"mean {part}": values.mean(axis=1, dtype=float)[:, None]
             for part, values in parts.items()}
    if condition in ("before", "after") and set(parts) <= {gh.BRAIN}:
        for tissue in gh.PARTS[1:]:  # of versions that stored no histogram of tissues
            key = f"Median{tissue}{condition.capitalize()}"
            values = np.array([run.metrics.get(key, np.nan) for run in runs], float)
            if np.isfinite(values).any():
                found[f"median {tissue}"] = values[:, None]
    if scores is not None:
        for number in range(min(3, scores.shape[1])):
            found[f"component {number + 1}"] = scores[:, number : number + 1]
        found["histograms"] = scores
    return found


def _shares(
    values: Floats,
    slices: Mapping[str, slice],
    runs: Sequence[GroupRun],
    covariates: Mapping[str, Floats],
    flat: float,
) -> dict[str, FeatureShares]:
    sites = [run.site for run in runs]
    if len(values) < 3:
        return {name: FeatureShares(None, np.nan, np.nan, np.nan, False) for name in slices}
    blocks = [f"{run.participant} {run.site}" for run in runs]
    p = gs.permutation_p(values, slices, sites, blocks)
    found = {}
    for name, part in slices.items():
        own = values[:, part]
        total = float(np.sqrt(own.var(axis=0, ddof=1).sum()))
        constant = total <= flat
        shares = None if constant else gs.variance_shares(own, sites, covariates)
        spread = gs.site_spread(own[:, 0], sites)[0] if own.shape[1] == 1 else np.nan
        found[name] = FeatureShares(shares, p[name] if shares else np.nan, spread, total, constant)
    return found
