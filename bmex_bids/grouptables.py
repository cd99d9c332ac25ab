"""The tables of the group level: rows, and the data dictionary of their columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bmex_bids.derivatives import SCANNER_FIELDS
from bmex_bids.groupharmony import CONDITIONS, Harmony
from bmex_bids.groupmeasures import tct_test
from bmex_bids.groupruns import ENTITY_COLUMNS, GroupRun
from bmex_bids.measures import MEASURES, column_description

__all__ = ["HARMONIZATION", "dictionary", "harmonization_rows", "run_columns", "tsv"]

Description = dict[str, object]

DESCRIPTIONS: dict[str, Description] = {
    "participant_id": {"Description": "Participant, as in participants.tsv of the raw dataset."},
    "session_id": {"Description": "Session; n/a when the dataset has none."},
    "stage": {"Description": "Age stage of the model, named after its first month, or fetal."},
    "age_months": {
        "Description": "Age after birth at the scan; negative before birth (term is 0).",
        "Units": "month",
        "Minimum": -10,
        "Maximum": 1500,
    },
    "age_source": {"Description": "Table and column, or option, that gave the age."},
    "sex": {"Description": "From participants.tsv; n/a when it does not say."},
    "group": {"Description": "From the column group, diagnosis or dx of participants.tsv."},
    "site": {"Description": "Institution and scanner, or the column of --site-column."},
    "MagneticFieldStrength": {
        "Description": "MagneticFieldStrength of the raw sidecar.", "Units": "T", "Minimum": 0,
    },
    **{
        name: {"Description": f"{name} of the raw sidecar."}
        for name in SCANNER_FIELDS if name != "MagneticFieldStrength"
    },
    "model": {"Description": "Name of the model in models.json."},
    "model_sha256": {"Description": "SHA-256 of the model's weights."},
    "enhanced": {
        "Description": "Whether an enhanced image was written.",
        "Levels": {"yes": "enhanced", "no": "measured only"},
    },
    "n_flags": {"Description": "Number of automatic warnings.", "Units": "1", "Minimum": 0},
    "flags": {"Description": "The warnings in words, separated by ' | '."},
    "report": {"Description": "Page of the participant, relative to this table; n/a if missing."},
    "sidecar": {"Description": "Sidecar that this row was read from, relative to this table."},
}
STATISTICS = {
    "distance_within": "Median Wasserstein-1 distance of pairs of runs within a site",
    "distance_between": "Median Wasserstein-1 distance of pairs of runs of different sites",
    "distance_travelling": "Median distance of runs of one participant at different sites",
    "distance_all": "Median distance of all pairs, as no site is known",
    "distance_ratio": "distance_between / distance_within; 1 when sites are alike",
    "site_share": "Eta squared: share of the variance explained by site",
    "site_share_chance": "(sites - 1) / (runs - 1), the expectation without any effect of site",
    "site_share_beyond_covariates": "Share that site adds to age, sex and group",
    "age_share": "Share of the variance explained by age (log of the time since conception)",
    "sex_share": "Share of the variance explained by sex",
    "group_share": "Share of the variance explained by group",
    "age_share_beyond_site": "Share that age adds to site",
    "sex_share_beyond_site": "Share that sex adds to site",
    "group_share_beyond_site": "Share that group adds to site",
    "site_sd": "Standard deviation of the sites' means",
    "total_sd": "Standard deviation over runs",
    "site_auc": "Cross-validated AUC of a classifier that guesses the site; 0.5 is chance",
    "mean_difference": "Mean over participants of after minus before; low and high: 95 % CI",
    "effect_size": "Cohen's d_z, mean difference / standard deviation of the differences",
    "wilcoxon": "Mean difference with the p of Wilcoxon's signed-rank test",
}
HARMONIZATION: dict[str, Description] = {
    "suffix": {"Description": "Contrast.", "Levels": {"T1w": "T1-weighted", "T2w": "T2-weighted"}},
    "statistic": {"Description": "What was computed.", "Levels": STATISTICS},
    "feature": {
        "Description": "Of which intensities: a part of the brain, its mean, a principal component "
        "of the histograms, or all histograms together; TCT for the paired test."
    },
    "condition": {
        "Description": "Version of the intensities.",
        "Levels": {
            "before": "the input, brought near the common scale by one factor",
            "matching": "its brain histogram matched to the stage's reference, nothing else",
            "after": "enhanced, on the common scale",
            "combat": "ComBat on the quantiles of the tissues before",
            "covariates": "age, sex and group alone, no intensities",
            "after-before": "paired difference",
        },
    },
    "value": {
        "Description": "Distances and standard deviations on the common scale of intensities; "
        "shares 0 to 1; AUC 0 to 1.",
        "Units": "arbitrary",
    },
    "low": {"Description": "Lower end of the 95 % interval, where there is one.",
            "Units": "arbitrary"},
    "high": {"Description": "Upper end of the 95 % interval, where there is one.",
             "Units": "arbitrary"},
    "p": {"Description": "p value: 999 permutations of site, or the paired test.", "Units": "1",
          "Minimum": 0, "Maximum": 1},
    "n": {"Description": "Number of runs, pairs of runs, or participants (paired test).",
          "Units": "1", "Minimum": 0},
    "sites": {"Description": "Number of sites.", "Units": "1", "Minimum": 0},
}
NOT_NEGATIVE = ("TCT", "CNR", "CJV", "HistogramDistance", "QualityIndex", "GhostRatio",
                "ResidualShare", "Volume", "DataConsistency", "Median")


def run_columns(runs: Iterable[GroupRun]) -> list[str]:
    """Return the union of the columns: identity, run entities, context, measures, flags, paths."""
    seen = {column for run in runs for column in run.row}
    first = ["participant_id", "session_id"]
    last = ["n_flags", "flags", "report", "sidecar"]
    context = ["stage", "age_months", "age_source", "sex", "group", "site", *SCANNER_FIELDS]
    context += ["model", "model_sha256", "enhanced"]
    measures = [
        name
        for measure in MEASURES
        for name in (
            (f"{measure.key}Before", f"{measure.key}After") if measure.paired else (measure.key,)
        )
        if name in seen
    ]
    known = {*first, *last, *context, *measures}
    entities = [c for c in ENTITY_COLUMNS.values() if c in seen and c not in known]
    rest = sorted(seen - known - set(entities))
    lower = [column for column in rest if column[0].islower()]  # entities without a long name
    extra = [column for column in rest if not column[0].islower()]
    return [*first, *entities, *lower, *context, *measures, *extra, *last]


def dictionary(columns: Iterable[str]) -> dict[str, Description]:
    """Return the data dictionary of a table of runs: description, units, range of each column."""
    found: dict[str, Description] = {}
    for column in columns:
        if column in DESCRIPTIONS:
            found[column] = DESCRIPTIONS[column]
        elif column in ENTITY_COLUMNS.values() or column[0].islower():
            found[column] = {"Description": f"Entity '{column}' of the raw image; n/a without."}
        else:
            found[column] = {"Units": "1", **column_description(column)}
            if column.startswith(NOT_NEGATIVE):
                found[column]["Minimum"] = 0
    return found


def tsv(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return a table as text."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row.get(column)) for column in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Return a TSV cell: n/a for nothing, no tabs or line breaks, six significant digits."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


def harmonization_rows(
    suffix: str, runs: Sequence[GroupRun], found: Harmony
) -> list[dict[str, object]]:
    """Return one row per statistic, feature and condition of one contrast."""
    rows = [*_distances(found), *_shares(found)]
    for condition, result in found.classified.items():
        interval: dict[str, object] = {"low": result.low, "high": result.high}
        feature = "histograms" if condition != "covariates" else None
        rows.append(_row("site_auc", feature, condition, result.auc, result.n) | interval
                    | {"sites": result.sites})
    test = tct_test(runs)[0]
    if test is not None:
        place = ("TCT", "after-before")
        rows.append(_row("mean_difference", *place, test.mean_difference, test.n)
                    | {"low": test.low, "high": test.high, "p": test.t_p})
        rows.append(_row("effect_size", *place, test.effect, test.n))
        rows.append(_row("wilcoxon", *place, test.mean_difference, test.n)
                    | {"p": test.wilcoxon_p})
    return [{"suffix": suffix} | row for row in rows]


def _row(
    statistic: str, feature: str | None, condition: str, value: float, n: int
) -> dict[str, object]:
    return {"statistic": statistic, "feature": feature, "condition": condition, "value": value,
            "n": n}


def _distances(found: Harmony) -> list[dict[str, object]]:
    rows = []
    for condition in CONDITIONS:
        for part, kinds in found.distances.get(condition, {}).items():
            medians = {kind: float(np.median(d)) for kind, d in kinds.items()}
            for kind, value in medians.items():
                rows.append(_row(f"distance_{kind}", part, condition, value, len(kinds[kind])))
            if medians.get("within", 0) > 1e-6 and "between" in medians:
                ratio = medians["between"] / medians["within"]
                rows.append(_row("distance_ratio", part, condition, ratio, len(kinds["between"])))
    return rows


def _shares(found: Harmony) -> list[dict[str, object]]:
    rows = []
    for feature, conditions in found.features.items():
        for condition, shares in conditions.items():
            s = shares.shares
            values: dict[str, float | None] = {}
            if s is not None:
                values = {"site_share": s.site, "site_share_chance": s.chance,
                          "site_share_beyond_covariates": s.site_beyond}
                values |= {f"{name}_share": value for name, value in s.alone.items()}
                values |= {f"{n}_share_beyond_site": value for n, value in s.beyond_site.items()}
            values |= {"site_sd": shares.site_sd, "total_sd": shares.total_sd}
            for statistic, value in values.items():
                if value is None or not math.isfinite(value):
                    continue
                row = _row(statistic, feature, condition, value, s.n if s else 0)
                row |= {"sites": s.sites} if s else {"n": None}
                rows.append(row | ({"p": shares.p} if statistic == "site_share" else {}))
    return rows
