"""Conform a volume to the model grid and restore it to the native grid.

Both grids share their axes: the model grid is the image's own, turned to the closest RAS+
orientation, with isotropic voxels. So every resampling is three one-dimensional ones, each a small
matrix (cubic spline interpolation, averaged over the target voxel where that is the larger), and an
oblique image is never rotated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.interpolate import make_interp_spline
from scipy.ndimage import affine_transform

__all__ = [
    "Grid",
    "axis_matrix",
    "box_around",
    "conform",
    "crop_to_mask",
    "model_grid",
    "onto_grid",
    "resample",
    "restore",
]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """The model grid of one image, and how it lies on the image's own axes.

    Attributes:
        axes: the image axis that becomes x, y, z of the grid.
        flips: whether that axis is reversed.
        start: position of the grid's first voxel centre, in native voxels along each *grid* axis
            (after turning and flipping).
        step: native voxels per grid voxel along each grid axis.
        shape: voxels of the grid.
        native: shape of the image after turning (grid axis order).
        affine: (4, 4) grid voxel -> RAS+ mm.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    start: tuple[float, float, float]
    step: tuple[float, float, float]
    shape: tuple[int, int, int]
    native: tuple[int, int, int]
    affine: npt.NDArray[np.float64]


def crop_to_mask(mask: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """First and last-plus-one index of the mask along each axis.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("the mask is empty")
    bounds = []
    for axis in range(mask.ndim):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        bounds.append((int(line[0]), int(line[-1]) + 1))
    return tuple(bounds)


def box_around(
    mask: npt.NDArray[np.bool_], zooms: npt.NDArray[np.float64], margin: float = 10.0
) -> tuple[slice, slice, slice]:
    """The mask's bounding box and a margin in mm around it, within the image.

    Args:
        mask: (x, y, z).
        zooms: (3,) voxel size in mm.
        margin: in mm, to every side.

    Raises:
        ValueError: the mask is empty.
    """
    cut = [
        slice(max(low - math.ceil(margin / zoom), 0), min(high + math.ceil(margin / zoom), size))
        for (low, high), zoom, size in zip(crop_to_mask(mask), zooms, mask.shape, strict=True)
    ]
    return cut[0], cut[1], cut[2]


def model_grid(
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    voxel: float,
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    margin: float = 5.0,
) -> Grid:
    """The isotropic RAS+ grid over an image, or over the bounding box of a mask in it.

    Args:
        shape: (x, y, z) voxels of the image.
        affine: (4, 4) image voxel -> RAS+ mm.
        voxel: side of the grid's voxels in mm.
        mask: (x, y, z) where the grid is needed; everywhere without.
        margin: mm added around the mask.
    """
    orientation = nib.io_orientation(affine)
    axes = tuple(int(np.flatnonzero(orientation[:, 0] == g)[0]) for g in range(3))
    flips = tuple(bool(orientation[a, 1] < 0) for a in axes)
    zooms = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(0))
    bounds = crop_to_mask(mask) if mask is not None else tuple((0, n) for n in shape)
    start, step, size = [], [], []
    for axis, flip in zip(axes, flips, strict=True):
        low, high = bounds[axis]
        if flip:
            low, high = shape[axis] - high, shape[axis] - low
        pad = margin / zooms[axis] if mask is not None else 0.0
        first, last = max(low - pad, 0.0) - 0.5, min(high + pad, shape[axis]) - 0.5
        ratio = voxel / zooms[axis]
        count = max(int(np.ceil((last - first) / ratio - 1e-6)), 1)
        middle = (first + last) / 2
        start.append(float(middle - (count - 1) / 2 * ratio))
        step.append(float(ratio))
        size.append(count)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for g, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        turn[axis, g] = -step[g] if flip else step[g]
        turn[axis, 3] = shape[axis] - 1 - start[g] if flip else start[g]
    return Grid(
        axes=(axes[0], axes[1], axes[2]),
        flips=(flips[0], flips[1], flips[2]),
        start=(start[0], start[1], start[2]),
        step=(step[0], step[1], step[2]),
        shape=(size[0], size[1], size[2]),
        native=(shape[axes[0]], shape[axes[1]], shape[axes[2]]),
        affine=np.asarray(affine) @ turn,
    )


def axis_matrix(
    inputs: int, start: float, step: float, outputs: int, *, order: int = 3
) -> Array:
    """Matrix that resamples a line of voxels.

    Interpolates with a spline through the voxel centres; where the target voxel is larger than the
    source voxel, averages over its extent. Outside the line the nearest voxel's value is taken.

    Args:
        inputs: source voxels.
        start: centre of the first target voxel, in source voxels.
        step: source voxels per target voxel.
        outputs: target voxels.
        order: degree of the spline, 1 or 3.

    Returns:
        (outputs, inputs) float32, every row sums to 1.
    """
    if inputs == 1:
        return np.ones((outputs, 1), np.float32)
    order = order if inputs > order else 1
    spline = make_interp_spline(np.arange(inputs), np.eye(inputs), k=order)
    parts = max(int(np.ceil(2 * step)), 1) if step > 1 + 1e-6 else 1
    offsets = ((np.arange(parts) + 0.5) / parts - 0.5) * step
    centres = start + step * np.arange(outputs)
    points = np.clip(centres[:, None] + offsets, 0, inputs - 1)
    matrix = spline(points.ravel()).reshape(outputs, parts, inputs).mean(1)
    return np.asarray(matrix, np.float32)


def resample(volume: Array, matrices: tuple[Array, Array, Array]) -> Array:
    """Apply one matrix along each axis of ``volume`` (x, y, z)."""
    for axis, matrix in enumerate(matrices):
        moved = np.moveaxis(volume, axis, 0)
        flat = matrix @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
        volume = np.moveaxis(flat.reshape(matrix.shape[0], *moved.shape[1:]), 0, axis)
    return np.ascontiguousarray(volume)


def conform(volume: Array, grid: Grid, *, order: int = 3) -> Array:
    """Resample an image to its model grid: (native x, y, z) -> ``grid.shape``."""
    turned = np.transpose(volume, grid.axes)
    turned = np.flip(turned, tuple(g for g in range(3) if grid.flips[g]))
    m = [
        axis_matrix(grid.native[g], grid.start[g], grid.step[g], grid.shape[g], order=order)
        for g in range(3)
    ]
    return resample(turned, (m[0], m[1], m[2]))


def restore(volume: Array, grid: Grid, *, order: int = 3) -> Array:
    """Resample a volume on the model grid to the image's own: ``grid.shape`` -> native (x, y, z).

    Voxels of the image that lie outside the grid take the value of the grid's border.
    """
    m = [
        axis_matrix(
            grid.shape[g], -grid.start[g] / grid.step[g], 1 / grid.step[g], grid.native[g],
            order=order,
        )
        for g in range(3)
    ]
    turned = resample(volume, (m[0], m[1], m[2]))
    turned = np.flip(turned, tuple(g for g in range(3) if grid.flips[g]))
    return np.ascontiguousarray(np.transpose(turned, np.argsort(grid.axes)))


def onto_grid(
    volume: Array,
    affine: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    target: npt.NDArray[np.float64],
) -> Array:
    """Bring an image to any other grid in the same world space, linearly; 0 outside it.

    Args:
        volume: (x, y, z).
        affine: (4, 4) of ``volume``.
        shape: of the wanted grid.
        target: (4, 4) of the wanted grid.
    """
    if volume.shape == tuple(shape) and np.allclose(affine, target, atol=1e-3):
        return volume.copy()
    step = np.linalg.inv(affine) @ target
    moved = affine_transform(volume, step[:3, :3], step[:3, 3], output_shape=shape, order=1)
    return np.asarray(moved, np.float32)
