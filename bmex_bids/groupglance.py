"""Harmonisation in numbers for the group page: the summary of a contrast, and all shares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmex_bids.groupdrawing import CONDITION_NAMES, PART_NAMES
from bmex_bids.groupfeatures import FeatureShares
from bmex_bids.groupharmony import CONDITIONS, Harmony
from bmex_bids.groupruns import GroupRun
from bmex_bids.measures import number_text

__all__ = ["FEATURE_NAMES", "glance_section", "p_text", "share_table"]

Section = dict[str, Any]

FEATURE_NAMES = {
    "histograms": "All histograms together",
    "mean Brain": "Mean intensity, brain",
    "mean CSF": "Mean intensity, CSF",
    "mean GM": "Mean intensity, GM",
    "mean WM": "Mean intensity, WM",
    "median CSF": "Median intensity, CSF",
    "median GM": "Median intensity, GM",
    "median WM": "Median intensity, WM",
    "component 1": "Component 1",
    "component 2": "Component 2",
    "component 3": "Component 3",
}


def glance_section(runs: Sequence[GroupRun], found: Harmony) -> Section:
    """Before, control and after in one table; the sections below it show each line in full."""
    rows = [
        (f"Distance between sites / within a site, {name}",
         [_ratio(found, condition, part) for condition in CONDITIONS])
        for part, name in PART_NAMES.items()
    ]
    for feature in ("histograms", "mean CSF", "mean GM", "mean WM"):
        shares = found.features.get(feature, {})
        rows.append((f"Variance explained by site: {FEATURE_NAMES[feature]}",
                     [_share_text(shares.get(condition)) for condition in CONDITIONS]))
    rows.append(("AUC of guessing the site", [_auc_text(found, c) for c in CONDITIONS]))
    for covariate in ("age", "sex", "group"):
        rows.append((f"Variance explained by {covariate} beyond site: all histograms together",
                     [_beyond(found, "histograms", c, covariate) for c in CONDITIONS]))
    rows = [row for row in rows if any(row[1])]
    words = list(found.words["sites"])
    if rows:
        words.append(
            "Sites became more alike where the first lines fall: distances towards 1, site's share "
            "towards chance, the AUC towards 0.5. What age, sex and group explain should stay. "
            "'Matching alone' is the control: what matching the brain's histogram to the stage's "
            "reference, without any enhancement, would give. ComBat, on the quantiles of the "
            "tissues, is a second view: it changes numbers, not images."
        )
        stages = Counter(run.stage for run in runs)
        if len(stages) > 1:
            words.append(
                f"Distances are between runs of the same age stage; the other lines are over all "
                f"{len(stages)} stages, so where sites differ in age, site's share holds age too."
            )
    head = ["", *(CONDITION_NAMES[c] for c in CONDITIONS)]
    part: Section = {"id": "harmonisation", "short": "harmonisation", "words": words,
                     "title": "harmonisation at a glance"}
    return part | ({"glance": {"head": head, "rows": rows}} if rows else {})


def _ratio(found: Harmony, condition: str, part: str) -> str:
    kinds = found.distances.get(condition, {}).get(part, {})
    if "between" not in kinds or "within" not in kinds:
        return ""
    if condition == "matching" and part == "Brain":
        return "equal by construction"
    between, within = float(np.median(kinds["between"])), float(np.median(kinds["within"]))
    ratio = f"{between / within:.2f}" if within > 1e-6 else "n/a"
    return f"{ratio} ({between:.3g} / {within:.3g})"


def _share_text(shares: FeatureShares | None) -> str:
    if shares is None:
        return ""
    if shares.flat:
        return "no variance"
    return f"{shares.shares.site:.0%} (p {p_text(shares.p)})" if shares.shares else "n/a"


def _beyond(found: Harmony, feature: str, condition: str, covariate: str) -> str:
    shares = found.features.get(feature, {}).get(condition)
    value = shares.shares.beyond_site.get(covariate) if shares and shares.shares else None
    return "" if value is None else f"{value:.1%}"


def _auc_text(found: Harmony, condition: str) -> str:
    result = found.classified.get(condition)
    return f"{result.auc:.2f} ({result.low:.2f} to {result.high:.2f})" if result else ""


def share_table(found: Harmony) -> Section:
    """Return all shares of all features in every condition."""
    rows = []
    for feature in (name for name in FEATURE_NAMES if name in found.features):
        for condition, shares in found.features[feature].items():
            s = shares.shares
            values = [CONDITION_NAMES[condition]]
            if s is None:
                values += ["no variance" if shares.flat else "n/a", *[""] * 5]
            else:
                values += [f"{s.site:.1%}", p_text(shares.p).removeprefix("= "), f"{s.chance:.1%}",
                           *(_or_none(s.beyond_site.get(c)) for c in ("age", "sex", "group"))]
            values += [number_text(shares.site_sd), number_text(shares.total_sd)]
            rows.append((FEATURE_NAMES[feature], values))
    head = ["Feature", "Condition", "Site", "p", "Chance", "Age beyond site", "Sex beyond site",
            "Group beyond site", "SD between sites", "SD of all runs"]
    return {"head": head, "rows": rows}


def _or_none(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def p_text(value: float) -> str:
    """Return a p value as in ``p = 0.012`` or ``p < 0.001``, without the p."""
    if not math.isfinite(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
