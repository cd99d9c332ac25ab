"""One reference and all results for it -> rows of measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bmex_bids import metrics
from bmex_bids.evaluation.conditions import world_axis
from bmex_bids.evaluation.grids import labels_onto, match_scale, onto_reference, reference_mask
from bmex_bids.evaluation.pairing import Found, Pair, find_dseg, tissues
from bmex_bids.image import Image, load_image

__all__ = ["MEASURES", "Measure", "Measured", "Row", "Task", "measure_one"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Measure:
    """One measure: which direction is better (``near 0`` for differences), and what it is."""

    better: str
    text: str
    digits: int = 3


_RANGE = "Data range: 99.9th percentile of the reference in the mask."
_WINDOW = "Gaussian window of 11 voxels (standard deviation 1.5), K1 0.01, K2 0.03. " + _RANGE
_SLICES = "Axial slices, each weighted by the mask's area in it."
MEASURES = {
    "MSE": Measure("lower", f"Mean squared error, of intensities divided by the range. {_RANGE}",
                   5),
    "PSNR": Measure("higher", f"Peak signal-to-noise ratio in dB, 10 log10(1 / MSE). {_RANGE}", 2),
    "SSIM": Measure("higher", f"Structural similarity, 3-D. {_WINDOW}"),
    "MS-SSIM": Measure("higher", f"Multi-scale structural similarity, 3-D, five scales. {_WINDOW}"),
    "UQI": Measure("higher", "Universal quality index, 3-D, uniform window of 8 voxels."),
    "VIF": Measure("higher", "Visual information fidelity, pixel domain, four scales, extended to "
                   f"3-D; visual noise variance 2 on a scale of 0 to 255. {_RANGE}"),
    "SSIM2D": Measure("higher", f"SSIM, slice-wise. {_SLICES} {_WINDOW}"),
    "MS-SSIM2D": Measure("higher", f"MS-SSIM, slice-wise. {_SLICES} {_WINDOW}"),
    "UQI2D": Measure("higher", f"UQI, slice-wise. {_SLICES} Uniform window of 8 voxels."),
    "VIF2D": Measure("higher", f"VIF (VIFp), slice-wise as published. {_SLICES} Visual noise "
                     f"variance 2 on a scale of 0 to 255. {_RANGE}"),
    "TCT": Measure("higher", "Tissue contrast t-score with the reference's labels. Smoothing "
                   "raises it."),
    "QI": Measure("", "TCT of the baseline divided by TCT of the method.", 3),
    "CNR": Measure("higher", "White-grey contrast over the noise in white matter, the reference's "
                   "labels. Smoothing raises it."),
    "CJV": Measure("lower", "Coefficient of joint variation with the reference's labels. Smoothing "
                   "lowers it."),
    **{f"Dice{t}": Measure("higher", f"Overlap of {t} with the reference's labels.")
       for t in ("CSF", "GM", "WM")},
    **{f"Volume{t}": Measure("near 0", f"Volume of {t} minus the reference's, in percent of it.", 2)
       for t in ("CSF", "GM", "WM")},
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One reference image and what it is compared with.

    Attributes:
        reference: the clean image.
        metadata: its sidecar.
        mask: its brain mask in a derivative dataset, if any.
        labels: root of the dataset with its tissue labels and the label image, if any.
        pairs: the results.
        roots: method -> root of its dataset, where its own labels may be.
        wanted: names of measures.
        scale: ``linear`` or ``none``.
    """

    reference: Found
    metadata: Mapping[str, object]
    mask: Path | None
    labels: tuple[Path, Path] | None
    pairs: tuple[Pair, ...]
    roots: Mapping[str, Path]
    wanted: tuple[str, ...]
    scale: str


@dataclass(frozen=True)
class Row:
    """One value."""

    pair: Pair
    metric: str
    value: float


@dataclass(frozen=True)
class Measured:
    """What came of one task: rows; how each image was compared; problems in words."""

    rows: tuple[Row, ...] = ()
    images: tuple[dict[str, object], ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Reference:
    image: Image
    mask: Mask
    origin: str
    top: float
    labels: Labels | None


def measure_one(task: Task) -> Measured:
    """Measure all results of one reference; one that cannot be read does not stop the others."""
    try:
        reference = _reference(task)
    except (OSError, ValueError) as error:
        return Measured(failed=(f"{task.reference.path.name}: {error}",))
    rows: list[Row] = []
    images: list[dict[str, object]] = []
    failed: list[str] = []
    for pair in task.pairs:
        try:
            found = load_image(pair.result.path)
            volume, facts = comparable(found, reference.image, reference.mask, task.scale)
            values = _values(task, pair, volume, reference)
        except (OSError, ValueError) as error:
            failed.append(f"{pair.method}, {pair.result.path.name}: {error}")
            continue
        rows += [Row(pair, name, value) for name, value in values.items()]
        images.append({
            "method": pair.method, "condition": pair.condition,
            "reference": str(pair.reference.path), "result": str(pair.result.path),
            "mask": reference.origin, "mask_voxels": int(reference.mask.sum()),
            "data_range": reference.top, **facts,
        })  # fmt: skip
    return Measured(tuple(rows), tuple(images), tuple(failed))


def comparable(
    image: Image, reference: Image, mask: Mask, scale: str
) -> tuple[Array, dict[str, object]]:
    """An image on the grid and, with ``linear``, the intensity scale of a reference.

    Returns:
        (x, y, z) and what was done: ``resampled`` (yes or no), ``slope`` and ``offset``.
    """
    volume = onto_reference(image, reference)
    same = image.data.shape == reference.data.shape and np.array_equal(volume, image.data)
    slope, offset = 1.0, 0.0
    if scale == "linear":
        slope, offset = match_scale(volume, reference.data, mask, reference.zooms)
        # between a voxel that is 0, and stays so, and one that is not, the offset comes in by share
        there = replace(image, data=(image.data != 0).astype(np.float32))
        share = np.clip(onto_reference(there, reference), 0, 1)
        volume = (slope * volume + offset * share).astype(np.float32)
    return volume, {"resampled": "no" if same else "yes", "slope": slope, "offset": offset}


def _reference(task: Task) -> _Reference:
    image = load_image(task.reference.path)
    mask, origin, _ = reference_mask(image, task.mask, task.metadata)
    top = float(np.percentile(image.data[mask], 99.9))
    if not top > 0:
        raise ValueError("the reference is not above zero in its mask")
    labels = _labels(*task.labels, image) if task.labels else None
    return _Reference(image, mask, origin, top, labels)


def _labels(root: Path, path: Path, reference: Image) -> Labels:
    """Labels on the reference's grid, renumbered 1 CSF, 2 GM, 3 WM."""
    given = labels_onto(load_image(path), reference)
    made = np.zeros(given.shape, np.uint8)
    values = tissues(root, path)
    for name, number in (("CSF", metrics.CSF), ("GM", metrics.GM), ("WM", metrics.WM)):
        made[given == values[name]] = number
    return made


def _values(task: Task, pair: Pair, volume: Array, reference: _Reference) -> dict[str, float]:
    clean, mask, top = reference.image.data, reference.mask, reference.top
    axis = world_axis(reference.image.affine, "z")
    measures: dict[str, Callable[[], float]] = {
        "MSE": lambda: metrics.mse(volume, clean, mask) / top**2,
        "PSNR": lambda: metrics.psnr(volume, clean, mask, top),
        "SSIM": lambda: metrics.ssim(volume, clean, mask, top),
        "MS-SSIM": lambda: metrics.ms_ssim(volume, clean, mask, top),
        "UQI": lambda: metrics.uqi(volume, clean, mask),
        "VIF": lambda: metrics.vif(volume, clean, mask, top),
        "SSIM2D": lambda: metrics.ssim(volume, clean, mask, top, axis=axis),
        "MS-SSIM2D": lambda: metrics.ms_ssim(volume, clean, mask, top, axis=axis),
        "UQI2D": lambda: metrics.uqi(volume, clean, mask, axis=axis),
        "VIF2D": lambda: metrics.vif(volume, clean, mask, top, axis=axis),
    }
    labels = reference.labels
    if labels is not None:
        measures |= {
            "TCT": lambda: metrics.tct(volume, labels),
            "CNR": lambda: metrics.cnr(volume, labels),
            "CJV": lambda: metrics.cjv(volume, labels),
        }
        own = find_dseg(task.roots[pair.method], pair.result)
        if own is not None and any(n.startswith(("Dice", "Volume")) for n in task.wanted):
            found = _labels(task.roots[pair.method], own, reference.image)
            for name, number in (("CSF", metrics.CSF), ("GM", metrics.GM), ("WM", metrics.WM)):
                here, there = found == number, labels == number
                measures[f"Dice{name}"] = lambda a=here, b=there: metrics.dice(a, b)  # type: ignore[misc]
                measures[f"Volume{name}"] = lambda a=here, b=there: metrics.volume_difference(  # type: ignore[misc]
                    a, b
                )
    found_values = {name: measures[name]() for name in task.wanted if name in measures}
    return {name: value for name, value in found_values.items() if not math.isnan(value)}
