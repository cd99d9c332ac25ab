"""One subject's derivatives become one HTML page with its pictures.

`run_figures` draws the pictures of a run; `subject_report` assembles the page with nireports from
the sidecars, the pictures and the crash files alone. nireports gets one HTML fragment per section,
rendered here with autoescape on, because it escapes nothing itself and orders runs 1, 10, 2.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmex_bids import __version__, figures, plots
from bmex_bids.bids import Job, atomic_path, derivative_path, output_stem, write_text
from bmex_bids.derivatives import Run, marker_path, read_run, run_sidecars
from bmex_bids.image import load_image
from bmex_bids.measures import SMOOTHING_CAVEAT, table_rows
from bmex_bids.rendering import TEMPLATES, format_age, natural_key, templates

__all__ = ["methods_text", "run_figures", "run_title", "subject_report"]

LONG_NAMES = {"ses": "session", "acq": "acquisition", "rec": "reconstruction"}


def run_figures(out: Path, job: Job) -> None:
    """Draw the pictures of one finished run into ``sub-XX/figures``.

    Args:
        out: root of the output dataset, with the derivatives of the run.
        job: the run; its raw image is read for the picture before.

    Raises:
        FileNotFoundError: the run has no derivatives, or the raw image is gone.
    """
    run = _finished_run(out, job)
    image = load_image(job.path)
    mask = load_image(derivative_path(out, job, space=job.suffix, desc="brain", suffix="mask"))
    dseg = load_image(derivative_path(out, job, space=job.suffix, suffix="dseg"))
    inside, labels = mask.data > 0, dseg.data.astype(np.uint8)
    montage = figures.plan_montage(inside, image.affine)
    volumes = [image.data]
    if not run.measured_only:
        volumes.append(load_image(derivative_path(out, job, desc="preproc")).data)
    window = figures.shared_window(inside, volumes)
    folder, note = _figures_dir(out, job.entities["sub"]), "input units"
    if not run.measured_only:
        note += ", the same before and after"

    def path(desc: str, ext: str = ".png") -> Path:
        return folder / _figure_name(output_stem(job), desc, ext)

    title = "Input" if run.measured_only else "BEFORE: input as acquired"
    figures.anatomy_png(path("before"), image.data, montage, window, title=title, note=note)
    if not run.measured_only:
        title = "AFTER: enhanced brain in the head"
        figures.anatomy_png(path("after"), volumes[1], montage, window, title=title, note=note)
        wm = image.data[labels == 3]
        name, scale = "white-matter median", float(np.median(wm)) if wm.size else 0.0
        if scale <= 0:
            name, scale = "98th percentile", float(np.percentile(image.data[inside], 98))
        figures.residual_png(
            path("residual"),
            100 * (volumes[1] - image.data) / (scale or 1.0),
            inside,
            montage,
            title="RESIDUAL: after minus before",
            unit=f"% of the input's {name} ({scale:.4g})",
        )
    title = "TISSUES on the " + ("input" if run.measured_only else "enhanced image")
    figures.contours_png(
        path("contours"), volumes[-1], labels, inside, montage, window, title=title
    )
    uncertainty = derivative_path(out, job, desc="uncertainty")
    if uncertainty.exists() and not run.measured_only:
        title = "UNCERTAINTY over flips of the input"
        figures.uncertainty_png(
            path("uncertainty"), load_image(uncertainty).data, inside, montage, title=title
        )
    histograms = run.content.get("Histograms")
    if isinstance(histograms, dict) and "Edges" in histograms:
        drawing = plots.histogram_svg(histograms, _distances(run))
        write_text(path("histogram", ".svg"), drawing)


def subject_report(out: Path, subject: str) -> Path:
    """Write ``sub-<subject>.html`` at the root of the output dataset and return its path.

    Reads the sidecars, the pictures that exist and ``logs/crash-sub-<subject>_*.txt``.

    Args:
        out: root of the output dataset.
        subject: label without ``sub-``.
    """
    runs, broken = _read_runs(out, subject)
    errors = _crashes(out, subject) + broken
    contexts = [_run_context(out, run) for run in runs]
    sections: list[tuple[str, str, str, dict[str, Any]]]
    sections = [("overview", "Overview", "overview.html.j2", {"runs": contexts, "errors": errors})]
    if errors:
        sections.append(("errors", "Errors", "errors.html.j2", {"errors": errors}))
    for context in contexts:
        sections.append((context["anchor"], context["title"], "run.html.j2", {"run": context}))
    if runs:
        text = methods_text(runs)
        sections.append(("methods", "Methods text", "methods.html.j2", {"text": text}))
    common = {"subject": subject, "version": __version__, "caveat": SMOOTHING_CAVEAT}
    fragments = [
        (anchor, title, templates().get_template(name).render(**common, **context))
        for anchor, title, name, context in sections
    ]
    path = out / f"sub-{subject}.html"
    _assemble(path, f"bmex: sub-{subject}", fragments)
    return path


def methods_text(runs: Iterable[Run]) -> str:
    """Return the paragraph and the references to paste into a paper, for these runs."""
    groups: dict[tuple[str, ...], int] = {}
    for run in runs:
        model = _mapping(run.content.get("Model"))
        key = (
            run.suffix,
            str(run.content.get("AgeStage") or "n/a"),
            str(model.get("Name") or "n/a"),
            str(model.get("Version") or "n/a"),
            str(model.get("SHA256") or "n/a")[:12],
            str(model.get("Set") or "n/a"),
            "measured" if run.measured_only else "enhanced",
        )
        groups[key] = groups.get(key, 0) + 1
    return (
        templates(escape=False)
        .get_template("methods.txt.j2")
        .render(version=__version__, groups=sorted(groups.items()))
    )


def run_title(run: Run) -> str:
    """Return a run's name for people, e.g. ``T1w, session 1, run 2``."""
    named = (
        f"{LONG_NAMES.get(key, key)} {value}" for key, value in run.entities.items() if key != "sub"
    )
    return ", ".join([run.suffix, *named])


def _finished_run(out: Path, job: Job) -> Run:
    for measure_only in (False, True):
        marker = marker_path(out, job, measure_only=measure_only)
        run = read_run(marker) if marker.exists() else None
        if run is not None:
            return run
    raise FileNotFoundError(
        f"{output_stem(job)}: no complete derivatives in {out}; run 'participant' first"
    )


def _read_runs(out: Path, subject: str) -> tuple[list[Run], list[dict[str, str]]]:
    """Return the subject's runs in natural order, and what could not be read."""
    runs, broken = [], []
    for sidecar in run_sidecars(out, subject):
        try:
            run = read_run(sidecar)
        except ValueError as error:
            broken.append({"name": sidecar.name, "message": str(error), "details": ""})
            continue
        if run is not None:
            runs.append(run)

    def order(run: Run) -> tuple[object, ...]:
        rest = {key: value for key, value in run.entities.items() if key not in ("sub", "ses")}
        named = "_".join(f"{key}-{value}" for key, value in rest.items())
        return natural_key(run.entities.get("ses", "")), natural_key(named), run.suffix

    return sorted(runs, key=order), broken


def _crashes(out: Path, subject: str) -> list[dict[str, str]]:
    """Read the crash files of a subject: a line with the message, then the traceback."""
    names = (f"crash-sub-{subject}.txt", f"crash-sub-{subject}_*.txt")
    crashes = []
    for path in sorted(p for name in names for p in (out / "logs").glob(name)):
        message, _, details = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        stem = path.stem.removeprefix("crash-")
        crashes.append({"name": stem, "message": message.strip(), "details": details.strip()})
    return crashes


def _run_context(out: Path, run: Run) -> dict[str, Any]:
    """Collect what the run's section shows."""
    content = run.content
    flags, notes = (
        [str(text) for text in texts] if isinstance(texts, list) else []
        for texts in (content.get("Flags"), content.get("Notes"))
    )
    folder = _figures_dir(out, run.entities["sub"])
    pictures = {}
    for desc in ("before", "after", "contours", "residual", "uncertainty", "histogram"):
        ext = ".svg" if desc == "histogram" else ".png"
        path = folder / _figure_name(run.stem, desc, ext)
        hidden = run.measured_only and desc in ("after", "residual", "uncertainty")
        if path.exists() and not hidden:
            pictures[desc] = path.relative_to(out).as_posix()
    return {
        "anchor": run.stem,
        "title": run_title(run),
        "suffix": run.suffix,
        "measured_only": run.measured_only,
        "flags": flags,
        "notes": [note for note in notes if note not in flags],
        "facts": _facts(run),
        "measures": table_rows(_mapping(content.get("Metrics"))),
        "distances": _distances(run),
        "scales": _scales(run),
        "pictures": pictures,
        "age": format_age(content.get("AgeMonths")),
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return label and text of what was used, in the order of interest."""
    content = run.content
    model, grid = _mapping(content.get("Model")), _mapping(content.get("InputGrid"))
    age = f"{format_age(content.get('AgeMonths'))}, from {content.get('AgeSource') or 'no table'}"
    scanner = [content.get(key) for key in ("Manufacturer", "ManufacturersModelName")]
    tesla = content.get("MagneticFieldStrength")
    scanner += [f"{tesla} T" if tesla else None, content.get("InstitutionName")]
    mask_model = content.get("BrainMaskModel")
    if isinstance(mask_model, Mapping):
        mask_model = f"{mask_model.get('Name')} (SHA-256 {str(mask_model.get('SHA256'))[:12]}...)"
    seconds = _mapping(content.get("Seconds"))
    steps = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if _is_number(value))
    total = sum(value for value in seconds.values() if _is_number(value))
    sizes, shape = grid.get("VoxelSize"), grid.get("Shape")
    facts = [
        ("Age", age),
        ("Age stage", str(content.get("AgeStage") or "n/a")),
        ("Model", f"{model.get('Name', 'n/a')}, version {model.get('Version', 'n/a')}"),
        ("Model set", str(model.get("Set", "n/a"))),
        ("SHA-256 of the weights", str(model.get("SHA256", "n/a"))),
        ("Brain mask", _joined(content.get("BrainMaskSource"), mask_model)),
        ("Scanner", _joined(*scanner)),
        ("Input grid", f"{_times(shape)} voxels of {_times(sizes)} mm" if sizes and shape else ""),
        ("Device", _joined(content.get("Device"), content.get("Precision"))),
        ("Threads, seed", _joined(content.get("Threads"), content.get("Seed"))),
        ("Time", f"{total:.1f} s ({steps})" if steps else ""),
        ("Made by", f"bmex {content['Version']}" if content.get("Version") else ""),
    ]
    return [(label, text) for label, text in facts if text]


def _assemble(path: Path, title: str, fragments: list[tuple[str, str, str]]) -> None:
    """Let nireports put the HTML fragments (anchor, title, HTML) into the page template."""
    from nireports.assembler.report import Report

    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the page, since on a read-only system only the output can be written.
    work = Path(tempfile.mkdtemp(prefix=".report-", dir=path.parent))
    try:
        folder = work / "sub-page" / "figures"
        folder.mkdir(parents=True)
        sections = []
        for number, (anchor, heading, html) in enumerate(fragments):
            desc = f"part{number:04d}"
            # nireports reads with the encoding of the locale, so the fragments are plain ASCII.
            ascii_html = html.encode("ascii", "xmlcharrefreplace")
            (folder / f"sub-page_desc-{desc}_T1w.html").write_bytes(ascii_html)
            query = {"datatype": "figures", "desc": desc}
            part = {"name": anchor, "title": heading, "reportlets": [{"bids": query}]}
            sections.append(part)
        template = str((TEMPLATES / "page.html.j2").absolute())
        spec = {"title": title, "template_path": template, "sections": sections}
        # JSON is YAML; nireports fills {subject} and the like into lines, so there are none.
        (work / "spec.yml").write_text(json.dumps(spec), encoding="utf-8")
        with atomic_path(path) as temporary:
            Report(
                path.parent,
                None,
                bootstrap_file=work / "spec.yml",
                out_filename=str(temporary.absolute()),
                reportlets_dir=work,
            ).generate_report()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _figures_dir(out: Path, subject: str) -> Path:
    return out / f"sub-{subject}" / "figures"


def _figure_name(stem: str, desc: str, ext: str) -> str:
    entities, _, suffix = stem.rpartition("_")
    return f"{entities}_desc-{desc}_{suffix}{ext}"


def _distances(run: Run) -> dict[str, float | None]:
    metrics = _mapping(run.content.get("Metrics"))
    return {when: metrics.get(f"HistogramDistance{when}") for when in ("Before", "After")}


def _scales(run: Run) -> dict[str, str]:
    texts = _mapping(run.content.get("IntensityScale"))
    return {key: str(texts[key]) for key in ("Preproc", "Enhanced") if key in texts}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _joined(*values: object) -> str:
    return ", ".join(str(value) for value in values if value not in (None, ""))


def _times(values: object) -> str:
    return " x ".join(f"{v:g}" for v in values) if isinstance(values, list) else "?"
