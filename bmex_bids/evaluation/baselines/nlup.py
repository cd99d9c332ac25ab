"""Non-local upsampling with the subsampling consistency.

Manjon et al. 2010, doi:10.1016/j.media.2010.05.010: alternate between a non-local average, which
lets similar neighbourhoods sharpen each other, and a correction after which the mean over each
thick slice is again what was measured; the filter's strength is halved as the image settles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bmex_bids.evaluation.baselines.filters import Mask, Method, Volume
from bmex_bids.spatial import axis_matrix
from bmex_bids.training.degrade import along, slice_grid

__all__ = ["consistent", "non_local", "upsampled"]

STRENGTHS = (0.12, 0.06, 0.03, 0.015)  # of the filter, relative to the brain's median


def non_local(volume: Tensor, strength: float, *, reach: int = 2) -> Tensor:
    """Average of the neighbours, weighted by how alike their 3 x 3 x 3 neighbourhoods are.

    Args:
        volume: (x, y, z).
        strength: difference of neighbourhoods at which the weight is 1/e.
        reach: voxels that the search window reaches along each axis.
    """
    total, weights = torch.zeros_like(volume), torch.zeros_like(volume)
    steps = range(-reach, reach + 1)
    for shift in ((a, b, c) for a in steps for b in steps for c in steps):
        other = volume.roll(shift, (0, 1, 2))
        gap = torch.nn.functional.avg_pool3d(
            ((other - volume) ** 2)[None, None], 3, stride=1, padding=1, count_include_pad=False
        )[0, 0]
        weight = torch.exp(-gap / strength**2)
        total += weight * other
        weights += weight
    return total / weights


def consistent(volume: Tensor, measured: Tensor, down: Tensor, axis: int) -> Tensor:
    """The volume changed by as little as makes its thick slices those that were measured.

    Args:
        volume: (x, y, z).
        measured: the thick slices, the same shape but ``slices`` long along ``axis``.
        down: (slices, size), the mean over each slice.
        axis: of the thick slices.
    """
    missing = measured - along(volume, axis, down)
    return volume + along(missing, axis, torch.linalg.pinv(down))


def upsampled(factor: float, *, axis: int = 2) -> Method:
    """Method for images whose slices were ``factor`` voxels thick before interpolation.

    The thick slices are recovered from the interpolated image by least squares.
    """

    def method(volume: Volume, mask: Mask, condition: str) -> Volume:
        given = torch.from_numpy(volume)
        size = volume.shape[axis]
        slices, start = slice_grid(size, factor)
        down = torch.from_numpy(axis_matrix(size, start, factor, slices)).float()
        up = torch.from_numpy(axis_matrix(slices, -start / factor, 1 / factor, size)).float()
        measured = along(given, axis, torch.linalg.pinv(up))
        made = given
        for strength in STRENGTHS:
            made = consistent(non_local(made, strength), measured, down, axis)
        return (made.clamp_min(0) * torch.from_numpy(mask)).numpy()

    return method
