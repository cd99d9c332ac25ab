"""Intensities: bias field, the scale that the networks see, the common scale, histograms.

Every function takes arrays and returns arrays; none changes its input.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.optimize import nnls
from scipy.stats import wasserstein_distance

__all__ = [
    "EDGES",
    "anchors_to_reference",
    "apply_anchors",
    "bias_field",
    "brain_gain",
    "distance_after",
    "histogram",
    "histogram_distance",
    "nearest_mixture",
    "tissue_histograms",
    "tissue_medians",
]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

EDGES: npt.NDArray[np.float64] = np.linspace(0.0, 1000.0, 101)
"""Bin edges of every stored histogram, on the common scale."""
BLOCK_MM = 2.0  # side of the blocks whose means the bias field is estimated from
ITERATIONS = (50, 50, 30)  # greatest number of N4's per level of its B-spline
WEAK_FIELD = 0.03  # standard deviation of the field's logarithm in the brain; N4 finds less in
STRONG_FIELD = 0.09  # most clean images. A stronger one than this is worth the finest level


def brain_gain(volume: Array, mask: Mask) -> float:
    """The factor that takes the brain's median intensity to 1.

    One factor and no offset, so that zero stays zero and the image can be scaled back exactly. The
    median hardly moves under noise, motion and errors of the mask. Training and inference use this
    same function.

    Args:
        volume: (x, y, z) intensities, 0 and above in the brain.
        mask: (x, y, z) brain.

    Raises:
        ValueError: the mask is empty, or the brain's median is not positive.
    """
    if not mask.any():
        raise ValueError("the brain mask is empty")
    median = float(np.median(volume[mask]))
    if not median > 0:
        raise ValueError(
            f"the brain's median intensity is {median:g}; expected a magnitude image, above zero"
        )
    return 1.0 / median


def bias_field(
    volume: Array,
    mask: Mask,
    zooms: npt.NDArray[np.float64],
    *,
    spacing: float = 6.0,
) -> Array:
    """Multiplicative bias field by N4 (doi:10.1109/TMI.2010.2046908).

    Estimated inside the mask on a shrunken image, evaluated at full resolution. Shrinking averages
    blocks of about 2 mm, since noise misleads the estimate, and then takes every third one, since
    larger blocks mix the tissues. The field's geometric mean in the mask is 1, so that dividing by
    it keeps the brain's overall intensity.

    N4 takes a part of the anatomy for shading, the more the finer the field may vary. So a strong
    field alone is estimated at the finest level, and a weak one, such as N4 finds in images that
    have none, is left in the image: it is 1 everywhere. ``benchmarks/bias.py`` measures it.

    Args:
        volume: (x, y, z) intensities.
        mask: (x, y, z) brain.
        zooms: (3,) voxel size in mm.
        spacing: voxel size in mm of the shrunken image.

    Returns:
        (x, y, z) field, between 0.2 and 5; the image divided by it is corrected.
    """
    image = _sitk(np.where(mask, np.maximum(volume, 0), 0).astype(np.float32), zooms)
    blocks, steps = _shrink_factors(volume.shape, zooms, spacing)
    share = sitk.BinShrink(_sitk(mask.astype(np.float32), zooms), blocks)
    total = sitk.BinShrink(image, blocks)
    small = sitk.Shrink(sitk.Divide(total, sitk.Maximum(share, 1e-3)), steps)
    inside = sitk.Shrink(sitk.Cast(share > 0.5, sitk.sitkUInt8), steps)
    if not sitk.GetArrayViewFromImage(inside).any():
        return np.ones_like(volume)
    corrector = _n4(small, inside, ITERATIONS[:-1])
    log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(small))
    strength = float(log_field[sitk.GetArrayViewFromImage(inside) > 0].std())
    if strength < WEAK_FIELD:
        return np.ones_like(volume)
    if strength > STRONG_FIELD:
        corrector = _n4(small, inside, ITERATIONS)
    log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    field = log_field.T.astype(np.float32)
    field -= field[mask].mean()
    return np.exp(np.clip(field, np.log(0.2), np.log(5.0)), dtype=np.float32)


def _n4(
    image: sitk.Image, inside: sitk.Image, iterations: tuple[int, ...]
) -> sitk.N4BiasFieldCorrectionImageFilter:
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(list(iterations))
    corrector.SetConvergenceThreshold(1e-4)
    corrector.Execute(image, inside)
    return corrector


def _shrink_factors(
    shape: tuple[int, ...], zooms: npt.NDArray[np.float64], spacing: float
) -> tuple[list[int], list[int]]:
    """Voxels per averaged block and blocks per voxel of the shrunken image, along each axis."""
    blocks, steps = [], []
    for size, zoom in zip(shape, zooms, strict=True):
        whole = min(max(int(round(spacing / float(zoom))), 1), max(size // 8, 1))
        blocks.append(min(max(int(round(BLOCK_MM / float(zoom))), 1), whole))
        steps.append(max(whole // blocks[-1], 1))
    return blocks, steps


def _sitk(array: npt.NDArray[np.generic], zooms: npt.NDArray[np.float64]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing([float(z) for z in zooms])
    return image


def tissue_medians(volume: Array, probabilities: Array) -> dict[str, float]:
    """Median intensity of the voxels that belong to each tissue as surely as can be had.

    A voxel counts from a probability of 0.8; where a tissue has fewer than 50 such voxels (its
    contrast is low in infants), from 0.65, else from 0.5.

    Args:
        volume: (x, y, z).
        probabilities: (3, x, y, z) of CSF, GM, WM.

    Returns:
        ``CSF``, ``GM`` and ``WM``; tissues without 50 voxels at any of these are left out.
    """
    medians = {}
    for name, share in zip(("CSF", "GM", "WM"), probabilities, strict=True):
        for sure in (0.8, 0.65, 0.5):
            chosen = volume[share > sure]
            if chosen.size >= 50:
                medians[name] = float(np.median(chosen))
                break
    return medians


def anchors_to_reference(
    found: Mapping[str, float], reference: Mapping[str, float]
) -> list[tuple[float, float]]:
    """Points of the map from an image's intensities to the common scale.

    Zero stays zero; each tissue's intensity goes to the reference's; above the brightest tissue the
    map goes on with the last slope. The line through grey and white matter reaches half-way to
    their neighbours, and four fifths of the way to zero where they are the darkest, so that nearly
    all voxels of both are mapped by one line: the contrast between them, relative to their spread
    (TCT), is then the image's and not the map's. The map rises everywhere, so that it can be
    inverted: tissues closer than 5% of the brightest, or in another order than in the reference,
    are merged.

    Args:
        found: tissue intensities of the image.
        reference: tissue intensities of the stage's reference.

    Returns:
        (intensity, common scale) pairs in rising order, the first (0, 0).

    Raises:
        ValueError: no tissue is in both.
    """
    shared = sorted((found[k], reference[k], k) for k in found if k in reference and found[k] > 0)
    if not shared:
        raise ValueError("no tissue was found whose intensity the reference knows")
    top = shared[-1]
    kept = [top]
    for given, wanted, name in reversed(shared[:-1]):
        later = kept[0]
        if later[0] - given > 0.05 * top[0] and later[1] - wanted > 0.02 * top[1]:
            kept.insert(0, (given, wanted, name))
    points = [(0.0, 0.0), *((given, wanted) for given, wanted, _ in kept)]
    names = ["", *(name for _, _, name in kept)]
    for low in range(1, len(names) - 1):
        if {names[low], names[low + 1]} == {"GM", "WM"}:
            return _straight_around(points, low)
    return points


def _straight_around(points: list[tuple[float, float]], low: int) -> list[tuple[float, float]]:
    """Let the line from point ``low`` to the next reach towards the points around them."""
    (x0, y0), (x1, y1) = points[low], points[low + 1]
    made = list(points)
    for near, far, place in ((low + 1, low + 2, low + 2), (low, low - 1, low)):
        if far >= len(points):
            continue
        reach = 0.5 if far else 0.8  # no tissue lies at zero
        middle = (1 - reach) * points[near][0] + reach * points[far][0]
        ends = sorted((points[near][1], points[far][1]))
        room = 0.1 * (ends[1] - ends[0])  # so that the map still rises
        height = y0 + (y1 - y0) * (middle - x0) / (x1 - x0)
        made.insert(place, (middle, min(max(height, ends[0] + room), ends[1] - room)))
    return made


def apply_anchors(volume: Array, anchors: list[tuple[float, float]]) -> Array:
    """Map intensities piecewise linearly through the anchors, going on with the last slope."""
    given = np.array([a for a, _ in anchors], np.float64)
    wanted = np.array([b for _, b in anchors], np.float64)
    slope = (wanted[-1] - wanted[-2]) / (given[-1] - given[-2])
    far = max(float(volume.max(initial=0.0)), given[-1]) + 1.0
    given = np.append(given, far)
    wanted = np.append(wanted, wanted[-1] + slope * (far - given[-2]))
    mapped = np.empty(volume.shape, np.float32)
    for index, part in enumerate(volume):  # interp computes in float64
        mapped[index] = np.interp(part, given, wanted)
    return mapped


def histogram(volume: Array, mask: Mask) -> npt.NDArray[np.float64]:
    """Share of the mask's voxels per bin of :data:`EDGES`; the end bins take what lies beyond."""
    inside = np.clip(volume[mask], EDGES[0], EDGES[-1])
    counts, _ = np.histogram(inside, EDGES)
    return counts / max(int(counts.sum()), 1)


def tissue_histograms(
    volume: Array, labels: npt.NDArray[np.integer]
) -> dict[str, list[float]]:
    """:func:`histogram` of CSF, GM and WM (labels 1, 2, 3), of those there are, to 7 digits."""
    return {
        name: [round(float(share), 7) for share in histogram(volume, labels == tissue)]
        for tissue, name in enumerate(("CSF", "GM", "WM"), 1)
        if (labels == tissue).any()
    }


def histogram_distance(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> float:
    """Wasserstein-1 distance of two histograms over :data:`EDGES`, in units of the common scale."""
    centres = (EDGES[:-1] + EDGES[1:]) / 2
    return float(wasserstein_distance(centres, centres, first, second))


def nearest_mixture(
    density: npt.NDArray[np.float64], parts: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Shares of the parts whose sum comes nearest to a histogram (least squares, cumulative).

    Args:
        density: (bins,) shares of a histogram.
        parts: (parts, bins) histograms, each of sum 1.

    Returns:
        (parts,) shares of 0 and above, of sum 1.
    """
    steps = np.cumsum(parts, axis=1).T
    certain = 1e3  # the weight of the sum of the shares being 1
    system = np.vstack([steps, np.full(len(parts), certain)])
    shares, _ = nnls(system, np.append(np.cumsum(density), certain))
    found: npt.NDArray[np.float64] = shares / shares.sum()
    return found


def distance_after(
    values: Array,
    anchors: list[tuple[float, float]],
    parts: npt.ArrayLike,
    *,
    most: int = 200_000,
) -> float:
    """Distance to a reference that a brain would have on the common scale.

    Args:
        values: (voxels,) intensities in the brain.
        anchors: of the map to the common scale.
        parts: (parts, 100) shares per bin of :data:`EDGES`: of the reference's tissues, which the
            brain may have in any proportion, or of the reference as a whole, one part.
        most: voxels that are looked at, evenly spaced.

    Returns:
        :func:`histogram_distance` in units of the common scale.
    """
    some = values[:: max(values.size // most, 1)]
    mapped = apply_anchors(some[None], anchors)[0]
    found, tissues = histogram(mapped, np.ones(some.shape, bool)), np.asarray(parts)
    return histogram_distance(found, nearest_mixture(found, tissues) @ tissues)
