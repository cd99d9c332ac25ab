"""One Result becomes files, and files become a record again.

The JSON of the main output is written last: while it is missing, the run is not complete. Reports
read runs back with `run_sidecars` and `read_run`, and need nothing but these sidecars.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bmex_bids.bids import (
    Job,
    derivative_path,
    parse_entities,
    read_json,
    source_uri,
    write_json,
)
from bmex_bids.image import Image, save_image
from bmex_bids.metrics import volume_ml

__all__ = ["Result", "Run", "is_done", "marker_path", "read_run", "run_sidecars", "write"]

TISSUES = ("CSF", "GM", "WM")
SCANNER_FIELDS = (
    *("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength"),
    *("InstitutionName", "StationName"),
)


@dataclass(frozen=True)
class Result:
    """What the pipeline computed for one run; x y z is the native grid.

    The maps are of the part of the image that lies in the box; :meth:`whole` puts them in place.

    Attributes:
        job: the run.
        image: the input as loaded.
        mask: the brain in the whole image, bool.
        labels: (x, y, z) uint8, 0 background, 1 CSF, 2 GM, 3 WM.
        probabilities: (3, x, y, z) float32 of CSF, GM, WM, 0 to 1.
        enhanced: (x, y, z) float32 on the common scale, 0 outside the mask; None if only measured.
        preproc: (x, y, z) float32 head on the input's scale, equal to the input outside the box;
            None when only measured.
        high_res: the enhanced image on the model grid and its (4, 4) affine; None if not wanted.
        uncertainty: (x, y, z) float32 standard deviation, common scale; None if not wanted.
        lesions: (x, y, z) float32 probability; None if not wanted.
        box: where in the image the maps lie; by default they are of the whole.
        metrics: measures by name, e.g. ``TCTBefore``.
        histograms: ``Edges`` (n + 1) and the densities ``Before``, ``After``, ``Reference`` (n),
            and those of the tissues, ``BeforeGM`` and so on.
        flags: warnings in plain words.
        provenance: what goes into every sidecar as it is.
        seconds: of each step; not written, so that the same input gives the same bytes.
    """

    job: Job
    image: Image
    mask: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    enhanced: npt.NDArray[np.float32] | None
    preproc: npt.NDArray[np.float32] | None
    high_res: tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]] | None
    uncertainty: npt.NDArray[np.float32] | None
    metrics: dict[str, float]
    histograms: dict[str, list[float]]
    flags: tuple[str, ...]
    provenance: dict[str, object]
    seconds: dict[str, float] = field(default_factory=dict)
    lesions: npt.NDArray[np.float32] | None = None
    box: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None))

    def whole(
        self, part: npt.NDArray[np.generic], around: npt.NDArray[np.generic] | None = None
    ) -> npt.NDArray[np.generic]:
        """Return a map (x, y, z) of the box at its place in the image.

        Args:
            part: the map.
            around: (x, y, z) of the whole image, what is to be outside the box; None for 0.
        """
        shape = self.image.data.shape
        whole = np.zeros(shape, part.dtype) if around is None else around.astype(part.dtype)
        whole[self.box] = part
        return whole


@dataclass(frozen=True)
class Run:
    """One finished run as its main sidecar describes it.

    Attributes:
        sidecar: the JSON that was read.
        entities: entities of the raw image, short key -> value.
        suffix: ``T1w`` or ``T2w``.
        measured_only: True when no enhanced image was written.
        content: the sidecar's content.
    """

    sidecar: Path
    entities: dict[str, str]
    suffix: str
    measured_only: bool
    content: dict[str, object]

    @property
    def stem(self) -> str:
        """Return what names the run among all runs, e.g. ``sub-01_run-1_T1w``."""
        return "_".join([*(f"{key}-{value}" for key, value in self.entities.items()), self.suffix])


@dataclass(frozen=True)
class _Output:
    """One NIfTI to write: its path, own JSON fields, own affine (None: the input's), and voxels.

    The voxels are made when it is their turn, since all at once would take much memory.
    """

    path: Path
    data: Callable[[], npt.NDArray[np.generic]]
    fields: dict[str, object]
    affine: npt.NDArray[np.float64] | None = None


def write(result: Result, out: Path) -> list[Path]:
    """Write all derivatives of one run, each file whole or not at all, and the main sidecar last.

    Args:
        result: what the pipeline computed.
        out: root of the output dataset.

    Returns:
        The paths written, in the order of writing.

    Raises:
        OSError: no space left, or the directory cannot be written.
    """
    measured_only = result.enhanced is None
    marker = marker_path(out, result.job, measure_only=measured_only)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    outputs = list(_outputs(result, out))
    if not measured_only:
        _remove_stale(result.job, out, {output.path for output in outputs})
    common = _common_fields(result)
    sidecars = {_json_of(output.path): common | output.fields for output in outputs}
    sidecars[marker] |= {
        "Metrics": result.metrics,
        "Histograms": result.histograms,
        "Flags": result.flags,
        "Outputs": [output.path.relative_to(out).as_posix() for output in outputs],
    }
    written = []
    for output in outputs:
        save_image(output.path, output.data(), result.image, affine=output.affine)
        written.append(output.path)
    for path in sorted(sidecars, key=lambda path: path == marker):
        write_json(path, _plain(sidecars[path]))
        written.append(path)
    return written


def marker_path(out: Path, job: Job, *, measure_only: bool) -> Path:
    """Return the sidecar whose presence says that the run is complete."""
    if measure_only:
        return derivative_path(out, job, suffix="dseg", space=job.suffix, ext=".json")
    return derivative_path(out, job, desc="enhanced", ext=".json")


def is_done(out: Path, job: Job, model_sha256: str, measure_only: bool) -> bool:
    """Tell whether a run is complete: all promised files exist and were made with this model.

    A run that was enhanced counts as measured too.
    """
    markers = [marker_path(out, job, measure_only=False)]
    if measure_only:
        markers.append(marker_path(out, job, measure_only=True))
    return any(_is_complete(out, marker, model_sha256) for marker in markers)


def run_sidecars(out: Path, subject: str | None = None) -> list[Path]:
    """List the main sidecar of every run: of the enhanced image, else of the tissue labels.

    Args:
        out: root of the output dataset.
        subject: label without ``sub-``; None lists all subjects.
    """
    found: dict[str, Path] = {}
    for path in _anat_sidecars(out, subject):
        name = path.name
        if name.endswith(("_desc-enhanced_T1w.json", "_desc-enhanced_T2w.json")):
            if "_res-" not in name and "_space-" not in name:
                found[name.replace("_desc-enhanced", "")] = path
        elif name.endswith(("_space-T1w_dseg.json", "_space-T2w_dseg.json")):
            stem, _, suffix = name.removesuffix("_dseg.json").rpartition("_space-")
            found.setdefault(f"{stem}_{suffix}.json", path)
    return list(found.values())


def read_run(sidecar: Path) -> Run | None:
    """Read one run back; None when the sidecar belongs to a run that is not complete.

    Raises:
        ValueError: the file is no JSON object.
    """
    content = read_json(sidecar)
    if not isinstance(content.get("Metrics"), dict):
        return None
    measured_only = sidecar.name.endswith("_dseg.json")
    entities = parse_entities(sidecar.name)
    suffix = entities["space"] if measured_only else sidecar.stem.rpartition("_")[2]
    own = {key: value for key, value in entities.items() if key not in ("space", "desc")}
    return Run(sidecar, own, suffix, measured_only, content)


def _outputs(result: Result, out: Path) -> Iterator[_Output]:
    """Yield the images in the order of writing."""
    job, image = result.job, result.image
    scales = _scales(result)

    def path(**entities: str) -> Path:
        return derivative_path(out, job, **entities)

    yield _Output(
        path(space=job.suffix, desc="brain", suffix="mask"),
        lambda: result.mask,
        {"Type": "Brain", "Description": "Brain mask on the grid of the input."},
    )
    yield _Output(
        path(space=job.suffix, suffix="dseg"),
        partial(result.whole, result.labels),
        {"Description": "Tissue labels on the grid of the input; names in dseg.tsv."},
    )
    for label, probability in zip(TISSUES, result.probabilities, strict=True):
        yield _Output(
            path(space=job.suffix, label=label, suffix="probseg"),
            partial(result.whole, probability),
            {"Description": f"Probability of {label}, 0 to 1, on the grid of the input."},
        )
    if result.lesions is not None:
        text = "Probability of a white-matter lesion, 0 to 1, on the input's grid. LesionVolume: "
        text += "mL where it is above 0.5."
        found = volume_ml((result.lesions > 0.5).astype(np.uint8), 1, float(np.prod(image.zooms)))
        yield _Output(
            path(space=job.suffix, label="L", suffix="probseg"),
            partial(result.whole, result.lesions),
            {"Description": text, "LesionVolume": round(found, 3)},
        )
    if result.uncertainty is not None:
        text = "Standard deviation of the enhanced image over an ensemble of flips. "
        fields = {"SkullStripped": True, "Description": text + scales["Enhanced"]}
        whole = partial(result.whole, result.uncertainty)
        yield _Output(path(desc="uncertainty"), whole, fields)
    if result.preproc is not None:
        text = "Whole head with the enhanced brain blended in. "
        stripped = _is_stripped(image.data, result.mask)
        fields = {"SkullStripped": stripped, "Description": text + scales["Preproc"]}
        whole = partial(result.whole, result.preproc, image.data)
        yield _Output(path(desc="preproc"), whole, fields)
    text = "Enhanced brain, 0 outside the mask. "
    fields = {"SkullStripped": True, "Description": text + scales["Enhanced"]}
    if result.high_res is not None:
        data, affine = result.high_res
        sizes = " x ".join(f"{size:.3g}" for size in nib.affines.voxel_sizes(affine))
        yield _Output(
            path(res="hi", desc="enhanced"),
            lambda: data,
            fields | {"Resolution": f"Grid of the model, {sizes} mm, RAS+"},
            affine,
        )
    if result.enhanced is not None:
        yield _Output(path(desc="enhanced"), partial(result.whole, result.enhanced), fields)


def _common_fields(result: Result) -> dict[str, object]:
    """Return the fields that every sidecar of the run has."""
    source = source_uri(result.job)
    image = result.image
    notes = result.provenance.get("Notes")
    notes = [*(notes if isinstance(notes, list | tuple) else ()), *result.job.notes]
    return {
        "Sources": [source],
        "SpatialReference": source,
        **result.provenance,
        "Notes": list(dict.fromkeys(notes)),
        "InputGrid": {
            "Shape": image.data.shape,
            "VoxelSize": [round(float(size), 4) for size in image.zooms],
            "Orientation": "".join(nib.aff2axcodes(image.affine)),
        },
        **{key: result.job.metadata[key] for key in SCANNER_FIELDS if key in result.job.metadata},
    }


def _scales(result: Result) -> dict[str, str]:
    """Return the text that defines the intensity scale of each output."""
    texts = result.provenance.get("IntensityScale")
    texts = texts if isinstance(texts, Mapping) else {}
    return {
        "Enhanced": str(texts.get("Enhanced", "Common intensity scale of the model's stage.")),
        "Preproc": str(texts.get("Preproc", "Intensity scale of the input.")),
    }


def _is_stripped(data: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> bool:
    """Tell whether the input is a brain on a constant background."""
    outside = data[~mask]
    return outside.size == 0 or float(np.mean(outside > data.min())) < 0.01


def _remove_stale(job: Job, out: Path, kept: set[Path]) -> None:
    """Remove optional images of an earlier start, which this start does not make again."""
    optional = (
        derivative_path(out, job, desc="uncertainty"),
        derivative_path(out, job, space=job.suffix, label="L", suffix="probseg"),
        derivative_path(out, job, res="hi", desc="enhanced"),
    )
    for path in optional:
        if path not in kept:
            path.unlink(missing_ok=True)
            _json_of(path).unlink(missing_ok=True)


def _is_complete(out: Path, marker: Path, model_sha256: str) -> bool:
    try:
        content = read_json(marker)
    except (OSError, ValueError):
        return False
    model, outputs = content.get("Model"), content.get("Outputs")
    if not isinstance(model, dict) or not isinstance(outputs, list) or not outputs:
        return False
    same = model.get("SHA256") == model_sha256 and isinstance(content.get("Metrics"), dict)
    paths = [out / str(name) for name in outputs]
    return same and all(path.exists() and _json_of(path).exists() for path in paths)


def _anat_sidecars(out: Path, subject: str | None) -> Iterator[Path]:
    """Yield the JSON files of all anat folders, sorted by name."""
    if subject is None:
        subjects = sorted(entry.path for entry in os.scandir(out) if entry.name.startswith("sub-"))
    else:
        subjects = [str(out / f"sub-{subject}")]
    for folder in subjects:
        if not os.path.isdir(folder):
            continue
        parts = sorted(entry.name for entry in os.scandir(folder))
        levels = ["", *(name for name in parts if name.startswith("ses-"))]
        for level in levels:
            anat = os.path.join(folder, level, "anat")
            if os.path.isdir(anat):
                names = sorted(entry.name for entry in os.scandir(anat))
                yield from (Path(anat, n) for n in names if n.endswith(".json") and n[0] != ".")


def _json_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def _plain(value: object) -> object:
    """Turn numpy values, paths and tuples into what JSON knows; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
