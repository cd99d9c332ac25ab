"""Intensities: bias field, the scale that the networks see, the common scale, histograms.

Every function takes arrays and returns arrays; none changes its input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["brain_gain"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


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
