"""How alike the runs of different sites are, before and after, and what else explains intensities.

Four versions of the intensities are compared: ``before`` (the input, brought near the common scale
by one factor), ``matching`` (its brain histogram matched to the stage's reference, nothing else:
the control), ``after`` (enhanced) and ``combat`` (ComBat on the quantiles of ``before``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bmex_bids import grouphistograms as gh
from bmex_bids import groupstats as gs
from bmex_bids.groupclassifier import Adjust, Classified, Folds, classify, make_folds
from bmex_bids.groupcombat import Adjusted, combat
from bmex_bids.groupfeatures import FeatureShares, shares_of_features
from bmex_bids.groupruns import UNKNOWN_SITE, GroupRun

__all__ = ["CONDITIONS", "Harmony", "covariates_of", "harmony"]

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

CONDITIONS = ("before", "matching", "after", "combat")
COMPONENTS = 10


@dataclass(frozen=True)
class Harmony:
    """Everything that the group level computes about sites for one contrast.

    Attributes:
        rows: indices (into the runs given) of the runs with histograms before and after.
        quantiles: condition -> part -> (rows, levels).
        distances: condition -> part -> kind of pair -> distances.
        sampled: whether the pairs are a sample.
        features: feature -> condition -> shares.
        classified: condition -> how well sites can be told apart; ``covariates`` is the classifier
            that sees age, sex and group alone.
        scores: condition -> (rows, components) on common axes.
        axes: share of the variance (of all conditions) of each component.
        words: section (``sites``, ``classifier``, ``combat``) -> sentences, also why something
            could not be computed.
    """

    rows: npt.NDArray[np.int64]
    quantiles: dict[str, dict[str, Single]]
    distances: dict[str, dict[str, dict[str, Floats]]]
    sampled: bool
    features: dict[str, dict[str, FeatureShares]]
    classified: dict[str, Classified]
    scores: dict[str, Floats]
    axes: Floats
    words: dict[str, list[str]]


def harmony(runs: Sequence[GroupRun]) -> Harmony:
    """Compare the sites of one contrast's runs; parts that cannot be computed are empty."""
    rows = np.array(
        [i for i, run in enumerate(runs) if {"Before", "After"} <= run.histograms.keys()], np.int64
    )
    chosen = [runs[i] for i in rows]
    sites = [run.site for run in chosen]
    covariates, words = covariates_of(chosen)
    quantiles, adjusted = _conditions(chosen, covariates)
    pairs, sampled = gh.choose_pairs(
        sites, [run.stage for run in chosen], [run.participant for run in chosen]
    )
    pairs = _with_known_sites(pairs, sites)
    found = {
        condition: {part: _distances(values, pairs) for part, values in parts.items()}
        for condition, parts in quantiles.items()
    }
    scores, axes = _components(quantiles)
    said = {"sites": _words_of_sites(sites), "covariates": words, "combat": list(adjusted.words)}
    features: dict[str, dict[str, FeatureShares]] = {}
    classified: dict[str, Classified] = {}
    if len(set(sites) - {UNKNOWN_SITE}) > 1:
        features = shares_of_features(chosen, quantiles, scores, covariates)
        classified, said["classifier"] = _classified(chosen, quantiles, adjusted, covariates)
    return Harmony(
        rows, quantiles, found, sampled, features, classified, scores, axes, said
    )


def covariates_of(runs: Sequence[GroupRun]) -> tuple[dict[str, Floats], list[str]]:
    """Return the columns of age, sex and group that vary, and in words which do not and why."""
    age = gs.log_age(np.array([run.age for run in runs], float))
    columns, words = {}, []
    known = age[np.isfinite(age)]
    if len(known) > 2 and np.ptp(known) > 0:
        columns["age"] = age[:, None]
    else:
        words.append("Age: missing, or the same in all runs.")
    for name, values in (
        ("sex", [run.sex for run in runs]), ("group", [run.group for run in runs])
    ):
        levels = {value for value in values if value}
        if len(levels) < 2:
            why = "the same in all runs" if levels else "not in participants.tsv of the derivatives"
            words.append(f"{name.capitalize()}: {why}.")
        elif len(levels) > 10:
            words.append(f"{name.capitalize()}: {len(levels)} different values, too many to use.")
        else:
            design = gs.dummies(values)
            if "" in values:  # sorted first, so that it has no column
                design = gs.dummies([value or sorted(levels)[0] for value in values])
                design[[not value for value in values]] = np.nan
            columns[name] = design
    return columns, words


def _words_of_sites(sites: Sequence[str]) -> list[str]:
    known = set(sites) - {UNKNOWN_SITE}
    unknown = sum(site == UNKNOWN_SITE for site in sites)
    words = []
    if len(sites) < 2:
        words.append(
            "Comparing runs needs at least two with histograms before and after; there "
            f"{'is 1' if len(sites) == 1 else 'are none'}."
        )
    elif not known:
        words.append(
            "No site or scanner is known: the sidecars name none (InstitutionName, Manufacturer "
            "...) and participants.tsv has no column site. --site-column names another column."
        )
    elif len(known) == 1:
        words.append("All runs come from one site: there is nothing between sites to compare.")
    if known and unknown:
        words.append(f"{unknown} of {len(sites)} runs have no known site and are left out here.")
    return words


def _conditions(
    runs: Sequence[GroupRun], covariates: Mapping[str, Floats]
) -> tuple[dict[str, dict[str, Single]], Adjusted]:
    """Return the quantiles of every condition that can be computed."""
    histograms = [run.histograms for run in runs]
    sites = [run.site for run in runs]
    before = gh.quantile_functions(histograms, "Before")
    quantiles = {"before": before}
    if before:
        quantiles["matching"] = gh.matched(histograms, before, [run.stage for run in runs])
    quantiles["after"] = gh.quantile_functions(histograms, "After")
    if len(set(sites) - {UNKNOWN_SITE}) < 2:
        return quantiles, Adjusted({}, ("ComBat needs at least two known sites.",))
    labelled = {
        part: np.where(np.array(sites, object)[:, None] == UNKNOWN_SITE, np.nan, values)
        for part, values in before.items()
        if part != gh.BRAIN
    }
    adjusted = combat(labelled, sites, covariates)
    if adjusted.quantiles:
        quantiles["combat"] = adjusted.quantiles
    return quantiles, adjusted


def _with_known_sites(
    pairs: Mapping[str, npt.NDArray[np.int64]], sites: Sequence[str]
) -> dict[str, npt.NDArray[np.int64]]:
    known = np.array([site != UNKNOWN_SITE for site in sites], bool)
    if not known.any() and pairs:
        return {"all": np.concatenate(list(pairs.values()))}
    kept = {kind: some[known[some].all(axis=1)] for kind, some in pairs.items()}
    return {kind: some for kind, some in kept.items() if len(some)}


def _distances(
    values: Single, pairs: Mapping[str, npt.NDArray[np.int64]]
) -> dict[str, Floats]:
    found = {kind: gh.distances(values, some) for kind, some in pairs.items()}
    found = {kind: d[np.isfinite(d)] for kind, d in found.items()}
    return {kind: d for kind, d in found.items() if len(d)}


def _stacked(parts: Mapping[str, Single]) -> Floats | None:
    """Return the quantiles of all tissues side by side, else of the brain; None if there are none.
    """
    tissues = [values for part, values in parts.items() if part != gh.BRAIN]
    if not tissues and gh.BRAIN in parts:
        tissues = [parts[gh.BRAIN]]
    return np.hstack(tissues).astype(float) if tissues else None


def _components(
    quantiles: Mapping[str, Mapping[str, Single]],
) -> tuple[dict[str, Floats], Floats]:
    """Project every condition onto the first principal components of all of them together.

    Euclidean distances between rows are Wasserstein-2 distances (root mean square over tissues).
    """
    every = {condition: _stacked(parts) for condition, parts in quantiles.items()}
    stacked = {condition: rows for condition, rows in every.items() if rows is not None}
    widths = {values.shape[1] for values in stacked.values()}
    if len(widths) != 1:  # tissues after but not before, or nothing at all
        return {}, np.zeros(0)
    everything = np.concatenate(list(stacked.values()))
    good = everything[np.isfinite(everything).all(axis=1)]
    if len(good) < 3 or not np.ptp(good, axis=0).any():
        return {}, np.zeros(0)
    centre = good.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(good - centre, rowvar=False))
    order = np.argsort(values)[::-1][:COMPONENTS]
    axes = vectors[:, order]
    axes *= np.where(axes.sum(axis=0) < 0, -1, 1)  # the sign is free: brighter is positive
    scale = np.sqrt(everything.shape[1])
    scores = {c: (rows - centre) @ axes / scale for c, rows in stacked.items()}
    return scores, np.maximum(values[order], 0) / values.sum()


def _classified(
    runs: Sequence[GroupRun],
    quantiles: Mapping[str, Mapping[str, Single]],
    adjusted: Adjusted,
    covariates: Mapping[str, Floats],
) -> tuple[dict[str, Classified], list[str]]:
    """Classify the site in every condition with the same folds."""
    stacked = {c: _stacked(parts) for c, parts in quantiles.items()}
    only_brain = all(set(parts) <= {gh.BRAIN} for parts in quantiles.values())
    usable = np.array([run.site != UNKNOWN_SITE for run in runs])
    for values in stacked.values():
        usable &= np.isfinite(values).all(axis=1) if values is not None else True
    folds = make_folds(
        [run.site for run in runs], [run.participant for run in runs], usable, seed=0
    )
    if not isinstance(folds, Folds):
        return {}, [folds]
    found = {}
    for condition, values in stacked.items():
        if values is None or (only_brain and condition == "matching"):
            continue  # matched brain histograms are equal by construction
        tenths = np.arange(values.shape[1])[4::5]  # every tenth of the voxels of each tissue
        adjust = _learnt(adjusted, tenths) if condition == "combat" else None
        result = classify(values[:, tenths], folds, adjust)
        if result is not None:
            found[condition] = result
    found |= _from_covariates(covariates, folds)
    words = []
    if folds.sampled:
        words.append(f"The classifier saw a random sample of {len(folds.rows)} runs.")
    if folds.left_out:
        words.append(
            f"Left out, as they have fewer than three participants: {', '.join(folds.left_out)}."
        )
    return found, words


def _learnt(adjusted: Adjusted, columns: npt.NDArray[np.int64]) -> Adjust | None:
    """Return ComBat as the classifier calls it: fitted on the training runs of each fold alone."""
    fit = adjusted.adjust
    if fit is None:
        return None

    def adjust(
        train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        known, asked = fit(train, test)
        return known[:, columns], asked[:, columns]

    return adjust


def _from_covariates(covariates: Mapping[str, Floats], folds: Folds) -> dict[str, Classified]:
    """Guess the site from age, sex and group alone, where all are known."""
    if not covariates:
        return {}
    design = np.hstack(list(covariates.values()))
    if not np.isfinite(design[folds.rows]).all():
        return {}
    result = classify(design, folds)
    return {"covariates": result} if result is not None else {}
