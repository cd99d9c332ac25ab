"""A clean scan on the model grid, prepared as the app prepares it, and degraded samples of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmex_bids import intensity
from bmex_bids.brainmask import brain_mask, clean_mask
from bmex_bids.image import Image, ImageError, load_image
from bmex_bids.inference import Compute, enhance_volume
from bmex_bids.similar import without_noise
from bmex_bids.spatial import Grid, box_around, conform, crop_to_mask, model_grid, onto_grid
from bmex_bids.training.degrade import degrade, random_recipe
from bmex_bids.training.fields import bias_field, uniform
from bmex_bids.training.losses import IGNORE
from bmex_bids.training.pool import shading
from bmex_bids.training.scans import Scan
from bmex_bids.training.stages import CONDITIONS
from bmex_bids.weights import ModelRecord, load_network

__all__ = ["Preparation", "degraded_sample", "generator_of", "prepare"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]
AROUND = 10.0  # mm around the brain that are kept, so that what lies there can ghost into it
SURE = 0.7  # least probability of a label that a network gives
KNOWN = (0, 1, 2, 3, IGNORE)


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared.

    Attributes:
        grid_mm: voxel side of the model grid.
        mask_model: finds the brain where no mask is given.
        label_model: labels the tissues where no labels are given; None leaves them unknown.
        compute: device and precision of both.
        around: mm that are kept around the brain.
    """

    grid_mm: float
    mask_model: ModelRecord
    label_model: ModelRecord | None
    compute: Compute
    around: float = AROUND


def prepare(scan: Scan, how: Preparation) -> dict[str, Tensor]:
    """Mask, bias field, conform and normalise with the functions of the app.

    Returns:
        ``head`` (x, y, z) float16, bias-corrected, the brain's median is 1; ``wanted``, the same
        without its noise; ``brain`` uint8;
        ``tissue`` uint8, :data:`IGNORE` where it is not known; ``condition``, its number.

    Raises:
        ImageError: the image cannot be used.
    """
    image = load_image(scan.job.path)
    volume = np.maximum(image.data, 0)
    mask = _brain(scan, image, volume, how)
    box = box_around(mask, image.zooms, max(how.around, AROUND))  # at least the app's own
    affine = image.affine.copy()
    affine[:3, 3] += image.affine[:3, :3] @ [cut.start for cut in box]
    bias = intensity.bias_field(volume[box], mask[box], image.zooms)
    corrected = (volume[box] / bias).astype(np.float32)
    grid = model_grid(corrected.shape, affine, how.grid_mm, mask=mask[box], margin=how.around)
    inside = conform(mask[box].astype(np.float32), grid, order=1) > 0.5
    head = np.maximum(conform(corrected, grid), 0)
    head = head * np.float32(intensity.brain_gain(head, inside))
    if scan.labels is not None:
        tissue = _given_labels(scan, image, grid, box)
    elif how.label_model is not None:
        tissue = _own_labels(head * inside, how.label_model, how.compute)
    else:
        tissue = np.full(inside.shape, IGNORE, np.uint8)
    # a voxel of the brain that has no tissue is one that nobody has labelled
    tissue = np.where(inside, np.where(tissue == 0, IGNORE, tissue), 0).astype(np.uint8)
    head = np.minimum(head, 1000)
    return {
        "head": torch.from_numpy(head).half(),
        "wanted": torch.from_numpy(without_noise(head, inside)).half(),
        "brain": torch.from_numpy(inside.astype(np.uint8)),
        "tissue": torch.from_numpy(tissue),
        "condition": torch.tensor(CONDITIONS.index(scan.condition), dtype=torch.uint8),
    }


def _brain(scan: Scan, image: Image, volume: Array, how: Preparation) -> Mask:
    if scan.job.mask is not None:
        given = load_image(scan.job.mask)
        found = onto_grid(given.data, given.affine, volume.shape, image.affine) > 0.5
        if not found.any():
            raise ImageError(f"{scan.job.mask.name}: the brain mask lies outside the image")
        return clean_mask(found)
    model = how.mask_model
    mask, _ = brain_mask(
        volume, image.affine, load_network(model), how.compute, grid_mm=model.grid_mm,
        scale=model.head_scale,
    )
    return mask


def _given_labels(
    scan: Scan, image: Image, grid: Grid, box: tuple[slice, slice, slice]
) -> Labels:
    """The labels of a derivative dataset as classes on the model grid."""
    if scan.labels is None:
        raise ValueError("no labels")
    given = load_image(scan.labels)
    found = np.rint(given.data).astype(np.int64)
    classes = np.full(found.shape, IGNORE, np.uint8)
    for label, tissue in scan.classes.items():
        classes[found == label] = tissue
    shares = []
    for tissue in KNOWN:
        there = (classes == tissue).astype(np.float32)
        native = onto_grid(there, given.affine, image.data.shape, image.affine)
        shares.append(conform(native[box], grid, order=1))
    nearest: Labels = np.asarray(KNOWN, np.uint8)[np.stack(shares).argmax(0)]
    return nearest


def _own_labels(brain: Array, model: ModelRecord, compute: Compute) -> Labels:
    """The labels that a network gives a clean brain, where it is sure of them."""
    given = (brain * np.float32(model.scale)).astype(np.float32)
    shares, _, _ = enhance_volume(load_network(model), given, compute)
    return np.where(shares.max(0) >= SURE, shares.argmax(0), IGNORE).astype(np.uint8)


def generator_of(*parts: object) -> torch.Generator:
    """Random numbers that depend on the given names alone, whoever makes the sample, and when."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def degraded_sample(
    prepared: dict[str, Tensor], grid_mm: float, generator: torch.Generator, *, states: int = 12
) -> dict[str, Tensor]:
    """One training pair: what surrounds the brain is degraded with it, then cut away.

    Args:
        prepared: see :func:`prepare`.
        grid_mm: voxel side.
        generator: source of randomness (CPU).
        states: rigid positions told apart in the motion.

    Returns:
        A sample as :mod:`bmex_bids.training.pool` makes them.
    """
    head, brain = prepared["head"].float(), prepared["brain"].float()
    field = bias_field(tuple(head.shape), uniform(0, 0.06, generator), generator)
    recipe = random_recipe(generator)
    zooms = torch.full((3,), grid_mm)
    degraded = degrade(head * field, zooms, recipe, generator, states=states)
    cut = tuple(
        slice(max(low - 8, 0), high + 8) for low, high in crop_to_mask(brain.numpy() > 0)
    )
    inside = brain[cut]
    given, clean = degraded[cut] * inside, prepared["wanted"][cut].float() * inside
    gain = intensity.brain_gain(given.numpy(), inside.numpy() > 0)
    target = clean * shading(given, clean, inside) * gain
    return {
        "input": (given * gain).half().contiguous(),
        "target": target.half().contiguous(),
        "tissue": prepared["tissue"][cut].contiguous(),
        "brain": prepared["brain"][cut].contiguous(),
        "condition": prepared["condition"],
    }
