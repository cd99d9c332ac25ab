"""Ghosts of a moving head, found in the air around it.

A head that moves while its k-space is filled leaves ghosts along the phase-encoding axis, which do
not end at the head. So air that lies beside the head along one axis is brighter than air that lies
beside it along another, whatever the noise, which is the same in all of it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

__all__ = ["STRONG", "ghost_ratio"]

STRONG = 0.005
"""Ghost ratio above which a reader is told that the head seems to have moved."""
BLOCK_MM = 3.0
GAP_MM = 10.0  # around the head, where its own edge may blur
LEAST_BLOCKS = 100  # of air beside the head along one axis alone

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


def ghost_ratio(volume: Array, zooms: npt.NDArray[np.float64]) -> float:
    """Amplitude of the ghosts in the air around a head over the head's median; lower is better.

    The idea of the ghost-to-signal ratio of echo-planar images (doi:10.1120/jacmp.v11i4.3237),
    without knowledge of the phase-encoding axis: mean squares of the air beside the head along x
    alone, along y alone, along z alone and along none of them; the greatest of the first three less
    the least of all, less twice the standard error of that difference, under a square root.

    Args:
        volume: (x, y, z) magnitudes of a whole head, any scale.
        zooms: (3,) voxel size in mm.

    Returns:
        0 and more; NaN where there is no air to compare, as around a brain without its skull, or
        where the ghosts fill it.
    """
    sides = [max(round(BLOCK_MM / float(zoom)), 1) for zoom in zooms]
    if any(size < 4 * side for size, side in zip(volume.shape, sides, strict=True)):
        return math.nan
    mean, power = _blocks(volume, sides), _blocks(volume, sides, squared=True)
    block = np.asarray(zooms, np.float64) * sides
    found = _ratio(mean, power, block, _head(mean))
    if math.isnan(found):  # ghosts that stick to the head may have filled the air
        found = _ratio(mean, power, block, _head(mean, opened=True))
    return found


def _ratio(mean: Doubles, power: Doubles, block: Doubles, head: Mask | None) -> float:
    """The ghost ratio from blocks of these sides in mm, given where the head is."""
    if head is None:
        return math.nan
    around = ndimage.distance_transform_edt(~head, block) < GAP_MM
    air = ~around & (power > 0)  # zeros were written there, not measured
    beside = [np.broadcast_to(around.any(axis, keepdims=True), air.shape) for axis in range(3)]
    along: list[tuple[float, float]] = []
    for axis, own in enumerate(beside):
        first, second = (beside[other] for other in range(3) if other != axis)
        along += _mean_square(power[air & own & ~first & ~second])
    nowhere = _mean_square(power[air & ~beside[0] & ~beside[1] & ~beside[2]])
    if not along or len(along) + len(nowhere) < 2:
        return math.nan
    (most, error), (least, other_error) = max(along), min(along + nowhere)
    ghosts = max(most - least - 2 * math.hypot(error, other_error), 0.0)
    return math.sqrt(ghosts) / float(np.median(mean[head]))


def _blocks(volume: Array, sides: list[int], *, squared: bool = False) -> Doubles:
    """Mean intensity, or mean square, of the blocks that fit into a volume."""
    a, b, c = sides
    x, y, z = (size // side for size, side in zip(volume.shape, sides, strict=True))
    found = np.empty((x, y, z))
    for number, made in enumerate(found):  # a slab at a time, since a copy of all takes memory
        slab = volume[a * number : a * (number + 1), : b * y, : c * z]
        slab = slab.reshape(a, y, b, z, c)
        made[:] = np.mean(slab**2 if squared else slab, (0, 2, 4), dtype=np.float64)
    return found


def _head(mean: Doubles, *, opened: bool = False) -> Mask | None:
    """What is bright, in one piece, its dark layers closed; None where nothing is.

    ``opened`` takes away what is thin: ghosts, and with them the nose and the ears.
    """
    amplitude = np.sqrt(np.maximum(mean, 0))
    if not np.ptp(amplitude) > 0:
        return None
    bright = np.pad(amplitude > threshold_otsu(amplitude), 4)
    whole = ndimage.binary_closing(bright, iterations=3)
    if opened:
        whole = ndimage.binary_opening(whole, iterations=2)
    pieces, count = ndimage.label(whole[4:-4, 4:-4, 4:-4])
    if not count:
        return None
    head: Mask = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return head


def _mean_square(power: Doubles) -> list[tuple[float, float]]:
    """Mean of the blocks' mean squares and its standard error; empty where they are too few.

    Of the middle half of them: something that lies beside the head fills a part of the air alone.
    """
    if len(power) < LEAST_BLOCKS:
        return []
    low, high = np.quantile(power, (0.25, 0.75))
    middle = power[(power >= low) & (power <= high)]
    return [(float(middle.mean()), float(power.std()) / math.sqrt(len(power)))]
