"""Measure the contrast of labelled clean images: what the synthesis draws from.

Writes ``contrasts.json``: per condition and structure the mean, relative to the brain's median, the
relative standard deviation inside it, and the number of voxels. Voxels at a border are left out,
so that partial volume does not count; the standard deviation is of the middle 90%. All spaces of
fluid get one intensity, since their fluid is the same (:func:`pure_fluid`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bmex_bids.image import load_image
from bmex_bids.training import labels as label_maps
from bmex_bids.training.stages import CONDITIONS, FLUIDS, structure

__all__ = ["main", "pure_fluid", "structure_statistics"]

GREY = 2
LEAST = 60  # voxels that a mean needs
ROOMY = 500  # and a space of fluid whose outer quartile is taken


def structure_statistics(
    image: npt.NDArray[np.float32], tissue: npt.NDArray[np.uint8],
    structures: npt.NDArray[np.uint8], names: Sequence[str],
) -> dict[str, list[float]]:
    """Mean and spread of each structure.

    Args:
        image: (x, y, z), 0 outside the brain.
        tissue: (x, y, z) classes 0 to 3.
        structures: (x, y, z) label indices, 255 for none.
        names: of the label indices.

    Returns:
        Structure (without its side): [mean, relative standard deviation, voxels]. The mean is
        relative to the brain's median.
    """
    median = float(np.median(image[image > 0]))
    grey = float(np.median(image[(tissue == GREY) & (image > 0)])) / median
    fluids: dict[str, npt.NDArray[np.float32]] = {}
    inner = np.zeros(image.shape, bool)
    for value in (1, 2, 3):
        # cortex is thin: only voxels whose 6-neighbours are all of the tissue are sure
        inner |= ndimage.binary_erosion(tissue == value)
    found: dict[str, list[float]] = {}
    for own in sorted({structure(name) for name in names} - {"background", "extra-cerebral"}):
        indices = [i for i, name in enumerate(names) if structure(name) == own]
        place = np.isin(structures, indices)
        sure = place & inner & (image > 0)
        if sure.sum() < LEAST:
            sure = place & (image > 0)
        if sure.sum() < LEAST:
            continue
        values = image[sure] / median
        if own in FLUIDS:
            fluids[own] = values
        low, high = np.quantile(values, (0.05, 0.95))
        middle = values[(values >= low) & (values <= high)]
        found[own] = [
            round(float(np.median(values)), 4),
            round(float(middle.std() / max(middle.mean(), 1e-3)) * 1.2, 4),
            float(sure.sum()),
        ]
    if roomy := [values for values in fluids.values() if len(values) >= ROOMY]:
        mean, spread = pure_fluid(roomy, grey)
        for own, values in fluids.items():
            found[own] = [round(mean, 4), round(spread, 4), float(len(values))]
    return found


def pure_fluid(spaces: Sequence[npt.NDArray[np.float32]], grey: float) -> tuple[float, float]:
    """Intensity of cerebrospinal fluid, from spaces of which none is wide.

    Infants' sulci and ventricles are narrow: most of their voxels hold some tissue, or blood that
    flows and is dark, which draws the median of a space towards grey matter. The outer quartile of
    the space farthest from grey matter is nearest to fluid alone.

    Args:
        spaces: intensities of each space's voxels.
        grey: intensity of grey matter.

    Returns:
        Mean and relative standard deviation, from the quarter of the voxels beyond the mean.
    """
    pooled = np.concatenate(spaces)
    bright = bool(np.mean(pooled > grey) > 0.5)
    level, edge = (0.75, 0.95) if bright else (0.25, 0.05)
    means = [float(np.quantile(values, level)) for values in spaces]
    best = int(np.argmax(means) if bright else np.argmin(means))
    # from a normal distribution's quartile to its last 5% is 0.97 standard deviations
    spread = abs(float(np.quantile(spaces[best], edge)) - means[best]) / 0.97
    return means[best], spread / max(means[best], 1e-3)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every ``CONDITION=IMAGE`` with its labels."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.training.measure", description=__doc__
    )
    parser.add_argument("images", nargs="+", metavar="CONDITION=IMAGE")
    parser.add_argument("--labels", type=Path, required=True, help="*_dseg and *_structures")
    parser.add_argument("--table", type=Path, required=True, help="dseg.tsv of the label maps")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("contrasts.json"))
    args = parser.parse_args(argv)
    names = label_maps.load_table(args.table).names
    table: dict[str, dict[str, list[float]]] = {}
    for argument in args.images:
        condition, _, name = argument.partition("=")
        if condition not in CONDITIONS:
            parser.error(f"{argument}: expected CONDITION=IMAGE, one of {', '.join(CONDITIONS)}")
        path = Path(name)
        image = load_image(path).data
        tissue, structures = (
            load_image(args.labels / path.name.replace(".nii", f"_{kind}.nii")).data
            for kind in ("dseg", "structures")
        )
        table[condition] = structure_statistics(
            image, tissue.astype(np.uint8), structures.astype(np.uint8), names
        )
    lines = ",\n".join(
        f" {json.dumps(condition)}: {{\n"
        + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items())
        + "\n }"
        for condition, entry in table.items()
    )
    args.out.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
