"""Changes to a label map that make another person's anatomy of it: growth, atrophy, lesions.

Everything works on ``(x, y, z)`` label indices on the map's own device, with a CPU generator, so
that a seed gives the same anatomy on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.training.degrade import gaussian_smooth
from bmex_bids.training.fields import texture, uniform
from bmex_bids.training.labels import LabelTable

__all__ = [
    "add_fluid",
    "grow_cortex",
    "grow_sulci",
    "grow_ventricles",
    "insert_lesions",
    "smooth_gyri",
]


def _names(table: LabelTable, *parts: str) -> Tensor:
    """One bool per label: does its name hold one of these parts?"""
    return torch.tensor([any(part in name for part in parts) for name in table.names])


def _near(mask: Tensor) -> Tensor:
    """The mask and its 6-neighbours."""
    out = mask.clone()
    for axis, size in enumerate(mask.shape):
        out.narrow(axis, 1, size - 1).logical_or_(mask.narrow(axis, 0, size - 1))
        out.narrow(axis, 0, size - 1).logical_or_(mask.narrow(axis, 1, size - 1))
    return out


def _sides(table: LabelTable, *structures: str) -> Iterator[list[int]]:
    """Labels of these structures on the left and on the right, where the table has them all."""
    for side in ("left", "right"):
        names = [f"{side} {structure}" for structure in structures]
        if set(names) <= set(table.names):
            yield [table.names.index(name) for name in names]


def _chosen(labels: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """(x, y, z) bool: about this share of the voxels (its sign does not count), in patches."""
    field = texture((labels.shape[0], labels.shape[1], labels.shape[2]), (6, 20), generator)
    most = float(torch.special.ndtri(torch.tensor(min(abs(amount), 0.999))))
    return (field < most).to(labels.device)


def grow_ventricles(labels: Tensor, table: LabelTable, steps: int) -> Tensor:
    """Let the lateral ventricles grow into white matter, or shrink, by whole voxels.

    Args:
        labels: (x, y, z) label indices.
        table: their names.
        steps: voxels; negative shrinks (as in infants).
    """
    out = labels.clone()
    for white, ventricle in _sides(table, "cerebral white matter", "lateral ventricle"):
        for _ in range(abs(steps)):
            inside = out == ventricle
            if steps > 0:
                out[_near(inside) & (out == white)] = ventricle
            else:
                out[_near(out == white) & inside] = white
    return out


def grow_sulci(
    labels: Tensor, brain: Tensor, table: LabelTable, amount: float, generator: torch.Generator
) -> Tensor:
    """Turn cortex beside fluid into fluid (atrophy), or fluid beside cortex into cortex (growth).

    Args:
        labels: (x, y, z) label indices.
        brain: (x, y, z) bool.
        table: names of the labels.
        amount: share of the border that changes, -1 to 1; above 0 is atrophy.
        generator: where the border changes.
    """
    if amount == 0:
        return labels.clone()
    cortex_labels = _names(table, "cerebral cortex").to(labels.device)
    fluid = table.names.index("CSF")
    cortex = cortex_labels[labels.long()]
    outside = (labels == fluid) | ~brain
    chosen = _chosen(labels, amount, generator)
    out = labels.clone()
    if amount > 0:
        out[cortex & _near(outside) & chosen] = fluid
        return out
    place = _near(cortex) & (labels == fluid) & brain & chosen
    ids = torch.where(cortex, labels, 0)[None, None].float()
    nearest = F.max_pool3d(ids, 3, 1, 1)[0, 0].to(labels.dtype)
    return torch.where(place & (nearest > 0), nearest, out)


def grow_cortex(
    labels: Tensor, table: LabelTable, amount: float, generator: torch.Generator
) -> Tensor:
    """Turn white matter beside cortex into cortex, or cortex beside white matter into that.

    Cortex that touches anything but cortex and white matter stays, so that a thin one does not
    vanish.

    Args:
        labels: (x, y, z) label indices.
        table: their names.
        amount: share of the border that changes, -1 to 1; above 0 is a thicker cortex.
        generator: where the border changes.
    """
    out = labels.clone()
    if amount == 0:
        return out
    chosen = _chosen(labels, amount, generator)
    for white, cortex in _sides(table, "cerebral white matter", "cerebral cortex"):
        if amount > 0:
            out[_near(labels == cortex) & (labels == white) & chosen] = cortex
        else:
            inner = ~_near((labels != cortex) & (labels != white))
            out[_near(labels == white) & (labels == cortex) & inner & chosen] = white
    return out


def smooth_gyri(
    labels: Tensor, brain: Tensor, table: LabelTable, sigma: float, thickness: int
) -> Tensor:
    """A cerebrum with fewer and shallower folds, as before birth.

    Each hemisphere's surface is smoothed; a layer below it becomes cortex, what lies deeper becomes
    white matter, and cerebrum that is left outside becomes fluid. The rest keeps its labels.

    Args:
        labels: (x, y, z) label indices.
        brain: (x, y, z) bool.
        table: names of the labels.
        sigma: standard deviation of the filter in voxels; 2 closes narrow sulci, 6 leaves a lobe.
        thickness: of the cortex in voxels.
    """
    out, fluid = labels.clone(), table.names.index("CSF")
    width = (sigma, sigma, sigma)
    for white, cortex in _sides(table, "cerebral white matter", "cerebral cortex"):
        side = table.names[white].split()[0]
        mantle = (labels == white) | (labels == cortex)
        own = _names(table, side).to(labels.device)[labels.long()]
        own &= ~_names(table, "cerebellum").to(labels.device)[labels.long()]
        body = gaussian_smooth((own & brain).float(), width) > 0.5
        deep = body
        for _ in range(thickness):
            deep = ~_near(~deep)
        may = mantle | ((labels == fluid) & brain)
        out[mantle & ~body] = fluid
        out[may & body] = cortex
        out[may & deep] = white
    return out


def add_fluid(
    labels: Tensor, brain: Tensor, table: LabelTable, depth: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lay fluid around the brain, of uneven depth, in the place of what was there.

    Args:
        labels: (x, y, z) label indices.
        brain: (x, y, z) bool.
        table: names of the labels.
        depth: mean depth in voxels.
        generator: where it is deeper.

    Returns:
        The labels, and the brain with the fluid.
    """
    out, grown, fluid = labels.clone(), brain, table.names.index("CSF")
    field = texture((labels.shape[0], labels.shape[1], labels.shape[2]), (20, 40), generator)
    reach = (depth * (1 + 0.5 * field)).to(labels.device)
    for step in range(int(2 * depth) + 1):
        grown = grown | (_near(grown) & (reach > step + 0.5))
    out[grown & ~brain] = fluid
    return out, grown


def insert_lesions(
    labels: Tensor,
    table: LabelTable,
    count: int,
    generator: torch.Generator,
    *,
    radius: tuple[float, float] = (1.5, 6.0),
) -> tuple[Tensor, Tensor]:
    """Put lesions into the cerebral white matter.

    Args:
        labels: (x, y, z) label indices.
        table: their names.
        count: number of lesions.
        generator: where they are and what shape they have.
        radius: least and greatest radius in voxels.

    Returns:
        The labels with the lesions, and their mask (x, y, z) bool.
    """
    out, lesion = labels.clone(), torch.zeros_like(labels, dtype=torch.bool)
    white = _names(table, "cerebral white matter").to(labels.device)[labels.long()]
    inner = ~_near(_near(~white))
    places = torch.nonzero(inner)
    if not len(places):
        return out, lesion
    for _ in range(count):
        centre = places[int(uniform(0, len(places), generator))].tolist()
        size = uniform(*radius, generator)
        reach = int(size * 1.8) + 2
        box = tuple(
            slice(max(c - reach, 0), min(c + reach + 1, n))
            for c, n in zip(centre, labels.shape, strict=True)
        )
        axes = [torch.arange(b.start, b.stop) - c for b, c in zip(box, centre, strict=True)]
        stretch = torch.exp(0.3 * torch.randn(3, generator=generator))
        grid = torch.meshgrid(*(a / s for a, s in zip(axes, stretch, strict=True)), indexing="ij")
        distance = torch.stack(grid).square().sum(0).sqrt()
        shape = (distance.shape[0], distance.shape[1], distance.shape[2])
        ragged = distance + 0.25 * size * texture(shape, (3,), generator)
        lesion[box] |= (ragged < size).to(labels.device) & white[box]
    for index, name in enumerate(table.names):
        if name.endswith("cerebral white matter"):
            side = name.removesuffix("cerebral white matter")
            out[lesion & (labels == index)] = table.names.index(f"{side}lesion")
    return out, lesion
