"""Can a classifier tell the site from a run's intensities? Its cross-validated AUC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Adjust", "Classified", "Folds", "classify", "make_folds"]

Floats = npt.NDArray[np.float64]
Adjust = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], tuple[Floats, Floats]]

MOST_FOLDS = 5
FEWEST = 3  # participants of a site that takes part
MOST_RUNS = 2000
BOOTSTRAPS = 200


@dataclass(frozen=True)
class Folds:
    """Which runs are classified and how they are split, the same for every condition.

    Attributes:
        rows: (n,) indices of the runs.
        sites: (n,) number of the site, 0 to ``count`` - 1.
        people: (n,) number of the participant.
        fold: (n,) number of the fold in which the run is tested.
        count: number of sites.
        left_out: sites with too few participants.
        sampled: whether the runs are a random sample.
    """

    rows: npt.NDArray[np.int64]
    sites: npt.NDArray[np.int64]
    people: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]
    count: int
    left_out: tuple[str, ...]
    sampled: bool


@dataclass(frozen=True)
class Classified:
    """How well the sites are told apart.

    Attributes:
        auc: area under the ROC curve, each site against the rest, mean over sites; 0.5 is chance.
        low: 2.5th percentile over 200 bootstrap samples of participants.
        high: 97.5th percentile.
        n: runs classified.
        sites: number of sites.
    """

    auc: float
    low: float
    high: float
    n: int
    sites: int


def make_folds(
    sites: Sequence[str], participants: Sequence[str], usable: npt.NDArray[np.bool_], *, seed: int
) -> Folds | str:
    """Split runs into folds of whole participants, sites spread evenly.

    Args:
        sites: label of each run.
        participants: of each run; all runs of one are tested together.
        usable: (n,) runs that may take part.
        seed: of the sample and of the split.

    Returns:
        The folds (as many as the smallest site has participants, 3 to 5), or in words why there
        are none.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    people: dict[str, set[str]] = {}
    for own, participant, use in zip(sites, participants, usable, strict=True):
        if use:
            people.setdefault(own, set()).add(participant)
    kept = sorted(name for name, members in people.items() if len(members) >= FEWEST)
    left_out = tuple(sorted(set(people) - set(kept)))
    if len(kept) < 2:
        return (
            f"A classifier needs two sites with at least {FEWEST} participants each; "
            f"there {'is one' if kept else 'is none'}."
        )
    rows = np.flatnonzero(usable & np.isin(np.asarray(sites, object).astype(str), kept))
    rng = np.random.default_rng(seed)
    sampled = len(rows) > MOST_RUNS
    if sampled:
        rows = np.sort(rng.choice(rows, MOST_RUNS, replace=False))
    names, site = np.unique([sites[i] for i in rows.tolist()], return_inverse=True)
    person = np.unique([participants[i] for i in rows.tolist()], return_inverse=True)[1]
    per_site = [len(np.unique(person[site == s])) for s in range(len(names))]
    if min(per_site) < 2:  # a small site that the sample hardly met
        return "Too few runs of the smallest site in the sample for a classifier."
    split = StratifiedGroupKFold(min(MOST_FOLDS, *per_site), shuffle=True, random_state=seed)
    fold = np.zeros(len(rows), np.int64)
    for number, (_, tested) in enumerate(split.split(site, site, person)):
        fold[tested] = number
    return Folds(rows, site, person, fold, len(names), left_out, sampled)


def classify(features: Floats, folds: Folds, adjust: Adjust | None = None) -> Classified | None:
    """Return how well linear discriminants tell the sites apart in runs that they never saw.

    Linear discriminant analysis with the shrinkage of Ledoit and Wolf
    (doi:10.1016/S0047-259X(03)00096-4), scikit-learn's.

    Args:
        features: (runs, f) of all runs; columns without spread are left out.
        folds: of :func:`make_folds`.
        adjust: given the rows of the training and of the tested runs, returns the features of both;
            so that a method that learns from the data learns from the training runs alone.

    Returns:
        None when no feature varies, or a fold cannot be learnt.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    scores = np.zeros((len(folds.rows), folds.count))
    for number in range(int(folds.fold.max()) + 1):
        tested = folds.fold == number
        train, test = folds.rows[~tested], folds.rows[tested]
        known, asked = adjust(train, test) if adjust else (features[train], features[test])
        varying = np.ptp(known, axis=0) > 1e-6 * max(1e-12, float(np.abs(known).max()))
        if not tested.any() or len(np.unique(folds.sites[~tested])) < 2 or not varying.any():
            return None
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        model.fit(known[:, varying], folds.sites[~tested])
        scores[np.ix_(tested, model.classes_)] = model.predict_proba(asked[:, varying])
    auc = _auc(scores, folds.sites)
    rng = np.random.default_rng(0)
    order = np.argsort(folds.people, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(folds.people[order])) + 1)
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        if len(np.unique(folds.sites[rows])) > 1:
            drawn.append(_auc(scores[rows], folds.sites[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Classified(auc, float(low), float(high), len(scores), folds.count)


def _auc(scores: Floats, sites: npt.NDArray[np.int64]) -> float:
    """Mean over the sites of the rank-sum AUC of each against the rest."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=0)
    own = sites[:, None] == np.arange(scores.shape[1])
    n = own.sum(axis=0)
    met = n > 0
    values = (ranks * own).sum(axis=0) - n * (n + 1) / 2
    return float((values[met] / (n * (len(sites) - n))[met]).mean())
