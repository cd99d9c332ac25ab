"""All derivatives become group tables and one page, from the sidecars.

Voxels are read only of the standard spaces, where there are any, for their mean images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bmex_bids.bids import write_json, write_text
from bmex_bids.groupharmony import Harmony, harmony
from bmex_bids.grouppage import ExtraSection, render_page
from bmex_bids.groupruns import Collected, collect
from bmex_bids.groupspaces import space_sections
from bmex_bids.grouptables import (
    HARMONIZATION,
    dictionary,
    harmonization_rows,
    run_columns,
    tsv,
)

__all__ = ["group_report"]


def group_report(out: Path, site_column: str | None = None) -> list[Path]:
    """Write the tables of runs, the table of statistics, and ``group.html``.

    Args:
        out: root of the output dataset.
        site_column: column of participants.tsv that names the site; None takes the scanner's fields
            of the sidecars.

    Returns:
        The paths written: ``group_T1w.tsv`` and ``group_T2w.tsv`` (those that have runs),
        ``group_harmonization.tsv``, each with its JSON, and the page.

    Raises:
        FileNotFoundError: ``out`` holds no finished run.
    """
    collected = collect(out, site_column)
    if not collected.runs:
        found = f"{collected.incomplete} incomplete" if collected.incomplete else "none at all"
        raise FileNotFoundError(
            f"{out}: no finished run found ({found}); run 'participant' before 'group'"
        )
    results = {suffix: harmony(runs) for suffix, runs in collected.runs.items()}
    written = _write_tables(out, collected, results)
    page = out / "group.html"
    tables = [path.name for path in written if path.suffix == ".tsv"]
    write_text(page, render_page(out, collected, results, tables, _extra_sections(out)))
    return [*written, page]


def _extra_sections(out: Path) -> Sequence[ExtraSection]:
    """Return sections of other modules, made from derivatives that may or may not be there.

    They come on the page between the statistics and the table of runs.
    """
    return space_sections(out)


def _write_tables(
    out: Path, collected: Collected, results: dict[str, Harmony]
) -> list[Path]:
    """Write every table with its data dictionary."""
    contents: list[tuple[str, str, object]] = []
    statistics = []
    for suffix, runs in collected.runs.items():
        columns = run_columns(runs)
        text = tsv([run.row for run in runs], columns)
        contents.append((f"group_{suffix}", text, dictionary(columns)))
        statistics += harmonization_rows(suffix, runs, results[suffix])
    text = tsv(statistics, list(HARMONIZATION))
    contents.append(("group_harmonization", text, HARMONIZATION))
    written = []
    for name, table, described in contents:
        path = out / f"{name}.tsv"
        write_text(path, table)
        write_json(path.with_suffix(".json"), described)
        written += [path, path.with_suffix(".json")]
    return written
