"""Random numbers and fields that the simulation is made of, from a CPU generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bias_field", "chance", "texture", "uniform"]


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number between ``low`` and ``high``."""
    return low + (high - low) * float(torch.rand(1, generator=generator))


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return uniform(0, 1, generator) < probability


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
