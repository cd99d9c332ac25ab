"""The files under ``sub-XX/figures``: still pictures, sheets of slices, histogram of each run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bmex_bids import figures, plots, sprites
from bmex_bids.bids import (
    Job,
    atomic_path,
    derivative_path,
    output_stem,
    read_json,
    write_json,
    write_text,
)
from bmex_bids.derivatives import Run, marker_path, read_run
from bmex_bids.image import load_image

__all__ = ["PICTURES", "pictures_of", "run_figures", "viewer_of"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_Map = tuple[str, str, Array, tuple[float, ...], npt.NDArray[np.uint8], str]

# What the page shows by ``desc-`` and extension, beside the sheets of the viewer.
PICTURES = {
    "before": ".jpg",
    "after": ".jpg",
    "contours": ".jpg",
    "residual": ".jpg",
    "uncertainty": ".jpg",
    "histogram": ".svg",
}
OF_THE_RESULT = ("after", "residual", "uncertainty")
GREY_BYTES = 2_300_000  # the sheets before and after together
SPREAD_UNIT = "standard deviation, common scale"


@dataclass(frozen=True)
class _Volumes:
    """What is drawn of one run, on the grid of the input.

    ``after``, ``residual`` (percent of ``scale``) and ``uncertainty`` are None where there is none.
    """

    before: Array
    after: Array | None
    residual: Array | None
    uncertainty: Array | None
    mask: Mask
    masks: dict[str, Mask]
    affine: npt.NDArray[np.float64]
    window: tuple[float, float]
    residual_unit: str


def run_figures(out: Path, job: Job) -> None:
    """Draw the pictures of one finished run into ``sub-XX/figures``.

    Args:
        out: root of the output dataset, with the derivatives of the run.
        job: the run; its raw image is read for the picture before.

    Raises:
        FileNotFoundError: the run has no derivatives, or the raw image is gone.
    """
    run = _finished_run(out, job)
    volumes = _volumes(out, job, run)
    written = _still_pictures(out, run, volumes) | _sheets(out, run, volumes)
    histograms, metrics = run.content.get("Histograms"), run.content["Metrics"]
    if isinstance(histograms, dict) and "Edges" in histograms and isinstance(metrics, dict):
        path = _path(out, run, "histogram", PICTURES["histogram"])
        write_text(path, plots.histogram_svg(histograms, metrics))
        written.add(path)
    pattern = _path(out, run, "*", ".*")
    for path in pattern.parent.glob(pattern.name):
        if path not in written:  # of an earlier start, e.g. one with --uncertainty
            path.unlink(missing_ok=True)


def pictures_of(out: Path, run: Run) -> dict[str, str]:
    """Return the still pictures that exist, by ``desc-``: paths relative to ``out``."""
    paths = {
        desc: _path(out, run, desc, ext)
        for desc, ext in PICTURES.items()
        if not (run.measured_only and desc in OF_THE_RESULT)
    }
    return {desc: p.relative_to(out).as_posix() for desc, p in paths.items() if p.exists()}


def viewer_of(out: Path, run: Run) -> dict[str, object] | None:
    """Return what the viewer needs, its files relative to ``out``; None without sheets."""
    try:
        viewer = read_json(_path(out, run, "slices", ".json"))
    except (OSError, ValueError):
        return None
    folder = _path(out, run, "slices", ".json").parent.relative_to(out).as_posix()
    return viewer | {"folder": f"./{folder}/"}


def _finished_run(out: Path, job: Job) -> Run:
    for measure_only in (False, True):
        marker = marker_path(out, job, measure_only=measure_only)
        run = read_run(marker) if marker.exists() else None
        if run is not None:
            return run
    raise FileNotFoundError(
        f"{output_stem(job)}: no complete derivatives in {out}; run 'participant' first"
    )


def _path(out: Path, run: Run, desc: str, ext: str) -> Path:
    entities, _, suffix = run.stem.rpartition("_")
    folder = out / f"sub-{run.entities['sub']}" / "figures"
    return folder / f"{entities}_desc-{desc}_{suffix}{ext}"


def _volumes(out: Path, job: Job, run: Run) -> _Volumes:
    """Read what is drawn, and settle the one window of before and after."""
    image = load_image(job.path)
    mask = _read(derivative_path(out, job, space=job.suffix, desc="brain", suffix="mask")) > 0
    labels = _read(derivative_path(out, job, space=job.suffix, suffix="dseg"))
    masks = {"brain mask": mask, "grey matter": labels >= 2, "white matter": labels == 3}
    after = residual = uncertainty = None
    unit = ""
    if not run.measured_only:
        after = _read(derivative_path(out, job, desc="preproc"))
        scale, unit = _scale(image.data, masks["white matter"], mask)
        residual = (after - image.data) * np.float32(100 / (scale or 1.0))
        path = derivative_path(out, job, desc="uncertainty")
        uncertainty = _read(path) if path.exists() else None
    # The part that is shown decides.
    around = figures.brain_crop(mask, np.diag([*image.zooms, 1.0]))[1]
    shown = [volume[around] for volume in (image.data, after) if volume is not None]
    window = figures.shared_window(mask[around], shown)
    return _Volumes(
        *(image.data, after, residual, uncertainty, mask, masks, image.affine, window, unit)
    )


def _read(path: Path) -> Array:
    """Read an image that this program wrote; its checks are done."""
    return np.asarray(nib.Nifti1Image.from_filename(str(path)).dataobj, np.float32)


def _scale(data: Array, white: Mask, mask: Mask) -> tuple[float, str]:
    """Return what 100 % of the residual is, and its name."""
    name, scale = "white-matter median", float(np.median(data[white])) if white.any() else 0.0
    if scale <= 0 and mask.any():
        name, scale = "98th percentile", float(np.percentile(data[mask], 98))
    return scale, f"% of the input's {name} ({scale:.4g})"


def _still_pictures(out: Path, run: Run, volumes: _Volumes) -> set[Path]:
    montage = figures.plan_montage(volumes.mask, volumes.affine)
    paths = {desc: _path(out, run, desc, ext) for desc, ext in PICTURES.items()}
    written, window = {paths["before"], paths["contours"]}, volumes.window
    title = "Input" if volumes.after is None else "BEFORE: input as acquired"
    note = "input units" + ("" if volumes.after is None else ", the same before and after")
    figures.draw_anatomy(paths["before"], volumes.before, montage, window, title=title, note=note)
    last = volumes.before
    if volumes.after is not None and volumes.residual is not None:
        last, title = volumes.after, "AFTER: enhanced brain in the head"
        figures.draw_anatomy(paths["after"], last, montage, window, title=title, note=note)
        title, unit = "RESIDUAL: after minus before", volumes.residual_unit
        figures.draw_residual(
            paths["residual"], volumes.residual, volumes.mask, montage, title=title, unit=unit
        )
        written |= {paths["after"], paths["residual"]}
    title = "TISSUES on the " + ("input" if volumes.after is None else "enhanced image")
    figures.draw_contours(paths["contours"], last, volumes.masks, montage, window, title=title)
    if volumes.uncertainty is not None:
        title, path = "UNCERTAINTY over mirror images of the input", paths["uncertainty"]
        figures.draw_uncertainty(
            path, volumes.uncertainty, volumes.mask, montage, title=title, unit=SPREAD_UNIT
        )
        written.add(path)
    return written


def _sheets(out: Path, run: Run, volumes: _Volumes) -> set[Path]:
    """Write the sheets of the viewer, and the JSON that says what they are."""
    sheet = sprites.plan_sheet(volumes.mask, volumes.affine)
    grey = {
        name: sprites.grey_sheet(volume, sheet, volumes.window)
        for name, volume in (("before", volumes.before), ("after", volumes.after))
        if volume is not None
    }
    files = dict(zip(grey, sprites.jpegs(list(grey.values()), GREY_BYTES), strict=True))
    overlays = []
    for name, title, volume, limits, colours, unit in _maps(volumes):
        files[name] = sprites.colour_sheet(volume, sheet, (limits[0], limits[-1]), colours)
        overlays.append({"layer": name, "title": title} | _legend(colours, limits, unit))
    files["masks"] = sprites.masks_sheet(volumes.masks, sheet)
    paths = {
        layer: _path(out, run, f"slices{layer.capitalize()}", ".jpg" if layer in grey else ".png")
        for layer in files
    }
    for layer, path in paths.items():
        with atomic_path(path) as temporary:
            temporary.write_bytes(files[layer])
    facts = {
        "files": {layer: path.name for layer, path in paths.items()},
        "overlays": overlays,
        "outlines": [{"title": n, "colour": figures.MASK_COLOURS[n]} for n in volumes.masks],
        "window": [f"{value:.4g}" for value in volumes.window],
    }
    path = _path(out, run, "slices", ".json")
    write_json(path, sprites.sheet_facts(sheet) | facts)
    return {path, *paths.values()}


def _maps(volumes: _Volumes) -> Iterator[_Map]:
    """Yield what can be laid over the slices: name, title, map, ticks, colours, unit."""
    mask = volumes.mask
    if volumes.residual is not None:
        limit = figures.residual_limit(volumes.residual, mask)
        ticks, colours = (-limit, 0.0, limit), sprites.residual_colours()
        title = "Change (after minus before)"
        yield "residual", title, volumes.residual, ticks, colours, volumes.residual_unit
    if volumes.uncertainty is not None:
        limit = figures.uncertainty_limit(volumes.uncertainty, mask)
        ticks, colours = (0.0, limit / 2, limit), sprites.uncertainty_colours()
        yield "uncertainty", "Uncertainty", volumes.uncertainty, ticks, colours, SPREAD_UNIT


def _legend(
    colours: npt.NDArray[np.uint8], ticks: tuple[float, ...], unit: str
) -> dict[str, object]:
    """Return the colours as CSS knows them, and the values of some of them as text."""
    signed = ticks[0] < 0
    return {
        "unit": unit,
        "colours": [f"rgba({r}, {g}, {b}, {a / 255:.2f})" for r, g, b, a in colours.tolist()],
        "ticks": [f"{tick:+.3g}" if signed and tick else f"{tick:.3g}" for tick in ticks],
    }
