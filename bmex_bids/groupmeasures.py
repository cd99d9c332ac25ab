"""Measures over the runs of one contrast: the paired test of TCT, and outliers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bmex_bids import groupstats as gs
from bmex_bids.groupruns import GroupRun
from bmex_bids.measures import number_text

__all__ = [
    "OUTLIER_Z",
    "SMALLEST_OUTLIER_GROUP",
    "Outlier",
    "find_outliers",
    "tct_test",
    "values_of",
]

Floats = npt.NDArray[np.float64]

OUTLIER_Z = 3.5  # Iglewicz and Hoaglin's limit for the robust z
SMALLEST_OUTLIER_GROUP = 8
OUTLIER_MEASURES = {
    "TCTBefore": "TCT before",
    "TCTAfter": "TCT after",
    "QualityIndex": "quality index",
    "CJVAfter": "CJV after",
    "HistogramDistanceBefore": "histogram distance before",
    "HistogramDistanceAfter": "histogram distance after",
    "GhostRatio": "ghosts",
    "ResidualShare": "size of the change",
    "DataConsistency": "contradiction of the input",
    "VolumeCSF": "volume of CSF",
    "VolumeGM": "volume of GM",
    "VolumeWM": "volume of WM",
}
Outlier = dict[str, Any]


def tct_test(runs: Sequence[GroupRun]) -> tuple[gs.PairedTest | None, int]:
    """Compare TCT before and after over participants; the test and the number of participants."""
    before, after = values_of(runs, "TCTBefore"), values_of(runs, "TCTAfter")
    complete = np.isfinite(before) & np.isfinite(after)
    subjects = [run.participant for run, c in zip(runs, complete, strict=True) if c]
    if not subjects:
        return None, 0
    names, number = np.unique(subjects, return_inverse=True)
    counts = np.bincount(number)
    means = [np.bincount(number, values[complete]) / counts for values in (before, after)]
    return gs.paired_test(means[0], means[1]), len(names)


def find_outliers(runs: Sequence[GroupRun]) -> list[Outlier]:
    """Return measures beyond a robust z of 3.5 among the runs of the same stage, farthest first."""
    stages = np.array([run.stage for run in runs])
    counts = Counter(stages.tolist())
    large = [stage for stage, count in counts.items() if count >= SMALLEST_OUTLIER_GROUP]
    groups = {f"stage {stage}": np.flatnonzero(stages == stage).tolist() for stage in large}
    groups["all the rest"] = np.flatnonzero(~np.isin(stages, large)).tolist()
    items: list[Outlier] = []
    for group, members in groups.items():
        if len(members) < SMALLEST_OUTLIER_GROUP:
            continue
        for key, label in OUTLIER_MEASURES.items():
            values = values_of([runs[i] for i in members], key)
            for i, value, z in zip(members, values, gs.robust_z(values), strict=True):
                if abs(z) > OUTLIER_Z:
                    item = {"name": runs[i].name, "link": runs[i].link, "measure": label}
                    items.append(item | {"value": number_text(value), "z": z, "group": group})
    return sorted(items, key=lambda item: -abs(float(item["z"])))


def values_of(runs: Sequence[GroupRun], key: str) -> Floats:
    """Return one measure of each run; NaN where it is not known."""
    return np.array([run.metrics.get(key, math.nan) for run in runs], float)
