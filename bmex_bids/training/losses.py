"""Losses of the two networks; lower is better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.training.labels import LESION

__all__ = ["enhancement_loss", "mask_loss", "tissue_loss"]

IGNORE = 255
"""Tissue label of voxels whose class is not known."""


def tissue_loss(
    scores: Tensor, tissue: Tensor, lesion_weight: float = 1.0, dice_weight: float = 0.0
) -> Tensor:
    """Mean cross-entropy of the voxels whose class is known, and their soft Dice loss.

    Args:
        scores: (b, 4 or 5, x, y, z) before softmax.
        tissue: (b, x, y, z) class 0 to 4, or :data:`IGNORE`.
        lesion_weight: how often a voxel of lesions, which are rare, counts in the cross-entropy.
        dice_weight: of the Dice loss, the mean over the classes but background that the batch has.
    """
    known = tissue != IGNORE
    if not bool(known.any()):
        return scores.sum() * 0
    target = torch.where(known, tissue, 0).long()
    entropy = F.cross_entropy(scores, target, reduction="none")
    chosen = known * torch.where(target == LESION, lesion_weight, 1.0)
    loss = (entropy * chosen).sum() / chosen.sum()
    return loss + dice_weight * _dice_loss(scores, target, known) if dice_weight else loss


def _dice_loss(scores: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """1 - soft Dice, mean over the classes from 1 that are there; 0 if there are none."""
    found = []
    for index, probability in enumerate(scores.softmax(1).unbind(1)):
        true = (target == index) & known
        if index and bool(true.any()):
            overlap = (probability * true).sum()
            found.append(1 - 2 * overlap / ((probability * known).sum() + true.sum()))
    return torch.stack(found).mean() if found else scores.sum() * 0


def enhancement_loss(
    output: Tensor,
    target: Tensor,
    brain: Tensor,
    weight: Tensor,
    *,
    absolute: float = 1.0,
    squared: float = 2.0,
    gradient: float = 0.5,
) -> Tensor:
    """Absolute and squared error and the absolute error of the gradients, inside the brain.

    Args:
        output: (b, 1, x, y, z).
        target: (b, 1, x, y, z) clean image.
        brain: (b, 1, x, y, z) 1 inside the brain.
        weight: (b,) importance of each sample.
        absolute: weight of the absolute error.
        squared: weight of the squared error.
        gradient: weight of the gradients' absolute error along each axis.
    """
    scale = weight.view(-1, 1, 1, 1, 1)
    count = brain.sum().clamp_min(1)
    error = (output - target) * brain
    loss = (scale * (absolute * error.abs() + squared * error**2)).sum() / count
    for axis in (2, 3, 4):
        loss = loss + gradient * (scale * error.diff(dim=axis).abs()).sum() / count
    return loss


def mask_loss(scores: Tensor, brain: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss.

    Args:
        scores: (b, 1, x, y, z) before the sigmoid.
        brain: (b, 1, x, y, z) 0 or 1.
    """
    entropy = F.binary_cross_entropy_with_logits(scores, brain)
    probability = scores.sigmoid()
    overlap = (probability * brain).sum((1, 2, 3, 4))
    size = (probability + brain).sum((1, 2, 3, 4))
    return entropy + (1 - (2 * overlap + 1) / (size + 1)).mean()
