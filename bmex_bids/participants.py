"""What participants.tsv of the output dataset says about each participant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bmex_bids.layout import InputError
from bmex_bids.tables import Table, TableError, read_table

__all__ = ["Person", "check_site_column", "find_person", "participants_table"]

NOTHING = ("", "n/a", "na", "nan", "none", "unknown")
SEX_COLUMNS = ("sex", "gender")
GROUP_COLUMNS = ("group", "diagnosis", "dx")
SITE_COLUMN = "site"
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}


@dataclass(frozen=True)
class Person:
    """One participant, or one participant's session; "" for what the table does not say.

    Attributes:
        sex: ``male``, ``female`` or the table's own word.
        group: from the column ``group``, ``diagnosis`` or ``dx``.
        site: from the column that was asked for, else from ``site``.
    """

    sex: str = ""
    group: str = ""
    site: str = ""


def participants_table(out: Path) -> Table | None:
    """Read participants.tsv of the output dataset; None when there is none.

    Raises:
        TableError: the file is not a readable table.
    """
    return read_table(out / "participants.tsv", out)


def check_site_column(out: Path, column: str | None) -> None:
    """Refuse a site column that is not in participants.tsv, before any work starts.

    Raises:
        InputError: there is no such table or column; names the columns that there are.
    """
    if column is None:
        return
    try:
        table = participants_table(out)
    except TableError as error:
        raise InputError(f"--site-column {column}: {error}") from error
    if table is None:
        raise InputError(
            f"--site-column {column}: {out} has no participants.tsv; start the participant level "
            "again, which copies it from the raw dataset"
        )
    columns = list(dict.fromkeys(name for row in table.rows for name in row))
    if _column(column) not in columns:
        raise InputError(
            f"--site-column {column}: participants.tsv has the columns {', '.join(columns)}"
        )


def find_person(
    table: Table | None, participant: str, session: str | None, site_column: str | None
) -> Person:
    """Look up what is known of one run.

    Args:
        table: of :func:`participants_table`.
        participant: label without ``sub-``.
        session: label without ``ses-``; picks the row in a table with a column ``session_id``.
        site_column: column that names the site; None takes ``site``.
    """
    rows: Sequence[Mapping[str, str]] = table.index.get(participant, ()) if table else ()
    if session is not None and any("session_id" in row for row in rows):
        rows = [row for row in rows if row.get("session_id", "").removeprefix("ses-") == session]
    sex = _value(rows, SEX_COLUMNS)
    return Person(
        sex=SEXES.get(sex.casefold(), sex),
        group=_value(rows, GROUP_COLUMNS),
        site=_value(rows, (_column(site_column or SITE_COLUMN),)),
    )


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_")  # as the table's header is read


def _value(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """Return what all rows agree on in the first of the columns that has it, else ""."""
    for column in columns:
        found = {row.get(column, "").strip() for row in rows}
        found = {value for value in found if value.casefold() not in NOTHING}
        if len(found) == 1:
            return found.pop()
    return ""
