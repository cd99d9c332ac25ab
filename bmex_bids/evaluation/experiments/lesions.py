"""Lesions of known size in white matter: how much of their contrast is kept.

Balls of the grey matter's intensity are put into white matter, the brain is corrupted, and the
contrast (mean of the white matter around minus mean of the lesion) of each method's result is
divided by the clean image's. 1 keeps it, 0 erases it. Lesion class: share of the lesion's voxels
that the bundled classifier calls lesion.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

from bmex_bids.evaluation.baselines.filters import Mask, Volume
from bmex_bids.evaluation.experiments.brains import Scene, repainted, scene
from bmex_bids.evaluation.experiments.drawing import points
from bmex_bids.evaluation.experiments.frame import (
    finish,
    methods_for,
    options,
    rows_kept,
    setup_of,
    table,
    tissues_of,
    unmeasured,
)
from bmex_bids.training.degrade import Recipe, standard_recipe

__all__ = ["contrast", "inserted", "main"]

DIAMETERS = (3.0, 5.0, 8.0)  # mm
RECIPES = {
    "clean": Recipe(),
    "severe": standard_recipe("sudden", "severe", 0.02),
    "noise": Recipe(noise=0.05),
    "thick": Recipe(slice_factor=3.0),
}


def inserted(shown: Scene, seed: int, *, each: int = 4) -> tuple[Volume, list[tuple[float, Mask]]]:
    """The clean image with balls in its white matter, and their diameters in mm and masks.

    Raises:
        ValueError: the tissue is not known, or there is no room for a lesion.
    """
    white = shown.tissue == 3
    if not white.any():
        raise ValueError("lesions need a brain whose tissue is known")
    grey = float(np.median(shown.clean[shown.tissue == 2]))
    draw = np.random.default_rng(seed)
    image, made = shown.clean.copy(), []
    room = distance_transform_edt(white) * 0.8
    places = np.indices(white.shape)
    for diameter in DIAMETERS:
        for _ in range(each):
            free = np.argwhere(room > diameter / 2 + 1)
            if not len(free):
                break
            centre = free[draw.integers(len(free))]
            away = 0.8 * np.sqrt(((places - centre[:, None, None, None]) ** 2).sum(0))
            ball = away <= diameter / 2
            soft = gaussian_filter(ball.astype(np.float32), 0.5)
            image = image + soft * (grey - image)
            room[away < diameter + 3] = 0
            made.append((diameter, ball))
    if not made:
        raise ValueError("there is no room for a lesion in the white matter")
    return image.astype(np.float32), made


def contrast(volume: Volume, lesion: Mask, white: Mask) -> float:
    """Mean of the white matter in a shell of 2 voxels, one voxel away, minus the lesion's mean."""
    shell = binary_dilation(lesion, iterations=3) & ~binary_dilation(lesion, iterations=1) & white
    return float(volume[shell].mean() - volume[lesion].mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table and figure."""
    args = options("lesions", __doc__).parse_args(argv)
    setup = setup_of(args)
    path = setup.out / "lesions.tsv"
    for number, brain in enumerate(setup.labelled):
        keys = [
            {"image": brain.name, "contrast": brain.condition, "case": case}
            for case in (list(RECIPES)[:2] if setup.quick else RECIPES)
        ]
        wanted = [(key, RECIPES[key["case"]]) for key in keys]
        for _, recipe, methods, add in unmeasured(path, wanted, partial(methods_for, setup)):
            base = scene(brain, Recipe(), 72_000 + number)
            image, lesions = inserted(base, number)
            shown = scene(repainted(brain, base, image), recipe, 72_500)
            moved = _same_box(shown, base, lesions)
            shares = tissues_of(setup.models, shown.given, brain.condition)[0]
            white = shown.tissue == 3
            called = shares.argmax(0) == 4
            lines: list[dict[str, object]] = []
            for name, method in methods.items():
                made = method(shown.given, shown.mask, brain.condition)
                for diameter, lesion in moved:
                    lines.append({
                        "method": name, "mm": diameter,
                        "kept": contrast(made, lesion, white)
                        / contrast(shown.clean, lesion, white),
                        "lesion_class": float(called[lesion].mean()),
                    })  # fmt: skip
            add(lines)
    rows = rows_kept(path)
    points(rows, "mm", "kept", "method", setup.out / "lesions.png", panel="case")
    text = table(rows, ("case", "mm", "method"), {"kept": 2, "lesion_class": 2})
    return finish(setup, "lesions", text, rows)


def _same_box(
    shown: Scene, base: Scene, lesions: list[tuple[float, Mask]]
) -> list[tuple[float, Mask]]:
    """The lesions' masks on the grid of a scene that was cropped to the brain with a margin."""
    spot = np.argwhere(base.mask).min(0)
    start = np.argwhere(shown.mask).min(0)
    moved = []
    for diameter, lesion in lesions:
        there = np.zeros(shown.mask.shape, bool)
        there[tuple((np.argwhere(lesion) - spot + start).T)] = True
        moved.append((diameter, there))
    return moved


if __name__ == "__main__":
    raise SystemExit(main())
