"""Tissue labels of a derivative dataset: the ``dseg`` of a scan, and what its numbers mean."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from bmex_bids.bids import parse_entities, session_dir
from bmex_bids.layout import InputError, suffix_of
from bmex_bids.training.losses import IGNORE

__all__ = ["find_dseg", "read_classes", "tissue_of"]

BACKGROUND, CSF, GM, WM = range(4)
# Read in this order: "cerebral white matter" is white, though "cerebral" is in the cortex's name
# too. What fits none (brain-stem, vessels, lesions) is a voxel whose class is not known.
WORDS = (
    (BACKGROUND, r"^(bg|background|unknown|clear label|outside|none)$"),
    (WM, r"^wm$|white.?matter|\bwhite\b|corpus callosum"),
    (CSF, r"^csf$|cerebro.?spinal|ventricle|\bfluid\b|choroid"),
    (
        GM,
        r"^s?c?gm$|gr[ea]y.?matter|\bgr[ea]y\b|cortex|ctx|thalamus|caudate|putamen|pallidum"
        r"|hippocampus|amygdala|accumbens",
    ),
)


def tissue_of(name: str) -> int | None:
    """The class 0 to 3 that a label's name stands for, None for any other structure."""
    plain = re.sub(r"[-_]+", " ", name.strip().lower())
    return next((tissue for tissue, words in WORDS if re.search(words, plain)), None)


def find_dseg(datasets: Sequence[Path], image: Path) -> Path | None:
    """The tissue labels of an image in derivative datasets, None where there are none.

    The file has the image's entities, and is in its space; of several the one with the fewest
    entities counts, so that plain ``dseg`` goes before ``desc-aseg_dseg``.

    Args:
        datasets: roots of derivative datasets, the first that has labels wins.
        image: the raw image.
    """
    own, suffix = parse_entities(image.name), suffix_of(image)
    for dataset in datasets:
        fitting = []
        for path in sorted((session_dir(dataset, own) / "anat").glob("*_dseg.nii*")):
            entities = parse_entities(path.name)
            space = entities.pop("space", None)
            more = entities.keys() - own.keys()
            here = space == suffix or (space is None and suffix == "T1w")
            if here and own.items() <= entities.items() and more <= {"desc", "seg", "atlas"}:
                fitting.append((len(entities), path.name, path))
        if fitting:
            return min(fitting)[2]
    return None


def read_classes(dseg: Path, dataset: Path) -> dict[int, int]:
    """The tissue class of each number in a label image, by the ``dseg.tsv`` that describes it.

    The table lies beside the image under its name, or at the root of the dataset with entities that
    the image has, too (``dseg.tsv``, ``desc-aseg_dseg.tsv``). Its column ``tissue``,
    ``abbreviation`` or ``name`` says the class.

    Returns:
        label -> 0 background, 1 CSF, 2 GM, 3 WM, 255 for every other structure.

    Raises:
        InputError: no table, or one that names neither grey nor white matter.
    """
    table = _table(dseg, dataset)
    with open(table, newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    classes: dict[int, int] = {}
    for row in rows:
        try:
            index = int(row["index"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{table}: expected a whole number in the column index") from None
        said = [row.get(column) or "" for column in ("tissue", "abbreviation", "name")]
        found = [tissue for tissue in map(tissue_of, said) if tissue is not None]
        classes[index] = found[0] if found else IGNORE
    if not {GM, WM} <= set(classes.values()):
        raise InputError(
            f"{table}: expected names of grey and white matter (GM, WM, 'gray matter', "
            "'Left-Cerebral-Cortex', ...), in the column name, abbreviation or tissue"
        )
    return {BACKGROUND: BACKGROUND} | classes


def _table(dseg: Path, dataset: Path) -> Path:
    beside = dseg.with_name(dseg.name.split(".")[0] + ".tsv")
    if beside.is_file():
        return beside
    own = parse_entities(dseg.name).items()
    fitting = [
        (len(entities), path)
        for path in sorted(dataset.glob("*dseg.tsv"))
        if (entities := parse_entities(f"_{path.name}")).items() <= own
    ]
    if not fitting:
        raise InputError(
            f"{dseg.name}: no {beside.name} beside it and no dseg.tsv in {dataset}, so that nobody "
            "knows what its numbers mean; write one with the columns index and name (CSF, GM, WM)"
        )
    return max(fitting, key=lambda item: item[0])[1]
