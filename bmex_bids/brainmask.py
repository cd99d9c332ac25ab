"""Brain extraction with a small network on a coarse grid: any contrast, any age, in seconds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import nn

from bmex_bids.inference import Compute, mask_volume
from bmex_bids.spatial import conform, crop_to_mask, model_grid, restore

__all__ = ["brain_mask", "brain_probability", "clean_mask", "head_gain", "is_stripped", "support"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
SMALLEST_BRAIN_ML = 15.0  # a fetus of 18 weeks has about 20 mL


def head_gain(volume: Array) -> float:
    """The factor that takes the head's bright tissue to 1, whatever the field of view.

    Air is left out by a threshold at a tenth of the brightest voxels. Training and inference use
    this same function.

    Args:
        volume: (x, y, z) intensities.

    Raises:
        ValueError: nothing in the image is above zero.
    """
    flat = volume.ravel()[:: max(volume.size // 500_000, 1)]
    top = float(np.quantile(flat, 0.999))
    if not top > 0:
        top = float(volume.max())
        if not top > 0:
            raise ValueError("no voxel is above zero; expected a magnitude image")
    return 1.0 / float(np.quantile(flat[flat > 0.1 * top], 0.9)) if (flat > 0.1 * top).any() else (
        1.0 / top
    )


def clean_mask(mask: Mask) -> Mask:
    """The largest connected part, with its holes filled.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("no brain was found in the image")
    box = tuple(slice(low, high) for low, high in crop_to_mask(mask))
    parts, _ = ndimage.label(mask[box])
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    cleaned = np.zeros(mask.shape, bool)
    cleaned[box] = ndimage.binary_fill_holes(parts == int(sizes.argmax()))
    return cleaned


def support(volume: Array) -> Mask:
    """Where the image is not zero: the largest part, holes filled."""
    return clean_mask(volume != 0)


def is_stripped(volume: Array, brain: Mask) -> bool:
    """Whether the image holds little but the brain.

    True where at least a third of the image is exactly zero and what is not zero is about the brain
    that the network finds: at most 1.35 times as large, with nine tenths of the brain inside.

    Args:
        volume: (x, y, z) intensities.
        brain: (x, y, z) the network's mask.
    """
    if float((volume == 0).mean()) < 1 / 3 or not brain.any():
        return False
    body = support(volume)
    covered = float((body & brain).sum()) / float(brain.sum())
    return bool(covered > 0.9 and float(body.sum()) < 1.35 * float(brain.sum()))


def brain_probability(
    volume: Array, network: nn.Module, compute: Compute, *, scale: float | None = None
) -> Array:
    """Probability that a voxel belongs to the brain, on the network's grid.

    The mean of what the network says of the head and of its mirror image; a network with a scale of
    its own, as the published one, sees the head alone.

    Args:
        volume: (x, y, z) intensities, x from left to right or from right to left.
        network: of kind ``brainmask``.
        compute: device and precision.
        scale: what the intensities are multiplied by; :func:`head_gain` without.

    Returns:
        (x, y, z) from 0 to 1.
    """
    head = np.maximum(volume, 0)
    head = np.clip(head * (scale or head_gain(head)), 0, 4)
    found = mask_volume(network, head, compute)
    if scale is not None:
        return found
    mirrored = mask_volume(network, np.ascontiguousarray(head[::-1]), compute)[::-1]
    return (found + mirrored) / np.float32(2)


def brain_mask(
    volume: Array,
    affine: npt.NDArray[np.float64],
    network: nn.Module,
    compute: Compute,
    *,
    grid_mm: float = 1.6,
    scale: float | None = None,
) -> tuple[Mask, bool]:
    """Find the brain.

    Args:
        volume: (x, y, z) intensities, 0 and above.
        affine: (4, 4) voxel -> RAS+ mm.
        network: of kind ``brainmask``.
        compute: device and precision.
        grid_mm: voxel side of the network's grid.
        scale: what the intensities are multiplied by; :func:`head_gain` without.

    Returns:
        The (x, y, z) mask, and whether the image was already skull-stripped, in which case the mask
        is what is left of the image.

    Raises:
        ValueError: no brain was found.
    """
    grid = model_grid(volume.shape, affine, grid_mm)
    coarse = brain_probability(conform(volume, grid, order=1), network, compute, scale=scale)
    probability = restore(coarse, grid, order=1)
    found = probability > 0.5
    if not found.any():
        raise ValueError("no brain was found in the image")
    mask = clean_mask(found)
    volume_ml = float(mask.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    if volume_ml < SMALLEST_BRAIN_ML:
        raise ValueError(
            f"no brain was found in the image (only {volume_ml:.1f} mL look like one); is it a "
            "head? Give a brain mask through --derivatives if it is"
        )
    if is_stripped(volume, mask):
        return support(volume), True
    return mask, False
