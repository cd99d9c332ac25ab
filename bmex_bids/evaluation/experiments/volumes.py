"""Bias and downstream: tissue labels of clean, corrupted and enhanced images by one outside tool.

Per tissue: Cohen's d of the volumes against the clean image's, and Dice with the labels that the
tool finds in the clean image. Tool: Atropos with ``--ants PYTHON``, else a Gaussian mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bmex_bids import metrics
from bmex_bids.evaluation.experiments.brains import scene
from bmex_bids.evaluation.experiments.drawing import boxes
from bmex_bids.evaluation.experiments.frame import (
    Row,
    finish,
    methods_for,
    numbers,
    options,
    rows_kept,
    setup_of,
    table,
    unmeasured,
)
from bmex_bids.evaluation.experiments.segmenting import labels_of
from bmex_bids.evaluation.statistics import cohens_d
from bmex_bids.training.degrade import standard_recipe
from bmex_bids.training.motion import KINDS

__all__ = ["main"]

TISSUES = (("CSF", metrics.CSF), ("GM", metrics.GM), ("WM", metrics.WM))
VOXEL = 0.8**3


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table and figure."""
    parser = options("volumes", __doc__)
    parser.add_argument("--severities", nargs="+", default=["minor", "severe"])
    parser.add_argument("--draws", type=int, default=2, help="draws of the motion per brain")
    args = parser.parse_args(argv)
    setup = setup_of(args)
    severities, draws = (args.severities[-1:], 1) if setup.quick else (args.severities, args.draws)
    made_by = "volumes-atropos" if setup.ants else "volumes"  # rows of two tools are kept apart
    path = setup.out / f"{made_by}.tsv"
    for number, brain in enumerate(setup.brains):
        keys = [
            {"image": brain.name, "contrast": brain.condition, "motion": s, "draw": str(d)}
            for s in severities for d in range(draws)
        ]
        wanted = [
            (key, standard_recipe(
                KINDS[(number + int(key["draw"])) % len(KINDS)], key["motion"], 0.02
            ))
            for key in keys
        ]  # fmt: skip
        for key, recipe, methods, add in unmeasured(path, wanted, partial(methods_for, setup)):
            shown = scene(brain, recipe, 71_000 + 100 * number + int(key["draw"]))
            truth = labels_of(shown.clean, shown.mask, shown.condition, setup.ants)
            lines: list[dict[str, object]] = []
            for name, method in methods.items():
                made = method(shown.given, shown.mask, shown.condition)
                labels = labels_of(made, shown.mask, shown.condition, setup.ants)
                for tissue, value in TISSUES:
                    lines.append({
                        "method": name, "tissue": tissue,
                        "clean_ml": metrics.volume_ml(truth, value, VOXEL),
                        "found_ml": metrics.volume_ml(labels, value, VOXEL),
                        "percent": metrics.volume_difference(labels == value, truth == value),
                        "dice": metrics.dice(labels == value, truth == value),
                    })  # fmt: skip
            add(lines)
    rows = rows_kept(path)
    boxes(rows, "method", ("percent", "dice"), setup.out / f"{made_by}.png")
    columns = {"clean_ml": 1, "found_ml": 1, "percent": 1, "dice": 3}
    text = table(rows, ("motion", "method", "tissue"), columns)
    return finish(setup, made_by, f"{text}\n\n{_effects(rows)}", rows)


def _effects(rows: Sequence[Row]) -> str:
    """Cohen's d of the volumes, found against clean, over all images."""
    lines = ["| motion | method | tissue | n | Cohen's d |", "|---|---|---|---|---|"]
    for key in dict.fromkeys((r["motion"], r["method"], r["tissue"]) for r in rows):
        chosen = [r for r in rows if (r["motion"], r["method"], r["tissue"]) == key]
        d = cohens_d(numbers(chosen, "found_ml"), numbers(chosen, "clean_ml"))
        lines.append("| " + " | ".join([*key, str(len(chosen)), f"{d:+.2f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
