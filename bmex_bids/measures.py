"""The measures in words: what each means, its unit, and which direction is better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "MEASURES",
    "SMOOTHING_CAVEAT",
    "Measure",
    "column_description",
    "finite",
    "number_text",
    "table_rows",
]

SMOOTHING_CAVEAT = (
    "TCT, CNR and CJV depend on the spread inside a tissue, so an over-smoothed image scores well "
    "too. Read them with the residual map: anatomy in it (edges of gyri, vessels) "
    "means that detail was changed, not only noise removed."
)


@dataclass(frozen=True)
class Measure:
    """One measure, or one pair of measures taken before and after.

    Attributes:
        key: name in the sidecar, without ``Before`` and ``After``.
        label: name for people.
        unit: unit, "" when there is none.
        better: ``higher``, ``lower`` or "" when neither is better.
        meaning: one sentence.
        paired: True when the sidecar has ``<key>Before`` and ``<key>After``.
        percent: True for a share that people read in percent.
    """

    key: str
    label: str
    unit: str
    better: str
    meaning: str
    paired: bool = True
    percent: bool = False


MEASURES = (
    Measure(
        "TCT",
        "Tissue contrast t-score (TCT)",
        "",
        "higher",
        "Distance between the mean of white and of grey matter, in units of their spread.",
    ),
    Measure(
        "TCTBiasCorrected",
        "TCT after bias correction alone",
        "",
        "",
        "The part of the gain that the bias field explains, without any enhancement.",
        paired=False,
    ),
    Measure(
        "CNR",
        "Contrast-to-noise ratio (CNR)",
        "",
        "higher",
        "White-grey contrast against the noise.",
    ),
    Measure(
        "CJV",
        "Coefficient of joint variation (CJV)",
        "",
        "lower",
        "Spread of white and grey matter against their contrast; grows with noise, motion and a "
        "left-over bias field.",
    ),
    Measure(
        "HistogramDistance",
        "Distance to the reference histogram",
        "",
        "lower",
        "Wasserstein distance between the brain's intensities and those of the stage's reference, "
        "on the common scale. Small means harmonised, not necessarily right.",
    ),
    Measure(
        "QualityIndex",
        "Quality index of the input (QI)",
        "",
        "",
        "TCT before divided by TCT after. Near 1: there was little to improve; "
        "near 0: the input was poor.",
        paired=False,
    ),
    Measure(
        "GhostRatio",
        "Ghosts of the input in the air around the head",
        "",
        "lower",
        "Brightness of the air beside the head along one axis, beyond that of other air, as a "
        "share of the head's intensity. A head that moved leaves ghosts there. Not known for "
        "brains without their skull, or where the air is empty.",
        paired=False,
        percent=True,
    ),
    Measure(
        "ResidualShare",
        "Size of the change",
        "",
        "",
        "Root mean square of the change in the brain, as a share of the bright tissue's intensity "
        "(98th percentile). Large: look at the residual map before trusting fine detail.",
        paired=False,
        percent=True,
    ),
    Measure(
        "DataConsistency",
        "Contradiction of the input at coarse scale",
        "",
        "lower",
        "Difference between input and result, both smoothed (6 mm), as a share of the input. "
        "Noise and ghosts do not count; invented or lost structure does.",
        paired=False,
        percent=True,
    ),
    Measure(
        "DataConsistencyWorst",
        "Contradiction of the input at its worst place",
        "",
        "lower",
        "The largest of these differences. A lesion that was erased stands here.",
        paired=False,
        percent=True,
    ),
    *(
        Measure(
            f"Median{tissue}",
            f"Median intensity of {name}",
            "",
            "",
            "On the common scale; what site and scanner should not decide.",
        )
        for tissue, name in (
            ("CSF", "cerebrospinal fluid"),
            ("GM", "grey matter"),
            ("WM", "white matter"),
        )
    ),
    Measure("VolumeCSF", "Volume of cerebrospinal fluid", "mL", "", "From the labels.", False),
    Measure("VolumeGM", "Volume of grey matter", "mL", "", "From the labels.", False),
    Measure("VolumeWM", "Volume of white matter", "mL", "", "From the labels.", False),
    Measure("VolumeBrainMask", "Volume of the brain mask", "mL", "", "All tissues.", False),
)


def table_rows(metrics: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the measures as table rows: label, before, after, verdict, better, meaning, names.

    ``names`` are the sidecar's names of the values. Measures that no glossary entry explains come
    last, under their own names.
    """
    rows: list[dict[str, Any]] = []
    used: set[str] = set()
    for measure in MEASURES:
        pair = (f"{measure.key}Before", f"{measure.key}After")
        names = pair if measure.paired else (measure.key,)
        if not any(name in metrics for name in names):
            continue
        used.update(names)
        values = [_number(metrics.get(name)) for name in names]
        texts = [_said(measure, value) for value in values]
        rows.append(
            {
                "label": measure.label,
                "before": texts[0] if measure.paired else "",
                "after": texts[-1],
                "verdict": _verdict(measure, values),
                "better": f"{measure.better} is better" if measure.better else "",
                "meaning": measure.meaning,
                "names": names,
            }
        )
    for name in sorted(set(metrics) - used):
        value = number_text(_number(metrics[name]))
        label = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
        rows.append(dict.fromkeys(("before", "verdict", "better", "meaning"), ""))
        rows[-1] |= {"label": label, "after": value, "names": (name,)}
    return rows


def column_description(name: str) -> dict[str, str]:
    """Return the data dictionary entry (Description, perhaps Units) of one measure's column."""
    for measure in MEASURES:
        for when in ("Before", "After") if measure.paired else ("",):
            if name == measure.key + when:
                text = f"{measure.label}{', ' + when.lower() if when else ''}. {measure.meaning}"
                if measure.better:
                    text += f" {measure.better.capitalize()} is better."
                return {"Description": text} | ({"Units": measure.unit} if measure.unit else {})
    return {"Description": f"{name}, as in the sidecar of the run."}


def finite(value: object) -> bool:
    """Whether a value of a sidecar is a number that can be compared."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(_number(value))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _said(measure: Measure, value: float) -> str:
    """Return a value with its unit."""
    if measure.percent:
        return number_text(100 * value, " %")
    return number_text(value, f" {measure.unit}" if measure.unit else "")


def number_text(value: float, unit: str = "") -> str:
    """Return a value with three significant digits, whole from 100 on; n/a when not finite."""
    if not math.isfinite(value):
        return "n/a"
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}") + unit


def _verdict(measure: Measure, values: list[float]) -> str:
    """Say in one word what happened to a pair whose direction matters."""
    if not measure.better or len(values) < 2 or not all(map(math.isfinite, values)):
        return ""
    before, after = values
    if abs(after - before) <= 0.01 * abs(before):
        return "unchanged"
    return "better" if (after > before) == (measure.better == "higher") else "worse"
