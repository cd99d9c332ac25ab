"""A comparison as one HTML page that needs no other file to be read."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bmex_bids import __version__
from bmex_bids.evaluation.conditions import world_axis
from bmex_bids.evaluation.grids import reference_mask
from bmex_bids.evaluation.measuring import MEASURES, Row, Task, comparable
from bmex_bids.evaluation.pictures import boxes_svg, slices_png
from bmex_bids.evaluation.statistics import ALL, Cell, values_of
from bmex_bids.image import load_image
from bmex_bids.rendering import templates

__all__ = ["Comparison", "render"]

READING = (
    "Mean ± standard deviation over participants; several images of one participant are averaged "
    f"first. The row “{ALL}” takes each participant's mean over the conditions that all methods "
    "have.",
    "Below it, against the baseline on the same participants: mean difference with its 95% "
    "confidence interval, Cohen's d of the pairs (d_z: mean difference over the standard deviation "
    "of the differences), and p of the paired t-test, which is Holm-corrected over all comparisons "
    "of that measure and contrast on this page. summary.tsv has Wilcoxon's signed-rank test and "
    "the uncorrected p too. No test below five pairs.",
    "Bold: the best mean. Green: better than the baseline with corrected p < 0.05; red: worse.",
)


@dataclass(frozen=True)
class Comparison:
    """What a page is made of.

    Attributes:
        reference: name of the reference dataset.
        facts: label and text, for the head of the page.
        methods: name, root, images, resampled, alone, baseline of each, as the template takes it.
        baseline: name of the method that the others are tested against.
        rows: all values.
        cells: their summary.
        tasks: what was measured, for the example.
        failed: what could not be compared, in words.
        warnings: what a reader has to know, in words.
    """

    reference: str
    facts: Sequence[tuple[str, str]]
    methods: Sequence[dict[str, object]]
    baseline: str
    rows: Sequence[Row]
    cells: Sequence[Cell]
    tasks: Sequence[Task]
    failed: Sequence[str]
    warnings: Sequence[str]


def render(found: Comparison) -> str:
    """Return the page."""
    names = [str(method["name"]) for method in found.methods]
    return (
        templates()
        .get_template("evaluation.html.j2")
        .render(
            version=__version__,
            reference=found.reference,
            facts=found.facts,
            methods=found.methods,
            warnings=found.warnings,
            failed=found.failed,
            reading=READING,
            example=_example(found),
            sections=[
                {"suffix": suffix, "measures": _measures(found, suffix, names)}
                for suffix in sorted({cell.suffix for cell in found.cells})
            ],
        )
    )


def _measures(
    found: Comparison, suffix: str, names: Sequence[str]
) -> list[dict[str, object]]:
    sections: list[dict[str, object]] = []
    for metric, measure in MEASURES.items():
        cells = [c for c in found.cells if c.suffix == suffix and c.metric == metric]
        if not cells:
            continue
        methods = [name for name in names if any(c.method == name for c in cells)]
        values = values_of(found.rows, suffix, metric)
        drawn = {
            condition: {m: list(of.values()) for m, of in by_method.items()}
            for condition, by_method in values.items()
        }
        arrow = {"higher": " (higher is better)", "lower": " (lower is better)"}
        label = metric + (" (dB)" if metric == "PSNR" else arrow.get(measure.better, ""))
        rows = []
        for condition in dict.fromkeys(c.condition for c in cells):
            line = {c.method: c for c in cells if c.condition == condition}
            best = _best(list(line.values()), measure.better)
            rows.append({
                "condition": condition,
                "all": condition == ALL,
                "cells": [_shown(line.get(name), best, metric) for name in methods],
            })  # fmt: skip
        sections.append({
            "name": metric, "text": measure.text, "better": measure.better, "methods": methods,
            "rows": rows, "svg": boxes_svg(drawn, methods, label),
        })  # fmt: skip
    return sections


def _best(cells: Sequence[Cell], better: str) -> str:
    known = [c for c in cells if math.isfinite(c.mean)]
    if len(known) < 2 or not better:
        return ""
    sign = {"higher": -1.0, "lower": 1.0}.get(better)
    return min(known, key=lambda c: abs(c.mean) if sign is None else sign * c.mean).method


def _shown(cell: Cell | None, best: str, metric: str) -> dict[str, str]:
    if cell is None or not cell.n:
        return {"value": "n/a", "test": "", "classes": ""}
    digits = MEASURES[metric].digits
    value = f"{cell.mean:.{digits}f}"
    value += f" ± {cell.sd:.{digits}f}" if math.isfinite(cell.sd) else ""
    classes = ["best"] if cell.method == best else []
    text = ""
    if cell.test is not None:
        t = cell.test
        text = (
            f"{t.mean_difference:+.{digits}f} [{t.low:+.{digits}f}, {t.high:+.{digits}f}]\n"
            f"d {t.effect:.2f}, p {_p(cell.t_holm)}, n {t.n}"
        )
        better = MEASURES[metric].better
        if cell.t_holm < 0.05 and better in ("higher", "lower"):
            good = (t.mean_difference > 0) == (better == "higher")
            classes.append("sure" if good else "worse-sure")
    return {"value": value, "test": text, "classes": " ".join(classes)}


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _example(found: Comparison) -> dict[str, str] | None:
    """The image whose PSNR (or first measure) is the median of the baseline's, slice by slice."""
    metric = next((name for name in ("PSNR", *MEASURES)
                   if any(r.metric == name and r.pair.method == found.baseline
                          for r in found.rows)), "")
    rows = [r for r in found.rows if r.metric == metric and r.pair.method == found.baseline]
    rows = sorted((r for r in rows if math.isfinite(r.value)), key=lambda r: r.value)
    if not rows:
        return None
    chosen = rows[(len(rows) - 1) // 2].pair
    task = next(t for t in found.tasks if t.reference == chosen.reference)
    reference = load_image(task.reference.path)
    mask, _, _ = reference_mask(reference, task.mask, task.metadata)
    axis = world_axis(reference.affine, "z")
    others = [a for a in range(3) if a != axis]
    place = int(np.argmax(mask.sum(tuple(others))))
    if world_axis(reference.affine, "x") > world_axis(reference.affine, "y"):
        others.reverse()
    order = (others[0], others[1], axis)
    # left of the picture is left in the world, bottom is the back
    flips = [reference.affine["xyz".index(n), world_axis(reference.affine, n)] < 0 for n in "xy"]
    box = [slice(None), slice(None)]
    inside = np.transpose(mask, order)[..., place]
    for a in range(2):
        line = np.flatnonzero(inside.any(1 - a))
        box[a] = slice(max(int(line[0]) - 3, 0), int(line[-1]) + 4)

    def cut(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        plane = np.transpose(volume, order)[..., place][box[0], box[1]]
        return np.flip(plane, tuple(a for a in range(2) if flips[a]))

    shown = {}
    for pair in task.pairs:
        if pair.condition == chosen.condition:
            try:
                image = load_image(pair.result.path)
                volume, _ = comparable(image, reference, mask, task.scale)
            except (OSError, ValueError):
                continue  # it is among the failed ones already
            shown[pair.method] = cut(volume)
    zooms = reference.zooms
    png = slices_png(
        cut(reference.data), cut(mask), shown, float(np.percentile(reference.data[mask], 99.9)),
        float(zooms[order[1]] / zooms[order[0]]),
    )
    words = (
        f"{chosen.reference.path.name}, {chosen.condition}: the image with the median {metric} of "
        f"{found.baseline}. One intensity window for all; below, the difference from the reference "
        "inside the mask (red: too bright). Left is left."
    )
    return {"png": base64.b64encode(png).decode(), "words": words}
