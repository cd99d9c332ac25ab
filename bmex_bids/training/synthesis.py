"""Heads from label maps: deformation, size, contrast, texture, partial volume, bias field.

The idea of SynthSeg (doi:10.1016/j.media.2023.102789): intensities are drawn per label, so that
anatomy is real and contrast without limit. Two kinds of contrast are drawn here: the T1w contrast
of a stage with variation around it, and any contrast at all for brain extraction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.training.degrade import gaussian_smooth

__all__ = ["Head", "bias_field", "random_contrast", "stage_contrast", "synthesise", "texture"]

# T1w at 24 months and older, relative to cerebral white matter: mean and spread between scanners
T1W_ADULT: dict[str, tuple[float, float]] = {
    "cerebral white matter": (1.0, 0.0),
    "cerebellum white matter": (0.98, 0.02),
    "brain-stem": (0.93, 0.03),
    "ventral DC": (0.92, 0.03),
    "optic chiasm": (0.80, 0.05),
    "cerebral cortex": (0.72, 0.05),
    "cerebellum cortex": (0.70, 0.05),
    "hippocampus": (0.70, 0.05),
    "amygdala": (0.70, 0.05),
    "accumbens area": (0.70, 0.05),
    "caudate": (0.72, 0.05),
    "putamen": (0.77, 0.05),
    "thalamus": (0.83, 0.04),
    "pallidum": (0.91, 0.03),
    "lesion": (0.70, 0.08),
    "ventricle": (0.25, 0.07),
    "CSF": (0.28, 0.08),
    "vessel": (0.45, 0.25),
}


@dataclass(frozen=True)
class Head:
    """One synthetic head.

    Attributes:
        clean: (x, y, z) intensities, white matter near 1 for a stage's contrast.
        tissue: (x, y, z) uint8, 0 background, 1 CSF, 2 GM, 3 WM.
        brain: (x, y, z) bool.
        bias: (x, y, z) multiplicative field that the clean image lacks.
    """

    clean: Tensor
    tissue: Tensor
    brain: Tensor
    bias: Tensor


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def stage_contrast(names: list[str], tissue: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one intensity per label with the T1w contrast of 24 months and older.

    Args:
        names: name of every label.
        tissue: (labels,) tissue class, 0 background, 1 CSF, 2 GM, 3 WM, 4 outside the brain.
        generator: source of randomness.
    """
    grey = float(torch.randn(1, generator=generator)) * 0.05  # how strong the contrast is
    means = torch.zeros(len(names))
    for index, name in enumerate(names):
        entry = next((v for key, v in T1W_ADULT.items() if key.lower() in name.lower()), None)
        if entry is not None:
            mean, spread = entry
            draw = float(torch.randn(1, generator=generator))
            means[index] = mean + spread * draw * 0.6 + (1 - mean) * 3 * grey * (mean > 0.6)
        elif int(tissue[index]) == 4:
            means[index] = _outside(generator)
    means[0] = _uniform(0, 0.03, generator)
    return means.clamp_min(0)


def _outside(generator: torch.Generator) -> float:
    if _uniform(0, 1, generator) < 0.3:
        return _uniform(0, 0.15, generator)  # bone, air
    return _uniform(0.2, 1.4, generator)  # muscle to fat


def random_contrast(tissue: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one intensity per label without any prior but what belongs together.

    Labels of a tissue class scatter around the class's own draw, so that cortex and deep grey
    matter look related; background stays dark in most heads.
    """
    classes = torch.rand(5, generator=generator) * 0.95 + 0.05
    scatter = _uniform(0.02, 0.15, generator)
    means = classes[tissue] + scatter * torch.randn(tissue.shape, generator=generator)
    outside = torch.rand(tissue.shape, generator=generator)
    means = torch.where(tissue == 4, outside, means).clamp(0, 1.2)
    means[0] = _uniform(0, 0.05 if _uniform(0, 1, generator) < 0.9 else 0.3, generator)
    return means


def texture(
    shape: tuple[int, ...], scales: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Random field of unit variance with equal parts at several scales (voxels)."""
    field = torch.zeros(shape)
    for scale in scales:
        knots = [max(math.ceil(n / scale) + 1, 2) for n in shape]
        noise = torch.randn(1, 1, *knots, generator=generator)
        field += F.interpolate(noise, size=shape, mode="trilinear", align_corners=True)[0, 0]
    return field / field.std().clamp_min(1e-6)


def bias_field(shape: tuple[int, ...], strength: float, generator: torch.Generator) -> Tensor:
    """Smooth multiplicative field, ``exp`` of a random field with this standard deviation."""
    knots = torch.randn(1, 1, 4, 4, 4, generator=generator) * strength
    field = F.interpolate(knots, size=shape, mode="trilinear", align_corners=True)
    return field[0, 0].exp()


def _sampling_grid(
    source: tuple[int, ...], target: tuple[int, ...], scale: float, generator: torch.Generator,
    warp: float, turn: float,
) -> Tensor:
    """Where each target voxel reads the label map: affine and smooth displacement, in source units.

    ``scale`` is source voxels per target voxel.
    """
    angles = (torch.rand(3, generator=generator) * 2 - 1) * math.radians(turn)
    a, b, c = (float(v) for v in angles)
    shear = (torch.rand(3, 3, generator=generator) * 2 - 1) * 0.06
    rotation = torch.linalg.matrix_exp(torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]]) + shear)
    lines = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in target]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1) * scale
    places = places @ rotation.T.to(torch.float32)
    if warp > 0:
        for knots, share in ((5, 1.0), (9, 0.5)):
            noise = torch.randn(1, 3, knots, knots, knots, generator=generator) * warp * share
            places += F.interpolate(noise, size=target, mode="trilinear", align_corners=True)[
                0
            ].movedim(0, -1)
    half = torch.tensor([(n - 1) / 2 for n in source])
    reading: Tensor = (places / half).flip(-1)[None]
    return reading


def synthesise(
    labels: Tensor,
    brain: Tensor,
    means: Tensor,
    tissue: Tensor,
    generator: torch.Generator,
    *,
    scale: float,
    shape: tuple[int, int, int],
    warp: float = 2.0,
    turn: float = 8.0,
    fine: float = 0.03,
    sharp: float = 0.45,
) -> Head:
    """Make one head from a label map.

    Args:
        labels: (x, y, z) label indices.
        brain: (x, y, z) bool.
        means: (labels,) intensity of each label.
        tissue: (labels,) tissue class of each label; 4 is outside the brain.
        generator: source of randomness (CPU).
        scale: label voxels per voxel of the result: above 1 makes a small head (or a coarse grid).
        shape: voxels of the result, centred on the label map.
        warp: standard deviation of the smooth displacement in label voxels.
        turn: greatest rotation in degrees.
        fine: relative standard deviation of the texture within tissues.
        sharp: standard deviation of the partial-volume filter, in voxels of the result.
    """
    source = (labels.shape[0], labels.shape[1], labels.shape[2])
    grid = _sampling_grid(source, shape, scale, generator, warp, turn).to(labels.device)
    index = labels.long()
    painted = means.to(labels.device)[index]
    blur = 0.5 * max(scale, 1.0) if scale > 1 else 0.4
    painted = gaussian_smooth(painted, (blur, blur, blur))
    groups = torch.stack([(tissue.to(labels.device)[index] == c) for c in range(1, 4)] + [brain])
    groups = groups.float()
    clean = F.grid_sample(painted[None, None], grid, align_corners=True)[0, 0]
    share = F.grid_sample(groups[None], grid, align_corners=True)[0]
    inside = share[3] > 0.5
    classes = torch.where(inside, share[:3].argmax(0) + 1, 0).to(torch.uint8)
    if sharp > 0:
        clean = gaussian_smooth(clean, (sharp, sharp, sharp))
    grain = texture(shape, (2, 4, 10, 30), generator).to(labels.device) * fine
    clean = (clean * (1 + grain)).clamp_min(0)
    bias = bias_field(shape, _uniform(0, 0.25, generator), generator).to(labels.device)
    return Head(clean, classes, inside, bias)
