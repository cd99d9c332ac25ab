"""Image quality measures: arrays -> floats.

Measures that compare tissues need the labels they are given with; the same labels and mask must
serve before and after.

Measures against a reference (mse, psnr, ssim, ms_ssim, uqi, vif) are taken inside a mask: both
images are set to 0 outside it, a local map is computed over the mask's bounding box (0 beyond it),
and its values are averaged (vif: added up) over the mask. ``data_range`` is the span of intensities
that counts as full scale. With ``axis`` the window is 2-D, across that axis, as the measures were
published; the scores of the slices are averaged with the mask's area in each as weight. Without it
the window is 3-D. A 3-D value and a slice-wise one must not be compared with each other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d, gaussian_filter

from bmex_bids.spatial import crop_to_mask

__all__ = [
    "cjv",
    "cnr",
    "data_consistency",
    "dice",
    "is_contradiction",
    "ms_ssim",
    "mse",
    "noise_sd",
    "psnr",
    "quality_index",
    "ssim",
    "tct",
    "uqi",
    "vif",
    "volume_difference",
    "volume_ml",
]

Array = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
CSF, GM, WM = 1, 2, 3
K1, K2 = 0.01, 0.03  # of SSIM
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, finest scale first
COARSE_MM = 6.0  # full width at half maximum of the filter of data consistency
FWHM_PER_SIGMA = 2.3548  # of a Gaussian
CONSISTENT = (0.01, 0.05)  # data consistency above these, in all or at one place, is told
VISUAL_NOISE = 2.0  # of VIF: variance of the visual noise, on a scale of 0 to 255


def _moments(volume: Array, labels: Labels, tissue: int) -> tuple[float, float]:
    values = volume[labels == tissue]
    if values.size < 2:
        return float("nan"), float("nan")
    return float(values.mean(dtype=np.float64)), float(values.var(dtype=np.float64))


def tct(volume: Array, labels: Labels) -> float:
    """Tissue contrast t-score, ``|mean_WM - mean_GM| / sqrt(var_WM + var_GM)``; higher is better.

    Equation 1 of doi:10.1038/s41551-024-01283-7. Smoothing raises it, so it is never shown alone.

    Args:
        volume: (x, y, z) intensities, any scale.
        labels: (x, y, z) 0 background, 1 CSF, 2 GM, 3 WM.

    Returns:
        The score; NaN where a tissue is missing or nothing varies.
    """
    white, grey = _moments(volume, labels, WM), _moments(volume, labels, GM)
    spread = white[1] + grey[1]
    return abs(white[0] - grey[0]) / spread**0.5 if spread > 0 else float("nan")


def cjv(volume: Array, labels: Labels) -> float:
    """Coefficient of joint variation, ``(sd_WM + sd_GM) / |mean_WM - mean_GM|``; lower is better.

    doi:10.1371/journal.pone.0184661 (MRIQC).
    """
    white, grey = _moments(volume, labels, WM), _moments(volume, labels, GM)
    gap = abs(white[0] - grey[0])
    return (white[1] ** 0.5 + grey[1] ** 0.5) / gap if gap > 0 else float("nan")


def noise_sd(volume: Array, labels: Labels) -> float:
    """Noise within white matter, in the unit of the intensities; lower is better.

    From differences of neighbours along the first axis that are both white matter, by the median
    absolute deviation: ``1.4826 * MAD / sqrt(2)``.
    """
    white = labels == WM
    both = white[1:] & white[:-1]
    if int(both.sum()) < 50:
        return float("nan")
    step = (volume[1:] - volume[:-1])[both].astype(np.float64)
    return float(1.4826 * np.median(np.abs(step - np.median(step))) / np.sqrt(2))


def cnr(volume: Array, labels: Labels) -> float:
    """Contrast to noise, ``|mean_WM - mean_GM| /`` :func:`noise_sd`; higher is better."""
    noise = noise_sd(volume, labels)
    gap = abs(_moments(volume, labels, WM)[0] - _moments(volume, labels, GM)[0])
    return gap / noise if noise > 0 else float("nan")


def quality_index(before: float, after: float) -> float:
    """QI = TCT(original) / TCT(enhanced); 1 where the original could not be improved."""
    return before / after if after > 0 else float("nan")


def volume_ml(labels: Labels, tissue: int, voxel_mm3: float) -> float:
    """Volume of one tissue in mL."""
    return float(np.count_nonzero(labels == tissue)) * voxel_mm3 / 1000


def dice(first: Mask, second: Mask) -> float:
    """Dice overlap of two masks, 0 to 1; NaN where both are empty."""
    size = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / size if size else float("nan")


def volume_difference(found: Mask, truth: Mask) -> float:
    """Difference of two volumes in percent of the second; 0 is best, above 0 is too large."""
    size = int(truth.sum())
    return 100 * (int(found.sum()) - size) / size if size else float("nan")


def mse(volume: Array, reference: Array, mask: Mask) -> float:
    """Mean squared error inside a mask, in squared units of the intensity; lower is better."""
    return float(((volume[mask].astype(np.float64) - reference[mask]) ** 2).mean())


def psnr(volume: Array, reference: Array, mask: Mask, data_range: float) -> float:
    """Peak signal-to-noise ratio inside a mask in dB; higher is better.

    ``20 log10(data_range) - 10 log10(mse)``.
    """
    error = mse(volume, reference, mask)
    return float("inf") if error == 0 else float(20 * np.log10(data_range) - 10 * np.log10(error))


def ssim(
    volume: Array,
    reference: Array,
    mask: Mask,
    data_range: float,
    *,
    axis: int | None = None,
    window: Literal["gaussian", "uniform"] = "gaussian",
) -> float:
    """Mean structural similarity inside a mask, -1 to 1; higher is better.

    doi:10.1109/TIP.2003.819861, K1 0.01, K2 0.03.

    Args:
        volume: (x, y, z).
        reference: (x, y, z).
        mask: (x, y, z).
        data_range: span of intensities that counts as full scale.
        axis: across which 2-D windows lie; 3-D windows without.
        window: ``gaussian`` as published, 11 voxels wide with a standard deviation of 1.5, or
            ``uniform`` of 7 voxels with the sample covariance (the default of scikit-image).

    Raises:
        ValueError: shapes differ, the mask is empty, or ``data_range`` is not positive.
    """
    x, y, inside = _prepared(volume, reference, mask, data_range, full_scale=1.0)
    axes = _across(axis)
    kernel = _gaussian(11, 1.5) if window == "gaussian" else np.full(7, 1 / 7)
    count = 7 ** len(axes)
    sample = count / (count - 1) if window == "uniform" else 1.0
    luminance, structure = _ssim_maps(x, y, kernel, axes, sample=sample)
    return float((luminance * structure)[inside].mean())


def ms_ssim(
    volume: Array, reference: Array, mask: Mask, data_range: float, *, axis: int | None = None
) -> float:
    """Multi-scale structural similarity inside a mask, 0 to 1; higher is better.

    doi:10.1109/ACSSC.2003.1292216: five scales, each the last one averaged over 2 x 2 (x 2) voxels,
    with the window of :func:`ssim`. Contrast and structure are averaged over the mask at every
    scale, luminance at the coarsest, negative means count as 0, and the product is taken with the
    published weights. A coarser voxel is in the mask when half of its voxels are. Slices (with
    ``axis``) of which nothing is left at the coarsest scale do not count.

    Raises:
        ValueError: as :func:`ssim`, or the mask is too small for five scales.
    """
    x, y, inside = _prepared(volume, reference, mask, data_range, full_scale=1.0)
    axes, kernel = _across(axis), _gaussian(11, 1.5)
    area, share = inside.sum(axes), inside.astype(np.float64)
    score: Doubles = np.ones(area.shape)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            x, y, share = (_halved(v, axes) for v in (x, y, share))
            inside = share >= 0.5
        luminance, found = _ssim_maps(x, y, kernel, axes)
        if scale == len(SCALE_WEIGHTS) - 1:
            found = found * luminance
        count = inside.sum(axes)
        mean = (found * inside).sum(axes) / np.where(count, count, 1)
        score = score * np.where(count, np.maximum(mean, 0), np.nan) ** weight
    known = np.isfinite(score)
    if not known.any():
        raise ValueError("the mask is too small for five scales: nothing is left at the coarsest")
    return float((score * area)[known].sum() / area[known].sum())


def uqi(volume: Array, reference: Array, mask: Mask, *, axis: int | None = None) -> float:
    """Universal quality index inside a mask, -1 to 1; higher is better.

    doi:10.1109/97.995823: SSIM with C1 = C2 = 0 and a uniform window of 8 voxels, which reaches
    from 4 voxels before its voxel to 3 behind it. It does not depend on the intensity scale, and
    hardly forgives noise where the reference is flat. In windows without any variance only the
    means are compared.

    Raises:
        ValueError: shapes differ, or the mask is empty.
    """
    x, y, inside = _prepared(volume, reference, mask, 1.0, full_scale=1.0)
    mean_x, mean_y, var_x, var_y, shared = _local(x, y, np.full(8, 1 / 8), _across(axis))
    level, spread = mean_x**2 + mean_y**2, var_x + var_y
    flat, dark = spread <= 1e-12 * level, level <= 0
    means = np.where(dark, 1.0, 2 * mean_x * mean_y / np.where(dark, 1, level))
    varying = np.where(flat, 1.0, 2 * shared / np.where(flat, 1, spread))
    return float((means * varying)[inside].mean())


def vif(
    volume: Array, reference: Array, mask: Mask, data_range: float, *, axis: int | None = None
) -> float:
    """Visual information fidelity inside a mask, 0 and above, 1 for equal images; higher is better.

    The pixel-domain version (VIFp) of doi:10.1109/TIP.2005.859378: four scales with Gaussian
    windows of 17, 9, 5 and 3 voxels (standard deviation a fifth of it), each scale filtered and
    halved, variance of the visual noise 2 after ``data_range`` is brought to 255. The information
    of all scales is added up before the ratio is taken. Sharpening can raise it above 1. The
    published measure is slice-wise (``axis``); without, the same windows are taken in 3-D.

    Raises:
        ValueError: as :func:`ssim`.
    """
    x, y, inside = _prepared(volume, reference, mask, data_range, full_scale=255.0)
    axes = _across(axis)
    area = inside.sum(axes)
    kept, there = np.zeros(area.shape), np.zeros(area.shape)
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        kernel = _gaussian(size, size / 5)
        if scale:
            # the published code drops size // 2 voxels at the border, then takes every second
            cut = tuple(slice(size // 2 % 2 if a in axes else 0, None, 2 if a in axes else 1)
                        for a in range(3))
            x, y = (_filtered(v, kernel, axes)[cut] for v in (x, y))
            inside = inside[cut]
        gained, given = _information(x, y, kernel, axes)
        kept += (gained * inside).sum(axes)
        there += (given * inside).sum(axes)
    known = (there > 0) & (area > 0)
    if not known.any():
        return float("nan")
    return float((kept / np.where(known, there, 1) * area)[known].sum() / area[known].sum())


def data_consistency(
    before: Array, after: Array, mask: Mask, zooms: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """How much of the given image the result contradicts, 0 to about 1; lower is better.

    The difference over the root mean square of the given image, inside the mask, both after a
    Gaussian filter of 6 mm full width at half maximum, so that removed noise does not count.

    Args:
        before: (x, y, z) the image as given.
        after: (x, y, z) the result, on the same scale.
        mask: (x, y, z) bool; what lies outside does not count.
        zooms: (3,) voxel size in mm.

    Returns:
        The root mean square of the difference, and the largest, which one place decides; NaN for
        an image of zeros.
    """
    sigma = COARSE_MM / FWHM_PER_SIGMA / np.asarray(zooms, np.float64)
    given = gaussian_filter(np.where(mask, before, 0), sigma)[mask].astype(np.float64)
    change = gaussian_filter(np.where(mask, after - before, 0), sigma)[mask].astype(np.float64)
    size = float((given**2).mean())
    if not size > 0:
        return float("nan"), float("nan")
    return float((change**2).mean() / size) ** 0.5, float(np.abs(change).max()) / size**0.5


def is_contradiction(everywhere: float, worst: float) -> bool:
    """Tell whether :func:`data_consistency` says that the result contradicts the image."""
    return everywhere > CONSISTENT[0] or worst > CONSISTENT[1]


def _prepared(
    volume: Array, reference: Array, mask: Mask, data_range: float, *, full_scale: float
) -> tuple[Doubles, Doubles, Mask]:
    """Both images and the mask over the mask's bounding box, 0 outside the mask, rescaled."""
    if not volume.shape == reference.shape == mask.shape:
        raise ValueError(
            f"image {volume.shape}, reference {reference.shape} and mask {mask.shape} differ in "
            "shape; resample the image onto the grid of the reference first"
        )
    if not data_range > 0:
        raise ValueError(f"data_range is {data_range:g}; expected the span of the intensities")
    box = tuple(slice(low, high) for low, high in crop_to_mask(mask))
    inside = mask[box]
    factor = full_scale / data_range
    x, y = (np.where(inside, v[box].astype(np.float64) * factor, 0) for v in (volume, reference))
    return x, y, inside


def _across(axis: int | None) -> tuple[int, ...]:
    """The axes that a window spans."""
    return tuple(a for a in range(3) if a != axis)


def _gaussian(size: int, sigma: float) -> Doubles:
    line = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-0.5 * (line / sigma) ** 2)
    return np.asarray(kernel / kernel.sum())


def _filtered(volume: Doubles, kernel: Doubles, axes: tuple[int, ...]) -> Doubles:
    for axis in axes:
        volume = correlate1d(volume, kernel, axis, mode="constant")
    return volume


def _local(
    x: Doubles, y: Doubles, kernel: Doubles, axes: tuple[int, ...]
) -> tuple[Doubles, Doubles, Doubles, Doubles, Doubles]:
    """Means, variances and covariance of two images in a window around every voxel."""
    mean_x, mean_y = _filtered(x, kernel, axes), _filtered(y, kernel, axes)
    var_x = np.maximum(_filtered(x * x, kernel, axes) - mean_x**2, 0)
    var_y = np.maximum(_filtered(y * y, kernel, axes) - mean_y**2, 0)
    return mean_x, mean_y, var_x, var_y, _filtered(x * y, kernel, axes) - mean_x * mean_y


def _ssim_maps(
    x: Doubles, y: Doubles, kernel: Doubles, axes: tuple[int, ...], *, sample: float = 1.0
) -> tuple[Doubles, Doubles]:
    """Luminance, and contrast times structure, of images with a data range of 1."""
    mean_x, mean_y, var_x, var_y, shared = _local(x, y, kernel, axes)
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * sample * shared + K2**2) / (sample * (var_x + var_y) + K2**2)
    return luminance, structure


def _halved(volume: Doubles, axes: tuple[int, ...]) -> Doubles:
    """Means of two voxels along each axis; a line of odd length goes on with 0."""
    for axis in axes:
        if volume.shape[axis] % 2:
            volume = np.pad(volume, [(0, int(a == axis)) for a in range(volume.ndim)])
        first = [slice(None)] * volume.ndim
        second = [slice(None)] * volume.ndim
        first[axis], second[axis] = slice(0, None, 2), slice(1, None, 2)
        volume = (volume[tuple(first)] + volume[tuple(second)]) / 2
    return volume


def _information(
    x: Doubles, reference: Doubles, kernel: Doubles, axes: tuple[int, ...]
) -> tuple[Doubles, Doubles]:
    """Information that an image shares with the reference, and that the reference has, per voxel.

    Locally the image is a gain times the reference plus noise; an image that runs against the
    reference is all noise.
    """
    _, _, var_x, var_y, shared = _local(x, reference, kernel, axes)
    tiny = 1e-10
    none = (var_y < tiny) | (var_x < tiny)
    gain = np.where(none, 0, np.maximum(shared / (var_y + tiny), 0))
    noise = np.where(gain > 0, np.maximum(var_x - gain * shared, tiny), var_x)
    gained = np.log10(1 + gain**2 * var_y / (noise + VISUAL_NOISE))
    return gained, np.log10(1 + np.where(var_y < tiny, 0, var_y) / VISUAL_NOISE)
