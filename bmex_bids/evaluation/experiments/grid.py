"""Severity of motion x slice thickness x noise or smoothing, by method: the six measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bmex_bids.evaluation.experiments.brains import scene
from bmex_bids.evaluation.experiments.drawing import boxes, heat
from bmex_bids.evaluation.experiments.frame import (
    SIX,
    finish,
    methods_for,
    options,
    rows_kept,
    setup_of,
    six,
    table,
    unmeasured,
)
from bmex_bids.training.degrade import Recipe, standard_recipe
from bmex_bids.training.motion import KINDS, SEVERITIES
from bmex_bids.training.pool import GRID

__all__ = ["main", "recipe_of"]

LEVELS = (*SEVERITIES, "none")
EXTRAS: dict[str, dict[str, Any]] = {
    "none": {},
    "noise": {"noise": 0.05},
    "gaussian": {"noise": 0.05, "noise_kind": "gaussian"},
    "smoothing": {"smooth": 0.8},
}
"""What a cell's recipe has beside motion and thickness."""


def recipe_of(severity: str, thickness: float, extra: str, kind: str) -> Recipe:
    """One cell: motion of one kind (``none`` for none), slices in mm, and an extra."""
    base = Recipe() if severity == "none" else standard_recipe(kind, severity)
    return replace(base, slice_factor=thickness / GRID, **EXTRAS[extra])


def _recipe_at(key: Mapping[str, str], number: int) -> Recipe:
    """Of a cell in one draw; the kind of motion changes with brain, severity and draw."""
    turn = number + LEVELS.index(key["motion"]) + int(key["draw"])
    kind = KINDS[turn % len(KINDS)]
    return recipe_of(key["motion"], float(key["mm"]), key["extra"], kind)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table and figures."""
    parser = options("grid", __doc__)
    parser.add_argument("--severities", nargs="+", default=["minor", "moderate", "severe"],
                        choices=LEVELS, metavar="SEVERITY", help="%(choices)s")
    parser.add_argument("--thickness", nargs="+", type=float, default=[0.8, 1.6, 2.4])
    parser.add_argument("--extras", nargs="+", default=["none"], choices=EXTRAS)
    parser.add_argument("--draws", type=int, default=1,
                        help="of the corruption in each cell; four have every kind of motion")
    args = parser.parse_args(argv)
    setup = setup_of(args)
    severities = args.severities[-1:] if setup.quick else args.severities
    path = setup.out / "grid.tsv"
    for number, brain in enumerate(setup.brains):
        keys = [
            {"image": brain.name, "contrast": brain.condition, "motion": s, "mm": str(t),
             "extra": e, "draw": str(d)}
            for d in range(args.draws)
            for s in severities for t in args.thickness for e in args.extras
        ]  # fmt: skip
        wanted = [(key, _recipe_at(key, number)) for key in keys]
        for key, recipe, methods, add in unmeasured(path, wanted, partial(methods_for, setup)):
            shown = scene(brain, recipe, 70_000 + number + 1000 * int(key["draw"]))
            add(
                {"method": name, "kind": recipe.kind or "none",
                 **six(method(shown.given, shown.mask, shown.condition), shown)}
                for name, method in methods.items()
            )
    rows = rows_kept(path)
    heat(rows, ("motion", "mm"), "method", "PSNR", setup.out / "grid-heat.png")
    boxes(_over_input(rows), "method", SIX, setup.out / "grid.png")
    digits = {name: 5 if name == "MSE" else 2 if name == "PSNR" else 3 for name in SIX}
    lost = _lost(rows)
    note = "bmex leads every cell of the means." if not lost else "bmex does not lead: " + lost
    cells = table(rows, ("motion", "mm", "extra", "method"), digits)
    contrasts = table(rows, ("contrast", "motion", "method"), digits)
    return finish(setup, "grid", f"{cells}\n\n{note}\n\n{contrasts}", rows)


def _over_input(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The measures of each method minus those of the same corrupted image as it was given."""
    key = ("image", "contrast", "motion", "mm", "extra", "draw")
    given = {tuple(r[k] for k in key): r for r in rows if r["method"] == "input"}
    return [
        row | {n: str(float(row[n]) - float(given[tuple(row[k] for k in key)][n])) for n in SIX}
        for row in rows if row["method"] != "input"
    ]


def _lost(rows: list[dict[str, str]]) -> str:
    """The cells in which another method has the better mean than bmex."""
    found = []
    for cell in dict.fromkeys((r["motion"], r["mm"], r["extra"]) for r in rows):
        here = [r for r in rows if (r["motion"], r["mm"], r["extra"]) == cell]
        for name in SIX:
            means = {
                m: float(np.mean([float(r[name]) for r in here if r["method"] == m]))
                for m in dict.fromkeys(r["method"] for r in here)
            }
            best = (min if name == "MSE" else max)(means, key=lambda m: means[m])
            if best != "bmex":
                found.append(f"{' '.join(cell)} {name} ({best})")
    return ", ".join(found)


if __name__ == "__main__":
    raise SystemExit(main())
