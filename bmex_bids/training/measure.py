"""Measure the contrast of labelled clean images: what the synthesis draws from.

Writes ``contrasts.json``: per condition and structure the mean, relative to the brain's median, the
relative standard deviation inside it, and the number of voxels. Voxels at a border are left out,
so that partial volume does not count; the standard deviation is of the middle 90%.
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
from bmex_bids.training.stages import CONDITIONS, structure

__all__ = ["main", "structure_statistics"]

LEAST = 60  # voxels that a mean needs


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
        low, high = np.quantile(values, (0.05, 0.95))
        middle = values[(values >= low) & (values <= high)]
        found[own] = [
            round(float(np.median(values)), 4),
            round(float(middle.std() / max(middle.mean(), 1e-3)) * 1.2, 4),
            float(sure.sum()),
        ]
    return found


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
