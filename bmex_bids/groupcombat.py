"""ComBat on the quantiles of the tissues, as a second view of harmonisation."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Adjusted", "combat"]

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

FEWEST = 3  # runs of a site whose mean and spread can be estimated


@dataclass(frozen=True)
class Adjusted:
    """What ComBat made of the quantiles.

    Attributes:
        quantiles: part -> (runs, levels), NaN for runs of sites that are too small; {} if ComBat
            could not be computed.
        words: what is to be said about it.
        adjust: given rows to learn from and other rows, returns the adjusted features (runs, parts
            x levels) of both; None if ComBat could not be computed.
    """

    quantiles: dict[str, Single]
    words: tuple[str, ...]
    adjust: Callable[..., tuple[Floats, Floats]] | None = None


def combat(
    quantiles: Mapping[str, Single], sites: Sequence[str], covariates: Mapping[str, Floats]
) -> Adjusted:
    """Remove location and scale of each site from the quantiles, and keep the covariates' part.

    ComBat with empirical Bayes (doi:10.1016/j.neuroimage.2017.11.024), as combatlearn computes it,
    fitted on all runs that it is shown on.

    Args:
        quantiles: part -> (runs, levels), NaN where unknown.
        sites: label of each run.
        covariates: name -> (runs, p) columns to preserve; left out where not known for every run.
    """
    try:
        import combatlearn  # noqa: F401 - is it installed?
    except ImportError:
        return Adjusted({}, ("ComBat is not installed: pip install 'bmex-bids[combat]'.",))
    if not quantiles:
        return Adjusted({}, ("ComBat needs the histograms of tissues, which no sidecar has.",))
    features = np.hstack(list(quantiles.values())).astype(float)
    counts = Counter(s for s, row in zip(sites, features, strict=True) if np.isfinite(row).all())
    large = sorted(site for site, count in counts.items() if count >= FEWEST)
    labels = np.asarray(sites, object).astype(str)
    rows = np.flatnonzero(np.isin(labels, large) & np.isfinite(features).all(axis=1))
    if len(large) < 2:
        return Adjusted({}, (f"ComBat needs two sites with at least {FEWEST} runs each.",))
    words: list[str] = []
    if len(large) < len(counts):
        words.append(f"ComBat leaves out the sites with fewer than {FEWEST} runs.")
    design, kept, dropped = _preserved(covariates, labels, rows)
    words.append(f"ComBat preserved {', '.join(kept)}." if kept else "ComBat preserved nothing.")
    words += [f"It could not preserve {name}: {why}." for name, why in dropped.items()]
    columns = np.zeros((len(labels), design.shape[1]))
    columns[rows] = design

    def adjust(
        train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        return _apply(features, labels, columns, train, test)[0:2]

    made, _, said = _apply(features, labels, columns, rows, rows)
    if not np.isfinite(made).all():
        why = "a site or a covariate varies too little"
        return Adjusted({}, (f"ComBat gave no finite numbers: {why}.",))
    result = np.full_like(features, np.nan)
    result[rows] = made
    parts = np.split(result.astype(np.float32), len(quantiles), axis=1)
    by_part = dict(zip(quantiles, parts, strict=True))
    return Adjusted(by_part, (*words, *said), adjust)


def _apply(
    features: Floats,
    labels: npt.NDArray[np.str_],
    columns: Floats,
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
) -> tuple[Floats, Floats, list[str]]:
    """Fit ComBat on the training rows and return both sets of rows adjusted, and its warnings."""
    import pandas as pd
    from combatlearn import ComBat

    varying = np.ptp(features[train], axis=0) > 0
    table = pd.DataFrame(features[:, varying])
    design = pd.DataFrame(columns) if columns.shape[1] else None
    model = ComBat(pd.Series(labels), continuous_covariates=design, method="fortin")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(table.loc[train])  # takes site and covariates of these rows, by the index
        made = [np.asarray(model.transform(table.loc[rows]), float) for rows in (train, test)]
    both = []
    for rows, values in zip((train, test), made, strict=True):
        full = features[rows].copy()
        full[:, varying] = values
        both.append(full)
    said = [f"combatlearn: {w.message}" for w in caught if w.category is UserWarning]
    return both[0], both[1], said


def _preserved(
    covariates: Mapping[str, Floats], labels: npt.NDArray[np.str_], rows: npt.NDArray[np.int64]
) -> tuple[Floats, list[str], dict[str, str]]:
    """Return the columns that can be told apart from site, their names, and why not the others."""
    names = np.unique(labels[rows])
    design = (labels[rows][:, None] == names[None, :]).astype(float)
    columns = np.zeros((len(rows), 0))
    kept: list[str] = []
    dropped: dict[str, str] = {}
    for name, values in covariates.items():
        part = values[rows]
        if not np.isfinite(part).all():
            dropped[name] = "it is not known for every run"
            continue
        part = part[:, np.ptp(part, axis=0) > 0]
        if part.shape[1] == 0:
            dropped[name] = "it is the same in every run"
            continue
        part = (part - part.mean(axis=0)) / part.std(axis=0)
        together = np.hstack([design, columns, part])
        if np.linalg.matrix_rank(together) < together.shape[1]:
            dropped[name] = "it cannot be told apart from site"
            continue
        columns = np.hstack([columns, part])
        kept.append(name)
    return columns, kept, dropped
