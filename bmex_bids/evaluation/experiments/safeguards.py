"""Does the uncertainty map predict the error, and does data consistency catch a wrong output?

Uncertainty: standard deviation over the eight mirror images; rank correlation with the absolute
error in the brain, and the error in tenths of it. Data consistency: as in the app (6 mm, relative
to the input, over the brain and at its worst place), of the right output, of one whose lesions were
erased, and of the right one with left and right exchanged, which stands for somebody else's brain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from bmex_bids import metrics
from bmex_bids.evaluation.baselines.filters import Mask, Volume
from bmex_bids.evaluation.experiments.brains import repainted, scene
from bmex_bids.evaluation.experiments.drawing import points
from bmex_bids.evaluation.experiments.frame import (
    Row,
    finish,
    fresh,
    numbers,
    options,
    rows_kept,
    setup_of,
    table,
    tissues_of,
)
from bmex_bids.evaluation.experiments.lesions import inserted
from bmex_bids.training.degrade import Recipe, standard_recipe

__all__ = ["consistency", "main"]

RECIPES = {
    "clean": Recipe(),
    "severe": standard_recipe("continuous", "severe", 0.02),
    "noise": Recipe(noise=0.05),
}
ZOOMS = np.full(3, 0.8)


def consistency(given: Volume, made: Volume, mask: Mask) -> tuple[float, float]:
    """How far a result is from its input at coarse scale, as the app measures it: all, worst."""
    return metrics.data_consistency(given, made, mask, ZOOMS)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write tables and figure."""
    setup = setup_of(options("safeguards", __doc__).parse_args(argv))
    path, checks = setup.out / "safeguards.tsv", setup.out / "safeguards-checks.tsv"
    for number, brain in enumerate(setup.brains):
        keys = [
            {"image": brain.name, "contrast": brain.condition, "case": case}
            for case in (list(RECIPES)[1:2] if setup.quick else RECIPES)
        ]
        for key, add in fresh(path, keys):
            shown = scene(brain, RECIPES[key["case"]], 73_000 + number)
            _, made, spread = tissues_of(setup.models, shown.given, brain.condition, flips=True)
            if spread is None:
                continue
            add(_calibration(spread[shown.mask], np.abs(made - shown.clean)[shown.mask]))
        for key, add in fresh(checks, keys):
            shown = scene(brain, RECIPES[key["case"]], 73_000 + number)
            made = tissues_of(setup.models, shown.given, brain.condition)[1]
            outputs = {"right": (shown.given, made), "mirrored": (shown.given, made[::-1])}
            if (shown.tissue == 3).any():
                base = scene(brain, Recipe(), 73_000 + number)
                image, _ = inserted(base, number)
                ill = scene(repainted(brain, base, image), RECIPES[key["case"]], 73_000)
                well = scene(repainted(brain, base, base.clean), RECIPES[key["case"]], 73_000)
                cured = tissues_of(setup.models, well.given, brain.condition)[1]
                outputs["lesions erased"] = (ill.given, cured)
            add([
                {"output": name, "consistency": value, "worst": worst,
                 "flagged": float(metrics.is_contradiction(value, worst))}
                for name, (given, output) in outputs.items()
                for value, worst in [consistency(given, output, given > 0)]
            ])  # fmt: skip
    rows = rows_kept(path)
    mean = _over_brains(rows)
    points(mean, "uncertainty", "error", "case", setup.out / "safeguards.png", diagonal=True)
    text = table(rows, ("case",), {"spearman": 2, "error": 4})
    found = table(
        rows_kept(checks), ("case", "output"), {"consistency": 4, "worst": 4, "flagged": 2},
        "mirrored: the result with left and right exchanged, for somebody else's brain.",
    )
    return finish(setup, "safeguards", f"{text}\n\n{found}", rows)


def _over_brains(rows: list[Row]) -> list[Row]:
    """The means of each tenth of the uncertainty over all brains."""
    found = []
    for case, tenth in dict.fromkeys((row["case"], row["tenth"]) for row in rows):
        chosen = [row for row in rows if (row["case"], row["tenth"]) == (case, tenth)]
        means = {name: str(numbers(chosen, name).mean()) for name in ("uncertainty", "error")}
        found.append({"case": case, **means})
    return found


def _calibration(spread: Volume, error: Volume) -> list[dict[str, object]]:
    """Mean uncertainty and mean error in tenths of the uncertainty, and their rank correlation."""
    rank = float(spearmanr(spread[::37], error[::37]).statistic)
    limits = np.quantile(spread, np.linspace(0, 1, 11))
    tenth = np.clip(np.searchsorted(limits, spread, side="right") - 1, 0, 9)
    return [
        {"tenth": k + 1, "uncertainty": float(spread[tenth == k].mean()),
         "error": float(error[tenth == k].mean()), "spearman": rank}
        for k in range(10) if (tenth == k).any()
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
