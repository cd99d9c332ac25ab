"""Image quality measures: arrays -> floats.

Measures that compare tissues need the labels they are given with; the same labels and mask must
serve before and after.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

__all__ = [
    "cjv",
    "cnr",
    "data_consistency",
    "dice",
    "noise_sd",
    "psnr",
    "quality_index",
    "ssim",
    "tct",
    "volume_ml",
]

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
CSF, GM, WM = 1, 2, 3


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


def psnr(volume: Array, reference: Array, mask: Mask, data_range: float) -> float:
    """Peak signal-to-noise ratio inside a mask in dB; higher is better.

    ``20 log10(data_range) - 10 log10(mean squared error)``.
    """
    error = float(((volume[mask].astype(np.float64) - reference[mask]) ** 2).mean())
    return float("inf") if error == 0 else float(20 * np.log10(data_range) - 10 * np.log10(error))


def ssim(volume: Array, reference: Array, mask: Mask, data_range: float) -> float:
    """Mean structural similarity inside a mask, -1 to 1; higher is better.

    3-D, uniform window of 7 voxels, K1 0.01, K2 0.03 (doi:10.1109/TIP.2003.819861); both images are
    set to 0 outside the mask first.
    """
    _, full = structural_similarity(
        np.where(mask, volume, 0).astype(np.float32),
        np.where(mask, reference, 0).astype(np.float32),
        data_range=data_range,
        win_size=7,
        full=True,
    )
    return float(full[mask].mean(dtype=np.float64))


def data_consistency(before: Array, after: Array, mask: Mask) -> float:
    """How much of the given image the result contradicts, 0 to about 1; lower is better.

    Root mean square of the difference over that of the first image, inside the mask; give both
    low-pass filtered, so that removed noise and ghosts do not count.
    """
    given = before[mask].astype(np.float64)
    size = float((given**2).mean())
    error = float(((after[mask] - given) ** 2).mean())
    return (error / size) ** 0.5 if size > 0 else float("nan")
