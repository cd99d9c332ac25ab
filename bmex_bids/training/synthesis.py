"""Heads from label maps: deformation, size, contrast, texture, partial volume, bias field.

The idea of SynthSeg (doi:10.1016/j.media.2023.102789): intensities are drawn per label, so that
anatomy is real and contrast without limit. The contrast itself is drawn by
:mod:`bmex_bids.training.stages`, the anatomy varied by :mod:`bmex_bids.training.anatomy`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.training.degrade import gaussian_smooth
from bmex_bids.training.fields import bias_field, texture, uniform
from bmex_bids.training.stages import Contrast

__all__ = ["Geometry", "Head", "synthesise"]

LEVELS = 3  # sub-classes of a label


@dataclass(frozen=True)
class Head:
    """One synthetic head.

    Attributes:
        clean: (x, y, z) intensities, relative to the contrast's own unit.
        tissue: (x, y, z) uint8, 0 background, 1 CSF, 2 GM, 3 WM, 4 lesion.
        brain: (x, y, z) bool.
        bias: (x, y, z) multiplicative field that the clean image lacks.
    """

    clean: Tensor
    tissue: Tensor
    brain: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Geometry:
    """How the label map is put onto the grid of the result.

    Attributes:
        scale: label voxels per voxel of the result; above 1 makes a small head (or a coarse grid).
        shape: voxels of the result, centred on the label map.
        warp: standard deviation of the smooth displacement in label voxels.
        turn: greatest rotation in degrees.
    """

    scale: float
    shape: tuple[int, int, int]
    warp: float = 2.0
    turn: float = 8.0


def _sampling_grid(
    source: tuple[int, ...], geometry: Geometry, generator: torch.Generator
) -> Tensor:
    """Where each voxel of the result reads the label map, in units of ``grid_sample``."""
    target = geometry.shape
    angles = (torch.rand(3, generator=generator) * 2 - 1) * math.radians(geometry.turn)
    a, b, c = (float(v) for v in angles)
    shear = (torch.rand(3, 3, generator=generator) * 2 - 1) * 0.06
    rotation = torch.linalg.matrix_exp(torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]]) + shear)
    lines = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in target]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1) * geometry.scale
    places = places @ rotation.T.to(torch.float32)
    if geometry.warp > 0:
        for knots, share in ((5, 1.0), (9, 0.5)):
            noise = torch.randn(1, 3, knots, knots, knots, generator=generator)
            noise = noise * geometry.warp * share
            places += F.interpolate(noise, size=target, mode="trilinear", align_corners=True)[
                0
            ].movedim(0, -1)
    half = torch.tensor([(n - 1) / 2 for n in source])
    reading: Tensor = (places / half).flip(-1)[None]
    return reading


def _painted(labels: Tensor, contrast: Contrast, generator: torch.Generator) -> Tensor:
    """(2, x, y, z): intensity of every label's sub-classes, and how strong its texture is."""
    index = labels.long()
    place = texture((labels.shape[0], labels.shape[1], labels.shape[2]), (12, 30), generator)
    level = ((place > -0.4).long() + (place > 0.4).long()).to(labels.device)
    offsets = torch.randn(len(contrast.means), LEVELS, generator=generator)
    means = contrast.means[:, None] * (1 + 0.4 * contrast.spread[:, None] * offsets)
    painted = means.clamp_min(0).to(labels.device)[index, level]
    if (begun := contrast.myelination) is not None:
        share = _fading(begun.origin.to(labels.device)[index].float(), begun.reach, generator)
        painted = painted * (1 + begun.gain * share * begun.white.to(labels.device)[index])
    return torch.stack((painted, contrast.spread.to(labels.device)[index]))


def _fading(near: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """(x, y, z) 1 where ``near`` is 1, fading unevenly to 0 over ``reach`` voxels."""
    shape = (near.shape[0], near.shape[1], near.shape[2])
    if not near.any():
        return torch.zeros_like(near)
    coarse = F.avg_pool3d(near[None, None], 4, ceil_mode=True)[0, 0]
    width = reach / 4
    coarse = gaussian_smooth(coarse, (width, width, width))
    spread = F.interpolate(coarse[None, None], size=shape, mode="trilinear")[0, 0]
    field = texture(shape, (15, 30), generator).to(near.device)
    return (spread / spread.max() * (1 + 0.3 * field)).clamp(0, 1)


def _likeliest(shares: Tensor) -> Tensor:
    """(c, x, y, z) -> (x, y, z) uint8: as ``argmax(0)``, several times faster on a CPU."""
    best, found = shares[0], torch.zeros(shares.shape[1:], dtype=torch.uint8, device=shares.device)
    for index in range(1, len(shares)):
        found[shares[index] > best] = index
        best = torch.maximum(best, shares[index])
    return found


def synthesise(
    labels: Tensor,
    brain: Tensor,
    contrast: Contrast,
    tissue: Tensor,
    generator: torch.Generator,
    *,
    geometry: Geometry,
    sharp: float = 0.45,
) -> Head:
    """Make one head from a label map, on the label map's device.

    Args:
        labels: (x, y, z) label indices.
        brain: (x, y, z) bool.
        contrast: intensity and texture of each label.
        tissue: (labels,) tissue class of each label; 4 is lesion, 5 is outside the brain.
        generator: source of randomness (CPU).
        geometry: grid and deformation.
        sharp: standard deviation of the partial-volume filter, in voxels of the result.
    """
    source = (labels.shape[0], labels.shape[1], labels.shape[2])
    grid = _sampling_grid(source, geometry, generator).to(labels.device)
    painted, spread = _painted(labels, contrast, generator)
    blur = 0.5 * geometry.scale if geometry.scale > 1 else 0.4
    painted = gaussian_smooth(painted, (blur, blur, blur))
    classes = tissue.to(labels.device)[labels.long()]
    layers = [painted, spread, *((classes == c).float() for c in range(1, 5)), brain.float()]
    read = F.grid_sample(torch.stack(layers)[None], grid, align_corners=True)[0]
    inside = read[6] > 0.5
    known = torch.where(inside, _likeliest(read[2:6]) + 1, 0)
    clean = gaussian_smooth(read[0], (sharp, sharp, sharp)) if sharp > 0 else read[0]
    grain = texture(geometry.shape, (2, 4, 10), generator).to(labels.device)
    clean = (clean * (1 + grain * read[1])).clamp_min(0)
    bias = bias_field(geometry.shape, uniform(0, 0.25, generator), generator).to(labels.device)
    return Head(clean, known, inside, bias)
