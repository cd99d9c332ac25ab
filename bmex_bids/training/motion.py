"""Rigid head motion during the acquisition, simulated in k-space.

A trajectory is one scalar per phase-encoding line along a fixed direction of the six rigid
parameters, quantised into a few states. Each state's volume fills that state's lines of the
composite k-space. The state that leaves the head in place is that of the k-space centre or, so that
the result is aligned with the clean image, the :func:`mean_position`. Only a state's own lines are
transformed, so all states together cost about one Fourier transform besides the rotations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "KINDS", "SEVERITIES", "corrupt", "mean_position", "quantised", "phase_ramp", "readout_blur",
    "smooth_phase", "trajectory", "turning",
]

KINDS = ("rotation", "periodic", "continuous", "sudden")
"""The four kinds of motion of BME-X (doi:10.1038/s41551-024-01283-7)."""

SEVERITIES = {
    "minor": (1.0, 0.12),
    "moderate": (2.0, 0.18),
    "severe": (3.0, 0.42),
    "severe+": (4.0, 0.48),
    "severe++": (5.0, 0.54),
}
"""Published test severities: amplitude in mm and degrees, frequency relative to TR."""

SLAB = 16  # rows or slices that are interpolated at once


def trajectory(
    kind: str, lines: int, amplitude: float, frequency: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Motion over the phase-encoding lines, in acquisition order.

    Args:
        kind: one of :data:`KINDS`. ``rotation`` drifts irregularly and only turns.
        lines: number of phase-encoding lines.
        amplitude: greatest displacement, in mm and degrees.
        frequency: oscillations per line (periodic), or a measure of restlessness.
        generator: source of randomness (CPU).

    Returns:
        ``(lines,)`` position between -1 and 1 along the direction; and ``(6,)`` the direction,
        three translations in mm and three rotations in degrees, scaled by the amplitude.

    Raises:
        ValueError: unknown kind.
    """
    n = torch.arange(lines, dtype=torch.float32)
    if kind == "periodic":
        phase = float(torch.rand(1, generator=generator)) * 2 * math.pi
        position = torch.sin(2 * math.pi * frequency * n + phase)
    elif kind == "continuous":
        bend = float(torch.rand(1, generator=generator)) * 2 + 0.5
        position = 2 * (n / max(lines - 1, 1)) ** bend - 1
    elif kind == "sudden":
        jumps = max(1, round(10 * frequency))
        at = torch.rand(jumps, generator=generator).sort().values * lines
        level = torch.rand(jumps + 1, generator=generator) * 2 - 1
        position = level[torch.bucketize(n, at)]
    elif kind == "rotation":
        knots = torch.randn(1, 1, 4 + round(20 * frequency), generator=generator).cumsum(-1)
        position = F.interpolate(knots, size=lines, mode="linear", align_corners=True)[0, 0]
        position = position - position.mean()
        position = position / position.abs().max().clamp_min(1e-6)
    else:
        raise ValueError(f"unknown motion {kind!r}: expected one of {', '.join(KINDS)}")
    direction = torch.randn(6, generator=generator)
    if kind == "rotation":
        direction[:3] = 0
    return position, amplitude * direction / direction.abs().max().clamp_min(1e-6)


def mean_position(
    volume: Tensor, zooms: Tensor, position: Tensor, direction: Tensor, *, axis: int = 1
) -> float:
    """Where along its trajectory the image of a moving head lies: what a rigid registration finds.

    The mean over the phase-encoding lines, by the energy that a displacement puts into them: that
    of the image's gradient, less where a wave is shorter than the way the head goes. The k-space
    centre itself has none: a head that goes to and fro from line to line lies at the middle of its
    way, wherever it was while the centre was acquired.

    Args:
        volume: (x, y, z) clean magnitude of the whole head.
        zooms: (3,) voxel size in mm.
        position: (lines,) from :func:`trajectory`.
        direction: (6,) from :func:`trajectory`.
        axis: phase-encoding axis.
    """
    others = [a for a in range(3) if a != axis]
    power = torch.fft.rfftn(volume, dim=[*others, axis]).abs().square()
    waves = torch.zeros(())  # squared, in radians per mm
    for a in range(3):
        lines = volume.shape[a]
        given = torch.fft.rfftfreq(lines) if a == axis else torch.fft.fftfreq(lines)
        shape = [-1 if other == a else 1 for other in range(3)]
        waves = waves + (2 * math.pi * given / float(zooms[a])).square().view(shape)
    way = float(position.std() * direction.abs().max())  # a degree is a mm at the head's surface
    half = (power * (waves / (1 + waves * way**2)).to(power)).sum(others).cpu()
    lines = volume.shape[axis]
    weight = half[(torch.arange(lines) - lines // 2).abs()]
    return float((weight * position).sum() / weight.sum().clamp_min(1e-12))


def smooth_phase(
    shape: tuple[int, int, int], generator: torch.Generator, strength: float = math.pi / 2
) -> Tensor:
    """A smooth random phase image in radians, (x, y, z), as receive coils give it."""
    knots = torch.randn(1, 1, 4, 4, 4, generator=generator) * strength
    return F.interpolate(knots, size=shape, mode="trilinear", align_corners=True)[0, 0]


def _twice_as_fine(volume: Tensor) -> Tensor:
    """Band-limited interpolation onto half voxels: (x, y, z) -> (2x - 1, 2y - 1, 2z - 1)."""
    for axis in range(3):
        size, other = volume.shape[axis], (axis + 1) % 3
        shape = list(volume.shape)
        shape[axis] = 2 * size - 1
        fine = volume.new_empty(shape)
        parts = zip(volume.split(SLAB, other), fine.split(SLAB, other), strict=True)
        for given, made in parts:  # few at a time, since spectra take several times the memory
            spectrum = torch.fft.rfft(given, dim=axis)
            if size % 2 == 0:  # the highest frequency stands for both signs
                spectrum.select(axis, size // 2).mul_(0.5)
            finer = torch.fft.irfft(spectrum, n=2 * size, dim=axis)
            torch.mul(finer.narrow(axis, 0, 2 * size - 1), 2, out=made)
        volume = fine
    return volume


def turning(size: Sequence[int], zooms: Tensor, degrees: Tensor) -> Tensor:
    """A turn about the centre for ``affine_grid`` (corners aligned), rigid in mm: (1, 3, 4).

    Args:
        size: of the volume along x, y and z, in voxels.
        zooms: (3,) voxel size in mm.
        degrees: (3,) angles about x, y and z.
    """
    a, b, c = (math.radians(float(d)) for d in degrees)
    one = torch.tensor([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    two = torch.tensor([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    three = torch.tensor([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    rotation = (one @ two @ three).to(torch.float32)
    # grid_sample works in the order z, y, x of units that span the volume
    side = zooms.cpu() * torch.tensor([n - 1 for n in size], dtype=torch.float32) / 2
    theta = torch.zeros(1, 3, 4)
    theta[0, :, :3] = ((rotation.T * side[None, :]) / side[:, None]).flip(0, 1)
    return theta


def _rotated(fine: Tensor, zooms: Tensor, degrees: Tensor) -> Tensor:
    """A volume turned about its centre by three angles, rigidly in mm.

    Args:
        fine: what :func:`_twice_as_fine` gave, from which a linear interpolation blurs hardly.
        zooms: (3,) voxel size of the volume in mm.
        degrees: (3,) angles about x, y and z.
    """
    size = [(n + 1) // 2 for n in fine.shape]
    theta = turning(size, zooms, degrees)
    turned = fine.new_empty(size)
    start = 0
    for part in turned.tensor_split(math.ceil(size[0] / SLAB)):  # coordinates take much memory
        ends = torch.tensor([start, start + len(part) - 1]) * (2 / max(size[0] - 1, 1)) - 1
        own = theta.clone()
        own[0, :, 3] = theta[0, :, 2] * float(ends.mean())
        own[0, :, 2] = theta[0, :, 2] * float(ends.diff()) / 2
        grid = F.affine_grid(own.to(fine), [1, 1, *part.shape], align_corners=True)
        part[:] = F.grid_sample(fine[None, None], grid, align_corners=True)[0, 0]
        start += len(part)
    return turned


def phase_ramp(frequency: Tensor, millimetres: float, zoom: float) -> Tensor:
    """Phase ramp of a shift, at frequencies in cycles per voxel."""
    angle = -2 * math.pi * frequency * (millimetres / zoom)
    return torch.polar(torch.ones_like(angle), angle)


def quantised(position: Tensor, origin: float, states: int) -> Tensor:
    """Positions along a trajectory relative to ``origin``, which is one of a few steps.

    Args:
        position: (lines,) from :func:`trajectory`.
        origin: the position at which the head is not moved.
        states: greatest number of positions told apart.

    Returns:
        (lines,) rounded positions; what stays together has exactly the same value.
    """
    centred = position - origin
    step = max(2 * float(centred.abs().max()) / states, 1e-6)
    return torch.round(centred / step) * step


def corrupt(
    volume: Tensor,
    zooms: Tensor,
    position: Tensor,
    direction: Tensor,
    *,
    axis: int = 1,
    states: int = 16,
    phase: Tensor | None = None,
    origin: float | None = None,
) -> Tensor:
    """Magnitude image of a head that moved while its k-space was filled line by line.

    Args:
        volume: (x, y, z) clean magnitude of the whole head.
        zooms: (3,) voxel size in mm.
        position: (lines,) from :func:`trajectory`; as many lines as voxels along ``axis``, in
            acquisition order from the most negative to the most positive frequency.
        direction: (6,) translations in mm along x, y, z and rotations in degrees about them.
        axis: phase-encoding axis.
        states: greatest number of rigid positions told apart.
        phase: (x, y, z) phase image in radians, standing still; none leaves the volume real.
        origin: position at which the head is where the volume has it, such as
            :func:`mean_position`; None: that of the k-space centre, which is then not moved.

    Returns:
        (x, y, z) magnitude; no motion returns the volume.

    Raises:
        ValueError: the trajectory has not one entry per line.
    """
    lines = volume.shape[axis]
    if position.shape != (lines,):
        raise ValueError(f"{tuple(position.shape)} positions for {lines} phase-encoding lines")
    origin = float(position[lines // 2]) if origin is None else origin
    if float((position - origin).abs().max()) * float(direction.abs().max()) < 1e-6:
        return volume.clone()
    level = quantised(position, origin, states)
    frequency = torch.fft.fftshift(torch.fft.fftfreq(lines, device=volume.device))
    order = [a for a in range(3) if a != axis] + [axis]
    places = torch.arange(lines, device=volume.device, dtype=torch.float32)
    composite = torch.zeros([volume.shape[a] for a in order], dtype=torch.complex64,
                            device=volume.device)
    coil = None if phase is None else torch.polar(torch.ones_like(phase), phase).permute(order)
    fine = _twice_as_fine(volume) if bool(direction[3:].any()) else None
    for value in level.unique():
        chosen = torch.nonzero(level == value)[:, 0].to(volume.device)
        pose = direction * float(value)
        moved = volume if fine is None or not value else _rotated(fine, zooms, pose[3:])
        moved = moved.permute(order)
        angle = -2 * math.pi * places[:, None] * frequency[chosen][None, :]
        kernel = torch.polar(torch.ones_like(angle), angle)
        kernel = kernel * phase_ramp(frequency[chosen], float(pose[axis]), float(zooms[axis]))
        part = torch.matmul(moved.to(torch.complex64), kernel) if coil is None else torch.matmul(
            moved * coil, kernel
        )
        if float(pose[:3].abs().max()) > 0:
            part = torch.fft.fft2(part, dim=(0, 1))
            for place, real in enumerate(order[:2]):
                across = torch.fft.fftfreq(part.shape[place], device=part.device)
                ramp = phase_ramp(across, float(pose[real]), float(zooms[real]))
                part = part * (ramp[:, None, None] if place == 0 else ramp[None, :, None])
            part = torch.fft.ifft2(part, dim=(0, 1))
        composite[..., chosen] = part
    back: Tensor = torch.fft.ifft(torch.fft.ifftshift(composite, dim=2), dim=2)
    inverse = [order.index(a) for a in range(3)]
    return back.abs().permute(inverse).contiguous()


def readout_blur(
    volume: Tensor, sigma: float, generator: torch.Generator, *, axis: int = 0
) -> Tensor:
    """Blur along the readout: every k-space line is shifted by a random sub-voxel distance.

    Args:
        volume: (x, y, z).
        sigma: standard deviation of the shift in voxels.
        generator: source of randomness (CPU).
        axis: readout axis.
    """
    if sigma <= 0:
        return volume.clone()
    others = [a for a in range(3) if a != axis]
    shift = torch.randn([volume.shape[a] for a in others], generator=generator).to(volume) * sigma
    spectrum = torch.fft.fftn(volume).movedim(axis, -1)
    frequency = torch.fft.fftfreq(volume.shape[axis], device=volume.device)
    angle = -2 * math.pi * shift[..., None] * frequency
    spectrum = spectrum * torch.polar(torch.ones_like(angle), angle)
    back: Tensor = torch.fft.ifftn(spectrum.movedim(-1, axis))
    return back.abs()
