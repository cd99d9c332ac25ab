"""A finished run in a standard space: which files there are, whether they are complete, the making.

All is read from the run's own derivatives, so that a space can be added at any later start. The
JSON of the transform into the space is written last; while it is missing, the space is not done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bmex_bids import __version__
from bmex_bids.bids import (
    Job,
    atomic_path,
    derivative_path,
    read_json,
    session_dir,
    source_uri,
    write_json,
)
from bmex_bids.derivatives import marker_path
from bmex_bids.image import Image, load_image, save_image
from bmex_bids.registration import Brain, Warp, register, resample, save_transform
from bmex_bids.spaces import Space
from bmex_bids.templatefiles import Template, find_template

__all__ = [
    "missing_spaces",
    "remove_stale",
    "result_digest",
    "space_marker",
    "space_markers",
    "space_path",
    "write_spaces",
]

Array = npt.NDArray[np.float32]


METHODS_TEXT = {
    "affine": "affine, Mattes' mutual information (SimpleITK)",
    "syn": "affine, Mattes' mutual information (SimpleITK), then SyN, cross-correlation (DIPY)",
}


@dataclass(frozen=True)
class _Native:
    """What is brought into a space; x y z is the native grid."""

    affine: npt.NDArray[np.float64]
    enhanced: Array
    before: Array
    mask: Array
    labels: Array


@dataclass(frozen=True)
class _Output:
    """One image in a space: its path, voxels, own JSON fields and how it was interpolated."""

    path: Path
    data: npt.NDArray[np.generic]
    fields: dict[str, object]
    how: str


def space_markers(out: Path, job: Job) -> list[Path]:
    """Return the JSON of every transform from the run into a space, sorted."""
    pattern = _transform_path(out, job, job.suffix, "*").with_suffix(".json")
    return sorted(pattern.parent.glob(pattern.name))


def space_marker(out: Path, job: Job, space: Space) -> Path:
    """Return the JSON whose presence says that a space of a run is complete."""
    return _transform_path(out, job, job.suffix, space.label).with_suffix(".json")


def missing_spaces(
    out: Path, job: Job, spaces: Sequence[Space], method: str, *, overwrite: bool = False
) -> dict[Space, list[str | None]]:
    """Group the spaces by template and cohort, and leave out those that are complete.

    Args:
        out: root of the output dataset.
        job: the run, whose native derivatives are complete.
        spaces: with the cohort that fits the age.
        method: of the registration; a space that another one made is not complete.
        overwrite: count none as complete.

    Returns:
        Space without ``res`` -> the grids that are wanted.
    """
    wanted: dict[Space, list[str | None]] = {}
    for space in spaces:
        wanted.setdefault(Space(space.template, space.cohort), []).append(space.res)
    return {
        space: grids
        for space, grids in wanted.items()
        if overwrite or not _is_complete(out, job, space, grids, method)
    }


def write_spaces(
    out: Path,
    job: Job,
    space: Space,
    grids: Sequence[str | None],
    *,
    method: str,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Bring one finished run into one space, on one or several grids.

    Writes the enhanced brain, the input's brain on the same scale, mask and labels, and the
    transforms in both directions; each file whole or not at all.

    Args:
        out: root of the output dataset.
        job: the run.
        space: template and cohort.
        grids: indices of the template's grids, None for the first.
        method: ``syn`` or ``affine``.
        tell: told what is being done.

    Returns:
        The images and transforms written.

    Raises:
        SpaceError: the template is not cached or cannot be used for this run.
        RegistrationError: the registration failed.
        ValueError: the run is not complete, or was made by an earlier version.
        OSError: no space left, or the directory cannot be written.
    """
    template = find_template(space, job.suffix, grids, age_months=job.age_months)
    native = _native(out, job)
    marker = space_marker(out, job, template.space)
    marker.unlink(missing_ok=True)
    tell(f"registration to {template.space} ({method})")
    fixed = load_image(template.image)
    inside = load_image(template.mask).data > 0.5
    if inside.shape != fixed.data.shape:
        raise ValueError(
            f"{template.mask.name}: shape {inside.shape}, expected that of {template.image.name} "
            f"{fixed.data.shape}; remove both from TemplateFlow's folder and cache them again"
        )
    still = np.where(inside, np.maximum(fixed.data, 0), 0).astype(np.float32)
    warp = register(
        Brain(still, fixed.affine),
        Brain(native.enhanced, native.affine),
        method=method,
    )
    written: list[Path] = []
    for res in grids:
        tell(f"writing {template.space}")
        written += _write_images(out, job, template, native, warp, res)
    label, own = template.space.label, job.suffix
    for path, transform in (
        (_transform_path(out, job, label, own), warp.inverse),
        (_transform_path(out, job, own, label), warp.forward),
    ):
        with atomic_path(path) as temporary:
            save_transform(str(temporary), transform)
        written.append(path)
    fields = {
        "Description": f"Resamples images in the space of {own} on grids in {label} (ITK's "
        "convention: maps points of the latter to the former); the file with from and to "
        "exchanged is its inverse.",
        "Sources": [
            _uri(out, derivative_path(out, job, desc="enhanced")),
            _template_uri(template, template.image),
        ],
        "Template": str(template.space),
        "TemplateContrast": template.suffix,
        "Registration": {
            "Method": METHODS_TEXT[method],
            "Name": method,
            "MutualInformationBefore": round(warp.before, 6),
            "MutualInformationAfter": round(warp.after, 6),
        },
        "SourceSHA256": _digest(out, job),
        "Outputs": sorted(path.relative_to(out).as_posix() for path in written),
        "Version": __version__,
    }
    write_json(marker, fields)
    return written


def remove_stale(out: Path, job: Job) -> None:
    """Remove the spaces that were made from another result of the run."""
    for marker in space_markers(out, job):
        try:
            content = read_json(marker)
        except (OSError, ValueError):
            content = {}
        if content.get("SourceSHA256") == _digest(out, job):
            continue
        outputs = content.get("Outputs")
        for name in outputs if isinstance(outputs, list) else ():
            path = out / str(name)
            path.unlink(missing_ok=True)
            _json_of(path).unlink(missing_ok=True)
        marker.unlink(missing_ok=True)


def result_digest(sidecar: Path) -> str:
    """Return the SHA-256 of a run's main sidecar, which changes with its result; "" without one."""
    return hashlib.sha256(sidecar.read_bytes()).hexdigest() if sidecar.exists() else ""


def space_path(
    out: Path, job: Job, space: Space, res: str | None, *, desc: str, suffix: str | None = None
) -> Path:
    """Return the path of an image in a space; ``desc`` is "" for none.

    In a space the mask and the labels of a T1w and of a T2w run would have one name, so those of
    other contrasts than T1w have theirs in ``desc``.
    """
    other = job.suffix if suffix is not None and job.suffix != "T1w" else ""
    return derivative_path(
        out, job, space=space.label, res=res, desc=(other + desc) or None, suffix=suffix
    )


def _outputs(
    out: Path, job: Job, template: Template, native: _Native, warp: Warp, res: str | None
) -> tuple[Image, list[_Output]]:
    """Return one of the template's grids, and enhanced, input, labels and mask on it."""
    grid = load_image(template.grids[res])

    def there(volume: Array, order: int) -> Array:
        return resample(
            volume, native.affine, (grid.data.shape, grid.affine), warp, order=order
        )

    def path(desc: str, suffix: str | None = None) -> Path:
        return space_path(out, job, template.space, res, desc=desc, suffix=suffix)

    mask = there(native.mask, 1) > 0.5
    text = "Brain of the input, not enhanced, on the common scale by one factor."
    return grid, [
        _Output(
            path("brain", "mask"),
            mask.astype(np.uint8),
            {"Type": "Brain", "Description": "Brain mask."},
            "linear",
        ),
        _Output(
            path("", "dseg"),
            there(native.labels, 0).astype(np.uint8),
            {"Description": "Tissue labels; names in dseg.tsv."},
            "nearest neighbour",
        ),
        _Output(
            path("input"),
            np.where(mask, there(native.before, 3), 0).astype(np.float32),
            {"SkullStripped": True, "Description": text, "Sources": [source_uri(job)]},
            "cubic B-spline",
        ),
        _Output(
            path("enhanced"),
            np.where(mask, there(native.enhanced, 3), 0).astype(np.float32),
            {"SkullStripped": True, "Description": "Enhanced brain, 0 outside the mask."},
            "cubic B-spline",
        ),
    ]


def _write_images(
    out: Path, job: Job, template: Template, native: _Native, warp: Warp, res: str | None
) -> Iterator[Path]:
    """Write the images on one grid, each with its sidecar, and yield their paths."""
    grid, outputs = _outputs(out, job, template, native, warp, res)
    which = f"grid res-{res} of the template" if res else "the template's first grid"
    size = " x ".join(f"{zoom:.3g}" for zoom in grid.zooms)
    transform = _transform_path(out, job, job.suffix, template.space.label)
    common = {
        "SpatialReference": _template_uri(template, template.grids[res]),
        "Resolution": f"{which}, {size} mm",
        "Sources": [_uri(out, derivative_path(out, job, desc="enhanced"))],
        "Transform": _uri(out, transform),
    }
    for output in outputs:
        save_image(output.path, output.data, grid)
        write_json(
            _json_of(output.path), common | output.fields | {"Interpolation": output.how}
        )
        yield output.path


def _native(out: Path, job: Job) -> _Native:
    """Read the run's own derivatives, and its input on the common scale by one factor."""
    enhanced = load_image(derivative_path(out, job, desc="enhanced"))
    mask = load_image(derivative_path(out, job, space=job.suffix, desc="brain", suffix="mask"))
    labels = load_image(derivative_path(out, job, space=job.suffix, suffix="dseg"))
    raw = load_image(job.path)
    scale = _main(out, job).get("IntensityScale")
    factor = scale.get("InputFactor") if isinstance(scale, dict) else None
    if not isinstance(factor, int | float):
        raise ValueError(
            f"{marker_path(out, job, measure_only=False).name}: states no InputFactor, so it was "
            "made by an earlier version; do the run again with --overwrite"
        )
    before = np.where(mask.data > 0, np.maximum(raw.data, 0) * np.float32(factor), 0)
    before = before.astype(np.float32)
    return _Native(enhanced.affine, enhanced.data, before, mask.data, labels.data)


def _is_complete(
    out: Path, job: Job, space: Space, grids: Sequence[str | None], method: str
) -> bool:
    try:
        content = read_json(space_marker(out, job, space))
    except (OSError, ValueError):
        return False
    registration, outputs = content.get("Registration"), content.get("Outputs")
    if not isinstance(registration, dict) or not isinstance(outputs, list):
        return False
    if registration.get("Name") != method or content.get("SourceSHA256") != _digest(out, job):
        return False
    promised = {space_path(out, job, space, res, desc="enhanced") for res in grids}
    made = {out / str(name) for name in outputs}
    return promised <= made and all(path.exists() for path in made)


def _main(out: Path, job: Job) -> dict[str, object]:
    """Return the run's main sidecar."""
    return read_json(marker_path(out, job, measure_only=False))


def _transform_path(out: Path, job: Job, start: str, end: str) -> Path:
    """Return the path of a transform, e.g. ``sub-01_from-T1w_to-UNCInfant+1_mode-image_xfm.h5``."""
    stem = "_".join(f"{key}-{value}" for key, value in job.entities.items())
    name = f"{stem}_from-{start}_to-{end}_mode-image_xfm.h5"
    return session_dir(out, job.entities) / "anat" / name


def _uri(out: Path, path: Path) -> str:
    return f"bids::{path.relative_to(out).as_posix()}"


def _template_uri(template: Template, path: Path) -> str:
    """Return where a file of the template is to be had."""
    start = path.parts.index(f"tpl-{template.space.template}")
    return "https://templateflow.s3.amazonaws.com/" + "/".join(path.parts[start:])


def _digest(out: Path, job: Job) -> str:
    return result_digest(marker_path(out, job, measure_only=False))


def _json_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")
