"""Non-local means: every voxel as the mean of voxels nearby whose surroundings look alike.

Buades et al., Multiscale Model Simul 4:490-530 (2005), doi:10.1137/040616024; for MRI Coupé et al.,
IEEE Trans Med Imaging 27:425-441 (2008), doi:10.1109/TMI.2007.906087. It has nothing to learn;
an enhancement network may take such means of several strengths as what it mixes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["noise_level", "nonlocal_means", "without_noise"]

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
SQUARED_REACH = 5  # voxels: a mean is of the 56 neighbours at most so far away
BEST = 1.6  # strength for a standard deviation of 1
FAINT = 0.01  # of the median
PATCH = 27  # voxels of the surroundings that are compared, 3 x 3 x 3
REACH = 3  # voxels to each side on which a mean depends: a neighbour and its surroundings


@torch.no_grad()
def nonlocal_means(x: Tensor, strongest: float, count: int) -> Tensor:
    """Means of similar voxels in several strengths; no gradient goes through them.

    A neighbour weighs exp(-d / s^2), where d is the mean squared difference of the 3 x 3 x 3 voxels
    around it from those around the voxel, and s the strength; the voxel itself weighs 1. At the
    border the outermost voxels are repeated.

    Args:
        x: (b, 1, x, y, z), float32.
        strongest: s of the first, in the image's own units; :data:`BEST` standard deviations of the
            noise serve best.
        count: how many; each has the former's strength divided by the square root of 2.

    Returns:
        (b, count, x, y, z).
    """
    wide = F.pad(x, (REACH,) * 6, mode="replicate")
    total = [torch.zeros_like(wide) for _ in range(count)]
    weight = [torch.zeros_like(wide) for _ in range(count)]
    for shift in _half_of_the_neighbours():
        here, there = _overlap(shift, wide.shape[2:])
        one, other = wide[here], wide[there]
        distance = _sums((one - other).square_())
        inner = (..., *(slice(1, -1),) * 3)
        one, other = one[inner], other[inner]
        alike = distance.mul_(-1 / (PATCH * strongest**2)).exp_()
        for k in range(count):
            if k:
                alike = alike.square()  # which is the exponential of half the squared strength
            for place, neighbour in ((here, other), (there, one)):
                total[k][place][inner].addcmul_(alike, neighbour)
                weight[k][place][inner].add_(alike)
    core = (..., *(slice(REACH, -REACH),) * 3)
    return torch.cat([(x + t[core]) / (1 + w[core])
                      for t, w in zip(total, weight, strict=True)], 1)


def noise_level(volume: Volume, mask: Mask) -> float:
    """Standard deviation of white noise in a mask, whatever the image shows.

    The median absolute detail of the finest Haar wavelet along all three axes at once (Donoho &
    Johnstone, Biometrika 81:425-455 (1994), doi:10.1093/biomet/81.3.425). Noise that was
    interpolated is smooth, and hardly seen.

    Args:
        volume: (x, y, z).
        mask: (x, y, z) of the voxels that are looked at.

    Returns:
        In the volume's unit; 0 if no block of 2 x 2 x 2 voxels lies in the mask.
    """
    even = tuple(slice(side // 2 * 2) for side in volume.shape)
    detail, inside = volume[even].astype(np.float32), mask[even]
    for axis in range(3):
        first = (slice(None),) * axis + (slice(0, None, 2),)
        second = (slice(None),) * axis + (slice(1, None, 2),)
        detail = (detail[first] - detail[second]) / np.float32(2**0.5)
        inside = inside[first] & inside[second]
    return float(np.median(np.abs(detail[inside])) / 0.6745) if inside.any() else 0.0


def without_noise(volume: Volume, mask: Mask) -> Volume:
    """A clean image as a target or a reference: white noise taken out by non-local means.

    What is called clean often is not: noise that stays in a target teaches to keep it, and noise in
    a reference is held against whatever removes it.

    Args:
        volume: (x, y, z).
        mask: (x, y, z) in which the noise is estimated, see :func:`noise_level`.

    Returns:
        (x, y, z); the volume itself if its noise is weaker than :data:`FAINT`.
    """
    sigma = noise_level(volume, mask)
    if not sigma > FAINT * float(np.median(volume[mask])):
        return volume
    given = torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None, None]
    made: Volume = nonlocal_means(given, BEST * sigma, 1)[0, 0].numpy()
    return made


def _half_of_the_neighbours() -> list[tuple[int, ...]]:
    """One of each two neighbours that lie opposite."""
    far = range(-int(SQUARED_REACH**0.5), int(SQUARED_REACH**0.5) + 1)
    return [
        shift for shift in itertools.product(far, repeat=3)
        if shift > (0, 0, 0) and sum(step**2 for step in shift) <= SQUARED_REACH
    ]


def _overlap(
    shift: tuple[int, ...], size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where voxels have a neighbour at ``shift``, and where those neighbours are."""
    batch = (slice(None), slice(None))
    here = tuple(slice(max(0, -k), n - max(0, k)) for k, n in zip(shift, size, strict=True))
    there = tuple(slice(max(0, k), n + min(0, k)) for k, n in zip(shift, size, strict=True))
    return batch + here, batch + there


def _sums(x: Tensor) -> Tensor:
    """Sum over the 3 x 3 x 3 voxels around each one but the outermost."""
    for axis in (2, 3, 4):
        size = x.shape[axis] - 2
        x = x.narrow(axis, 0, size) + x.narrow(axis, 1, size) + x.narrow(axis, 2, size)
    return x
