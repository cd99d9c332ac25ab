"""One anatomy under several scanner-like contrasts and resolutions: do the histograms agree?

Scanners differ by gamma, noise, smoothing and slice thickness. Wasserstein-1 distance of each
pair's histograms in the brain (brain median 1): as given, after each method, after histogram
matching to the first scanner alone, and after both. Matching needs no network: only what goes
beyond it is harmonisation, and the voxelwise difference between the scanners shows it. The app
brings every image to the common scale of its age stage as well: ``input, scale`` and ``bmex,
scale``, whose tissues are those that the classifier finds in the corrupted image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import wasserstein_distance

from bmex_bids.commonscale import BY_TISSUES, map_to_reference, median_of
from bmex_bids.evaluation.baselines.filters import Mask, Volume
from bmex_bids.evaluation.experiments.brains import repainted, scene
from bmex_bids.evaluation.experiments.drawing import boxes
from bmex_bids.evaluation.experiments.frame import (
    finish,
    fresh,
    methods_for,
    options,
    record_of,
    rows_kept,
    setup_of,
    table,
    tissues_of,
)
from bmex_bids.inference import three_tissues
from bmex_bids.intensity import apply_anchors
from bmex_bids.training.degrade import Recipe

__all__ = ["SCANNERS", "main", "matched", "on_common_scale"]

SCALED = {"input, scale": False, "bmex, scale": True}  # on the common scale, as enhanced

SCANNERS = {  # gamma of the intensities, and what the scanner does to them
    "A": (1.0, Recipe(noise=0.02)),
    "B": (0.8, Recipe(noise=0.05)),
    "C": (1.25, Recipe(noise=0.02, slice_factor=2.0)),
    "D": (0.9, Recipe(smooth=0.8, noise=0.03)),
}
QUANTILES = np.linspace(0, 1, 256)


def matched(volume: Volume, mask: Mask, reference: Volume, inside: Mask) -> Volume:
    """The volume with the reference's histogram in the brain, 0 outside."""
    given, wanted = np.quantile(volume[mask], QUANTILES), np.quantile(reference[inside], QUANTILES)
    made = np.interp(volume, given, wanted)
    return np.where(mask, made, 0).astype(np.float32)


def on_common_scale(
    given: Volume, mask: Mask, condition: str, models: Path | None, *, enhanced: bool = False
) -> tuple[Volume, bool]:
    """An image on the common scale of its stage, whose median is then 1, by the bundled model.

    Args:
        given: (x, y, z) brain, in which the classifier finds the tissues.
        mask: (x, y, z) the brain.
        condition: contrast and stage.
        models: folder of models; None for the bundled ones.
        enhanced: what the model makes of the image, instead of the image itself.

    Returns:
        (x, y, z), and whether its tissues made the map, not one factor.
    """
    record = record_of(models, condition)
    shares, made, _ = tissues_of(models, given, condition)
    volume = np.where(mask, made, np.float32(0)) if enhanced else given
    anchors, scaling = map_to_reference(volume, mask, three_tissues(shares), record)
    scaled = apply_anchors(volume, anchors) / np.float32(median_of(record))
    return np.where(mask, scaled, 0).astype(np.float32), scaling is BY_TISSUES


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table and figure."""
    setup = setup_of(options("harmonise", __doc__).parse_args(argv))
    path = setup.out / "harmonise.tsv"
    scanners = dict(list(SCANNERS.items())[: 2 if setup.quick else None])
    for number, brain in enumerate(setup.brains):
        base = scene(brain, Recipe(), 74_000 + number)
        names = ["input", *setup.methods, "input, scale"]
        names += ["bmex, scale"] if "bmex" in setup.methods else []
        for name in names:
            for _, add in fresh(
                path, [{"image": brain.name, "contrast": brain.condition, "method": name}]
            ):
                made: dict[str, Volume] = {}
                trusted: dict[str, bool] = {}
                for scanner, (gamma, recipe) in scanners.items():
                    image = np.maximum(base.clean, 0) ** np.float32(gamma)
                    shown = scene(repainted(brain, base, image), recipe, 74_500)
                    volume, mask = shown.given, shown.mask
                    if name in SCALED:
                        volume, trusted[scanner] = on_common_scale(
                            volume, mask, brain.condition, setup.models, enhanced=SCALED[name]
                        )
                    elif (method := methods_for(setup, recipe).get(name)) is not None:
                        volume = method(volume, mask, brain.condition)
                    made[scanner] = volume
                first = next(iter(made))
                alike = {s: matched(v, mask, made[first], mask) for s, v in made.items()}
                lines: list[dict[str, object]] = []
                for matching, volumes in (("no", made), ("yes", alike)):
                    for one, other in itertools.combinations(volumes, 2):
                        pair = [volumes[s][mask] for s in (one, other)]
                        lines.append({
                            "matching": matching, "pair": f"{one}-{other}",
                            "distance": float(wasserstein_distance(pair[0][::7], pair[1][::7])),
                            "difference": float(np.abs(pair[0] - pair[1]).mean()),
                            "tissues": (trusted[one] + trusted[other]) / 2 if trusted else np.nan,
                        })  # fmt: skip
                add(lines)
    rows = rows_kept(path)
    boxes(rows, "method", ("distance", "difference"), setup.out / "harmonise.png")
    text = table(
        rows, ("method", "matching"), {"distance": 4, "difference": 4, "tissues": 2},
        "distance: between two scanners' histograms; difference: mean absolute difference of their "
        "images, voxel by voxel; tissues: share of images whose common scale is by the tissues' "
        "medians, not by one factor. Input with matching is the control.",
    )
    return finish(setup, "harmonise", text, rows)


if __name__ == "__main__":
    raise SystemExit(main())
