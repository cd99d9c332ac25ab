"""What is minimised, and the numbers that are reported on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bmex_bids.training.losses import IGNORE, enhancement_loss, mask_loss, tissue_loss
from bmex_bids.training.settings import Settings, architecture_of

__all__ = ["forward", "mask_objective", "pair_objective"]

FLOOR = 5e-5  # squared error below which a gain is not told: 43 dB


def forward(
    network: nn.Module, batch: dict[str, Tensor], settings: Settings, *, score: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """One batch through the network.

    Args:
        network: in train mode, on the batch's device.
        batch: see :class:`bmex_bids.training.samples.Read`.
        settings: ``precision`` is ``float32`` or ``bfloat16``.
        score: count the voxels that are classified right, which costs time.

    Returns:
        The loss, and its parts without gradient.
    """
    given = batch["input"][:, None].contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(
        given.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"
    ):
        architecture = architecture_of(settings)
        arguments: dict[str, Any] = {}
        if architecture.get("conditions"):
            arguments["condition"] = batch["condition"]
        if architecture["name"] == "TissueGuidedUNet":
            arguments["enhance"] = settings.enhance_weight > 0
        output = network(given, **arguments)
    if settings.kind == "brainmask":
        return mask_objective(output.float(), batch)
    scores, enhanced = output[0].float(), output[1].float()
    loss, record = pair_objective(scores, enhanced, batch, settings)
    record["hit"] = (
        _accuracy(scores.detach(), batch["tissue"], batch["brain"])
        if score
        else torch.tensor(torch.nan)
    )
    return loss, record


def mask_objective(scores: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of brain extraction from the scores (b, 1, x, y, z)."""
    loss = mask_loss(scores, (batch["brain"] > 0).float()[:, None])
    return loss, {"mask": loss.detach()}


def pair_objective(
    scores: Tensor, enhanced: Tensor, batch: dict[str, Tensor], settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a pair from tissue scores (b, 4 or 5, x, y, z) and the enhanced (b, 1, x, y, z)."""
    given, target = batch["input"][:, None], batch["target"][:, None]
    inside = (batch["brain"] > 0).float()[:, None]
    tissue = batch["tissue"].to(torch.uint8)
    known = tissue < scores.shape[1]  # a network of four classes does not know lesions
    classes = tissue_loss(
        scores, torch.where(known, tissue, IGNORE), settings.lesion_weight, settings.dice_weight
    )
    error, gain = _image_error(enhanced, (given, target, inside), settings)
    loss = settings.tissue_weight * classes + settings.enhance_weight * error
    return loss, {"tissue": classes.detach(), "enhance": error.detach(), "gain": gain}


def _image_error(
    enhanced: Tensor, sample: tuple[Tensor, Tensor, Tensor], settings: Settings
) -> tuple[Tensor, Tensor]:
    """Error of the enhanced image, and what it gained over the input in dB (without gradient)."""
    given, target, inside = sample
    after, before = (_squared(image, target, inside) for image in (enhanced, given))
    error = settings.log_squared * torch.log(after + settings.floor).mean()
    if settings.absolute or settings.squared or settings.gradient:
        count = inside.sum((1, 2, 3, 4)).clamp_min(1)
        wrong = ((given - target).abs() * inside).sum((1, 2, 3, 4)) / count
        b = settings.balance
        error = error + enhancement_loss(
            enhanced, target, inside, 2 * b / (wrong + b) if b else torch.ones_like(wrong),
            absolute=settings.absolute, squared=settings.squared, gradient=settings.gradient,
        )
    gain = 10 * torch.log10((before + FLOOR) / (after.detach() + FLOOR)).mean()
    return error, gain


def _squared(image: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean squared error of each sample (b,) inside the brain."""
    total = ((image - target) ** 2 * inside).sum((1, 2, 3, 4))
    return total / inside.sum((1, 2, 3, 4)).clamp_min(1)


def _accuracy(scores: Tensor, tissue: Tensor, brain: Tensor) -> Tensor:
    """Share of the brain's voxels of known class that are classified right; NaN without any."""
    known = (tissue != IGNORE) & (brain > 0)
    return ((scores.argmax(1) == tissue) & known).sum() / known.sum()
