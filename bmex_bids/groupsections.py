"""The sections of the group page for one contrast: sentences, tables, plots, or why there are none.

Each section is a dict: ``id``, ``title``, ``words`` (sentences), ``glance`` or ``table`` (``head``
and ``rows``, each row with a name and its cells), ``figures`` (each with its ``variants``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bmex_bids import groupfigures as gf
from bmex_bids import groupstats as gs
from bmex_bids.groupharmony import CONDITIONS, FeatureShares, Harmony
from bmex_bids.groupruns import UNKNOWN_SITE, GroupRun
from bmex_bids.measures import SMOOTHING_CAVEAT, number_text

__all__ = ["FEATURE_NAMES", "Outlier", "find_outliers", "suffix_sections", "tct_test"]

Floats = npt.NDArray[np.float64]
Section = dict[str, Any]

OUTLIER_Z = 3.5  # Iglewicz and Hoaglin's limit for the robust z
SMALLEST_OUTLIER_GROUP = 8
MOST_OUTLIERS = 100
OUTLIER_MEASURES = {
    "TCTBefore": "TCT before",
    "TCTAfter": "TCT after",
    "QualityIndex": "quality index",
    "CJVAfter": "CJV after",
    "HistogramDistanceBefore": "histogram distance before",
    "HistogramDistanceAfter": "histogram distance after",
    "ResidualShare": "size of the change",
    "DataConsistency": "contradiction of the input",
    "VolumeCSF": "volume of CSF",
    "VolumeGM": "volume of GM",
    "VolumeWM": "volume of WM",
}
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
Outlier = dict[str, Any]


def suffix_sections(
    runs: Sequence[GroupRun], found: Harmony, index: Sequence[int], styles: gf.Styles
) -> list[Section]:
    """Return the sections of one contrast in the order of the page.

    Args:
        runs: of the contrast.
        found: what was computed about its sites.
        index: number of each run on the page.
        styles: of the sites.
    """
    used = [runs[i] for i in found.rows]
    return [
        _glance(used, found),
        _tct(runs, index, styles),
        _histograms(runs, used, found, styles),
        _matrix(used, found),
        _embedding(used, found, [index[i] for i in found.rows], styles),
        _shares(found),
        _classifier(found),
        _outliers(runs),
    ]


def _glance(runs: Sequence[GroupRun], found: Harmony) -> Section:
    """Before, control and after in one table; the sections below it show each line in full."""
    rows = []
    for part in gf.PART_NAMES:
        rows.append((f"Distance between sites / within a site, {gf.PART_NAMES[part]}",
                     _cells(lambda c, part=part: _ratio(found, c, part))))
    for feature in ("histograms", "mean CSF", "mean GM", "mean WM"):
        rows.append((f"Variance explained by site: {FEATURE_NAMES[feature]}",
                     _cells(lambda c, f=feature: _share_text(found.features.get(f, {}).get(c)))))
    rows.append(("AUC of guessing the site", _cells(lambda c: _auc_text(found, c))))
    for covariate in ("age", "sex", "group"):
        rows.append((f"Variance explained by {covariate} beyond site: All histograms together",
                     _cells(lambda c, v=covariate: _beyond(found, "histograms", c, v))))
    rows = [row for row in rows if any(cell != "" for cell in row[1])]
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
    head = ["", *(gf.CONDITION_NAMES[c] for c in CONDITIONS)]
    part: Section = {"id": "harmonisation", "short": "harmonisation", "title": "harmonisation at a glance", "words": words}
    return part | ({"glance": {"head": head, "rows": rows}} if rows else {})


def _cells(text: Any) -> list[str]:
    return [text(condition) for condition in CONDITIONS]


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
    return f"{shares.shares.site:.0%} (p {_p(shares.p)})" if shares.shares else "n/a"


def _beyond(found: Harmony, feature: str, condition: str, covariate: str) -> str:
    shares = found.features.get(feature, {}).get(condition)
    value = shares.shares.beyond_site.get(covariate) if shares and shares.shares else None
    return "" if value is None else f"{value:.1%}"


def _auc_text(found: Harmony, condition: str) -> str:
    result = found.classified.get(condition)
    return f"{result.auc:.2f} ({result.low:.2f} to {result.high:.2f})" if result else ""


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


def _tct(runs: Sequence[GroupRun], index: Sequence[int], styles: gf.Styles) -> Section:
    part: Section = {"id": "tct", "short": "contrast", "title": "tissue contrast before and after"}
    before, after = values_of(runs, "TCTBefore"), values_of(runs, "TCTAfter")
    complete = np.flatnonzero(np.isfinite(before) & np.isfinite(after))
    if len(complete) == 0:
        why = "No run has TCT before and after: the runs were measured only."
        return part | {"words": [why]}
    before, after = before[complete], after[complete]
    words = [
        f"TCT is higher after enhancement in {int((after > before).sum())} of {len(before)} runs; "
        f"medians {np.median(before):.2f} before and {np.median(after):.2f} after."
    ]
    test, people = tct_test(runs)
    if test is None:
        words.append(
            f"A paired test needs at least {gs.SMALLEST_PAIRED} participants whose differences are "
            f"not all the same; there {_be(people, 'participant')} with values."
        )
    else:
        mean = "mean of a participant's runs" if people < len(before) else "one run each"
        words.append(
            f"Over {test.n} participants ({mean}): mean difference {test.mean_difference:+.3g} "
            f"(95% CI {test.low:.3g} to {test.high:.3g}), Cohen's d_z {test.effect:.2f}, paired "
            f"t-test p {_p(test.t_p)}, Wilcoxon signed-rank p {_p(test.wilcoxon_p)}."
        )
    if len(before) > gf.MOST_POINTS:
        words.append(f"A random sample of {gf.MOST_POINTS} runs is drawn.")
    sites = [runs[i].site for i in complete]
    figure = gf.tct_figure(before, after, [index[i] for i in complete], sites, styles)
    alt = f"TCT after over TCT before, one point per run. {words[0]}"
    return part | {"words": words, "note": SMOOTHING_CAVEAT,
                   "figures": [{"name": "tct", "alt": alt, "variants": {"": figure}}]}


def _histograms(
    runs: Sequence[GroupRun], used: Sequence[GroupRun], found: Harmony, styles: gf.Styles
) -> Section:
    part: Section = {"id": "histograms", "short": "histograms", "title": "histograms by site"}
    figures = gf.histogram_figures(runs, styles)
    if not figures:
        return part | {"words": ["No sidecar holds histograms."]}
    words = ["Mean histogram of the runs of each site, on the common scale."]
    if len(styles) > gf.MOST_SITES:
        words.append(f"The {gf.MOST_SITES} largest of {len(styles)} sites are drawn.")
    if not used:
        words.append("There is no picture after: the runs were measured only.")
    if len(figures) == 1:
        words.append(
            "These derivatives hold no histograms of single tissues (they were written by an "
            "earlier version); --overwrite makes them again."
        )
    drawn = [_choice("histograms", "Tissue", figures,
                     "Mean histogram of each site, before and after")]
    boxes = gf.distance_figures(found)
    if boxes:
        words.append(
            "The boxes hold the distances of pairs of runs (Wasserstein-1: the mean shift of "
            "intensity that makes one histogram the other): median, quartiles, 5th and 95th "
            "percentile. Pairs of runs of one participant are not counted within a site."
        )
        if found.sampled:
            words.append("They are a random sample of up to 100,000 pairs of each kind (seed 0).")
        drawn.append(_choice("distances", "Tissue", boxes, _distance_alt(found)))
    elif len(used) < 2:
        words.append(
            "Distances between runs need at least two runs with histograms before and after; "
            f"there {_be(len(used), 'run')}."
        )
    kinds = found.distances.get("before", {}).get("Brain", {})
    if "within" in kinds and "between" not in kinds:
        words.append("All runs come from one site: there are no distances between sites to reduce.")
    elif "between" in kinds and "within" not in kinds:
        words.append("No site has two runs of one stage: there are no distances within a site.")
    return part | {"words": words, "figures": drawn}


def _distance_alt(found: Harmony) -> str:
    texts = [
        f"{gf.CONDITION_NAMES[condition]}, {gf.KIND_NAMES[kind]}: median {np.median(d):.3g}"
        for condition, parts in found.distances.items()
        for kind, d in parts.get("Brain", {}).items()
    ]
    return "Distances between runs, whole brain. " + "; ".join(texts)


def _choice(name: str, label: str, figures: Mapping[str, Any], alt: str) -> Section:
    """Return a figure with a choice of its variants, under their names for people."""
    names = gf.PART_NAMES | gf.CONDITION_NAMES
    return {"name": name, "label": label, "alt": alt,
            "variants": {names[key]: figure for key, figure in figures.items()}}


def _matrix(runs: Sequence[GroupRun], found: Harmony) -> Section:
    part: Section = {"id": "matrix", "short": "matrix", "title": "distance matrix"}
    figures = gf.matrix_figures(found, runs)
    if not figures:
        return part | {"words": ["A matrix of distances needs at least two runs, before and after."]}
    words = [
        "Wasserstein-1 distance of each pair of runs, sorted by site, on one colour scale. Bright "
        "blocks off the diagonal are differences between sites."
    ]
    if len(runs) > gf.MATRIX_RUNS:
        words.append(
            f"{gf.MATRIX_RUNS} of {len(runs)} runs, sampled from each site in proportion (seed 0)."
        )
    alt = "Matrix of distances between runs sorted by site, before and after"
    return part | {"words": words, "figures": [_choice("matrix", "Tissue", figures, alt)]}


def _embedding(
    runs: Sequence[GroupRun], found: Harmony, index: Sequence[int], styles: gf.Styles
) -> Section:
    part: Section = {"id": "embedding", "short": "map", "title": "map of the runs"}
    figures = gf.embedding_figures(found, index, [run.site for run in runs], styles)
    if not figures:
        return part | {"words": ["A map of the runs needs at least three runs that differ, with "
                                 "the same histograms before and after."]}
    words = [
        "Each point is a run; near points have similar histograms (principal components of the "
        "quantile functions of all conditions together, so that the axes are the same in each "
        "picture). Clusters by site that dissolve are harmonised."
    ]
    if len(runs) > gf.MOST_POINTS:
        words.append(f"A random sample of {gf.MOST_POINTS} of {len(runs)} runs is drawn.")
    alt = "Runs on the first two principal components of their histograms, coloured by site"
    return part | {"words": words,
                   "figures": [_choice("embedding", "Beside before", figures, alt)]}


def _shares(found: Harmony) -> Section:
    part: Section = {"id": "shares", "short": "site and age", "title": "what intensities depend on: site, age, sex, group"}
    words = list(found.words["sites"])
    if not found.features:
        words.append(
            "How much of the variance of intensities site explains cannot be computed: it takes at "
            "least two known sites, and two runs in one of them."
        )
        return part | {"words": words}
    flat = [FEATURE_NAMES[f] + " (" + ", ".join(flats) + ")"
            for f, conditions in found.features.items()
            if (flats := [gf.CONDITION_NAMES[c] for c, s in conditions.items() if s.flat])]
    if flat:
        words.append(
            f"The same in every run, so that there is no variance to explain: {'; '.join(flat)}."
        )
    if not any(s.shares for conditions in found.features.values() for s in conditions.values()):
        words.append("Too few runs per site, before and after, to split the variance.")
        return part | {"words": words}
    words += [
        "Explained by site: eta squared, which should fall to chance, (sites - 1) / (runs - 1), the "
        "dotted line; p from 999 permutations of the sites of whole participants. What age (the "
        "logarithm of the time since conception), sex and group explain beyond site should "
        "survive; where sites differ in age, only this can be told apart from site.",
        "A share says nothing about size: where the whole variance fell, a large share of it can "
        "be a small difference. The standard deviation between sites is in the table.",
        *found.words["combat"],
    ]
    if found.words["covariates"]:
        words.append("Not computed. " + " ".join(found.words["covariates"]))
    figures = []
    for which, title in (("site", "Explained by site"), ("age", "Explained by age beyond site"),
                         ("sex", "Explained by sex beyond site"),
                         ("group", "Explained by group beyond site")):
        figure = gf.shares_figure(found, FEATURE_NAMES, which)
        if figure is not None:
            figures.append({"name": f"shares-{which}", "alt": title, "title": title,
                            "variants": {"": figure}})
    return part | {"words": words, "figures": figures, "table": _share_table(found),
                   "columns": True}


def _share_table(found: Harmony) -> Section:
    rows = []
    for feature in (name for name in FEATURE_NAMES if name in found.features):
        for condition, shares in found.features[feature].items():
            s = shares.shares
            values = [gf.CONDITION_NAMES[condition]]
            if s is None:
                values += ["no variance" if shares.flat else "n/a", *[""] * 5]
            else:
                values += [f"{s.site:.1%}", _p(shares.p).removeprefix("= "), f"{s.chance:.1%}",
                           *(_or_none(s.beyond_site.get(c)) for c in ("age", "sex", "group"))]
            values += [number_text(shares.site_sd), number_text(shares.total_sd)]
            rows.append((FEATURE_NAMES[feature], values))
    head = ["Feature", "Condition", "Site", "p", "Chance", "Age beyond site", "Sex beyond site",
            "Group beyond site", "SD between sites", "SD of all runs"]
    return {"head": head, "rows": rows}


def _classifier(found: Harmony) -> Section:
    part: Section = {"id": "classifier", "short": "classifier", "title": "can a classifier tell the site?"}
    figure = gf.classifier_figure(found)
    words = list(found.words.get("classifier", ()))
    if figure is None:
        return part | {"words": words or ["A classifier needs two known sites with at least three "
                                          "participants each."]}
    words.insert(0, (
        "Cross-validated area under the ROC curve of linear discriminants that guess the site from "
        "the tenths of the histograms; no participant is in training and test at once; interval "
        "from 200 bootstrap samples of participants. 0.5 is chance, 1 is certainty."
    ))
    if "covariates" in found.classified:
        words.append(
            "The last line is what can be guessed from age, sex and group alone: harmonisation "
            "that keeps them cannot, and should not, go below it."
        )
    alt = "; ".join(f"{gf.CONDITION_NAMES[c]}: AUC {r.auc:.2f}"
                    for c, r in found.classified.items())
    figures = [{"name": "classifier", "alt": alt, "variants": {"": figure}}]
    return part | {"words": words, "figures": figures}


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


def _outliers(runs: Sequence[GroupRun]) -> Section:
    part: Section = {"id": "outliers", "short": "outliers", "title": "outliers"}
    if len(runs) < SMALLEST_OUTLIER_GROUP:
        return part | {"words": [
            f"Outliers are searched among at least {SMALLEST_OUTLIER_GROUP} runs; there "
            f"{_be(len(runs), 'run')}. Compare the rows of the table instead."
        ]}
    items = find_outliers(runs)
    words = [
        f"Robust z beyond {OUTLIER_Z} among the runs of the same stage "
        f"(0.6745 x distance from the median / median absolute deviation): {len(items)} found."
    ]
    if len(items) > MOST_OUTLIERS:
        words.append(f"The {MOST_OUTLIERS} farthest are listed.")
    shown = [item | {"z": f"{item['z']:+.1f}"} for item in items[:MOST_OUTLIERS]]
    return part | {"words": words, "outliers": shown}


def values_of(runs: Sequence[GroupRun], key: str) -> Floats:
    """Return one measure of each run; NaN where it is not known."""
    return np.array([run.metrics.get(key, math.nan) for run in runs], float)


def _be(count: int, noun: str) -> str:
    return f"is 1 {noun}" if count == 1 else f"are {count or 'no'} {noun}s"


def _or_none(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
