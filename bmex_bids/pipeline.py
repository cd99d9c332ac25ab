"""One image through the nine steps: load, brain mask, bias field, conform, normalise, classify and
enhance, restore, measure; :mod:`bmex_bids.derivatives` then writes.

The steps stand in :func:`enhance_run` in their order; each is a function of arrays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt

from bmex_bids import __version__, intensity, metrics
from bmex_bids.bids import Job
from bmex_bids.brainmask import brain_mask, clean_mask
from bmex_bids.commonscale import map_to_reference, median_of
from bmex_bids.derivatives import Result
from bmex_bids.ghosts import STRONG, ghost_ratio
from bmex_bids.image import Image, ImageError, load_image
from bmex_bids.inference import (
    Compute,
    enhance_volume,
    enhancement_strength,
    tissue_method,
)
from bmex_bids.spatial import Grid, box_around, conform, model_grid, onto_grid, restore
from bmex_bids.weights import ModelRecord, WeightsError, find_mask_model, kept_network

__all__ = ["Settings", "enhance_run"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]
BRIGHTEST = 6.0  # of the brain's median; brighter voxels are clipped in the network's input
# What needs the enhanced image.
_PAIRED = ("QualityIndex", "DataConsistency", "DataConsistencyWorst", "ResidualShare")
BYTES_PER_VOXEL = 20  # of the image, held while a network computes: image, mask, bias field, ...
USUAL_VOXELS = 256**3  # whose bytes count as the program's own
SLAB = 16  # voxels; distances are computed in slabs, since they take 60 bytes a voxel
BLEND_MM = 2.0  # the enhanced brain fades in over this distance inside the mask's border


@dataclass(frozen=True)
class Settings:
    """What is the same for every run.

    Attributes:
        compute: device, precision and memory limit.
        models: every model that may be used.
        measure_only: measure the input, write no enhanced image.
        high_res: keep a copy on the model grid.
        uncertainty: average over mirror images and keep the spread.
        lesions: keep the probability of lesions.
        seed: of torch.
        model_set: the set whose brain extraction is taken.
    """

    compute: Compute
    models: tuple[ModelRecord, ...]
    measure_only: bool = False
    high_res: bool = False
    uncertainty: bool = False
    lesions: bool = False
    seed: int = 1
    model_set: str = "bundled"


@dataclass
class _Clock:
    """Seconds of each step, and word of it to whoever listens."""

    tell: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.tell(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


@dataclass(frozen=True)
class _Output:
    """What the network gave, on the model grid and in the image's intensities."""

    grid: Grid
    probabilities: Array
    change: Array
    enhanced: Array
    inside: Mask
    uncertainty: Array | None
    strength: float | None  # share of the network's change that was applied, if it was wanted
    notes: tuple[str, ...] = ()  # why the CPU computed, where it was not asked to


def enhance_run(
    job: Job, settings: Settings, progress: Callable[[str], None] = lambda text: None
) -> Result:
    """Enhance one image, or only measure it.

    Args:
        job: the image and every decision about it.
        settings: what is the same for every run.
        progress: told the name of each step as it starts.

    Raises:
        ImageError: the image cannot be used.
        WeightsError: the model is missing or damaged.
        MemoryError: the image needs more memory than allowed.
    """
    torch.manual_seed(settings.seed)
    record = _record(settings.models, job.weights)
    if settings.lesions and record.architecture.get("classes", 4) < 5:
        raise WeightsError(f"{record.name} has no class for lesions: drop --lesions")
    keep = not settings.measure_only
    clock = _Clock(progress)
    with clock.step("load"):
        image = load_image(job.path, most_bytes=settings.compute.max_bytes)
        volume, notes = _magnitude(image)
        settings = _beside(image, settings)
    with clock.step("brain mask"):
        mask, origin, mask_model = _find_brain(job, image, volume, settings)
        intensity.brain_gain(volume, mask)  # refuses a mask over nothing, before anything is slow
    box = box_around(mask, image.zooms)  # all that follows happens around the brain
    affine, inside, given = _shifted(image.affine, box), mask[box], volume[box]
    with clock.step("bias field"):
        bias = intensity.bias_field(given, inside, image.zooms)
        corrected = given / bias
    with clock.step("conform, normalise, classify and enhance"):
        out = _apply_network(corrected, inside, affine, record, settings)
    with clock.step("restore"):
        restored = restore(out.change, out.grid)
        restored += corrected
        restored = np.where(inside, np.maximum(restored, 0, out=restored), np.float32(0))
        preproc = None
        if keep:
            preproc = _blended(image.data[box], bias, restored - corrected, inside, image.zooms)
        field = _field(bias[inside])
        del bias  # a large image needs the memory, here and below
        probabilities, labels, lesions = _tissues(out, inside, lesions=settings.lesions)
        anchors, scaling = map_to_reference(restored, inside, probabilities, record)
        enhanced = np.where(inside, intensity.apply_anchors(restored, anchors), np.float32(0))
    with clock.step("measure"):
        numbers = _measure(given, corrected, restored, enhanced, labels, inside, image.zooms)
        numbers["GhostRatio"] = ghost_ratio(volume, image.zooms)
        factor = _input_factor(given, inside, record)
        del corrected, restored
        scaled = given * np.float32(factor)
        histograms = _histograms(scaled, enhanced, inside, record)
        histograms |= _tissue_histograms(scaled, enhanced, labels)
        numbers |= _distances(histograms) | _medians(scaled, enhanced, labels)
        if not keep:
            numbers = {k: v for k, v in numbers.items() if "After" not in k and k not in _PAIRED}
            histograms = {k: v for k, v in histograms.items() if not k.startswith("After")}
        refused = (scaling.refusal,) if keep and scaling.refusal else ()
        flags = (*_flags(numbers, image, mask, origin), *refused, *notes, *out.notes)
    scale = {"Enhanced": scaling.text, "Anchors": [list(p) for p in anchors], "InputFactor": factor}
    provenance = _provenance(job, settings, record, mask_model, origin, field, scale)
    provenance["EnhancementStrength"] = None if out.strength is None else round(out.strength, 2)
    provenance["Notes"] = [*image.notes, *notes, *out.notes]
    if out.notes:
        provenance["Device"] = "cpu"
    coarse = max(image.zooms) > 1.05 * record.grid_mm
    slope = (anchors[-1][1] - anchors[-2][1]) / (anchors[-1][0] - anchors[-2][0])
    return Result(
        job=job,
        image=image,
        mask=mask,
        box=box,
        labels=labels,
        probabilities=probabilities,
        lesions=lesions,
        enhanced=enhanced if keep else None,
        preproc=preproc,
        high_res=_high_res(out, anchors) if keep and (settings.high_res or coarse) else None,
        uncertainty=(
            restore(out.uncertainty, out.grid, order=1) * np.float32(slope) * inside
            if keep and out.uncertainty is not None
            else None
        ),
        metrics=numbers,
        histograms=histograms,
        flags=tuple(flags),
        provenance=provenance,
        seconds=clock.seconds,
    )


def _beside(image: Image, settings: Settings) -> Settings:
    """What networks may hold is less by what the image takes beyond one of usual size."""
    compute = settings.compute
    taken = BYTES_PER_VOXEL * max(image.data.size - USUAL_VOXELS, 0)
    if compute.max_bytes is None or not taken:
        return settings
    return replace(settings, compute=replace(compute, max_bytes=max(compute.max_bytes - taken, 0)))


def _shifted(affine: npt.NDArray[np.float64], box: Box) -> npt.NDArray[np.float64]:
    """The affine of the part of an image that lies in the box."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [cut.start for cut in box]
    return moved


def _record(models: Sequence[ModelRecord], name: str | None) -> ModelRecord:
    for record in models:
        if record.name == name:
            return record
    raise WeightsError(f"model {name!r} is not among {', '.join(r.name for r in models)}")


def _magnitude(image: Image) -> tuple[Array, tuple[str, ...]]:
    """The image as the steps need it: nothing below zero."""
    low = float(image.data.min())
    if low >= 0:
        return image.data, ()
    below = float((image.data < 0).mean())
    if below < 0.02:
        return np.maximum(image.data, 0), (f"{below:.2%} of the voxels were below zero: set to 0",)
    raise ImageError(
        f"{below:.0%} of the voxels are below zero (lowest {low:g}); expected a magnitude image. "
        "Was it z-scored or is it a phase image? Give the original magnitude image"
    )


def _find_brain(
    job: Job, image: Image, volume: Array, settings: Settings
) -> tuple[Mask, str, ModelRecord | None]:
    """The mask from the derivatives given, from the image itself, or from the network."""
    if job.mask is not None:
        given = load_image(job.mask)
        inside = onto_grid(given.data, given.affine, volume.shape, image.affine) > 0.5
        if not inside.any():
            raise ImageError(
                f"{job.mask.name}: the brain mask does not overlap {job.path.name}; is it in "
                "another space? Leave --derivatives out to have the brain found"
            )
        return clean_mask(inside), f"derivatives ({job.mask.name})", None
    record = find_mask_model(settings.models, model_set=settings.model_set)
    mask, stripped = brain_mask(
        volume,
        image.affine,
        kept_network(record),
        settings.compute,
        grid_mm=record.grid_mm,
        scale=record.head_scale,
    )
    return mask, "input was already skull-stripped" if stripped else "network", record


def _apply_network(
    corrected: Array,
    mask: Mask,
    affine: npt.NDArray[np.float64],
    record: ModelRecord,
    settings: Settings,
) -> _Output:
    """Conform, normalise, classify and enhance; nothing is decided here."""
    grid = model_grid(corrected.shape, affine, record.grid_mm, mask=mask)
    inside = conform(mask.astype(np.float32), grid, order=1) > 0.5
    conformed = np.where(inside, np.maximum(conform(corrected, grid), 0), 0).astype(np.float32)
    gain = intensity.brain_gain(conformed, inside) * record.scale
    given = np.minimum(conformed * gain, BRIGHTEST * record.scale).astype(np.float32)
    notes: list[str] = []
    network = kept_network(record)
    strength = None if settings.measure_only else enhancement_strength(network, given)
    probabilities, enhanced, spread = enhance_volume(
        *(network, given, settings.compute),
        strength=strength,
        flips=settings.uncertainty and not settings.measure_only,
        enhance=not settings.measure_only,
        warn=notes.append,
    )
    change = np.where(inside, (enhanced - given) / gain, 0).astype(np.float32)
    return _Output(
        grid=grid,
        probabilities=probabilities,
        change=change,
        enhanced=np.maximum(conformed + change, 0) * inside,
        inside=inside,
        uncertainty=None if spread is None else (spread / gain).astype(np.float32),
        strength=strength,
        notes=tuple(notes),
    )


def _tissues(
    out: _Output, mask: Mask, *, lesions: bool
) -> tuple[Array, npt.NDArray[np.uint8], Array | None]:
    """Probabilities (3, x, y, z) of CSF, GM and WM, labels, and lesions, on the native grid.

    Lesions are white matter in the probabilities and labels; None unless they are wanted.
    """
    tissues = np.empty((3, *mask.shape), np.float32)
    apart = [np.empty(mask.shape, np.float32) for _ in out.probabilities[4:]]
    shares = [*tissues, *apart]
    total = np.zeros(mask.shape, np.float32)
    for share, probability in zip(shares, out.probabilities[1:], strict=True):
        np.maximum(restore(probability, out.grid, order=1), 0, out=share)
        share *= mask
        total += share
    total[total <= 1e-6] = 1
    for share in shares:
        share /= total
    for share in apart:
        tissues[2] += share  # as three_tissues() has it, without a copy of all
    labels = np.zeros(mask.shape, np.uint8)
    for part, label, inside in zip(tissues.swapaxes(0, 1), labels, mask, strict=True):
        label[inside] = part.argmax(0)[inside] + 1
    return tissues, labels, apart[0] if lesions else None


def _blended(
    data: Array, bias: Array, change: Array, mask: Mask, zooms: npt.NDArray[np.float64]
) -> Array:
    """The input around the brain, with the change added inside it.

    It fades out towards the border of the mask. The bias field is put back on it, so that the
    image keeps its own field and voxels outside the mask equal the input's.
    """
    blended = _fade(mask, zooms)
    blended *= change
    blended *= bias
    blended += data
    np.maximum(blended, 0, out=blended)
    return np.where(mask, blended, data)


def _fade(mask: Mask, zooms: npt.NDArray[np.float64]) -> Array:
    """0 at the mask's border to 1 at :data:`BLEND_MM` inside it; 0 outside (x, y, z).

    Slab by slab, each with as many slices around it as the distance can reach, so that the result
    is that of the whole.
    """
    reach = math.ceil(BLEND_MM / float(zooms[0])) + 1
    padded = np.pad(mask, ((reach, reach), (1, 1), (1, 1)))
    fade = np.empty(mask.shape, np.float32)
    for start in range(0, len(mask), SLAB):
        part = padded[start : start + SLAB + 2 * reach]
        depth = distance_transform_edt(part, zooms)[reach:-reach, 1:-1, 1:-1]
        fade[start : start + SLAB] = np.clip(depth / BLEND_MM, 0, 1)
    return fade


def _high_res(
    out: _Output, anchors: list[tuple[float, float]]
) -> tuple[Array, npt.NDArray[np.float64]]:
    scaled = intensity.apply_anchors(out.enhanced.astype(np.float32), anchors) * out.inside
    return scaled.astype(np.float32), out.grid.affine


def _measure(
    volume: Array,
    corrected: Array,
    restored: Array,
    enhanced: Array,
    labels: npt.NDArray[np.uint8],
    mask: Mask,
    zooms: npt.NDArray[np.float64],
) -> dict[str, float]:
    """Measures before (the input as it came) and after (the enhanced image), same labels."""
    voxel = float(np.prod(zooms))
    before, after = metrics.tct(volume, labels), metrics.tct(enhanced, labels)
    contradiction = metrics.data_consistency(corrected, restored, mask, zooms)
    scale = float(np.percentile(corrected[mask], 98))
    residual = (restored - corrected)[mask]
    return {
        "TCTBefore": before,
        "TCTBiasCorrected": metrics.tct(corrected, labels),
        "TCTAfter": after,
        "QualityIndex": metrics.quality_index(before, after),
        "CNRBefore": metrics.cnr(volume, labels),
        "CNRAfter": metrics.cnr(enhanced, labels),
        "CJVBefore": metrics.cjv(volume, labels),
        "CJVAfter": metrics.cjv(enhanced, labels),
        "DataConsistency": contradiction[0],
        "DataConsistencyWorst": contradiction[1],
        "ResidualShare": float(np.sqrt((residual.astype(np.float64) ** 2).mean()) / scale),
        "VolumeCSF": metrics.volume_ml(labels, metrics.CSF, voxel),
        "VolumeGM": metrics.volume_ml(labels, metrics.GM, voxel),
        "VolumeWM": metrics.volume_ml(labels, metrics.WM, voxel),
        "VolumeBrainMask": float(mask.sum()) * voxel / 1000,
    }


def _input_factor(volume: Array, mask: Mask, record: ModelRecord) -> float:
    """The single factor, of the brain's median, that brings the input near the common scale."""
    return median_of(record) * intensity.brain_gain(volume, mask)


def _histograms(
    before: Array, enhanced: Array, mask: Mask, record: ModelRecord
) -> dict[str, list[float]]:
    """Histograms on the common scale: the input with one factor, the result, the reference."""
    reference = record.reference or {}
    found = {
        "Edges": intensity.EDGES.tolist(),
        "Before": intensity.histogram(before, mask).tolist(),
        "After": intensity.histogram(enhanced, mask).tolist(),
    }
    if "Density" in reference:
        found["Reference"] = [float(v) for v in reference["Density"]]
    return found


def _tissue_histograms(
    before: Array, enhanced: Array, labels: npt.NDArray[np.uint8]
) -> dict[str, list[float]]:
    """``BeforeGM``, ``AfterWM`` ...: histograms of the tissues there are, for the group level."""
    return {
        f"{when}{name}": shares
        for when, volume in (("Before", before), ("After", enhanced))
        for name, shares in intensity.tissue_histograms(volume, labels).items()
    }


def _distances(histograms: dict[str, list[float]]) -> dict[str, float]:
    """Distances to the stage's reference; NaN where the model has none."""
    reference = histograms.get("Reference")
    return {
        f"HistogramDistance{when}": intensity.histogram_distance(
            np.array(histograms[when]), np.array(reference)
        )
        if reference
        else math.nan
        for when in ("Before", "After")
    }


def _medians(
    before: Array, enhanced: Array, labels: npt.NDArray[np.uint8]
) -> dict[str, float]:
    """Median of each tissue near and on the common scale; NaN for a tissue that is missing."""
    return {
        f"Median{name}{when}": float(np.median(volume[labels == tissue]))
        if (labels == tissue).any()
        else math.nan
        for when, volume in (("Before", before), ("After", enhanced))
        for tissue, name in enumerate(("CSF", "GM", "WM"), 1)
    }


def _flags(numbers: dict[str, float], image: Image, mask: Mask, origin: str) -> list[str]:
    """What a reader should look at before trusting the result."""
    flags = _flags_of_change(numbers) if "TCTAfter" in numbers else []
    if numbers["GhostRatio"] > STRONG:
        flags.append(
            f"ghosts in the air around the head ({numbers['GhostRatio']:.1%} of its intensity): it "
            "seems to have moved; look for ghosts in the brain"
        )
    brain = numbers["VolumeBrainMask"]
    if not 80 <= brain <= 2200:
        flags.append(f"brain mask of {brain:.0f} mL: outside what a human brain can have")
    parts = {k: numbers[f"Volume{k}"] / max(brain, 1e-6) for k in ("GM", "WM")}
    if min(parts.values()) < 0.15 or max(parts.values()) > 0.75:
        flags.append(
            f"unusual tissue shares (GM {parts['GM']:.0%}, WM {parts['WM']:.0%}): is the age "
            "right, and the brain mask?"
        )
    if origin == "network":
        faces = [mask.take(i, axis=a).any() for a in range(3) for i in (0, -1)]
        if sum(bool(f) for f in faces) > 1:
            flags.append("the brain mask touches the border of the image on more than one side")
    if max(image.zooms) > 2:
        flags.append(f"thick slices ({max(image.zooms):.1f} mm): fine detail is interpolated")
    return flags


def _flags_of_change(numbers: dict[str, float]) -> list[str]:
    """What a reader should look at in the difference between input and result."""
    flags = []
    if not numbers["TCTAfter"] > 0.98 * numbers["TCTBefore"]:  # a clean image has nothing to gain
        flags.append("tissue contrast (TCT) fell")
    if numbers["ResidualShare"] > 0.15:
        flags.append(
            f"strong correction: the image changed by {numbers['ResidualShare']:.0%} of its bright "
            "tissue's intensity; look at the residual before trusting fine detail"
        )
    everywhere, worst = numbers["DataConsistency"], numbers["DataConsistencyWorst"]
    if metrics.is_contradiction(everywhere, worst):
        flags.append(
            f"the result differs from the input at coarse scale, by {everywhere:.1%} in the brain "
            f"and {worst:.0%} at the worst place: look at the residual for anatomy that is lost"
        )
    return flags


def _field(bias: Array) -> dict[str, Any]:
    """What is said of the bias field, from its values in the brain (n)."""
    return {
        "Method": "N4 (SimpleITK), inside the brain mask; left in the image where the standard "
        f"deviation of its logarithm is below {intensity.WEAK_FIELD:g}",
        "Applied": bool(bias.min() < bias.max()),
        "MinimumInBrain": float(bias.min()),
        "MaximumInBrain": float(bias.max()),
    }


def _provenance(
    job: Job,
    settings: Settings,
    record: ModelRecord,
    mask_model: ModelRecord | None,
    origin: str,
    field: dict[str, Any],
    scale: dict[str, Any],
) -> dict[str, Any]:
    """How the result was made, as it goes into the sidecars."""
    return {
        "AgeMonths": job.age_months,
        "AgeSource": job.age_source,
        "AgeStage": job.stage,
        "Model": {
            "Name": record.name,
            "Version": record.version,
            "SHA256": record.sha256,
            "Set": record.set,
        },
        "BrainMaskSource": origin,
        "BrainMaskModel": None
        if mask_model is None
        else {"Name": mask_model.name, "SHA256": mask_model.sha256},
        "Device": settings.compute.device,
        "Precision": settings.compute.precision,
        "Threads": torch.get_num_threads(),
        "Seed": settings.seed,
        "BiasField": field,
        "TissueMethod": tissue_method(kept_network(record)),
        "IntensityScale": {
            **scale,
            "Preproc": "the input's intensity scale with its own bias field; voxels outside the "
            "brain mask equal the input's",
        },
        "Version": __version__,
    }
