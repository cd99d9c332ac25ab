"""Tissue labels by tools that know nothing of the methods compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bmex_bids.evaluation.baselines.filters import Mask, Volume, through

__all__ = ["labels_of"]

ATROPOS = """
import sys, ants, numpy as np
given, mask = (ants.from_numpy(np.load(p).astype("float32")) for p in sys.argv[1:3])
made = ants.atropos(a=given, x=mask, i="kmeans[3]", m="[0.1,1x1x1]", c="[5,0]")
np.save(sys.argv[3], made["segmentation"].numpy().astype("float32"))
"""


def labels_of(
    volume: Volume, mask: Mask, condition: str, ants: str | None
) -> npt.NDArray[np.uint8]:
    """CSF 1, GM 2, WM 3 of an adult's or older child's brain, (x, y, z).

    By Atropos (doi:10.1007/s12021-011-9109-y) where a Python with antspyx is given, else by a
    mixture of three Gaussians without neighbourhood. Classes are told apart by their brightness.
    """
    if ants is not None:
        found = through(ants, ATROPOS, volume, mask).astype(np.uint8)[mask]
    else:
        from sklearn.mixture import GaussianMixture

        values = volume[mask][:, None].astype(np.float64)
        mixture = GaussianMixture(3, random_state=0)
        found = mixture.fit(values[:: max(len(values) // 30_000, 1)]).predict(values) + 1
    means = [float(volume[mask][found == c].mean()) if (found == c).any() else 0.0
             for c in (1, 2, 3)]
    order = np.argsort(means)
    if condition.startswith("T2w"):
        order = order[::-1]
    names = np.zeros(4, np.uint8)
    names[order + 1] = (1, 2, 3)
    made = np.zeros(mask.shape, np.uint8)
    made[mask] = names[found]
    return made
