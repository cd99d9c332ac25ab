"""The sections of the group page for one contrast: sentences, tables, plots, or why there are none.

Each section is a dict: ``id``, ``title``, ``words`` (sentences), ``glance`` or ``table`` (``head``
and ``rows``, each row with a name and its cells), ``figures`` (each with its ``variants``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmex_bids import groupcharts as gc
from bmex_bids import groupfigures as gf
from bmex_bids import groupstats as gs
from bmex_bids.groupdrawing import CONDITION_NAMES, KIND_NAMES, MOST_POINTS, PART_NAMES, Styles
from bmex_bids.groupglance import FEATURE_NAMES, glance_section, p_text, share_table
from bmex_bids.groupharmony import Harmony
from bmex_bids.groupmeasures import (
    OUTLIER_Z,
    SMALLEST_OUTLIER_GROUP,
    find_outliers,
    tct_test,
    values_of,
)
from bmex_bids.groupruns import GroupRun
from bmex_bids.measures import SMOOTHING_CAVEAT

__all__ = ["suffix_sections"]

Section = dict[str, Any]

MOST_OUTLIERS = 100


def suffix_sections(
    runs: Sequence[GroupRun], found: Harmony, index: Sequence[int], styles: Styles
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
        glance_section(used, found),
        _tct(runs, index, styles),
        _histograms(runs, used, found, styles),
        _matrix(used, found),
        _embedding(used, found, [index[i] for i in found.rows], styles),
        _shares(found),
        _classifier(found),
        _outliers(runs),
    ]


def _tct(runs: Sequence[GroupRun], index: Sequence[int], styles: Styles) -> Section:
    part: Section = {"id": "tct", "short": "contrast", "title": "tissue contrast before and after"}
    before, after = values_of(runs, "TCTBefore"), values_of(runs, "TCTAfter")
    complete = np.flatnonzero(np.isfinite(before) & np.isfinite(after)).tolist()
    if not complete:
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
            f"t-test p {p_text(test.t_p)}, Wilcoxon signed-rank p {p_text(test.wilcoxon_p)}."
        )
    if len(before) > MOST_POINTS:
        words.append(f"A random sample of {MOST_POINTS} runs is drawn.")
    sites = [runs[i].site for i in complete]
    figure = gf.tct_figure(before, after, [index[i] for i in complete], sites, styles)
    alt = f"TCT after over TCT before, one point per run. {words[0]}"
    return part | {"words": words, "note": SMOOTHING_CAVEAT,
                   "figures": [{"name": "tct", "alt": alt, "variants": {"": figure}}]}


def _histograms(
    runs: Sequence[GroupRun], used: Sequence[GroupRun], found: Harmony, styles: Styles
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
    boxes = gc.distance_figures(found)
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
        f"{CONDITION_NAMES[condition]}, {KIND_NAMES[kind]}: median {np.median(d):.3g}"
        for condition, parts in found.distances.items()
        for kind, d in parts.get("Brain", {}).items()
    ]
    return "Distances between runs, whole brain. " + "; ".join(texts)


def _choice(name: str, label: str, figures: Mapping[str, Any], alt: str) -> Section:
    """Return a figure with a choice of its variants, under their names for people."""
    names = PART_NAMES | CONDITION_NAMES
    return {"name": name, "label": label, "alt": alt,
            "variants": {names[key]: figure for key, figure in figures.items()}}


def _matrix(runs: Sequence[GroupRun], found: Harmony) -> Section:
    part: Section = {"id": "matrix", "short": "matrix", "title": "distance matrix"}
    figures = gc.matrix_figures(found, runs)
    if not figures:
        return part | {"words": ["A matrix of distances needs two runs, before and after."]}
    words = [
        "Wasserstein-1 distance of each pair of runs, sorted by site, on one colour scale. Bright "
        "blocks off the diagonal are differences between sites."
    ]
    if len(runs) > gc.MATRIX_RUNS:
        words.append(
            f"{gc.MATRIX_RUNS} of {len(runs)} runs, sampled from each site in proportion (seed 0)."
        )
    alt = "Matrix of distances between runs sorted by site, before and after"
    return part | {"words": words, "figures": [_choice("matrix", "Tissue", figures, alt)]}


def _embedding(
    runs: Sequence[GroupRun], found: Harmony, index: Sequence[int], styles: Styles
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
    if len(runs) > MOST_POINTS:
        words.append(f"A random sample of {MOST_POINTS} of {len(runs)} runs is drawn.")
    alt = "Runs on the first two principal components of their histograms, coloured by site"
    return part | {"words": words,
                   "figures": [_choice("embedding", "Beside before", figures, alt)]}


def _shares(found: Harmony) -> Section:
    part: Section = {"id": "shares", "short": "site and age",
                     "title": "what intensities depend on: site, age, sex, group"}
    words = list(found.words["sites"])
    if not found.features:
        words.append(
            "How much of the variance of intensities site explains cannot be computed: it takes at "
            "least two known sites, and two runs in one of them."
        )
        return part | {"words": words}
    flat = [FEATURE_NAMES[f] + " (" + ", ".join(flats) + ")"
            for f, conditions in found.features.items()
            if (flats := [CONDITION_NAMES[c] for c, s in conditions.items() if s.flat])]
    if flat:
        words.append(
            f"The same in every run, so that there is no variance to explain: {'; '.join(flat)}."
        )
    if not any(s.shares for conditions in found.features.values() for s in conditions.values()):
        words.append("Too few runs per site, before and after, to split the variance.")
        return part | {"words": words}
    words += [
        "Explained by site: eta squared, which should fall to chance, (sites - 1) / (runs - 1), "
        "the dotted line; p from 999 permutations of whole participants. What age (the "
        "logarithm of time since conception), sex and group explain beyond site should "
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
        figure = gc.shares_figure(found, FEATURE_NAMES, which)
        if figure is not None:
            figures.append({"name": f"shares-{which}", "alt": title, "title": title,
                            "variants": {"": figure}})
    return part | {"words": words, "figures": figures, "table": share_table(found),
                   "columns": True}


def _classifier(found: Harmony) -> Section:
    part: Section = {"id": "classifier", "short": "classifier",
                     "title": "can a classifier tell the site?"}
    figure = gc.classifier_figure(found)
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
    alt = "; ".join(f"{CONDITION_NAMES[c]}: AUC {r.auc:.2f}"
                    for c, r in found.classified.items())
    figures = [{"name": "classifier", "alt": alt, "variants": {"": figure}}]
    return part | {"words": words, "figures": figures}


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


def _be(count: int, noun: str) -> str:
    return f"is 1 {noun}" if count == 1 else f"are {count or 'no'} {noun}s"


