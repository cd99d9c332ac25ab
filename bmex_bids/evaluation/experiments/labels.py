"""Tissue labels by the network alone and by the mixture behind it, and TCT with either.

Dice with the known tissue, inside the brain, and the tissue contrast t-score before and after
enhancement with the same labels: known ones, the network's own, and those of
:mod:`bmex_bids.mixture`. Labels that follow an image's noise flatter its contrast, so that the gain
with them is compared with the gain with the known ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmex_bids import metrics
from bmex_bids.evaluation.experiments.brains import scene
from bmex_bids.evaluation.experiments.drawing import boxes
from bmex_bids.evaluation.experiments.frame import (
    finish,
    fresh,
    options,
    rows_kept,
    setup_of,
    table,
    tissues_of,
)
from bmex_bids.inference import three_tissues
from bmex_bids.metrics import tct
from bmex_bids.mixture import posterior
from bmex_bids.networks import TISSUES
from bmex_bids.training.degrade import Recipe, standard_recipe

__all__ = ["main"]

RECIPES = {
    "clean": Recipe(),
    "3% noise": Recipe(noise=0.03),
    "8% noise": Recipe(noise=0.08),
    "severe motion": standard_recipe("rotation", "severe", 0.02),
    "2.4 mm slices": Recipe(slice_factor=3.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table and figure."""
    args = options("labels", __doc__).parse_args(argv)
    setup = setup_of(args)
    path = setup.out / "labels.tsv"
    for number, brain in enumerate(setup.labelled):
        keys = [
            {"image": brain.name, "contrast": brain.condition, "case": case}
            for case in (list(RECIPES)[:2] if setup.quick else RECIPES)
        ]
        for key, add in fresh(path, keys):
            shown = scene(brain, RECIPES[key["case"]], 74_000 + number)
            truth = np.where(shown.tissue == 4, 3, shown.tissue)  # lesions lie in white matter
            truth[(truth > 3) | ~shown.mask] = 0
            plain, made, _ = tissues_of(
                setup.models, shown.given, brain.condition, mixture=False
            )
            by = {"network": plain, "mixture": posterior(plain, shown.given)}
            known = truth > 0
            by_name = {"known": truth} | {
                name: np.where(known, three_tissues(shares).argmax(0) + 1, 0)
                for name, shares in by.items()
            }
            lines: list[dict[str, object]] = []
            for name, labels in by_name.items():
                dice = {
                    f"Dice {tissue}": metrics.dice(labels == value, truth == value)
                    for value, tissue in enumerate(TISSUES[1:], 1)
                }
                lines.append({
                    "labels": name, **dice, "TCT before": tct(shown.given, labels),
                    "TCT after": tct(made, labels),
                })  # fmt: skip
            add(lines)
    rows = rows_kept(path)
    overlaps = [f"Dice {tissue}" for tissue in TISSUES[1:]]
    found = [row for row in rows if row["labels"] != "known"]
    boxes(found, "labels", overlaps, setup.out / "labels.png")
    digits = dict.fromkeys(overlaps, 3) | {"TCT before": 2, "TCT after": 2}
    return finish(setup, "labels", table(rows, ("case", "labels"), digits), rows)


if __name__ == "__main__":
    raise SystemExit(main())
