"""The common scale of an age stage: by the medians of the tissues, or by one factor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bmex_bids import intensity
from bmex_bids.weights import ModelRecord

__all__ = ["BY_MEDIAN", "BY_TISSUES", "Scaling", "map_to_reference", "median_of"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
FARTHER = 1.1  # than by one factor may a brain's histogram come by its tissues; people differ


@dataclass(frozen=True)
class Scaling:
    """How an image came to the common scale, in words, and why not by its tissues."""

    text: str
    refusal: str | None = None


BY_TISSUES = Scaling(
    "common scale of the age stage: bias-corrected, zero stays zero, the medians of CSF, GM and WM "
    "are those of the stage's reference, piecewise linear between them"
)
BY_MEDIAN = Scaling(
    "common scale of the age stage: bias-corrected, by one factor, so that the brain's median is "
    "that of the stage's reference"
)


def map_to_reference(
    restored: Array, mask: Mask, probabilities: Array, record: ModelRecord
) -> tuple[list[tuple[float, float]], Scaling]:
    """The map of a brain's intensities to the common scale of its age stage.

    The tissues' medians make the map, unless it takes the brain's histogram clearly farther from
    the stage's reference than one factor does. Then the labels are wrong, or the brain has another
    contrast than the reference, and one factor is taken. The reference's tissues count in the
    proportion that comes nearest, since a brain may have more fluid, or less, with right labels.

    Args:
        restored: (x, y, z) intensities.
        mask: (x, y, z) the brain.
        probabilities: (3, x, y, z) of CSF, GM and WM.
        record: the model, with its ``reference``.

    Returns:
        Points for :func:`bmex_bids.intensity.apply_anchors`, and what the map is.
    """
    reference = record.reference or {}
    values = restored[mask]
    plain = [(0.0, 0.0), (float(np.median(values[values > 0])), median_of(record))]
    found = intensity.tissue_medians(restored, probabilities)
    if not set(reference.get("TissueMeans", {})) & set(found):
        return plain, BY_MEDIAN
    anchors = intensity.anchors_to_reference(found, reference["TissueMeans"])
    if "TissueDensity" in reference:
        parts = list(reference["TissueDensity"].values())
    elif "Density" in reference:
        parts = [reference["Density"]]
    else:
        return anchors, BY_TISSUES
    by_tissues, by_median = (
        intensity.distance_after(values, points, parts) for points in (anchors, plain)
    )
    if by_tissues <= FARTHER * by_median:
        return anchors, BY_TISSUES
    return plain, replace(
        BY_MEDIAN,
        refusal="scaled by one factor: the medians of the tissues would take the histogram farther "
        f"from the age stage's reference (distance {by_tissues:.1f}, by one factor "
        f"{by_median:.1f}): this brain has another contrast than the reference, or wrong labels",
    )


def median_of(record: ModelRecord) -> float:
    """The brain's median on the common scale."""
    return float((record.reference or {}).get("Median", 300.0))
