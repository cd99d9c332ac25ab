"""The age at the scan: tables and units -> months after birth, and where it was read.

Looked for in the order scans, sessions, participants, the image's own JSON. A row that names
another image, session or subject is never used. What was odd is said in ``Age.note``; when nothing
gives an age, the error says what each table held.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bmex_bids.bids import session_dir
from bmex_bids.tables import Table, TableError, label_of, read_table

__all__ = ["Age", "AgeError", "find_age", "parse_age", "parse_unit", "stage_of"]

DAYS_PER_MONTH = 30.4375  # a twelfth of 365.25
TERM_DAYS = 280  # a birth at term, counted from the last menstrual period: 40 weeks
DAYS = {"day": 1.0, "week": 7.0, "month": DAYS_PER_MONTH, "year": 12 * DAYS_PER_MONTH}
UNIT_WORDS = {
    "day": ("d", "dy", "day", "days"),
    "week": ("w", "wk", "wks", "week", "weeks"),
    "month": ("m", "mo", "mos", "mon", "mth", "mths", "month", "months"),
    "year": ("a", "y", "yr", "yrs", "year", "years"),
}
GESTATIONAL_WORDS = {"gestational", "gestation", "gest", "ga", "gw", "wga"}
POSTMENSTRUAL_WORDS = {"postmenstrual", "pma", "postconceptional"}
MISSING = {"", "n/a", "na", "nan", "none", "null", "unknown", "missing", "-"}

# (stage, first month, month after the last): which model serves which age after birth.
STAGES = (
    ("0", 0.0, 2.0),
    ("3", 2.0, 5.0),
    ("6", 5.0, 7.0),
    ("9", 7.0, 10.0),
    ("12", 10.0, 15.0),
    ("18", 15.0, 21.0),
    ("24", 21.0, 1200.0),
)
EARLIEST_WEEKS, LATEST_WEEKS = 10, 45  # gestational weeks that a fetal scan can have

# Columns from the most to the least explicit; gestational ones last, since they often mean birth.
AGE_PART = re.compile(r"\s*([-+]?\d+(?:[.,]\d+)?)(\+?)\s*([A-Za-z][A-Za-z _.-]*)?\s*")
AGE_COLUMN = re.compile(r"age(?:_at_(?:scan|session|visit))?(?:_in)?(?:_(?P<unit>[a-z]+))?")
GESTATIONAL_COLUMN = re.compile(
    r"(?P<kind>gestational|postmenstrual|pma)(?:_age)?(?:_at_scan)?(?:_in)?(?:_(?P<unit>[a-z]+))?"
)
JSON_KEYS = {
    "AgeDays": "age_days",
    "AgeWeeks": "age_weeks",
    "AgeMonths": "age_months",
    "AgeYears": "age_years",
    "Age": "age",
    "age": "age",
    "PatientAge": "age",
}


class AgeError(ValueError):
    """The age is not known or fits no stage; the message says what was read and what to set."""


@dataclass(frozen=True)
class Age:
    """The age at the scan.

    Attributes:
        months: months after birth (negative before a birth at term); None when not known.
        source: where it was read, e.g. ``participants.tsv:age (years)``.
        note: what was odd, in plain words, "" when nothing was.
        fetal: scanned before birth.
    """

    months: float | None
    source: str
    note: str = ""
    fetal: bool = False


@dataclass(frozen=True)
class Found:
    """One age that a table or sidecar gave."""

    months: float
    unit: str
    kind: str  # "" after birth, "gestational" or "postmenstrual"
    source: str
    note: str = ""
    fallback: bool = False  # a gestational column, which often means the age at birth


def stage_of(months: float, *, fetal: bool = False) -> str:
    """Return the age stage that serves an age.

    Args:
        months: months after birth; negative means before birth.
        fetal: scanned before birth, whatever the number.

    Raises:
        AgeError: no stage has that age.
    """
    weeks = (months * DAYS_PER_MONTH + TERM_DAYS) / 7
    if fetal or months < 0:
        if not EARLIEST_WEEKS <= weeks <= LATEST_WEEKS:
            raise AgeError(
                f"age {months:.4g} months ({weeks:.3g} gestational weeks): a fetal scan is "
                f"expected between {EARLIEST_WEEKS} and {LATEST_WEEKS} weeks; check the units, or "
                "set --stage"
            )
        return "fetal"
    for stage, first, end in STAGES:
        if first <= months < end or months == end == STAGES[-1][2]:
            return stage
    raise AgeError(
        f"age {months:.5g} months ({months / 12:.4g} years) is beyond every stage (to "
        f"{STAGES[-1][2] / 12:.0f} years); state the Units in the table's JSON, or set "
        "--age-months or --stage"
    )


def parse_unit(text: str) -> tuple[str, str] | None:
    """Return (unit, kind) of a unit in any of its forms; None when it is not known.

    The kind is ``""`` (after birth), ``"gestational"`` or ``"postmenstrual"``.
    """
    joined = re.sub(r"post[ _-](menstrual|conceptional)", r"post\1", text.lower())
    kind = unit = ""
    for word in re.split(r"[^a-z]+", joined):
        base = next((name for name, forms in UNIT_WORDS.items() if word in forms), "")
        if word in GESTATIONAL_WORDS:
            kind = "gestational"
        elif word in POSTMENSTRUAL_WORDS:
            kind = "postmenstrual"
        elif base and not unit:
            unit = base
        elif word not in ("", "of", "age"):
            return None
    if kind and not unit:
        unit = "week"
    return (unit, kind) if unit else None


def parse_age(text: object, unit: tuple[str, str] = ("year", "")) -> Found | None:
    """Read one cell, e.g. ``6``, ``89+``, ``006Y``, ``30 gestational_weeks``, ``2 years 6 months``.

    Args:
        text: the cell.
        unit: (unit, kind) where the cell itself names none.

    Returns:
        The age, still without its source; None for an empty cell.

    Raises:
        AgeError: the cell is no age.
    """
    cell = "" if text is None else str(text).strip()
    if cell.lower() in MISSING:
        return None
    days, position, note, first = 0.0, 0, "", None
    while position < len(cell):
        part = AGE_PART.match(cell, position)
        if part is None:
            raise AgeError(f"'{cell}' is no age")
        number, capped, name = part.groups()
        named = parse_unit(name) if name else unit
        if named is None or (not name and (position or part.end() < len(cell))):
            raise AgeError(f"'{cell}' is no age with a unit that is known")
        days += float(number.replace(",", ".")) * DAYS[named[0]]
        note = f"'{cell}' was read as {number}" if capped else note
        first = first or named
        position = part.end()
    chosen, kind = first or unit
    # Rounded, so that 5 months are exactly 5 and fall into the stage that begins there.
    months = round((days - TERM_DAYS if kind else days) / DAYS_PER_MONTH, 6)
    return Found(months, chosen, kind, "", note)


def find_age(
    bids_root: Path,
    entities: Mapping[str, str],
    image_path: Path,
    metadata: Mapping[str, object],
    *,
    read: Callable[[Path, Path], Table | None] = read_table,
) -> Age:
    """Return the age of a participant when an image was taken.

    Args:
        bids_root: root of the dataset.
        entities: short key -> value, with ``sub`` and, where there are sessions, ``ses``.
        image_path: the image, inside ``bids_root``.
        metadata: the image's sidecar.
        read: reads one table; pass a cached :func:`read_table` when there are many images.

    Raises:
        AgeError: no table gives an age; the message says what each held, and the flag to set.
    """
    found: list[Found] = []
    remarks: list[str] = []
    for path, key in _places(bids_root, entities, image_path):
        name = path.relative_to(bids_root).as_posix()
        try:
            table = read(path, bids_root)
        except TableError as error:
            remarks.append(str(error))
            continue
        if table is not None:
            rows, remark = _rows(table, key, entities, name)
            _collect(rows, table, name, found, remarks)
            remarks += [remark] if remark else []
    sidecar = image_path.name.split(".")[0] + ".json"
    row = {JSON_KEYS[key]: str(value) for key, value in metadata.items() if key in JSON_KEYS}
    fields = {"age": {"Units": metadata["AgeUnits"]}} if "AgeUnits" in metadata else {}
    _collect([row], Table((), {}, fields), sidecar, found, remarks)
    if not found:
        what = "; ".join(remarks) or (
            "there is no scans.tsv, sessions.tsv or participants.tsv that names it, and no Age in "
            "its JSON"
        )
        raise AgeError(f"no age: {what}. Correct this, or set --age-months or --stage")
    return _choose(found, remarks)


def _choose(found: list[Found], remarks: list[str]) -> Age:
    """Take the first age; a gestational column only when nothing else is there."""
    ordered = sorted(found, key=lambda age: age.fallback)
    first = ordered[0]
    notes = [first.note, *remarks]
    for other in ordered[1:]:
        coarser = max(DAYS[first.unit], DAYS[other.unit]) / DAYS_PER_MONTH
        if not other.fallback and abs(other.months - first.months) > coarser:
            notes.append(f"{other.source} disagrees ({other.months:.4g} months)")
    months = first.months
    if first.fallback:
        notes.append(f"{first.source} was taken as the age at the scan")
    if first.kind == "postmenstrual" and months < 0:
        notes.append(f"born preterm ({months:.3g} months to term), treated as a newborn")
        months = 0.0
    note = "; ".join(text for text in notes if text)
    return Age(months, first.source, note, fetal=first.kind == "gestational" or months < 0)


def _places(root: Path, entities: Mapping[str, str], image: Path) -> Iterator[tuple[Path, str]]:
    """Yield every table that may hold the age, first the most specific, and the row to look for."""
    subject, session = f"sub-{entities['sub']}", entities.get("ses")
    prefix = f"{subject}_ses-{session}" if session else subject
    here = session_dir(root, entities)
    scan = image.name.split(".")[0]
    yield here / f"{prefix}_scans.tsv", scan
    yield here / "anat" / f"{prefix}_scans.tsv", scan
    if session:
        yield root / subject / f"{subject}_scans.tsv", scan
        yield root / subject / f"{subject}_sessions.tsv", f"ses-{session}"
        yield root / "sessions.tsv", f"ses-{session}"
    yield root / "participants.tsv", subject


def _rows(
    table: Table, key: str, entities: Mapping[str, str], name: str
) -> tuple[list[dict[str, str]], str]:
    """Return the rows for the image, and what to say when there are none."""
    rows = [row for row in table.index.get(label_of(key), ()) if _concerns(row, entities)]
    if rows:
        return rows, ""
    others = [next(iter(row.values()), "") for row in table.rows]
    if not others:
        return [], f"{name} has no rows"
    if len(others) == 1:
        ages = [f"{column} {cell}" for column, cell in table.rows[0].items() if _column(column)]
        said = f" ({', '.join(ages)})" if ages else ""
        return [], f"the only row of {name} is for {others[0]}{said}, which was not used"
    return [], f"{name} has {len(others)} rows, none for {key}"


def _concerns(row: Mapping[str, str], entities: Mapping[str, str]) -> bool:
    """Whether the subject and session that a row names, if any, are those of the image."""
    for columns, entity in (
        (("participant_id", "subject", "subject_id"), "sub"),
        (("session_id", "session"), "ses"),
    ):
        for column in columns:
            cell = row.get(column, "")
            if cell.lower() not in MISSING and entity in entities:
                if label_of(cell) != label_of(entities[entity]):
                    return False
    return True


def _collect(
    rows: list[dict[str, str]], table: Table, name: str, found: list[Found], remarks: list[str]
) -> None:
    """Append the ages that the rows of one table give, and what is wrong with the others."""
    ages = [_row_ages(row, table, name, remarks) for row in rows]
    firsts = {round(some[0].months, 3) for some in ages if some}
    if len(firsts) > 1:
        remarks.append(f"{name} has {len(rows)} rows for it with different ages")
    elif firsts:
        found += next(some for some in ages if some)
    elif rows and name.endswith(".tsv") and not remarks:
        remarks.append(f"{name} has a row for it without an age")


def _row_ages(row: Mapping[str, str], table: Table, name: str, remarks: list[str]) -> list[Found]:
    """Return the ages of one row, those with the unit in the column's name first."""
    ages: list[tuple[bool, Found]] = []
    for column, cell in row.items():
        match = _column(column)
        if match is None:
            continue
        try:
            unit, note = _unit(column, match, table)
            age = parse_age(cell, unit)
        except AgeError as error:
            remarks.append(f"{name}:{column}: {error}")
            continue
        if age is None:
            continue
        said = "; ".join(text for text in (note, age.note) if text)
        complete = replace(
            age,
            source=f"{name}:{column} ({f'{age.kind} {age.unit}s'.strip()})",
            note=f"{name}:{column}: {said}" if said else "",
            fallback="kind" in match.groupdict(),
        )
        ages.append((match["unit"] is None, complete))
    return [age for _, age in sorted(ages, key=lambda pair: pair[0])]


def _column(column: str) -> re.Match[str] | None:
    """Match the name of a column that holds an age; its unit, if any, has to be a known one."""
    match = AGE_COLUMN.fullmatch(column) or GESTATIONAL_COLUMN.fullmatch(column)
    return match if match and (match["unit"] is None or parse_unit(match["unit"])) else None


def _unit(column: str, match: re.Match[str], table: Table) -> tuple[tuple[str, str], str]:
    """Return the (unit, kind) of a column and what was odd about it; years when nothing says it."""
    kind = match.groupdict().get("kind", "")
    kind = "postmenstrual" if kind == "pma" else kind
    stated = str(table.fields.get(column, {}).get("Units") or "")
    units = parse_unit(stated) if stated else None
    if match["unit"]:
        named = (parse_unit(match["unit"]) or ("year", ""))[0]
        odd = units is not None and units[0] != named
        return (named, kind), f"its JSON says {stated}; the column's name was used" if odd else ""
    if table.problem:
        raise AgeError(f"the unit is not known, {table.problem}")
    if stated and units is None:
        raise AgeError(f"the unit '{stated}' is not known; use days, weeks, months or years")
    if units:
        return (units[0], units[1] or kind), ""
    if kind:
        return ("week", kind), ""
    description = str(table.fields.get(column, {}).get("Description") or "").lower()
    words = re.findall(r"\b(?:in|\()\s*(days|weeks|months|years)\b", description)
    if len(set(words)) == 1 and words[0] != "years":
        return (words[0][:-1], ""), f"no Units; {words[0]}, as its Description says"
    return ("year", ""), ""
