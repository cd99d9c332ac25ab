"""Tissue and structure labels for clean images that have none, without a trained network.

The templates of the age stages come without labels. They get them in three steps (antspyx), and
every result should be looked at:

1. a mixture of Gaussians (Atropos, doi:10.1007/s12021-011-9109-y) over the intensities of all
   aligned contrasts of a brain; which class is which tissue follows from the stage: in fetuses and
   newborns white matter is brighter than grey on T2w, later it is darker. Where the two cannot be
   told apart by intensity alone (6 months), they come from older brains by registration;
2. label maps of adults are registered to this first guess, not to intensities (SyN,
   doi:10.1016/j.media.2007.06.004), and vote for a structure;
3. the mixture again, held by the smoothed vote, with a Markov random field.

Needs antspyx (``pip install antspyx``), best in an environment of its own: it holds numpy back.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bmex_bids.training import labels as label_maps
from bmex_bids.training.losses import IGNORE

__all__ = ["Brain", "first_guess", "label_brain", "main", "transferred", "without_white_rim"]

Volume = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
CSF, GREY, WHITE = 1, 2, 3
TRANSFERRED = ("6",)
"""Stages whose first guess comes from 9 and 12 months: a mixture alone does not find it."""


@dataclass(frozen=True)
class Brain:
    """Aligned contrasts of one brain.

    Attributes:
        stage: age stage.
        suffixes: contrast of each image, ``T1w`` or ``T2w``.
        images: antspyx images on one grid, 0 outside the brain.
        mask: (x, y, z) bool.
    """

    stage: str
    suffixes: tuple[str, ...]
    images: tuple[Any, ...]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Atlas:
    """A label map on its own grid, and the class of its labels."""

    image: Any
    table: label_maps.LabelTable


def load_brain(stage: str, paths: Sequence[Path]) -> Brain:
    """Read the images of one brain; the others are resampled onto the first one's grid."""
    import ants

    images = [ants.reorient_image2(ants.image_read(str(p)), "RPI") for p in paths]
    images = [images[0], *(ants.resample_image_to_target(i, images[0]) for i in images[1:])]
    mask = np.all([i.numpy() > 0 for i in images], axis=0)
    images = [_as_image(np.where(mask, i.numpy(), 0), images[0]) for i in images]
    suffixes = tuple("T1w" if "T1w" in p.name else "T2w" for p in paths)
    return Brain(stage, suffixes, tuple(images), mask)


def _as_image(volume: npt.NDArray[Any], like: Any) -> Any:
    import ants

    return ants.from_numpy(volume.astype(np.float32), like.origin, like.spacing, like.direction)


def _plain(volume: npt.NDArray[Any]) -> Any:
    """An image without orientation: priors pass through files, whose origins are rounded."""
    import ants

    return ants.from_numpy(volume.astype(np.float32))


def _mixture(brain: Brain, start: str | list[Volume], mrf: float) -> Labels:
    """Atropos over all contrasts; ``start`` is ``KMeans[3]`` or one prior per class."""
    import ants

    prior = start if isinstance(start, str) else [_plain(p) for p in start]
    result = ants.atropos(
        a=[_plain(image.numpy()) for image in brain.images],
        x=_plain(brain.mask),
        i=prior,
        m=f"[{mrf},1x1x1]",
        c="[6,0.0005]",
        priorweight=0.0 if isinstance(start, str) else 0.4,
    )
    classes: Labels = (result["segmentation"].numpy() * brain.mask).astype(np.uint8)
    return classes


def first_guess(brain: Brain) -> Labels:
    """Tissue (x, y, z), 0 to 3, from intensities alone; not for 6 months.

    Fluid is what is brightest on T2w or darkest on T1w. Of the rest, white matter is what is
    brighter on T2w in fetuses and newborns, and what is brighter on T1w or darker on T2w later.
    Newborns get five classes, since their deep grey matter and myelinated white matter differ from
    the rest of their tissue; all that is neither fluid nor bright counts as grey matter there.
    """
    count = 5 if brain.stage == "0" else 3
    classes = _mixture(brain, f"KMeans[{count}]", 0.1)
    early = brain.stage in ("fetal", "0")
    suffix = "T2w" if "T2w" in brain.suffixes and (early or "T1w" not in brain.suffixes) else "T1w"
    means = {
        one: np.array([np.median(image.numpy()[classes == c + 1]) for c in range(count)])
        for one, image in zip(brain.suffixes, brain.images, strict=True)
    }
    ranks = [m.argsort().argsort() * (1 if s == "T2w" else -1) for s, m in means.items()]
    fluid = int(np.argmax(np.sum(ranks, axis=0)))
    rest = sorted((c for c in range(count) if c != fluid), key=lambda c: means[suffix][c])
    white = rest[-1] if (suffix == "T2w") == early else rest[0]
    guess = np.where(brain.mask, GREY, 0).astype(np.uint8)
    guess[classes == fluid + 1] = CSF
    guess[classes == white + 1] = WHITE
    return guess


def transferred(brain: Brain, others: Sequence[tuple[Brain, Labels]]) -> Labels:
    """Tissue of a brain from other, labelled ones, by registration of all common contrasts."""
    import ants

    votes = np.zeros((4, *brain.mask.shape), np.float32)
    for other, labels in others:
        pairs = [
            (image, other.images[other.suffixes.index(suffix)])
            for suffix, image in zip(brain.suffixes, brain.images, strict=True)
            if suffix in other.suffixes
        ]
        pairs = [(_coarse(f, 2.0), _coarse(m, 2.0)) for f, m in pairs]
        found = ants.registration(
            pairs[0][0], pairs[0][1], type_of_transform="SyN", syn_metric="CC", syn_sampling=2,
            reg_iterations=(40, 20, 10), random_seed=1, singleprecision=True,
            multivariate_extras=[("CC", f, m, 1, 2) for f, m in pairs[1:]] or None,
        )
        for tissue in (CSF, GREY, WHITE):
            share = _as_image(labels == tissue, other.images[0])
            votes[tissue] += ants.apply_transforms(
                brain.images[0], share, found["fwdtransforms"]
            ).numpy()
    guess: Labels = (np.where(brain.mask, votes[1:].argmax(0) + 1, 0)).astype(np.uint8)
    return guess


def _structures(guess: Labels, like: Any, atlases: Sequence[Atlas]) -> list[Labels]:
    """Each atlas' label map, moved onto the first guess."""
    import ants

    fixed = _coarse(_as_image(guess, like))
    moved = []
    for atlas in atlases:
        index = atlas.image.numpy().astype(np.int64)
        tissue = _tissue_of(atlas.table)[index]
        brain = label_maps.brain_of(index.astype(np.uint8), atlas.table)
        moving = _as_image(np.where(brain, np.where(tissue > 3, 1, tissue), 0), atlas.image)
        found = ants.registration(
            fixed, _coarse(moving), type_of_transform="SyN",
            aff_metric="meansquares", syn_metric="meansquares",
            reg_iterations=(40, 30, 10), random_seed=1, singleprecision=True,
        )
        own = ants.apply_transforms(
            like, atlas.image, found["fwdtransforms"], interpolator="genericLabel"
        )
        moved.append(own.numpy().astype(np.uint8))
    return moved


def _coarse(image: Any, size: float = 1.5) -> Any:
    """On coarse voxels (mm), where registration is good enough and quick."""
    import ants

    return ants.resample_image(ants.smooth_image(image, 0.4 * size), (size,) * 3, False, 0)


def _tissue_of(table: label_maps.LabelTable) -> npt.NDArray[np.int64]:
    """Class of each label, lesions counted as white matter."""
    classes = table.tissue.numpy()
    return np.where(classes == label_maps.LESION, WHITE, classes)


def label_brain(brain: Brain, guess: Labels, atlases: Sequence[Atlas]) -> tuple[Labels, Labels]:
    """Refine a first guess.

    Returns:
        Tissue (x, y, z): 1 CSF, 2 GM, 3 WM, 0 outside; and structure: label index, 255 where
        the atlases and the tissue disagree.
    """
    import ants

    like = brain.images[0]
    moved = _structures(guess, like, atlases)
    table = atlases[0].table
    if brain.stage == "0":  # three classes would mix what five have told apart
        deep = [np.isin(labels, _deep_white(table)) for labels in moved]
        tissue = np.where(np.all(deep, axis=0) & (guess == GREY), WHITE, guess).astype(np.uint8)
        return without_white_rim(tissue), _agree(moved, tissue, table)
    tissues = [guess, guess, *(_tissue_of(table)[labels] for labels in moved)]
    prior = [
        ants.smooth_image(_as_image(np.mean([t == c for t in tissues], axis=0), like), 0.8).numpy()
        for c in (CSF, GREY, WHITE)
    ]
    total = np.maximum(sum(prior), 1e-3)
    tissue = _mixture(brain, [p / total for p in prior], 0.15)
    return without_white_rim(tissue), _agree(moved, tissue, table)


def without_white_rim(tissue: Labels) -> Labels:
    """Labels whose white matter at the brain's surface is :data:`IGNORE`.

    Where the image ends, fluid fades into the dark outside and looks like white matter on T2w.

    Args:
        tissue: (x, y, z) classes, 0 outside the brain.
    """
    inner = ndimage.binary_erosion(tissue > 0, iterations=2)
    return np.where((tissue == WHITE) & ~inner, IGNORE, tissue).astype(np.uint8)


def _deep_white(table: label_maps.LabelTable) -> list[int]:
    """Labels of white matter that myelinates first, and is dark on T2w at birth."""
    return [i for i, n in enumerate(table.names) if n.endswith(("brain-stem", "ventral DC"))]


def _agree(moved: Sequence[Labels], tissue: Labels, table: label_maps.LabelTable) -> Labels:
    """The structure most atlases vote for among those of the voxel's tissue; 255 for none."""
    best = np.zeros(tissue.shape, np.int16)
    chosen = np.full(tissue.shape, IGNORE, np.uint8)
    for labels in moved:
        count = np.sum([labels == other for other in moved], axis=0)
        better = (_tissue_of(table)[labels] == tissue) & (count > best) & (tissue > 0)
        chosen[better], best[better] = labels[better], count[better]
    return chosen


def _write(volume: Labels, like: Any, path: Path, out: Path) -> None:
    """Put labels onto the grid that the image has in its file."""
    import ants

    target = ants.image_read(str(path))
    moved = ants.resample_image_to_target(
        _as_image(volume, like), target, interp_type="nearestNeighbor"
    )
    integers = ants.from_numpy(
        np.round(moved.numpy()).astype(np.uint8), target.origin, target.spacing, target.direction
    )
    ants.image_write(integers, str(out))


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``NAME_dseg.nii.gz`` (tissue) and ``NAME_structures.nii.gz`` for every image."""
    import ants

    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.training.template_labels", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--atlases", nargs="+", default=["head-01", "head-05"])
    parser.add_argument(
        "--brain", nargs="+", action="append", required=True, metavar=("STAGE", "IMAGE"),
        help="age stage and aligned images of one brain; repeat, those to transfer from first",
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    table = label_maps.load_table(args.label_maps / "dseg.tsv")
    atlases = [
        Atlas(ants.image_read(str(args.label_maps / f"{name}_dseg.nii.gz")), table)
        for name in args.atlases
    ]
    with open(args.out / "structures.tsv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["index", "name"])
        writer.writerows(enumerate(table.names))
    done: dict[str, tuple[Brain, Labels]] = {}
    for stage, *names in args.brain:
        paths = [Path(name) for name in names]
        brain = load_brain(stage, paths)
        ready = args.out / paths[0].name.replace(".nii", "_dseg.nii")
        if ready.exists():
            labels = ants.reorient_image2(ants.image_read(str(ready)), "RPI").numpy()
            done[stage] = (brain, labels.astype(np.uint8))
            continue
        if stage in TRANSFERRED:
            guess = transferred(brain, [done[s] for s in ("9", "12") if s in done])
        else:
            guess = first_guess(brain)
        tissue, structures = label_brain(brain, guess, atlases)
        done[stage] = (brain, tissue)
        for path in paths:
            for kind, volume in (("dseg", tissue), ("structures", structures)):
                name = path.name.replace(".nii", f"_{kind}.nii")
                _write(volume, brain.images[0], path, args.out / name)
        print("labelled", *(p.name for p in paths), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
