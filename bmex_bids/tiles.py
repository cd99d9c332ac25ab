"""Tiles that cover a volume: their size, their places, and the weights that blend them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["NoTileError", "ramps", "tile_shape"]


class NoTileError(MemoryError):
    """Not even the smallest tile fits."""


def tile_shape(
    shape: Sequence[int], most: int, limit: int | None, *, multiple: int, overlap: int
) -> tuple[int, int, int]:
    """The tile of at most ``most`` voxels that covers ``shape`` with the least computation.

    Args:
        shape: (x, y, z) voxels, multiples of ``multiple``.
        most: voxels of one tile.
        limit: longest side of a tile, None for no limit.
        multiple: of which sides and starts of tiles are multiples.
        overlap: voxels that neighbouring tiles share.

    Raises:
        NoTileError: not even the smallest tile has so few voxels.
    """
    sides: list[list[tuple[int, int]]] = []  # per axis: how many tiles, and how long they are
    for n in shape:
        axis = [(1, n)]
        while axis[-1][1] > overlap + multiple:
            count = axis[-1][0] + 1
            units = -(-(n + (count - 1) * overlap) // (count * multiple))
            axis.append((count, max(units * multiple, overlap + multiple)))
        sides.append([(c, t) for c, t in axis if limit is None or t <= max(limit, axis[-1][1])])
    fitting = [k for k in itertools.product(*sides) if math.prod(t for _, t in k) <= most]
    if not fitting:
        smallest = " x ".join(str(axis[-1][1]) for axis in sides)
        raise NoTileError(
            f"not even a tile of {smallest} voxels fits into the memory for the network: allow "
            "more (--mem), use --precision bfloat16 or the smaller bundled weights, or free the "
            "device"
        )
    best = min(fitting, key=lambda k: (math.prod(c * t for c, t in k), k))
    return best[0][1], best[1][1], best[2][1]


def ramps(
    n: int, tile: int, overlap: int, multiple: int
) -> list[tuple[int, npt.NDArray[np.float32]]]:
    """Starts of tiles along one axis and their blending weights, which sum to one everywhere.

    The outer quarter of an overlap has weight zero, because a network sees nothing beyond its
    tile; the weights rise linearly over the middle half. Starts are multiples of ``multiple``, so
    that a network's coarser levels fall on the same voxels as in the whole volume.
    """
    if n <= tile:
        return [(0, np.ones(n, np.float32))]
    count = 1 + -(-(n - tile) // (tile - overlap))
    room = (n - tile) // multiple
    starts = [room * k // (count - 1) * multiple for k in range(count)]
    inside = np.arange(tile) + 0.5
    rise = np.clip((inside - overlap / 4) / max(overlap / 2, 1), 0, 1)
    weights = np.zeros((count, n))
    for k, start in enumerate(starts):
        low = rise if k else np.ones(tile)
        high = rise[::-1] if k < count - 1 else np.ones(tile)
        weights[k, start : start + tile] = low * high
    weights /= weights.sum(0)
    return [
        (start, weights[k, start : start + tile].astype(np.float32))
        for k, start in enumerate(starts)
    ]
