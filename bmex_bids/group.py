"""All derivatives become group tables and one page; only sidecars are read, never a voxel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from bmex_bids import __version__
from bmex_bids.bids import write_json, write_text
from bmex_bids.derivatives import SCANNER_FIELDS, Run, read_run, run_sidecars
from bmex_bids.groupsections import UNKNOWN_SITE, GroupRun, suffix_sections
from bmex_bids.measures import MEASURES, SMOOTHING_CAVEAT, column_description, number_text
from bmex_bids.rendering import format_age, natural_key, templates

__all__ = ["collect", "group_report"]

ENTITY_COLUMNS = {
    "ses": "session_id",
    "acq": "acquisition",
    "ce": "contrast_agent",
    "rec": "reconstruction",
    "run": "run",
}
DESCRIPTIONS: dict[str, dict[str, object]] = {
    "participant_id": {"Description": "Participant, as in participants.tsv of the raw dataset."},
    "session_id": {"Description": "Session; n/a when the dataset has none."},
    "stage": {"Description": "Age stage of the model, named after its first month, or fetal."},
    "age_months": {
        "Description": "Age after birth at the scan; negative before birth (term is 0).",
        "Units": "month",
    },
    "age_source": {"Description": "Table and column, or option, that gave the age."},
    "site": {"Description": "Institution and scanner, as far as the raw sidecar names them."},
    "model": {"Description": "Name of the model in models.json."},
    "model_sha256": {"Description": "SHA-256 of the model's weights."},
    "enhanced": {
        "Description": "Whether an enhanced image was written.",
        "Levels": {"yes": "enhanced", "no": "measured only"},
    },
    "n_flags": {"Description": "Number of automatic warnings."},
    "flags": {"Description": "The warnings in words, separated by ' | '."},
    "report": {"Description": "Page of the participant, relative to this table; n/a if missing."},
    "sidecar": {"Description": "Sidecar that this row was read from, relative to this table."},
}


@dataclass(frozen=True)
class Collected:
    """What a directory of derivatives holds.

    Attributes:
        runs: complete runs by suffix, in natural order.
        unreadable: what could not be read, in words.
        incomplete: number of runs that were begun and not finished.
    """

    runs: dict[str, list[GroupRun]]
    unreadable: list[str]
    incomplete: int


def group_report(out: Path) -> list[Path]:
    """Write ``group_T1w.tsv``, ``group_T2w.tsv`` (each with its JSON) and ``group.html``.

    Args:
        out: root of the output dataset.

    Returns:
        The paths written; tables only for suffixes that have runs.

    Raises:
        FileNotFoundError: ``out`` holds no finished run.
    """
    collected = collect(out)
    written = []
    for suffix, runs in collected.runs.items():
        columns = _columns(runs)
        table = out / f"group_{suffix}.tsv"
        write_text(table, _tsv(runs, columns))
        dictionary = {c: DESCRIPTIONS.get(c) or column_description(c) for c in columns}
        write_json(table.with_suffix(".json"), dictionary)
        written += [table, table.with_suffix(".json")]
    if not collected.runs:
        found = f"{collected.incomplete} incomplete" if collected.incomplete else "none at all"
        raise FileNotFoundError(
            f"{out}: no finished run found ({found}); run 'participant' before 'group'"
        )
    page = out / "group.html"
    write_text(page, _page(out, collected))
    return [*written, page]


def collect(out: Path) -> Collected:
    """Read the sidecars of all runs."""
    if not out.is_dir():
        raise FileNotFoundError(f"{out}: no such directory; give the output_dir of 'participant'")
    pages = {path.name for path in out.glob("sub-*.html")}
    runs: dict[str, list[GroupRun]] = {}
    unreadable, incomplete = [], 0
    for sidecar in run_sidecars(out):
        try:
            run = read_run(sidecar)
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        if run is None:
            incomplete += 1
            continue
        runs.setdefault(run.suffix, []).append(_group_run(out, run, pages))
    ordered = {
        suffix: sorted(runs[suffix], key=lambda run: natural_key(run.name))
        for suffix in sorted(runs)
    }
    return Collected(ordered, unreadable, incomplete)


def _group_run(out: Path, run: Run, pages: set[str]) -> GroupRun:
    content = run.content
    page = f"sub-{run.entities['sub']}.html"
    flags = content.get("Flags")
    flags = [str(flag) for flag in flags] if isinstance(flags, list) else []
    model = content.get("Model")
    model = model if isinstance(model, dict) else {}
    row: dict[str, object] = {"participant_id": f"sub-{run.entities['sub']}"}
    row["session_id"] = f"ses-{run.entities['ses']}" if "ses" in run.entities else None
    for key, value in run.entities.items():
        if key not in ("sub", "ses"):
            row[ENTITY_COLUMNS.get(key, key)] = value
    site = _site(content)
    row |= {
        "stage": content.get("AgeStage"),
        "age_months": content.get("AgeMonths"),
        "age_source": content.get("AgeSource"),
        "site": site,
        **{name: content.get(name) for name in SCANNER_FIELDS},
        "model": model.get("Name"),
        "model_sha256": model.get("SHA256"),
        "enhanced": "no" if run.measured_only else "yes",
    }
    metrics = content["Metrics"]
    metrics = metrics if isinstance(metrics, dict) else {}
    row |= {key: value for key, value in metrics.items() if isinstance(value, int | float | None)}
    row |= {
        "n_flags": len(flags),
        "flags": " | ".join(flags) or None,
        "report": page if page in pages else None,
        "sidecar": run.sidecar.relative_to(out).as_posix(),
    }
    age = content.get("AgeMonths")
    return GroupRun(
        name=run.stem,
        link=f"{quote(page)}#{quote(run.stem)}" if page in pages else "",
        site=site,
        stage=str(content.get("AgeStage") or "unknown"),
        age=float(age) if isinstance(age, int | float) else math.nan,
        metrics={key: float(v) for key, v in metrics.items() if isinstance(v, int | float)},
        histograms=_histograms(content.get("Histograms")),
        row=row,
    )


def _site(content: Mapping[str, object]) -> str:
    """Return institution and scanner in one label."""
    tesla = content.get("MagneticFieldStrength")
    scanner = " ".join(
        str(part)
        for part in (
            content.get("Manufacturer"),
            content.get("ManufacturersModelName"),
            f"{tesla} T" if tesla else None,
        )
        if part
    )
    parts = [str(part) for part in (content.get("InstitutionName"), scanner) if part]
    return ", ".join(parts) or str(content.get("StationName") or UNKNOWN_SITE)


def _histograms(value: object) -> dict[str, npt.NDArray[np.float32]]:
    """Return the histograms that fit their edges, in single precision to keep many in memory."""
    if not isinstance(value, dict) or not isinstance(value.get("Edges"), list):
        return {}
    arrays = {
        key: np.asarray(item, np.float32) for key, item in value.items() if isinstance(item, list)
    }
    bins = len(arrays["Edges"]) - 1
    good = {key: a for key, a in arrays.items() if key == "Edges" or len(a) == bins}
    return {key: array for key, array in good.items() if np.isfinite(array).all()}


def _columns(runs: Iterable[GroupRun]) -> list[str]:
    """Return the union of the columns: identity, run entities, context, measures, flags, paths."""
    seen = {column for run in runs for column in run.row}
    first = ["participant_id", "session_id"]
    last = ["n_flags", "flags", "report", "sidecar"]
    context = ["stage", "age_months", "age_source", "site", *SCANNER_FIELDS]
    context += ["model", "model_sha256", "enhanced"]
    measures = [
        name
        for measure in MEASURES
        for name in (
            (f"{measure.key}Before", f"{measure.key}After") if measure.paired else (measure.key,)
        )
        if name in seen
    ]
    known = {*first, *last, *context, *measures}
    entities = [c for c in ENTITY_COLUMNS.values() if c in seen and c not in known]
    rest = sorted(seen - known - set(entities))
    lower = [column for column in rest if column[0].islower()]  # entities without a long name
    extra = [column for column in rest if not column[0].islower()]
    return [*first, *entities, *lower, *context, *measures, *extra, *last]


def _tsv(runs: Sequence[GroupRun], columns: Sequence[str]) -> str:
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(run.row.get(column)) for column in columns) for run in runs]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Return a TSV cell: n/a for nothing, no tabs or line breaks, six significant digits."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


def _page(out: Path, collected: Collected) -> str:
    sections = []
    for suffix, runs in collected.runs.items():
        sections.append(
            {
                "suffix": suffix,
                "summary": _summary(runs),
                "rows": [_table_row(run) for run in runs],
                **suffix_sections(runs),
            }
        )
    return (
        templates()
        .get_template("group.html.j2")
        .render(
            version=__version__,
            name=out.resolve().name,
            sections=sections,
            unreadable=collected.unreadable,
            incomplete=collected.incomplete,
            caveat=SMOOTHING_CAVEAT,
        )
    )


def _summary(runs: Sequence[GroupRun]) -> list[tuple[str, str]]:
    subjects = {run.row["participant_id"] for run in runs}
    ages = [run.age for run in runs if math.isfinite(run.age)]
    span = f"{format_age(min(ages))} to {format_age(max(ages))}" if ages else "not known"
    stages = Counter(run.stage for run in runs)
    sites = Counter(run.site for run in runs)
    named = ", ".join(f"{site} ({count})" for site, count in sites.most_common(8))
    if len(sites) > 8:
        named += f" and {len(sites) - 8} more"
    measured = sum(run.row["enhanced"] == "no" for run in runs)
    flagged = sum(bool(run.row["n_flags"]) for run in runs)
    text = f"{len(runs)} of {len(subjects)} participant{'' if len(subjects) == 1 else 's'}"
    return [
        ("Runs", text + (f", {measured} of them measured only" if measured else "")),
        ("Ages", span),
        ("Age stages", ", ".join(f"{stage} ({count})" for stage, count in stages.most_common())),
        ("Sites", named),
        ("Runs with warnings", str(flagged)),
    ]


def _table_row(run: GroupRun) -> dict[str, Any]:
    def number(key: str) -> tuple[str, str]:
        value = run.metrics.get(key, math.nan)
        return f"{value:.6g}" if math.isfinite(value) else "", number_text(value)

    return {
        "name": run.name,
        "link": run.link,
        "age": (f"{run.age:.4g}", format_age(run.age)) if math.isfinite(run.age) else ("", "n/a"),
        "stage": run.stage,
        "site": run.site,
        "numbers": [number(key) for key in TABLE_NUMBERS],
        "flags": str(run.row["flags"] or ""),
        "n_flags": run.row["n_flags"],
    }


TABLE_NUMBERS = (
    *("TCTBefore", "TCTAfter", "QualityIndex", "CNRBefore", "CNRAfter", "CJVBefore", "CJVAfter"),
    *("HistogramDistanceBefore", "HistogramDistanceAfter", "VolumeGM", "VolumeWM"),
)
