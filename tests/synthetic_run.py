"""A small head with three tissues as a finished Result, for the tests of files and reports."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from bmex_bids.bids import Job
from bmex_bids.derivatives import Result
from bmex_bids.image import Image, load_image

SHA = "ab" * 32
SHAPE = (30, 36, 28)


def head() -> tuple[np.ndarray, np.ndarray]:
    """Return intensities (float32) and labels (uint8) of nested ellipsoids."""
    centre = (np.array(SHAPE) - 1) / 2
    axes = np.indices(SHAPE).astype(float)
    radius = np.sqrt(
        sum(((a - c) / s) ** 2 for a, c, s in zip(axes, centre, np.array(SHAPE) / 2.2, strict=True))
    )
    labels = np.zeros(SHAPE, np.uint8)
    for value, limit in ((1, 0.8), (2, 0.65), (3, 0.45)):
        labels[radius < limit] = value
    data = np.select([labels == 1, labels == 2, labels == 3, radius < 1], [100, 300, 500, 200], 0)
    return data.astype(np.float32), labels


def make_result(
    folder: Path,
    entities: dict[str, str] | None = None,
    *,
    measure_only: bool = False,
    extras: bool = False,
    stripped: bool = False,
    flags: tuple[str, ...] = (),
    suffix: str = "T1w",
    affine: np.ndarray | None = None,
) -> Result:
    """Write a raw image under ``folder/raw`` and return what a pipeline could make of it."""
    entities = entities or {"sub": "01"}
    raw = folder / "raw"
    session = f"ses-{entities['ses']}" if "ses" in entities else ""
    stem = "_".join(f"{key}-{value}" for key, value in entities.items())
    path = raw / f"sub-{entities['sub']}" / session / "anat" / f"{stem}_{suffix}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    description = raw / "dataset_description.json"
    description.write_text('{"Name": "synthetic", "BIDSVersion": "1.9.0"}')
    data, labels = head()
    mask = labels > 0
    if stripped:
        data = np.where(mask, data, 0).astype(np.float32)
    noisy = data + np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32) * (data > 0)
    if affine is None:
        affine = np.diag([5.0, 5.0, 5.0, 1.0])
        affine[:3, 3] = -70, -90, -65
    file = nib.Nifti1Image(noisy.astype(np.float32), affine)
    file.set_sform(affine, 1)
    file.set_qform(affine, 2)
    file.header.set_xyzt_units("mm", "sec")
    nib.save(file, path)
    image = load_image(path)
    scanner: dict[str, object] = {"Manufacturer": "Siemens", "MagneticFieldStrength": 3}
    job = Job(
        *(path, raw, entities, suffix, scanner, 96.0, "participants.tsv:age (years)"),
        *("24", "bmex-24-T1w", None, "enhance", ""),
    )
    return _result(job, image, data, labels, measure_only, extras, flags)


def _result(
    job: Job,
    image: Image,
    clean: np.ndarray,
    labels: np.ndarray,
    measure_only: bool,
    extras: bool,
    flags: tuple[str, ...],
) -> Result:
    mask = labels > 0
    enhanced = np.where(mask, clean / 500, 0).astype(np.float32)
    preproc = np.where(mask, clean, image.data).astype(np.float32)
    metrics = {"TCTBefore": 2.0, "CNRBefore": 3.0, "CJVBefore": 0.5}
    metrics |= {"HistogramDistanceBefore": 0.04, "VolumeCSF": 300.0, "VolumeGM": 700.5}
    metrics["VolumeWM"] = 500.25
    edges = np.linspace(0, 1.5, 31)
    histograms = {"Edges": edges.tolist(), "Before": _density(image.data[mask] / 500, edges)}
    histograms["Reference"] = _density(clean[mask] / 505, edges)
    if not measure_only:
        metrics |= {"TCTAfter": 2.5, "CNRAfter": 3.5, "CJVAfter": 0.4}
        metrics |= {"HistogramDistanceAfter": 0.01, "QualityIndex": 0.8, "DataConsistency": 0.02}
        histograms["After"] = _density(enhanced[mask], edges)
    probabilities = np.stack([(labels == k) for k in (1, 2, 3)]).astype(np.float32)
    high = (np.repeat(enhanced, 2, 0), image.affine @ np.diag([0.5, 1, 1, 1]))
    return Result(
        job=job,
        image=image,
        mask=mask,
        labels=labels,
        probabilities=probabilities,
        enhanced=None if measure_only else enhanced,
        preproc=None if measure_only else preproc,
        high_res=high if extras and not measure_only else None,
        uncertainty=enhanced * np.float32(0.1) if extras and not measure_only else None,
        metrics=metrics,
        histograms=histograms,
        flags=flags,
        provenance={
            "AgeMonths": 96.0,
            "AgeSource": job.age_source,
            "AgeStage": "24",
            "Model": {"Name": "bmex-24-T1w", "Version": "1.0", "SHA256": SHA, "Set": "bundled"},
            "BrainMaskSource": "bundled network",
            "Device": "cpu",
            "Precision": "float32",
            "Threads": 1,
            "Seed": 0,
            "IntensityScale": {"Enhanced": "1 is white matter.", "Preproc": "Input."},
            "Odd": {"number": np.float64(2.0), "never": float("nan")},
            "Notes": [],
            "BrainMaskModel": {"Name": "mask-net", "SHA256": "cd" * 32},
            "Version": "0.1.0",
        },
    )


def _density(values: np.ndarray, edges: np.ndarray) -> list[float]:
    return [float(x) for x in np.histogram(values, edges, density=True)[0]]
