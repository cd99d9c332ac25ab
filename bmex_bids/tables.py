"""TSV files of a BIDS dataset, with the JSON files that describe their columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bmex_bids.bids import read_json, read_text

__all__ = ["Table", "TableError", "label_of", "read_table"]

KEY_COLUMNS = {"scans": "filename", "sessions": "session_id", "participants": "participant_id"}


class TableError(ValueError):
    """A table cannot be read; the message names it."""


@dataclass(frozen=True)
class Table:
    """A TSV file and the JSON that describes its columns.

    Attributes:
        rows: one dict per row, cells stripped, column names in lower case.
        index: value of the first column (``filename``, ``session_id``, ``participant_id``) -> rows.
        fields: column -> its description.
        problem: why the description cannot be used, "" when it can.
    """

    rows: tuple[dict[str, str], ...]
    index: Mapping[str, tuple[dict[str, str], ...]]
    fields: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    problem: str = ""


def read_table(path: Path, root: Path) -> Table | None:
    """Read a scans, sessions or participants table and the JSON files that describe it.

    Args:
        path: the TSV file.
        root: root of the dataset, from which descriptions are inherited.

    Returns:
        The table; None when there is no such file.

    Raises:
        TableError: the file is not a readable table.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise TableError(f"{path.name} is not UTF-8 text") from error
    except OSError as error:
        raise TableError(f"{path.name} cannot be read ({error.strerror})") from error
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    if not lines:
        raise TableError(f"{path.name} is empty")
    header = [name.strip(' "').lower().replace(" ", "_") for name in lines[0]]
    if len(header) == 1 and "," in header[0]:
        raise TableError(f"{path.name} is separated by commas, expected tabs")
    rows = tuple(
        {name: cell.strip(' "') for name, cell in zip(header, line, strict=False)}
        for line in lines[1:]
    )
    kind = path.stem.rsplit("_", 1)[-1]
    key = KEY_COLUMNS[kind] if KEY_COLUMNS[kind] in header else header[0]
    index: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        index.setdefault(label_of(row.get(key, "")), []).append(row)
    fields, problem = _fields(path, root)
    return Table(rows, {name: tuple(some) for name, some in index.items()}, fields, problem)


def _fields(path: Path, root: Path) -> tuple[dict[str, Mapping[str, object]], str]:
    """Return the column descriptions that apply to a table, the nearest file last to speak."""
    kind = path.stem.rsplit("_", 1)[-1]
    parts = path.stem.split("_")[:-1]
    names = ["_".join([*parts[:count], kind]) + ".json" for count in range(len(parts) + 1)]
    inside = path.parent.relative_to(root).parts
    fields: dict[str, Mapping[str, object]] = {}
    for depth in range(len(inside) + 1):
        directory = root.joinpath(*inside[:depth])
        for name in names:
            try:
                content = read_json(directory / name)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                return {}, f"{name} cannot be read ({error})"
            fields |= {
                key.strip().lower().replace(" ", "_"): value
                for key, value in content.items()
                if isinstance(value, Mapping)
            }
    return fields, ""


def label_of(cell: str) -> str:
    """Reduce a file name or a label to what identifies it: no folder, extension or prefix."""
    return re.sub(r"^(sub|ses)-", "", cell.strip().rsplit("/", 1)[-1].split(".")[0])
