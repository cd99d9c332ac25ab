"""Label maps for the synthesis: loading, tissue classes, and which are kept out of training."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

__all__ = [
    "HELD_OUT",
    "LabelMap",
    "LabelTable",
    "brain_of",
    "load_label_map",
    "load_table",
    "split",
]

HELD_OUT = ("head-16", "head-17", "head-18")
"""Label maps that no model is trained on."""

CLASSES = {"background": 0, "CSF": 1, "vessel": 1, "GM": 2, "WM": 3}
LESION, OUTSIDE = 4, 5


@dataclass(frozen=True)
class LabelTable:
    """Names of the labels and their tissue class (0 to 3, 4 lesion, 5 outside the brain)."""

    names: list[str]
    tissue: Tensor


@dataclass(frozen=True)
class LabelMap:
    """A label map cropped to the head, 1 mm voxels in RAS+ order.

    Attributes:
        name: of the file, up to the first underscore.
        labels: (x, y, z) uint8.
        brain: (x, y, z) bool, with its sulci, fissures and ventricles, cut below the cerebellum.
    """

    name: str
    labels: Tensor
    brain: Tensor


def load_table(path: Path) -> LabelTable:
    """Read ``dseg.tsv`` (columns index, name, tissue).

    Raises:
        ValueError: indices are not 0 to n-1.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    if [int(r["index"]) for r in rows] != list(range(len(rows))):
        raise ValueError(f"{path}: column index must count from 0 without gaps")
    tissue = [
        LESION if "lesion" in r["name"] else CLASSES.get(r["tissue"], OUTSIDE) for r in rows
    ]
    return LabelTable([r["name"] for r in rows], torch.tensor(tissue))


def load_label_map(path: Path, table: LabelTable) -> LabelMap:
    """Load one ``*_dseg.nii.gz`` as RAS+."""
    image = nib.as_closest_canonical(nib.load(path))
    labels = np.asarray(image.dataobj, dtype=np.uint8).copy()
    brain = brain_of(labels, table)
    return LabelMap(path.name.split("_")[0], torch.from_numpy(labels), torch.from_numpy(brain))


def brain_of(
    labels: npt.NDArray[np.uint8], table: LabelTable, *, close: float = 8.0, stem: int = 12
) -> npt.NDArray[np.bool_]:
    """The brain as brain extraction should find it.

    Grey and white matter and ventricles, closed over the sulci and the wide fissures and filled, as
    brain extraction programs draw it; the brain-stem ends ``stem`` voxels below the cerebellum, and
    the fluid outside belongs to it only in sulci and fissures.

    Args:
        labels: (x, y, z) label indices, z upwards.
        table: their names and classes.
        close: radius of the closing in voxels.
        stem: voxels of brain-stem below the lowest cerebellum voxel.
    """
    inner = np.array(
        [
            int(c) in (2, 3, LESION) or (int(c) == 1 and name != "CSF" and "vessel" not in name)
            for name, c in zip(table.names, table.tissue, strict=True)
        ]
    )
    cerebellum = np.array(["cerebellum" in name for name in table.names])
    core = inner[labels]
    levels = np.flatnonzero(cerebellum[labels].any(axis=(0, 1)))
    if levels.size:
        core[..., : max(int(levels[0]) - stem, 0)] = False
    padded = np.pad(core, int(close) + 2)
    near = ndimage.distance_transform_edt(~padded) <= close
    closed = ndimage.distance_transform_edt(near) > close
    filled = ndimage.binary_fill_holes(closed | padded)
    inset = slice(int(close) + 2, -int(close) - 2)
    return np.asarray(filled[inset, inset, inset], bool)


def split(folder: Path) -> tuple[list[Path], list[Path]]:
    """Label maps for training and those held out, in natural order.

    Raises:
        FileNotFoundError: the folder has none.
    """
    paths = sorted(folder.glob("*_dseg.nii.gz"))
    if not paths:
        raise FileNotFoundError(f"no *_dseg.nii.gz in {folder}")
    held = [p for p in paths if p.name.split("_")[0] in HELD_OUT]
    return [p for p in paths if p not in held], held
