"""Tissue intensities of the image at hand, which sharpen what a classifier says of its tissues.

A network says roughly where tissues lie; which side of a border a voxel belongs to is in its
intensity beside that of the tissues around it. So the network's probabilities are the
prior of a mixture of Gaussians whose means vary over the brain, as in adaptive and atlas-based
segmentation (Pham and Prince, doi:10.1109/42.802752; Ashburner and Friston,
doi:10.1016/j.neuroimage.2005.02.018), with neighbours that are likely to be alike (Zhang et al.,
doi:10.1109/42.906424).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.similar import without_noise

__all__ = ["posterior"]

Volume = npt.NDArray[np.float32]

ROUNDS = 4
BLOCK = 4  # voxels a side, whose means the means over a neighbourhood are made of
BLOCKS = 5  # a side of a neighbourhood: 16 mm on a grid of 0.8 mm
WHOLE = 0.2  # weight of a tissue's mean in the whole brain beside its share of the neighbourhood
ALIKE = 1.0  # log odds of a tissue where all neighbours are of it
LEAST_SPREAD = 0.01  # of the brain's median
RARE = 1e-6


@torch.inference_mode()
def posterior(probabilities: Volume, volume: Volume) -> Volume:
    """Probabilities of the tissues given the network's and the intensities of the image.

    Background and lesions keep the probability that they have: a lesion's intensity is no tissue's.
    Half of the noise is taken out before. Labels that follow all of it make the contrast of the
    tissues in the image look better than it is; without any, they make it look worse.

    Args:
        probabilities: (4 or 5, x, y, z) background, CSF, GM, WM and lesions, of sum 1.
        volume: (x, y, z) the brain, 0 outside; of any scale.

    Returns:
        The same shape and sum; outside the brain, and where nothing is known of CSF, GM and WM,
        the probabilities given.
    """
    inside = volume > 0
    if not inside.any():
        return probabilities
    seen = 0.5 * (volume + without_noise(volume, inside))
    image = torch.from_numpy(np.ascontiguousarray(seen / np.median(volume[inside])))
    brain = torch.from_numpy(inside)
    total = torch.from_numpy(probabilities[1:4].sum(0))
    found = torch.from_numpy(probabilities[1:4].copy()).div_(total.clamp_min(RARE)).mul_(brain)
    prior = _around(found).add_(RARE).log_()
    for _ in range(ROUNDS):
        odds = _around(found).mul_(ALIKE).add_(prior)
        for tissue, share in enumerate(found):
            odds[tissue] += _log_likelihood(image, share)
        torch.softmax(odds, 0, out=found)
        found.mul_(brain)
    out = probabilities.copy()
    np.copyto(out[1:4], found.mul_(total).numpy(), where=inside)
    return out


def _log_likelihood(image: Tensor, share: Tensor) -> Tensor:
    """Of each voxel's intensity (x, y, z), if it were of the tissue that has these shares."""
    amount = share.sum().clamp_min(RARE)
    weighted = share * image
    parts = torch.stack((_blocks(share), _blocks(weighted)))
    near = F.avg_pool3d(F.pad(parts, (BLOCKS // 2,) * 6), BLOCKS, 1)
    coarse = (near[1] + WHOLE * (weighted.sum() / amount)) / (near[0] + WHOLE)
    fine = F.interpolate(
        coarse[None, None], scale_factor=float(BLOCK), mode="trilinear", align_corners=False
    )[0, 0]
    error = image - fine[: image.shape[0], : image.shape[1], : image.shape[2]]
    error.square_()
    variance = ((share * error).sum() / amount).clamp_min(LEAST_SPREAD**2)
    return error.mul_(-0.5 / variance).sub_(0.5 * variance.log())


def _blocks(volume: Tensor) -> Tensor:
    """Means of blocks of (x, y, z); those at the end are filled up with zeros."""
    pads = [n for size in reversed(volume.shape) for n in (0, -size % BLOCK)]
    return F.avg_pool3d(F.pad(volume, pads)[None], BLOCK)[0]


def _around(volumes: Tensor) -> Tensor:
    """Mean over the 3 x 3 x 3 voxels around each, of (c, x, y, z)."""
    return torch.cat([_mean_of_27(volume[None]) for volume in volumes])


def _mean_of_27(volume: Tensor) -> Tensor:
    for axis in range(3):
        sides = [1, 1, 1]
        sides[axis] = 3
        volume = F.avg_pool3d(volume, sides, 1, [side // 2 for side in sides])
    return volume
