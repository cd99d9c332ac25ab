"""One subject's derivatives become one HTML page with its pictures.

`subject_report` assembles the page with nireports from the sidecars, the pictures and the crash
files alone. nireports gets one HTML fragment per section, rendered here with autoescape on, because
it escapes nothing itself and orders runs 1, 10, 2.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.bids import atomic_path
from bmex_bids.claims import TEMPORARY
from bmex_bids.cohort import Cohort, cohort_of, cohort_words, neighbours, rank_words
from bmex_bids.derivatives import Run, read_run, run_sidecars
from bmex_bids.measures import SMOOTHING_CAVEAT, finite, table_rows
from bmex_bids.pictures import pictures_of, run_figures, viewer_of
from bmex_bids.rendering import TEMPLATES, format_age, natural_key, templates
from bmex_bids.strips import strip_svg

__all__ = ["methods_text", "run_figures", "run_title", "subject_report"]

LONG_NAMES = {"ses": "session", "acq": "acquisition", "rec": "reconstruction"}


def subject_report(out: Path, subject: str) -> Path:
    """Write ``sub-<subject>.html`` at the root of the output dataset and return its path.

    Reads the sidecars, the pictures that exist and ``logs/crash-sub-<subject>_*.txt``.

    Args:
        out: root of the output dataset.
        subject: label without ``sub-``.
    """
    runs, broken = _read_runs(out, subject)
    errors = _crashes(out, subject) + broken
    others, sampled = neighbours(out, subject)
    contexts = [
        _run_context(out, run, cohort_of(run, others, sampled=sampled)) for run in runs
    ]
    for first, second in itertools.pairwise(contexts):
        first["later"], second["earlier"] = second, first
    sections: list[tuple[str, str, str, dict[str, Any]]]
    sections = [("overview", "Overview", "overview.html.j2", {"runs": contexts, "errors": errors})]
    group = (out / "group.html").exists()
    if errors:
        sections.append(("errors", "Errors", "errors.html.j2", {"errors": errors}))
    for context in contexts:
        sections.append((context["anchor"], context["title"], "run.html.j2", {"run": context}))
    if runs:
        text = methods_text(runs)
        sections.append(("methods", "Methods text", "methods.html.j2", {"text": text}))
    common: dict[str, Any] = {"subject": subject, "version": __version__, "group": group}
    common["caveat"] = SMOOTHING_CAVEAT
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
    mixed = False
    for run in runs:
        mixed |= "mixture" in str(run.content.get("TissueMethod"))
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
        .render(version=__version__, groups=sorted(groups.items()), mixed=mixed)
    )


def run_title(run: Run) -> str:
    """Return a run's name for people, e.g. ``T1w, session 1, run 2``."""
    named = (
        f"{LONG_NAMES.get(key, key)} {value}" for key, value in run.entities.items() if key != "sub"
    )
    return ", ".join([run.suffix, *named])


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


def _run_context(out: Path, run: Run, cohort: Cohort) -> dict[str, Any]:
    """Collect what the run's section shows."""
    content = run.content
    flags, notes = (
        [str(text) for text in texts] if isinstance(texts, list) else []
        for texts in (content.get("Flags"), content.get("Notes"))
    )
    return {
        "anchor": run.stem,
        "title": run_title(run),
        "suffix": run.suffix,
        "measured_only": run.measured_only,
        "flags": flags,
        "notes": [note for note in notes if note not in flags],
        "facts": _facts(run),
        "measures": _measures(run, cohort),
        "cohort": cohort_words(cohort, run.suffix, str(content.get("AgeStage") or "n/a")),
        "compared": cohort.is_enough,
        "brief": _brief(_mapping(content.get("Metrics"))),
        "distances": _distances(run),
        "scales": _scales(run),
        "pictures": pictures_of(out, run),
        "viewer": viewer_of(out, run),
        "age": format_age(content.get("AgeMonths")),
    }


def _measures(run: Run, cohort: Cohort) -> list[dict[str, Any]]:
    """Return the rows of the table of measures, each with its strip among the other runs."""
    metrics = _mapping(run.content.get("Metrics"))
    rows = table_rows(metrics)
    for row in rows if cohort.is_enough else ():
        lanes, words = [], []
        for name in row["names"]:
            if name not in cohort.values or not finite(metrics.get(name)):
                continue
            others, value = cohort.values[name], float(metrics[name])
            kind = next((k for k in ("before", "after") if name.endswith(k.capitalize())), "value")
            lanes.append((kind, value, others))
            rank = rank_words(value, others)
            words.append(rank if kind == "value" else f"{kind} {rank}")
        row["rank"] = "; ".join(words)
        row["strip"] = strip_svg(lanes, f"{row['label']} among the other runs: {row['rank']}")
    return rows


def _brief(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the few measures that the overview shows, as text."""
    rows = {row["names"][0].removesuffix("Before"): row for row in table_rows(metrics)}
    texts = {}
    for key in ("TCT", "CJV", "ResidualShare"):
        row = rows.get(key, {})
        values = [row.get(name) for name in ("before", "after")]
        texts[key] = " \N{RIGHTWARDS ARROW} ".join(v for v in values if v and v != "n/a") or "n/a"
    return texts


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
        ("Made by", f"bmex {content['Version']}" if content.get("Version") else ""),
    ]
    return [(label, text) for label, text in facts if text]


def _assemble(path: Path, title: str, fragments: list[tuple[str, str, str]]) -> None:
    """Let nireports put the HTML fragments (anchor, title, HTML) into the page template."""
    from nireports.assembler.report import Report

    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the page, since on a read-only system only the output can be written.
    work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}report-", dir=path.parent))
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


def _distances(run: Run) -> dict[str, float | None]:
    metrics = _mapping(run.content.get("Metrics"))
    return {when: metrics.get(f"HistogramDistance{when}") for when in ("Before", "After")}


def _scales(run: Run) -> dict[str, str]:
    texts = _mapping(run.content.get("IntensityScale"))
    return {key: str(texts[key]) for key in ("Preproc", "Enhanced") if key in texts}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _joined(*values: object) -> str:
    return ", ".join(str(value) for value in values if value not in (None, ""))


def _times(values: object) -> str:
    return " x ".join(f"{v:g}" for v in values) if isinstance(values, list) else "?"
