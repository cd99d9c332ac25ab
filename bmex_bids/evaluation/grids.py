"""Images onto the grid of a reference, the mask to compare in, and a common intensity scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform, gaussian_filter

from bmex_bids.brainmask import brain_mask, is_stripped, support
from bmex_bids.image import Image, ImageError, load_image
from bmex_bids.inference import resolve
from bmex_bids.metrics import FWHM_PER_SIGMA
from bmex_bids.spatial import axis_matrix, onto_grid, resample
from bmex_bids.weights import find_mask_model, list_models, load_network, models_dir

__all__ = ["labels_onto", "match_scale", "onto_reference", "reference_mask"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]


def reference_mask(
    image: Image, given: Path | None, metadata: Mapping[str, object]
) -> tuple[Mask, str, bool]:
    """Where a clean image is compared with others.

    Args:
        image: the clean image.
        given: brain mask of a derivative dataset, if there is one.
        metadata: its sidecar; ``SkullStripped`` counts.

    Returns:
        The (x, y, z) mask; where it comes from; whether the image is skull-stripped.

    Raises:
        ValueError: no brain was found, or the mask given lies elsewhere.
    """
    if given is not None:
        mask = load_image(given)
        inside = onto_grid(mask.data, mask.affine, image.data.shape, image.affine) > 0.5
        if not inside.any():
            raise ImageError(f"{given.name}: the mask does not overlap the image")
        return inside, "derivatives", is_stripped(image.data, inside)
    if metadata.get("SkullStripped") is True:
        return support(image.data), "voxels that are not 0", True
    record = find_mask_model(list_models(models_dir(None)), model_set="bundled")
    inside, stripped = brain_mask(
        np.maximum(image.data, 0),
        image.affine,
        load_network(record),
        resolve("cpu", "auto"),
        grid_mm=record.grid_mm,
        scale=record.head_scale,
    )
    return inside, "voxels that are not 0" if stripped else "brain extraction", stripped


def onto_reference(image: Image, reference: Image) -> Array:
    """Bring an image to the grid of another in the same world space.

    Cubic splines; where both grids share their axes, voxels larger than the image's own take the
    mean over their extent. Outside the image the nearest voxel counts.

    Args:
        image: what is brought.
        reference: whose grid is wanted.
    """
    shape = reference.data.shape
    if image.data.shape == shape and np.allclose(image.affine, reference.affine, atol=1e-3):
        return image.data.copy()
    step = np.linalg.inv(image.affine) @ reference.affine
    # source axis of each target axis, if every target axis has one of its own
    axes = np.abs(step[:3, :3]).argmax(0)
    rest = np.abs(step[:3, :3]).copy()
    rest[axes, range(3)] = 0
    if len(set(axes)) < 3 or rest.max() * max(shape) > 0.05:
        moved = affine_transform(
            image.data, step[:3, :3], step[:3, 3], output_shape=shape, order=3, mode="nearest"
        )
        return np.asarray(moved, np.float32)
    volume = np.transpose(image.data, axes)
    matrices = []
    for axis, source in enumerate(axes):
        ratio, start = float(step[source, axis]), float(step[source, 3])
        size = image.data.shape[source]
        if ratio < 0:
            volume = np.flip(volume, axis)
            ratio, start = -ratio, size - 1 - start
        matrices.append(axis_matrix(size, start, ratio, shape[axis]))
    return resample(volume, (matrices[0], matrices[1], matrices[2]))


def labels_onto(image: Image, reference: Image) -> npt.NDArray[np.uint8]:
    """Bring a label image to the grid of another, by the nearest voxel; 0 outside."""
    if image.data.shape == reference.data.shape and np.allclose(
        image.affine, reference.affine, atol=1e-3
    ):
        return np.rint(image.data).astype(np.uint8)
    step = np.linalg.inv(image.affine) @ reference.affine
    moved = affine_transform(
        np.rint(image.data), step[:3, :3], step[:3, 3], output_shape=reference.data.shape, order=0
    )
    return np.asarray(moved, np.uint8)


def match_scale(
    volume: Array, reference: Array, mask: Mask, zooms: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """The line that takes an image's intensities to those of a reference.

    Both images are smoothed within the mask (6 mm, at least 2.4 voxels at half maximum), so that
    noise, which would flatten the line, does not count; least squares without voxels beyond 4
    robust standard deviations of the image's intensity, and then five times without those whose
    residual is beyond 2.5. Voxels that are exactly 0 in the image do not count.

    Args:
        volume: (x, y, z) on the grid of the reference.
        reference: (x, y, z).
        mask: (x, y, z).
        zooms: (3,) voxel size in mm.

    Returns:
        Slope and offset: ``slope * volume + offset``.

    Raises:
        ValueError: the image is constant in the mask, or runs against the reference.
    """
    inside = mask & (volume != 0)
    if np.count_nonzero(inside) < 100 or np.ptp(volume[inside]) == 0:
        raise ValueError("the image is empty or constant inside the mask of the reference")
    sigma = [max(6.0 / FWHM_PER_SIGMA / float(z), 1.0) for z in zooms]
    weight = gaussian_filter(inside.astype(np.float32), sigma)[inside]
    x, y = (
        gaussian_filter(np.where(inside, v, 0).astype(np.float32), sigma)[inside] / weight
        for v in (volume, reference)
    )
    x, y = x.astype(np.float64), y.astype(np.float64)
    kept = _close(x, 4.0)  # something bright elsewhere must not draw the line towards it
    slope = offset = 0.0
    for _ in range(6):
        spread = float(x[kept].var())
        slope = float(((x[kept] - x[kept].mean()) * (y[kept] - y[kept].mean())).mean()) / spread
        offset = float(y[kept].mean()) - slope * float(x[kept].mean())
        kept = _close(y - slope * x - offset, 2.5)
    if not slope > 0:
        raise ValueError(
            "the image does not follow the reference (the fitted line falls); is it the same "
            "person, contrast and space?"
        )
    return slope, offset


def _close(values: npt.NDArray[np.float64], limit: float) -> Mask:
    """Which values lie within so many robust standard deviations (1.4826 MAD) of the median."""
    distance = np.abs(values - np.median(values))
    width = 1.4826 * float(np.median(distance))
    return np.asarray(distance <= limit * width)
