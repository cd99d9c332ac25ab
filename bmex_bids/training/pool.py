"""A pool of training samples on disk: heads synthesised, degraded, and written once.

Rigid motion is what costs time, so samples are made ahead (or beside the training, by another
process) and read patch by patch. Each sample is one safetensors file with ``input`` and ``target``
(float16, divided by the input's median in the brain, as the app does), ``tissue`` (uint8, 255 where
the class is not known) and ``brain`` (uint8), all (x, y, z).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from bmex_bids.intensity import brain_gain
from bmex_bids.spatial import crop_to_mask
from bmex_bids.training import labels as label_maps
from bmex_bids.training.degrade import Recipe, degrade, gaussian_smooth, random_recipe
from bmex_bids.training.losses import IGNORE
from bmex_bids.training.synthesis import (
    bias_field,
    random_contrast,
    stage_contrast,
    synthesise,
    texture,
)

__all__ = ["enhancement_sample", "main", "mask_sample", "real_sample", "shading"]

GRID = 0.8  # mm, of the enhancement networks
MASK_GRID = 1.6  # mm, of the brain extraction


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _crop(volume: Tensor, brain: Tensor, margin: int) -> tuple[slice, slice, slice]:
    bounds = crop_to_mask(brain.cpu().numpy().astype(bool))
    cut = [
        slice(max(low - margin, 0), min(high + margin, volume.shape[axis]))
        for axis, (low, high) in enumerate(bounds)
    ]
    return cut[0], cut[1], cut[2]


def _packed(
    degraded: Tensor, clean: Tensor, tissue: Tensor, brain: Tensor
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


def enhancement_sample(
    head: label_maps.LabelMap,
    table: label_maps.LabelTable,
    generator: torch.Generator,
    recipe: Recipe | None = None,
    states: int = 12,
) -> dict[str, Tensor]:
    """One pair from a label map: the head with the stage's contrast, degraded, then masked."""
    tissue_of = table.tissue
    cut = _crop(head.labels, head.brain, 14)
    labels = head.labels[cut]
    size = _uniform(0.82, 1.04, generator)  # of the head, 1 is the adult it comes from
    shape = [int(round(n * size / GRID)) for n in labels.shape]
    synthetic = synthesise(
        labels,
        head.brain[cut],
        stage_contrast(table.names, tissue_of, generator),
        tissue_of,
        generator,
        scale=GRID / size,
        shape=(shape[0], shape[1], shape[2]),
        turn=5.0,
        fine=_uniform(0.01, 0.04, generator),
        sharp=_uniform(0.3, 0.6, generator),
    )
    recipe_is_random = recipe is None
    recipe = recipe or random_recipe(generator)
    given = synthetic.clean * synthetic.bias ** _uniform(0, 0.3, generator)
    degraded = degrade(given, torch.full((3,), GRID), recipe, generator, states=states)
    # masks found in practice are often loose: what lies around the brain is to be left alone
    rim = int(_uniform(0, 4, generator))
    brain = synthetic.brain
    if rim and recipe_is_random:
        wide = F.max_pool3d(brain[None, None].float(), 2 * rim + 1, 1, rim)[0, 0] > 0
        tissue = torch.where(wide & ~brain, IGNORE, synthetic.tissue.int()).to(torch.uint8)
        return _packed(degraded, synthetic.clean, tissue, wide)
    return _packed(degraded, synthetic.clean, synthetic.tissue, brain)


def real_sample(
    clean: Tensor, generator: torch.Generator, recipe: Recipe | None = None, states: int = 12
) -> dict[str, Tensor]:
    """One pair from a real, clean, skull-stripped image on the model grid; classes not known."""
    brain = clean > 0
    clean = clean / clean[brain].median()
    recipe = recipe or random_recipe(generator)
    field = bias_field(tuple(clean.shape), _uniform(0, 0.06, generator), generator)
    degraded = degrade(clean * field, torch.full((3,), GRID), recipe, generator, states=states)
    tissue = torch.full_like(clean, IGNORE, dtype=torch.uint8)
    return _packed(degraded, clean, tissue, brain)


def mask_sample(
    head: label_maps.LabelMap,
    table: label_maps.LabelTable,
    generator: torch.Generator,
    recipe: Recipe | None = None,
) -> dict[str, Tensor]:
    """One whole head on the brain extraction grid, of any contrast, size and field of view."""
    size = _uniform(0.5, 1.1, generator)
    shape = [int(round(n * size / MASK_GRID)) for n in head.labels.shape]
    means = (
        random_contrast(table.tissue, generator)
        if _uniform(0, 1, generator) < 0.75
        else stage_contrast(table.names, table.tissue, generator)
    )
    synthetic = synthesise(
        head.labels,
        head.brain,
        means,
        table.tissue,
        generator,
        scale=MASK_GRID / size,
        shape=(shape[0], shape[1], shape[2]),
        warp=3.0,
        turn=20.0,
        fine=_uniform(0.02, 0.12, generator),
        sharp=_uniform(0, 0.6, generator),
    )
    given = synthetic.clean * synthetic.bias
    if recipe is None:
        recipe = random_recipe(generator)
    image = degrade(given, torch.full((3,), MASK_GRID), recipe, generator, states=8)
    brain = synthetic.brain
    draw = _uniform(0, 1, generator)
    if draw < 0.2:  # already stripped, now and then a little loosely
        loose = brain.float() + 0.8 * texture(tuple(brain.shape), (8,), generator) * (draw < 0.07)
        image = image * ((loose > 0.5) | brain)
    if _uniform(0, 1, generator) < 0.4:  # a field of view that ends somewhere
        axis, end = int(_uniform(0, 3, generator)), _uniform(0, 1, generator) < 0.5
        lost = int(_uniform(0, 0.2, generator) * image.shape[axis])
        keep = slice(lost, None) if end else slice(0, image.shape[axis] - lost)
        cut = [slice(None)] * 3
        cut[axis] = keep
        image, brain = image[tuple(cut)], brain[tuple(cut)]
    top = torch.quantile(image.flatten()[:: max(image.numel() // 100_000, 1)], 0.99)
    return {
        "input": (image / top.clamp_min(1e-6)).clamp(0, 4).to(torch.float16).contiguous(),
        "brain": brain.to(torch.uint8).contiguous(),
    }


def _load_real(path: Path) -> Tensor:
    image = nib.as_closest_canonical(nib.load(path))
    return torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32).copy())


def main(argv: Sequence[str] | None = None) -> int:
    """Write samples ``NNNNN.safetensors`` into a folder, skipping those that are there."""
    parser = argparse.ArgumentParser(prog="python -m bmex_bids.training.pool", description=__doc__)
    parser.add_argument("kind", choices=("enhance", "brainmask"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="clean stripped images")
    parser.add_argument("--real-share", type=float, default=0.3)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--held-out", action="store_true", help="use the held-out label maps")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    table = label_maps.load_table(args.label_maps / "dseg.tsv")
    training, held = label_maps.split(args.label_maps)
    heads = [label_maps.load_label_map(p, table) for p in (held if args.held_out else training)]
    real = [_load_real(p) for p in args.real]
    for number in range(args.start, args.start + args.count):
        path = args.folder / f"{number:05d}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + number)
        head = heads[int(_uniform(0, len(heads), generator))]
        if args.kind == "brainmask":
            sample = mask_sample(head, table, generator)
        elif real and _uniform(0, 1, generator) < args.real_share:
            sample = real_sample(real[int(_uniform(0, len(real), generator))], generator)
        else:
            sample = enhancement_sample(head, table, generator)
        temporary = path.with_suffix(".tmp")
        save_file(sample, temporary)
        os.replace(temporary, path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
