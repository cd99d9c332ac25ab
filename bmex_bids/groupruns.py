"""The derivatives of all runs as the group level sees them: sidecars and one table, no voxel."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from bmex_bids.derivatives import SCANNER_FIELDS, Run, read_run, run_sidecars
from bmex_bids.participants import Person, find_person, participants_table
from bmex_bids.rendering import natural_key
from bmex_bids.tables import Table, TableError

__all__ = ["ENTITY_COLUMNS", "UNKNOWN_SITE", "Collected", "GroupRun", "collect"]

UNKNOWN_SITE = "unknown"
ENTITY_COLUMNS = {
    "ses": "session_id",
    "acq": "acquisition",
    "ce": "contrast_agent",
    "rec": "reconstruction",
    "run": "run",
}


@dataclass(frozen=True)
class GroupRun:
    """One run as the group level sees it.

    Attributes:
        name: e.g. ``sub-01_run-1_T1w``.
        participant: e.g. ``sub-01``.
        link: relative URL of its section in the subject's page, "" without one.
        site: institution and scanner, the table's word for it, or ``unknown``.
        stage: age stage.
        age: months after birth, NaN when not known.
        sex: ``male``, ``female``, the table's word, or "".
        group: from participants.tsv, or "".
        flags: automatic warnings.
        metrics: measures by name.
        histograms: ``Edges`` (n + 1); ``Before``, ``After``, ``Reference``, ``BeforeGM`` ... (n).
        row: cells of the TSV by column.
    """

    name: str
    participant: str
    link: str
    site: str
    stage: str
    age: float
    sex: str
    group: str
    flags: tuple[str, ...]
    metrics: dict[str, float]
    histograms: dict[str, npt.NDArray[np.float32]]
    row: dict[str, object]


@dataclass(frozen=True)
class Collected:
    """What a directory of derivatives holds.

    Attributes:
        runs: complete runs by suffix, in natural order.
        unreadable: what could not be read, in words.
        incomplete: number of runs that were begun and not finished.
        site_source: where the sites' names come from, in words.
    """

    runs: dict[str, list[GroupRun]]
    unreadable: list[str]
    incomplete: int
    site_source: str


def collect(out: Path, site_column: str | None = None) -> Collected:
    """Read the sidecars of all runs, and participants.tsv where there is one.

    Args:
        out: root of the output dataset.
        site_column: column of participants.tsv that names the site; None takes the scanner's fields
            of the sidecars, and the column ``site`` when no sidecar has any.

    Raises:
        FileNotFoundError: ``out`` does not exist.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"{out}: no such directory; give the output_dir of 'participant'")
    pages = {path.name for path in out.glob("sub-*.html")}
    unreadable: list[str] = []
    incomplete = 0
    found: list[tuple[Run, Person]] = []
    table = _participants(out, unreadable)
    for sidecar in run_sidecars(out):
        try:
            run = read_run(sidecar)
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        if run is None:
            incomplete += 1
            continue
        session = run.entities.get("ses")
        person = find_person(table, run.entities["sub"], session, site_column)
        found.append((_slim(run), person))
    sites, source = _sites(found, site_column)
    runs: dict[str, list[GroupRun]] = {}
    for (run, person), site in zip(found, sites, strict=True):
        runs.setdefault(run.suffix, []).append(_group_run(out, run, person, site, pages))
    ordered = {s: sorted(runs[s], key=lambda run: natural_key(run.name)) for s in sorted(runs)}
    return Collected(ordered, unreadable, incomplete, source)


def _participants(out: Path, unreadable: list[str]) -> Table | None:
    try:
        return participants_table(out)
    except TableError as error:
        unreadable.append(f"{error}: sex, group and site of the participants are not known")
        return None


def _slim(run: Run) -> Run:
    """Return the run with compact histograms, so that many fit into memory."""
    content = dict(run.content)
    content["Histograms"] = _histograms(content.get("Histograms"))
    for unused in ("IntensityScale", "Outputs", "Seconds", "Notes", "BiasField", "TissueMethod"):
        content.pop(unused, None)
    return replace(run, content=content)


def _histograms(value: object) -> dict[str, npt.NDArray[np.float32]]:
    """Return the histograms that fit their edges, in single precision."""
    if not isinstance(value, dict) or not isinstance(value.get("Edges"), list):
        return {}
    try:
        arrays = {
            key: np.asarray(item, np.float32)
            for key, item in value.items()
            if isinstance(item, list)
        }
    except (ValueError, TypeError):  # words, or lists in lists
        return {}
    edges = arrays["Edges"]
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        return {}
    bins = len(edges) - 1
    good = {key: a for key, a in arrays.items() if key == "Edges" or a.shape == (bins,)}
    return {key: array for key, array in good.items() if np.isfinite(array).all()}


def _sites(
    found: Sequence[tuple[Run, Person]], site_column: str | None
) -> tuple[list[str], str]:
    """Return the site of each run, and in words where that is from."""
    if site_column is not None:
        sites = [person.site or UNKNOWN_SITE for _, person in found]
        return sites, f"the column {site_column} of participants.tsv"
    sites = _scanner_sites([run.content for run, _ in found])
    if all(site == UNKNOWN_SITE for site in sites) and any(person.site for _, person in found):
        sites = [person.site or UNKNOWN_SITE for _, person in found]
        return sites, "the column site of participants.tsv, as no sidecar names a scanner"
    return sites, "institution and scanner as the sidecars name them"


def _scanner_sites(contents: Sequence[Mapping[str, object]]) -> list[str]:
    """Return institution and scanner; the station's name too where it tells scanners apart.

    Spellings that differ in case alone are one site, under the most frequent of them.
    """
    labels = [_scanner(content) for content in contents]
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    stations: dict[str, set[str]] = defaultdict(set)
    for label, content in zip(labels, contents, strict=True):
        spellings[label.casefold()][label] += 1
        stations[label.casefold()].add(str(content.get("StationName") or ""))
    sites = []
    for label, content in zip(labels, contents, strict=True):
        site = spellings[label.casefold()].most_common(1)[0][0]
        station = str(content.get("StationName") or "")
        if station and len(stations[label.casefold()]) > 1:
            site = f"{site}, {station}" if site else station
        sites.append(site or station or UNKNOWN_SITE)
    return sites


def _scanner(content: Mapping[str, object]) -> str:
    tesla = content.get("MagneticFieldStrength")
    strength = f"{tesla:g} T" if isinstance(tesla, int | float) and tesla else ""
    parts = (content.get("Manufacturer"), content.get("ManufacturersModelName"), strength)
    scanner = " ".join(str(part).strip() for part in parts if part)
    return ", ".join(
        str(part).strip() for part in (content.get("InstitutionName"), scanner) if part
    )


def _group_run(out: Path, run: Run, person: Person, site: str, pages: set[str]) -> GroupRun:
    content = run.content
    participant = f"sub-{run.entities['sub']}"
    page = f"{participant}.html"
    flags = content.get("Flags")
    flags = tuple(str(flag) for flag in flags) if isinstance(flags, list) else ()
    metrics = content["Metrics"]
    metrics = metrics if isinstance(metrics, dict) else {}
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float | None)}
    row = _identity(run) | {
        "stage": content.get("AgeStage"),
        "age_months": content.get("AgeMonths"),
        "age_source": content.get("AgeSource"),
        "sex": person.sex,
        "group": person.group,
        "site": site,
        **{name: content.get(name) for name in SCANNER_FIELDS},
        **_model(content),
        "enhanced": "no" if run.measured_only else "yes",
        **numbers,
        "n_flags": len(flags),
        "flags": " | ".join(flags) or None,
        "report": page if page in pages else None,
        "sidecar": run.sidecar.relative_to(out).as_posix(),
    }
    age = content.get("AgeMonths")
    histograms = content["Histograms"]
    return GroupRun(
        name=run.stem,
        participant=participant,
        link=f"{quote(page)}#{quote(run.stem)}" if page in pages else "",
        site=site,
        stage=str(content.get("AgeStage") or "unknown"),
        age=float(age) if isinstance(age, int | float) else math.nan,
        sex=person.sex,
        group=person.group,
        flags=flags,
        metrics={key: float(value) for key, value in numbers.items() if value is not None},
        histograms=histograms if isinstance(histograms, dict) else {},
        row=row,
    )


def _identity(run: Run) -> dict[str, object]:
    """Return the columns that name the run."""
    row: dict[str, object] = {"participant_id": f"sub-{run.entities['sub']}"}
    row["session_id"] = f"ses-{run.entities['ses']}" if "ses" in run.entities else None
    for key, value in run.entities.items():
        if key not in ("sub", "ses"):
            row[ENTITY_COLUMNS.get(key, key)] = value
    return row


def _model(content: Mapping[str, object]) -> dict[str, object]:
    model = content.get("Model")
    model = model if isinstance(model, dict) else {}
    return {"model": model.get("Name"), "model_sha256": model.get("SHA256")}
