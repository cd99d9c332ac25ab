"""Registration with Demons (SimpleITK): Dice of tissue labels after warping, by method.

The clean image is warped by a smooth random field of known size (3 mm standard deviation), Demons
brings each method's result back to it, and the labels warped along are compared with the true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates

from bmex_bids import metrics
from bmex_bids.evaluation.baselines.filters import Method, Volume
from bmex_bids.evaluation.experiments.brains import scene
from bmex_bids.evaluation.experiments.drawing import boxes
from bmex_bids.evaluation.experiments.frame import (
    Setup,
    finish,
    methods_for,
    options,
    rows_kept,
    setup_of,
    table,
    unmeasured,
)
from bmex_bids.training.degrade import Recipe, standard_recipe

__all__ = ["main", "registered", "warped"]

Labels = npt.NDArray[np.uint8]


def warped(volume: Volume, labels: Labels, seed: int) -> tuple[Volume, Labels]:
    """An image and its labels under one smooth random field, 3 mm standard deviation per axis."""
    draw = np.random.default_rng(seed)
    places = np.indices(volume.shape).astype(np.float32)
    for axis in range(3):
        field = gaussian_filter(draw.standard_normal(volume.shape).astype(np.float32), 10)
        places[axis] += field / field.std() * np.float32(3 / 0.8)
    image = map_coordinates(volume, places, order=1, mode="nearest").astype(np.float32)
    return image, map_coordinates(labels, places, order=0, mode="nearest").astype(np.uint8)


def registered(fixed: Volume, moving: Volume, labels: Labels, iterations: int) -> Labels:
    """The moving image's labels on the fixed image, by symmetric Demons at half and full size."""
    one, other = (sitk.GetImageFromArray(np.ascontiguousarray(v)) for v in (fixed, moving))
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfThreads(1)
    demons.SetNumberOfIterations(iterations)
    demons.SetStandardDeviations(1.5)
    small = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(v, 1.0), [2, 2, 2]) for v in (one, other)]
    field = sitk.Resample(demons.Execute(*small), one)
    transform = sitk.DisplacementFieldTransform(demons.Execute(one, other, field))
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels))
    back = sitk.Resample(image, one, transform, sitk.sitkNearestNeighbor, 0)
    return np.asarray(sitk.GetArrayFromImage(back), np.uint8)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table and figure."""
    args = options("registration", __doc__).parse_args(argv)
    setup = setup_of(args)
    path = setup.out / "registration.tsv"
    for number, brain in enumerate(setup.labelled):
        keys = [{"image": brain.name, "contrast": brain.condition, "motion": severity}
                for severity in (["severe"] if setup.quick else ["minor", "severe"])]
        wanted = [(key, standard_recipe("sudden", key["motion"], 0.03)) for key in keys]
        for _, recipe, methods, add in unmeasured(path, wanted, partial(_methods, setup)):
            shown = scene(brain, recipe, 75_000 + number)
            target, labels = warped(shown.clean, shown.tissue, number)
            lines: list[dict[str, object]] = []
            for name, method in methods.items():
                given = shown.clean if name == "clean" else shown.given
                made = method(given, shown.mask, brain.condition)
                found = registered(target, made, shown.tissue, 5 if setup.quick else 30)
                lines.append({"method": name, **{
                    tissue: metrics.dice(found == value, labels == value)
                    for tissue, value in (("CSF", 1), ("GM", 2), ("WM", 3))
                }})  # fmt: skip
            add(lines)
    rows = rows_kept(path)
    boxes(rows, "method", ("CSF", "GM", "WM"), setup.out / "registration.png")
    digits = {"CSF": 3, "GM": 3, "WM": 3}
    return finish(setup, "registration", table(rows, ("motion", "method"), digits), rows)


def _methods(setup: Setup, recipe: Recipe) -> dict[str, Method]:
    """What is registered: ``clean``, the clean image as it is, and what is made of a moved one."""
    found = methods_for(setup, recipe)
    return {"clean": found["input"], **found}


if __name__ == "__main__":
    raise SystemExit(main())
