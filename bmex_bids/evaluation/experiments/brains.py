"""Clean brains kept out of training, and the same brains corrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmex_bids.evaluation.baselines.filters import Mask, Volume
from bmex_bids.evaluation.demo import reference_brain
from bmex_bids.image import load_image
from bmex_bids.similar import without_noise
from bmex_bids.spatial import conform, crop_to_mask, model_grid
from bmex_bids.training import pool
from bmex_bids.training.degrade import Recipe
from bmex_bids.training.labels import load_label_map, load_table, split

__all__ = ["Brain", "Scene", "adult", "held_out", "real_brain", "repainted",
           "scene", "scene_of", "synthetic_brains"]

Sample = dict[str, Tensor]
TEMPLATES = ("Month0-T2w", "Month6-T1w", "Month6-T2w", "Month12-T1w", "Month12-T2w")


@dataclass(frozen=True)
class Brain:
    """One clean brain and how to degrade it.

    Attributes:
        name: of the image or label map.
        source: ``synthetic`` or ``real``.
        condition: contrast and stage, such as ``T1w-24``.
        make: recipe and seed -> sample, see :mod:`bmex_bids.training.pool`.
        crop: side of the central cube that is looked at, in voxels; 0 for all.
        labelled: whether its tissue is known.
    """

    name: str
    source: str
    condition: str
    make: Callable[[Recipe, int], Sample]
    crop: int = 0
    labelled: bool = True


@dataclass(frozen=True)
class Scene:
    """A corrupted brain beside the truth, (x, y, z), the brain's median about 1.

    Attributes:
        given: what methods get.
        clean: what they should return.
        tissue: 0 background, 1 CSF, 2 GM, 3 WM, 4 lesion, 255 not known.
        mask: the brain.
        condition: contrast and stage.
    """

    given: Volume
    clean: Volume
    tissue: npt.NDArray[np.uint8]
    mask: Mask
    condition: str

    @property
    def top(self) -> float:
        """Data range: the clean brain's 99.9th percentile."""
        return float(np.percentile(self.clean[self.mask], 99.9))


def scene(brain: Brain, recipe: Recipe, seed: int) -> Scene:
    """A brain corrupted by a recipe; the same seed gives the same anatomy."""
    return scene_of(brain.make(recipe, seed), brain.condition, brain.crop)


def scene_of(sample: Sample, condition: str, crop: int) -> Scene:
    """The central cube of a sample of a pool, ``crop`` voxels a side; 0 for all of it."""
    mask = sample["brain"].numpy() > 0
    box = tuple(slice(0, n) for n in mask.shape)
    if crop:
        bounds = crop_to_mask(mask)
        starts = [max((low + high - crop) // 2, 0) for low, high in bounds]
        box = tuple(slice(start, start + crop) for start in starts)
    given, clean = (sample[key].float().numpy()[box] for key in ("input", "target"))
    return Scene(given, clean, sample["tissue"].numpy()[box], mask[box], condition)


def synthetic_brains(label_maps: Path, condition: str, count: int) -> Iterator[Brain]:
    """Brains of a condition's contrast from the held-out label maps."""
    table = load_table(label_maps / "dseg.tsv")
    for path in split(label_maps)[1][:count]:
        head = load_label_map(path, table)

        def make(recipe: Recipe, seed: int, head=head) -> Sample:  # type: ignore[no-untyped-def]
            generator = torch.Generator().manual_seed(seed)
            return pool.enhancement_sample(
                head, table, generator, recipe, condition=condition, states=16
            )

        yield Brain(head.name, "synthetic", condition, make)


def real_brain(path: Path, condition: str, labels: Path | None) -> Brain:
    """A clean, skull-stripped image; with labels, ``NAME_dseg.nii.gz`` in that folder."""
    image = load_image(path)
    mask = image.data > 0
    grid = model_grid(image.data.shape, image.affine, pool.GRID, mask=mask)
    found = labels / path.name.replace(".nii", "_dseg.nii") if labels is not None else None
    given = load_image(found).data if found is not None and found.exists() else None
    return _on_grid(path.name.split(".")[0], condition, image.data, mask, grid, given)


def adult() -> Brain:
    """MNI152, the average of 152 adults that nilearn brings along, with its tissue maps."""
    image, mask, labels = reference_brain()
    grid = model_grid(image.data.shape, image.affine, pool.GRID, mask=mask)
    return _on_grid("MNI152", "T1w-24", image.data, mask, grid, labels)


def _on_grid(  # type: ignore[no-untyped-def]
    name: str, condition: str, data: Volume, mask: Mask, grid,
    labels: npt.NDArray[np.generic] | None,
) -> Brain:
    """A real image on the grid of the networks, without its noise."""
    inside = conform(mask.astype(np.float32), grid, order=1) > 0.5
    found = without_noise(conform(data, grid), inside)
    clean = np.where(inside, np.maximum(found, 1e-3), 0).astype(np.float32)
    tissue = None
    if labels is not None:
        shares = [conform((labels == c).astype(np.float32), grid, order=1) for c in range(4)]
        tissue = torch.from_numpy(np.argmax(shares, axis=0).astype(np.uint8))
    make = _degrading(torch.from_numpy(clean), tissue, condition)
    return Brain(name, "real", condition, make, labelled=tissue is not None)


def _degrading(
    clean: Tensor, tissue: Tensor | None, condition: str
) -> Callable[[Recipe, int], Sample]:
    def make(recipe: Recipe, seed: int) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        return pool.real_sample(
            clean, generator, recipe, condition=condition, tissue=tissue, states=16
        )

    return make


def repainted(brain: Brain, shown: Scene, clean: Volume) -> Brain:
    """The same anatomy with other intensities, such as a lesion or another scanner's contrast.

    Args:
        brain: where it comes from.
        shown: of it, with the tissue.
        clean: (x, y, z) new intensities on the grid of the scene, above 0 in the brain.
    """
    kept = np.where(shown.mask, np.maximum(clean, 1e-3), 0).astype(np.float32)
    make = _degrading(torch.from_numpy(kept), torch.from_numpy(shown.tissue), brain.condition)
    return replace(brain, make=make, crop=0)


def held_out(data: Path | None, *, crop: int, heads: int, conditions: list[str]) -> list[Brain]:
    """The brains of an experiment: MNI152, and, of a data folder, label maps and templates.

    Args:
        data: folder with ``label_maps`` and ``templates`` (docs/training.md); None has neither.
        crop: side of the central cube in voxels; 0 for whole brains.
        heads: label maps per condition.
        conditions: contrasts and stages wanted.
    """
    brains = [adult()] if "T1w-24" in conditions else []
    if data is not None:
        for condition in conditions:
            brains += synthetic_brains(data / "label_maps", condition, heads)
        for name in TEMPLATES:
            stage, suffix = name.removeprefix("Month").split("-")
            path = data / "templates" / f"Template-{name}.nii.gz"
            if f"{suffix}-{stage}" in conditions and path.exists():
                brains.append(real_brain(path, f"{suffix}-{stage}", None))
    return [replace(brain, crop=crop) for brain in brains]
