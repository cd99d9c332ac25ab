"""Validation: whole samples of people who were kept out, through the network as the app runs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bmex_bids import metrics
from bmex_bids.brainmask import brain_probability
from bmex_bids.inference import Compute, enhance_volume, mixed
from bmex_bids.training.losses import IGNORE
from bmex_bids.training.objective import mask_objective, pair_objective
from bmex_bids.training.samples import condition_of
from bmex_bids.training.settings import Settings, architecture_of

__all__ = ["validate"]


def validate(
    network: nn.Module, samples: Sequence[Path], settings: Settings, compute: Compute
) -> dict[str, float]:
    """Means over samples.

    Args:
        network: in eval mode.
        samples: safetensors files of a pool.
        settings: weights of the loss.
        compute: device and precision.

    Returns:
        ``loss``; of a pair ``psnr_input``, ``psnr`` and ``psnr_gain`` (dB inside the brain, the
        range is the brain's median) and ``dice_csf``, ``dice_gm``, ``dice_wm`` and, with a
        class for them, ``dice_lesion`` over voxels of known class, by the labels that the app
        gives; of brain extraction ``dice``. NaN where no sample says anything.
    """
    rows = []
    for path in samples:
        sample = load_file(path)
        one = _mask if settings.kind == "brainmask" else _pair
        rows.append(one(network, sample, settings, compute))
    return {key: _mean([row[key] for row in rows]) for key in rows[0]}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _pair(
    network: nn.Module, sample: dict[str, Tensor], settings: Settings, compute: Compute
) -> dict[str, float]:
    given = sample["input"].float().clamp(0, 4).numpy()
    if architecture_of(settings).get("conditions"):
        network.condition = condition_of(sample.get("condition"))  # type: ignore[assignment]
    shares, enhanced, _ = enhance_volume(network, given, compute, mixture=False)
    batch = {key: value[None].float() for key, value in sample.items()}
    batch["input"] = torch.from_numpy(given)[None]
    scores = torch.from_numpy(np.log(np.maximum(shares, 1e-8)))[None]
    clean = torch.from_numpy(enhanced.copy())[None, None]
    loss, _ = pair_objective(scores, clean, batch, settings)
    brain, target = sample["brain"].numpy() > 0, batch["target"][0].numpy()
    before = metrics.psnr(given, target, brain, 1.0)
    after = metrics.psnr(enhanced, target, brain, 1.0)
    row = {
        "loss": float(loss),
        "psnr_input": before,
        "psnr": after,
        "psnr_gain": after - before if math.isfinite(before) else math.nan,
    }
    truth = sample["tissue"].numpy()
    shares = mixed(network, shares, given)
    labels, known = shares.argmax(0), (truth != IGNORE) & brain
    for tissue, name in enumerate(("csf", "gm", "wm", "lesion")[: len(shares) - 1], 1):
        there = ((truth == tissue) & known).any()
        found = metrics.dice((labels == tissue) & known, (truth == tissue) & known)
        row[f"dice_{name}"] = found if there else math.nan
    return row


def _mask(
    network: nn.Module, sample: dict[str, Tensor], settings: Settings, compute: Compute
) -> dict[str, float]:
    given = sample["input"].float().numpy()
    probability = torch.from_numpy(brain_probability(given, network, compute))
    batch = {"brain": sample["brain"][None].float()}
    loss, _ = mask_objective(probability.clamp(1e-6, 1 - 1e-6).logit()[None, None], batch)
    brain = sample["brain"].numpy() > 0
    return {"loss": float(loss), "dice": metrics.dice(probability.numpy() > 0.5, brain)}
