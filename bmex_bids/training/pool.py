"""A pool of training samples on disk: heads synthesised, degraded, and written once.

Rigid motion is what costs time, so samples are made ahead (or beside the training, by another
process) and read patch by patch. Each sample is one safetensors file with ``input`` and ``target``
(float16, divided by the input's median in the brain, as the app does), ``tissue`` (uint8, 255 where
the class is not known) and ``brain`` (uint8), all (x, y, z).
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from bmex_bids.intensity import brain_gain
from bmex_bids.similar import without_noise
from bmex_bids.spatial import crop_to_mask
from bmex_bids.training import anatomy
from bmex_bids.training import labels as label_maps
from bmex_bids.training.degrade import Recipe, degrade, gaussian_smooth, random_recipe
from bmex_bids.training.fields import bias_field, chance, texture, uniform
from bmex_bids.training.losses import IGNORE
from bmex_bids.training.stages import CONDITIONS, draw_contrast, random_contrast
from bmex_bids.training.synthesis import Geometry, Head, synthesise

__all__ = ["enhancement_sample", "main", "mask_sample", "real_sample", "shading"]

Draw = Callable[[torch.Generator], Recipe]
GRID = 0.8  # mm, of the enhancement networks
SIZES = {
    "fetal": (0.45, 0.75),
    "0": (0.6, 0.8),
    "3": (0.65, 0.85),
    "6": (0.7, 0.9),
    "9": (0.75, 0.95),
    "12": (0.75, 0.98),
    "18": (0.78, 1.0),
    "24": (0.82, 1.04),
}
"""Size of the head at each stage, along one axis, relative to the adult's."""
MASK_GRID = 1.6  # mm, of the brain extraction


def _crop(volume: Tensor, brain: Tensor, margin: int) -> tuple[slice, slice, slice]:
    bounds = crop_to_mask(brain.cpu().numpy().astype(bool))
    cut = [
        slice(max(low - margin, 0), min(high + margin, volume.shape[axis]))
        for axis, (low, high) in enumerate(bounds)
    ]
    return cut[0], cut[1], cut[2]


def _packed(
    degraded: Tensor, clean: Tensor, tissue: Tensor, brain: Tensor, condition: str
) -> dict[str, Tensor]:
    """Mask, scale by the degraded image's gain, crop to the brain."""
    cut = _crop(clean, brain, 8)
    inside = brain[cut].to(torch.float32)
    given = degraded[cut] * inside
    gain = brain_gain(given.cpu().numpy(), inside.cpu().numpy() > 0)
    target = clean[cut] * inside * shading(given, clean[cut] * inside, inside)
    return {
        "input": (given * gain).to(torch.float16).contiguous().cpu(),
        "target": (target * gain).to(torch.float16).contiguous().cpu(),
        "tissue": tissue[cut].to(torch.uint8).contiguous().cpu(),
        "brain": brain[cut].to(torch.uint8).contiguous().cpu(),
        "condition": torch.tensor(CONDITIONS.index(condition), dtype=torch.uint8),
    }


def shading(degraded: Tensor, clean: Tensor, inside: Tensor, *, cell: int = 4) -> Tensor:
    """Smooth factor between two images of a brain, by which the target follows the input.

    The network is not asked to undo what varies over centimetres: the bias field is corrected
    before it, and from a patch nobody could tell.

    Args:
        degraded: (x, y, z), 0 outside the brain.
        clean: (x, y, z), 0 outside the brain.
        inside: (x, y, z) 1 in the brain.
        cell: voxels of the coarse grid on which the factor is estimated.

    Returns:
        (x, y, z) factor between 0.7 and 1.4, about 1.
    """
    coarse = [
        gaussian_smooth(
            F.avg_pool3d(v[None, None], cell, ceil_mode=True, count_include_pad=False)[0, 0],
            (2.5, 2.5, 2.5),
        )
        for v in (degraded, clean, inside)
    ]
    known = coarse[2] > 0.01
    ratio = torch.where(known, coarse[0] / coarse[1].clamp_min(1e-3), 1.0).clamp(0.7, 1.4)
    size = [int(n) for n in clean.shape]
    return F.interpolate(ratio[None, None], size=size, mode="trilinear")[0, 0]


def _sizes(condition: str) -> tuple[float, float]:
    """Least and greatest head size of a condition; 1 is the adult that the label map comes from."""
    return SIZES.get(condition.split("-")[-1], (0.55, 1.04))


def enhancement_sample(
    head: label_maps.LabelMap,
    table: label_maps.LabelTable,
    generator: torch.Generator,
    recipe: Recipe | None = None,
    *,
    condition: str = "T1w-24",
    states: int = 8,
    draw: Draw = random_recipe,
    lesions: float = 0.3,
) -> dict[str, Tensor]:
    """One pair from a label map: the head with the stage's contrast, degraded, then masked.

    Args:
        head: where the anatomy comes from; it is varied.
        table: names and classes of its labels.
        generator: source of randomness (CPU).
        recipe: how to degrade it; None draws one, and a mask that may be loose.
        condition: one of :data:`bmex_bids.training.stages.CONDITIONS`.
        states: rigid positions told apart in the motion.
        draw: what draws a recipe.
        lesions: share of the heads with lesions.
    """
    synthetic = _head(head, table, condition, generator, lesions)
    given = synthetic.clean * synthetic.bias ** uniform(0, 0.3, generator)
    grid = torch.full((3,), GRID)
    brain, tissue = synthetic.brain, synthetic.tissue
    if recipe is not None:
        degraded = degrade(given, grid, recipe, generator, states=states)
        return _packed(degraded, synthetic.clean, tissue, brain, condition)
    recipe = draw(generator)
    degraded = degrade(given, grid, recipe, generator, states=states)
    # masks found in practice are often loose: what lies around the brain is to be left alone
    rim = int(uniform(0, 4, generator))
    if rim:
        wide = F.max_pool3d(brain[None, None].float(), 2 * rim + 1, 1, rim)[0, 0] > 0
        tissue = torch.where(wide & ~brain, IGNORE, tissue.int()).to(torch.uint8)
        brain = wide
    return _packed(degraded, synthetic.clean, tissue, brain, condition)


def _head(
    head: label_maps.LabelMap,
    table: label_maps.LabelTable,
    condition: str,
    generator: torch.Generator,
    lesions: float,
) -> Head:
    """A head of the condition's contrast and size on the enhancement grid, of varied anatomy."""
    cut = _crop(head.labels, head.brain, 14)
    labels, brain = head.labels[cut], head.brain[cut]
    size = uniform(*_sizes(condition), generator)
    labels, brain = _grown(labels, brain, table, condition, size < 0.8, generator)
    if chance(lesions, generator):
        labels, _ = anatomy.insert_lesions(
            labels, table, int(uniform(1, 20, generator)), generator
        )
    if condition == "any":
        contrast = random_contrast(table.tissue, generator)
    else:
        contrast = draw_contrast(condition, table.names, table.tissue, generator)
    shape = [int(round(n * size / GRID)) for n in labels.shape]
    return synthesise(
        labels,
        brain,
        contrast,
        table.tissue,
        generator,
        geometry=Geometry(GRID / size, (shape[0], shape[1], shape[2]), turn=5.0),
        sharp=uniform(0.3, 0.6, generator),
    )


def _grown(
    labels: Tensor,
    brain: Tensor,
    table: label_maps.LabelTable,
    condition: str,
    young: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Labels and brain of another person: ventricles, sulci, cortex, folds, outer fluid.

    The anatomy varies more than people do, so that the tissues are told by their intensity: adults'
    label maps alone teach that the outer millimetres are grey matter.
    """
    labels = anatomy.grow_ventricles(
        labels, table, int(uniform(-3, 1, generator) if young else uniform(-2, 4, generator))
    )
    stage = condition.split("-")[-1]
    folds = {"fetal": 1.0, "0": 0.3, "any": 0.2}.get(stage, 0.0)
    if chance(folds, generator):
        most = 5.0 if stage == "fetal" else 2.5
        labels = anatomy.smooth_gyri(
            labels, brain, table, uniform(1.0, most, generator), int(uniform(2, 5, generator))
        )
    labels = anatomy.grow_sulci(
        labels, brain, table, uniform(-0.8, 0.2 if young else 0.6, generator), generator
    )
    if chance(0.6, generator):
        labels = anatomy.grow_cortex(labels, table, uniform(-0.9, 0.6, generator), generator)
    most = {"fetal": 9.0, "0": 4.0, "3": 4.0, "any": 5.0}.get(stage, 2.5)
    if chance(0.6, generator):
        depth = uniform(0.5, most, generator)
        labels, brain = anatomy.add_fluid(labels, brain, table, depth, generator)
    return labels, brain


def real_sample(
    clean: Tensor,
    generator: torch.Generator,
    recipe: Recipe | None = None,
    *,
    condition: str = "T1w-24",
    tissue: Tensor | None = None,
    wanted: Tensor | None = None,
    states: int = 8,
    draw: Draw = random_recipe,
) -> dict[str, Tensor]:
    """One pair from a real, clean, skull-stripped image on the model grid.

    Args:
        clean: (x, y, z), 0 outside the brain; it is degraded.
        generator: source of randomness (CPU).
        recipe: how to degrade it; None draws one.
        condition: one of :data:`bmex_bids.training.stages.CONDITIONS`.
        tissue: (x, y, z) uint8 classes, :data:`IGNORE` where not known; None knows nothing.
        wanted: (x, y, z) the target, such as the clean image without its noise; None: itself.
        states: rigid positions told apart in the motion.
        draw: what draws a recipe.
    """
    brain = clean > 0
    median = clean[brain].median()
    wanted = (clean if wanted is None else wanted) / median
    clean = clean / median
    recipe = recipe or draw(generator)
    shape = (clean.shape[0], clean.shape[1], clean.shape[2])
    field = bias_field(shape, uniform(0, 0.06, generator), generator)
    degraded = degrade(clean * field, torch.full((3,), GRID), recipe, generator, states=states)
    if tissue is None:
        tissue = torch.full(shape, IGNORE, dtype=torch.uint8)
    return _packed(degraded, wanted, tissue, brain, condition)


def mask_sample(
    head: label_maps.LabelMap,
    table: label_maps.LabelTable,
    generator: torch.Generator,
    recipe: Recipe | None = None,
) -> dict[str, Tensor]:
    """One whole head on the brain extraction grid, of any contrast, size and field of view."""
    size = uniform(0.5, 1.1, generator)
    shape = [int(round(n * size / MASK_GRID)) for n in head.labels.shape]
    if chance(0.7, generator):
        contrast = random_contrast(table.tissue, generator)
    else:
        condition = CONDITIONS[1 + int(uniform(0, len(CONDITIONS) - 1, generator))]
        contrast = draw_contrast(condition, table.names, table.tissue, generator)
    synthetic = synthesise(
        head.labels,
        head.brain,
        contrast,
        table.tissue,
        generator,
        geometry=Geometry(MASK_GRID / size, (shape[0], shape[1], shape[2]), warp=3.0, turn=20.0),
        sharp=uniform(0, 0.6, generator),
    )
    given = synthetic.clean * synthetic.bias
    if recipe is None:
        recipe = random_recipe(generator)
    image = degrade(given, torch.full((3,), MASK_GRID), recipe, generator, states=8)
    brain = synthetic.brain
    draw = uniform(0, 1, generator)
    if draw < 0.2:  # already stripped, now and then a little loosely
        loose = brain.float() + 0.8 * texture(tuple(brain.shape), (8,), generator) * (draw < 0.07)
        image = image * ((loose > 0.5) | brain)
    if uniform(0, 1, generator) < 0.4:  # a field of view that ends somewhere
        axis, end = int(uniform(0, 3, generator)), uniform(0, 1, generator) < 0.5
        lost = int(uniform(0, 0.2, generator) * image.shape[axis])
        keep = slice(lost, None) if end else slice(0, image.shape[axis] - lost)
        cut = [slice(None)] * 3
        cut[axis] = keep
        image, brain = image[tuple(cut)], brain[tuple(cut)]
    top = torch.quantile(image.flatten()[:: max(image.numel() // 100_000, 1)], 0.99)
    return {
        "input": (image / top.clamp_min(1e-6)).clamp(0, 4).to(torch.float16).contiguous(),
        "brain": brain.to(torch.uint8).contiguous(),
    }


@dataclass(frozen=True)
class RealImage:
    """A clean, skull-stripped image to train on.

    Attributes:
        clean: (x, y, z), 0 outside the brain.
        wanted: the same without its noise.
        tissue: (x, y, z) uint8, or None where there are no labels.
        condition: one of :data:`bmex_bids.training.stages.CONDITIONS`.
    """

    clean: Tensor
    wanted: Tensor
    tissue: Tensor | None
    condition: str


def _load_real(argument: str, labels: Path | None) -> RealImage:
    """``CONDITION=PATH``; its labels are ``*_dseg.nii.gz`` of the same name in ``labels``."""
    condition, _, name = argument.partition("=")
    if condition not in CONDITIONS:
        raise ValueError(f"--real {argument}: expected CONDITION=PATH, one of {CONDITIONS}")
    path = Path(name)
    found = labels / path.name.replace(".nii", "_dseg.nii") if labels is not None else None
    known = found is not None and found.exists()
    clean = _array(path, np.float32)
    wanted = torch.from_numpy(without_noise(clean.numpy(), clean.numpy() > 0))
    tissue = _array(found, np.uint8) if found and known else None
    return RealImage(clean, wanted, tissue, condition)


def _array(path: Path, kind: type[np.generic]) -> Tensor:
    image = nib.as_closest_canonical(nib.load(path))
    return torch.from_numpy(np.asarray(image.dataobj).astype(kind))


def main(argv: Sequence[str] | None = None) -> int:
    """Write samples ``NNNNN.safetensors`` into a folder, skipping those that are there."""
    parser = argparse.ArgumentParser(prog="python -m bmex_bids.training.pool", description=__doc__)
    parser.add_argument("kind", choices=("enhance", "brainmask"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=["T1w-24"])
    parser.add_argument(
        "--real", nargs="*", default=[], metavar="CONDITION=PATH", help="clean stripped images"
    )
    parser.add_argument("--real-labels", type=Path, help="folder with their *_dseg.nii.gz")
    parser.add_argument("--real-share", type=float, default=0.3)
    parser.add_argument("--moving", type=float, default=0.75, help="share of recipes with motion")
    parser.add_argument("--noisy", type=float, default=0.6, help="share of recipes with noise")
    parser.add_argument("--thick", type=float, default=0.25, help="and with thick slices")
    parser.add_argument("--lesions", type=float, default=0.3, help="share of heads with lesions")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--held-out", action="store_true", help="use the held-out label maps")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    draw = functools.partial(
        random_recipe, moving=args.moving, noisy=args.noisy, thick=args.thick
    )
    table = label_maps.load_table(args.label_maps / "dseg.tsv")
    training, held = label_maps.split(args.label_maps)
    heads = [label_maps.load_label_map(p, table) for p in (held if args.held_out else training)]
    real = [_load_real(argument, args.real_labels) for argument in args.real]
    for number in range(args.start, args.start + args.count):
        path = args.folder / f"{number:05d}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + number)
        condition = args.conditions[number % len(args.conditions)]
        own = [image for image in real if image.condition == condition]
        head = heads[int(uniform(0, len(heads), generator))]
        if args.kind == "brainmask":
            sample = mask_sample(head, table, generator)
        elif own and chance(args.real_share, generator):
            image = own[int(uniform(0, len(own), generator))]
            sample = real_sample(
                image.clean, generator, condition=condition, tissue=image.tissue,
                wanted=image.wanted, draw=draw,
            )
        else:
            sample = enhancement_sample(
                head, table, generator, condition=condition, draw=draw, lesions=args.lesions,
            )
        temporary = path.with_suffix(".tmp")
        save_file(sample, temporary)
        os.replace(temporary, path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
