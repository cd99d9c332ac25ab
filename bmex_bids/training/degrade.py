"""Degradations that turn a clean head into what scanners and moving people give.

Array order is (x, y, z); intensities are relative to the head's own (white matter near 1 on T1w).
All randomness comes from the given CPU generator, so that a seed gives the same image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmex_bids.spatial import axis_matrix
from bmex_bids.training import motion

__all__ = [
    "NOISES",
    "PHASE_AXES",
    "STRONGEST_NOISE",
    "Recipe",
    "along",
    "conformed",
    "degrade",
    "gaussian",
    "gaussian_smooth",
    "gibbs",
    "measured",
    "move",
    "random_recipe",
    "rician",
    "slice_grid",
    "standard_recipe",
]

STRONGEST_NOISE = 0.09
"""Greatest standard deviation of the noise in training, as a share of the brain's median."""

PHASE_AXES = (0, 1, 1, 1, 2)
"""Phase-encoding axes as often as they are drawn: mostly front to back, as protocols have it."""


@dataclass(frozen=True)
class Recipe:
    """What is done to one head; ``None`` or 0 leaves a step out.

    The head is blurred and moves on its own grid, is measured in voxels of ``voxel`` and
    ``slice_factor``, where the noise comes in, and is brought back to its own grid.

    Attributes:
        kind: kind of motion, see :data:`bmex_bids.training.motion.KINDS`.
        amplitude: of the motion in mm and degrees.
        frequency: of the motion, relative to TR.
        axis: phase-encoding axis.
        readout: standard deviation of the readout shift in voxels.
        smooth: standard deviation of a Gaussian filter in mm.
        cut: share of k-space kept along each axis (Gibbs ringing); 1 keeps all.
        noise: standard deviation of the noise in a measured voxel, in units of the intensity.
        noise_kind: one of :data:`NOISES`.
        voxel: sides of the measured voxels over those of the head's grid.
        slice_axis: axis of thick slices.
        slice_factor: slice thickness over voxel size; 1 for none.
    """

    kind: str | None = None
    amplitude: float = 0.0
    frequency: float = 0.0
    axis: int = 1
    readout: float = 0.0
    smooth: float = 0.0
    cut: float = 1.0
    noise: float = 0.0
    noise_kind: str = "rician"
    voxel: tuple[float, float, float] = (1.0, 1.0, 1.0)
    slice_axis: int = 2
    slice_factor: float = 1.0


def move(
    volume: Tensor,
    zooms: Tensor,
    kind: str,
    amplitude: float,
    frequency: float,
    generator: torch.Generator,
    *,
    axis: int = 1,
    states: int = 16,
) -> Tensor:
    """Simulate rigid head motion of one kind; (x, y, z) -> (x, y, z).

    The head's mean position is where the volume has it, see :func:`motion.mean_position`, so that
    the volume is what the result should look like.
    """
    position, direction = motion.trajectory(
        kind, volume.shape[axis], amplitude, frequency, generator
    )
    phase = motion.smooth_phase((volume.shape[0], volume.shape[1], volume.shape[2]), generator)
    return motion.corrupt(
        volume, zooms, position, direction, axis=axis, states=states, phase=phase.to(volume),
        origin=motion.mean_position(volume, zooms, position, direction, axis=axis),
    )


def gaussian_smooth(volume: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """Gaussian filter with a standard deviation in voxels per axis; the border is repeated.

    A sum of shifted copies: on a CPU several times faster than a convolution of one channel.
    """
    out = volume
    for axis, value in enumerate(sigma):
        if value <= 0:
            continue
        radius, size = max(int(math.ceil(3 * value)), 1), out.shape[axis]
        kernel = [math.exp(-0.5 * (k / value) ** 2) for k in range(radius + 1)]
        total = kernel[0] + 2 * sum(kernel[1:])
        ends = [out.narrow(axis, 0, 1), out.narrow(axis, size - 1, 1)]
        shape = [radius if a == axis else n for a, n in enumerate(out.shape)]
        wide = torch.cat((ends[0].expand(shape), out, ends[1].expand(shape)), axis)
        out = out * (kernel[0] / total)
        for k in range(1, radius + 1):
            pair = wide.narrow(axis, radius - k, size) + wide.narrow(axis, radius + k, size)
            out.add_(pair, alpha=kernel[k] / total)
    return out


def gibbs(volume: Tensor, keep: float) -> Tensor:
    """Cut the outer k-space away, keeping ``keep`` of every axis: ringing at sharp edges."""
    spectrum = torch.fft.fftn(volume)
    for axis in range(3):
        frequency = torch.fft.fftfreq(volume.shape[axis], device=volume.device).abs()
        shape = [1, 1, 1]
        shape[axis] = -1
        spectrum = spectrum * (frequency <= 0.5 * keep).to(volume.dtype).view(shape)
    ringing: Tensor = torch.fft.ifftn(spectrum).abs()
    return ringing


def rician(volume: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Magnitude of the volume with Gaussian noise in the real and the imaginary part."""
    shape = (2, *volume.shape)
    noise = torch.randn(shape, generator=generator).to(volume) * sigma
    return torch.sqrt((volume + noise[0]) ** 2 + noise[1] ** 2)


def gaussian(volume: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """The volume with Gaussian noise, 0 where that would be negative."""
    return (volume + torch.randn(volume.shape, generator=generator).to(volume) * sigma).clamp_min(0)


NOISES = {"rician": rician, "gaussian": gaussian}
"""Kinds of noise: of a magnitude image, and what that is nearly where the signal is strong."""


def slice_grid(size: int, factor: float) -> tuple[int, float]:
    """Slices of another thickness that cover an axis.

    Args:
        size: voxels along the axis.
        factor: slice thickness over voxel size.

    Returns:
        Their number, and the centre of the first in voxels; they lie around the middle.
    """
    slices = max(int(size / factor), 4)
    return slices, (size - 1) / 2 - (slices - 1) / 2 * factor


def measured(volume: Tensor, factors: Sequence[float]) -> Tensor:
    """Average a head over voxels of another size, (x, y, z) -> their grid, about the same centre.

    Args:
        volume: (x, y, z).
        factors: sides of the new voxels in old ones, per axis.
    """
    out = volume
    for axis, factor in enumerate(factors):
        size = out.shape[axis]
        slices, start = slice_grid(size, factor)
        if factor != 1:
            out = along(out, axis, axis_matrix(size, start, factor, slices))
    return out


def conformed(volume: Tensor, factors: Sequence[float], shape: Sequence[int]) -> Tensor:
    """What :func:`measured` gave, interpolated onto the grid before as the app conforms images.

    Args:
        volume: the measured voxels.
        factors: as given to :func:`measured`.
        shape: of the grid before.
    """
    out = volume
    for axis, (factor, size) in enumerate(zip(factors, shape, strict=True)):
        slices, start = slice_grid(size, factor)
        if factor != 1:
            out = along(out, axis, axis_matrix(slices, -start / factor, 1 / factor, size))
    return out


def along(volume: Tensor, axis: int, matrix: npt.NDArray[np.float32] | Tensor) -> Tensor:
    """Apply a matrix (outputs, inputs) along one axis of (x, y, z)."""
    given = torch.as_tensor(matrix).to(volume)
    out: Tensor = torch.tensordot(given, volume, dims=([1], [axis])).movedim(0, axis).contiguous()
    return out


def degrade(
    volume: Tensor, zooms: Tensor, recipe: Recipe, generator: torch.Generator, *, states: int = 16
) -> Tensor:
    """Apply a recipe to a whole head.

    Args:
        volume: (x, y, z) clean magnitude.
        zooms: (3,) voxel size in mm.
        recipe: what to do.
        generator: source of randomness (CPU).
        states: rigid positions told apart in the motion.
    """
    out = volume
    if recipe.readout > 0:
        out = motion.readout_blur(out, recipe.readout, generator)
    if recipe.smooth > 0:
        sigma = [recipe.smooth / float(z) for z in zooms]
        out = gaussian_smooth(out, (sigma[0], sigma[1], sigma[2]))
    if recipe.cut < 1:
        out = gibbs(out, recipe.cut)
    if recipe.kind is not None:
        out = move(
            out, zooms, recipe.kind, recipe.amplitude, recipe.frequency, generator,
            axis=recipe.axis, states=states,
        )
    factors = list(recipe.voxel)
    factors[recipe.slice_axis] *= recipe.slice_factor
    out = measured(out, factors)
    if recipe.noise > 0:
        out = NOISES[recipe.noise_kind](out, recipe.noise, generator)
    out = conformed(out, factors, volume.shape)
    return out.clone() if out is volume else out


def standard_recipe(kind: str, severity: str, noise: float = 0.0) -> Recipe:
    """The published test condition: one kind of motion at one severity, perhaps with Rician noise.

    Args:
        kind: one of :data:`bmex_bids.training.motion.KINDS`.
        severity: one of :data:`bmex_bids.training.motion.SEVERITIES`.
        noise: standard deviation of the noise, in units of the intensity.

    Raises:
        ValueError: unknown kind or severity.
    """
    if kind not in motion.KINDS or severity not in motion.SEVERITIES:
        raise ValueError(
            f"unknown motion {kind}:{severity}; kinds are {', '.join(motion.KINDS)}, severities "
            f"{', '.join(motion.SEVERITIES)}"
        )
    amplitude, frequency = motion.SEVERITIES[severity]
    return Recipe(kind=kind, amplitude=amplitude, frequency=frequency, noise=noise)


def random_recipe(
    generator: torch.Generator, *, moving: float = 0.75, noisy: float = 0.6, thick: float = 0.25
) -> Recipe:
    """Draw a training recipe: mostly motion, often noise, sometimes the rest, rarely nothing.

    Args:
        generator: source of randomness (CPU).
        moving: share of the recipes with motion, which is what takes most of a sample's time.
        noisy: share with noise.
        thick: share with thick slices.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    def chance(probability: float) -> bool:
        return uniform(0, 1) < probability

    def voxel() -> tuple[float, float, float]:
        """Whole-brain protocols: isotropic or nearly so, 0.7 to 1.2 mm on a grid of 0.8."""
        if chance(0.2):
            return 1.0, 1.0, 1.0
        side = uniform(0.85, 1.5)
        sides = [side * (uniform(1.0, 1.3) if chance(0.2) else 1.0) for _ in range(3)]
        return sides[0], sides[1], sides[2]

    moves = chance(moving)
    return Recipe(
        kind=motion.KINDS[int(uniform(0, 4))] if moves else None,
        amplitude=uniform(0.1, 3.0),
        frequency=uniform(0.05, 0.5),
        axis=PHASE_AXES[int(uniform(0, 5))],
        readout=uniform(0.2, 1.2) if chance(0.2) else 0.0,
        smooth=uniform(0.2, 0.8) if chance(0.2) else 0.0,
        cut=uniform(0.6, 0.95) if chance(0.15) else 1.0,
        noise=uniform(0.0, STRONGEST_NOISE) if chance(noisy) else 0.0,
        voxel=voxel(),
        slice_axis=int(uniform(0, 3)),
        slice_factor=uniform(1.3, 4.5) if chance(thick) else 1.0,
    )
