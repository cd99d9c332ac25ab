"""Rows of measures -> means, paired comparisons with a baseline, and their correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bmex_bids.evaluation.measuring import MEASURES, Row
from bmex_bids.groupstats import PairedTest, paired_test
from bmex_bids.rendering import natural_key

__all__ = ["ALL", "Cell", "cohens_d", "holm", "quality_index_rows", "summarise", "values_of"]

Floats = npt.NDArray[np.float64]
ALL = "all conditions"


@dataclass(frozen=True)
class Cell:
    """One method under one condition, by one measure.

    Attributes:
        suffix: contrast.
        metric: name of the measure.
        condition: condition, or :data:`ALL`.
        method: name of the method.
        n: participants.
        mean: over participants.
        sd: sample standard deviation over participants; NaN for one.
        test: paired comparison with the baseline (method minus baseline); None for the baseline
            itself, and where there are too few pairs.
        cohens_d: difference of the means over the pooled standard deviation, on the same pairs.
        t_holm: p of the t-test after Holm's correction, NaN without a test.
        wilcoxon_holm: p of Wilcoxon's test after Holm's correction.
    """

    suffix: str
    metric: str
    condition: str
    method: str
    n: int
    mean: float
    sd: float
    test: PairedTest | None = None
    cohens_d: float = math.nan
    t_holm: float = math.nan
    wilcoxon_holm: float = math.nan


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values (doi:10.2307/4615733); NaN stays and does not count.

    The smallest of m is multiplied by m, the next by m - 1, ...; none falls below the one before.
    """
    known = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    found = [math.nan] * len(values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        found[place] = least
    return found


def cohens_d(values: Floats, baseline: Floats) -> float:
    """Cohen's d, mean difference over the pooled standard deviation; NaN without any spread."""
    if len(values) < 2:
        return math.nan
    pooled = math.sqrt((float(values.var(ddof=1)) + float(baseline.var(ddof=1))) / 2)
    return (float(values.mean()) - float(baseline.mean())) / pooled if pooled > 0 else math.nan


def quality_index_rows(rows: Sequence[Row], baseline: str) -> list[Row]:
    """QI of every method but the baseline, where TCT of both is known."""
    base = {
        (r.pair.reference.path, r.pair.condition): r.value
        for r in rows if r.metric == "TCT" and r.pair.method == baseline
    }
    found = []
    for row in rows:
        before = base.get((row.pair.reference.path, row.pair.condition))
        if row.metric == "TCT" and row.pair.method != baseline and before and row.value > 0:
            found.append(Row(row.pair, "QI", before / row.value))
    return found


def values_of(
    rows: Sequence[Row], suffix: str, metric: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Condition -> method -> participant -> mean over the participant's images; finite values.

    Under :data:`ALL` a participant's value is the mean over the conditions that every method has
    for it, so that no participant and no method counts more for having more images.
    """
    lists: dict[str, dict[str, dict[str, list[float]]]] = {}
    methods = list(dict.fromkeys(r.pair.method for r in rows if r.metric == metric))
    for row in rows:
        pair = row.pair
        if row.metric == metric and pair.reference.suffix == suffix and math.isfinite(row.value):
            of_method = lists.setdefault(pair.condition, {}).setdefault(pair.method, {})
            of_method.setdefault(pair.reference.entities["sub"], []).append(row.value)
    found = {
        condition: {
            m: {sub: float(np.mean(v)) for sub, v in lists[condition][m].items()}
            for m in methods if m in lists[condition]
        }
        for condition in sorted(lists, key=natural_key)
    }
    if len(found) > 1:
        over = _over_conditions(found, methods)
        found |= {ALL: over} if all(over.values()) else {}
    return found


def summarise(rows: Sequence[Row], baseline: str) -> list[Cell]:
    """Summary of every measure; Holm's correction over all comparisons of one measure and contrast.

    Participants are the unit: several images of one are averaged first.
    """
    cells: list[Cell] = []
    suffixes = sorted({row.pair.reference.suffix for row in rows})
    names = [name for name in MEASURES if any(row.metric == name for row in rows)]
    for suffix in suffixes:
        for metric in names:
            family = [
                _cell((suffix, metric, condition, method), by_method, baseline)
                for condition, by_method in values_of(rows, suffix, metric).items()
                for method in by_method
            ]
            t = holm([c.test.t_p if c.test else math.nan for c in family])
            w = holm([c.test.wilcoxon_p if c.test else math.nan for c in family])
            cells += [
                Cell(c.suffix, c.metric, c.condition, c.method, c.n, c.mean, c.sd, c.test,
                     c.cohens_d, one, two)
                for c, one, two in zip(family, t, w, strict=True)
            ]
    return cells


def _cell(
    key: tuple[str, str, str, str], by_method: dict[str, dict[str, float]], baseline: str
) -> Cell:
    own = by_method[key[3]]
    values = np.array(list(own.values()))
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    mean = float(values.mean()) if len(values) else math.nan
    other = by_method.get(baseline, {})
    both = [sub for sub in own if sub in other]
    if key[3] == baseline or not both:
        return Cell(*key, len(values), mean, sd)
    mine, theirs = np.array([own[s] for s in both]), np.array([other[s] for s in both])
    return Cell(
        *key, len(values), mean, sd, paired_test(theirs, mine), cohens_d(mine, theirs)
    )


def _over_conditions(
    found: dict[str, dict[str, dict[str, float]]], methods: Sequence[str]
) -> dict[str, dict[str, float]]:
    lists: dict[str, dict[str, list[float]]] = {m: {} for m in methods}
    for by_method in found.values():
        if set(by_method) < set(methods):
            continue
        for sub in set.intersection(*(set(of) for of in by_method.values())):
            for method, of in by_method.items():
                lists[method].setdefault(sub, []).append(of[sub])
    return {m: {s: float(np.mean(v)) for s, v in sorted(of.items())} for m, of in lists.items()}
