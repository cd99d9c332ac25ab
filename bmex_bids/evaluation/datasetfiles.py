"""The files of a corrupted dataset beside its images: description, tables, what they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.bids import read_json, read_text, write_json, write_text

__all__ = ["write_dataset"]

README = """\
Simulated corruptions of the images of '{name}', written by bmex-degrade {version}.

rec-<label> names the corruption, e.g. rec-rotationSevere; the sidecar of each image states the
parameters (SimulatedArtefacts), the measured severity (MeasuredSeverity) and the clean image
(Sources). Ages and other tables are those of the clean dataset.
"""


def write_dataset(root: Path, out: Path) -> None:
    """Write what describes the dataset, for all images that lie in it by now.

    Args:
        root: the clean dataset; ages and other columns are taken over from it.
        out: the corrupted dataset.
    """
    source = read_json(root / "dataset_description.json")
    uri = root.resolve().as_uri()
    description: dict[str, object] = {
        "Name": f"{source.get('Name') or root.name}: simulated corruptions",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "bmex-degrade", "Version": __version__}],
        "SourceDatasets": [{"URL": uri}],
        "DatasetLinks": {"clean": uri},
    }
    description |= {key: source[key] for key in ("Authors", "License") if source.get(key)}
    write_json(out / "dataset_description.json", description)
    write_text(out / "README.md", README.format(name=source.get("Name"), version=__version__))
    subjects = sorted(path.name for path in out.glob("sub-*") if path.is_dir())
    rows = _rows(root / "participants.tsv") or [["participant_id"]]
    known = {row[0]: row for row in rows[1:]}
    empty = ["n/a"] * (len(rows[0]) - 1)
    _write_rows(out / "participants.tsv",
                [rows[0], *(known.get(subject, [subject, *empty]) for subject in subjects)])
    for pattern in ("participants.json", "sessions.json", "scans.json"):
        _copy(root, out, Path(pattern))
    for subject in subjects:
        for pattern in ("*_sessions.tsv", "*_sessions.json", "*_scans.json", "ses-*/*_scans.json"):
            for path in sorted((root / subject).glob(pattern)):
                if (out / path.relative_to(root)).parent.is_dir():
                    _copy(root, out, path.relative_to(root))
        _scans(root, out, subject)


def _scans(root: Path, out: Path, subject: str) -> None:
    """Write the scans tables: the row of each clean image for every corruption of it."""
    for table in sorted((root / subject).glob("**/*_scans.tsv")):
        rows = _rows(table)
        if not rows or "filename" not in rows[0]:
            continue
        column = rows[0].index("filename")
        known = {Path(row[column]).name: row for row in rows[1:] if len(row) == len(rows[0])}
        folder = out / table.parent.relative_to(root)
        found = []
        for sidecar in sorted(folder.glob("anat/*_rec-*.json")):
            content = read_json(sidecar)
            sources = content.get("Sources")
            clean = str(sources[0]).rsplit("/", 1)[-1] if isinstance(sources, list) else ""
            if clean in known:
                row = list(known[clean])
                row[column] = f"anat/{sidecar.stem}.nii.gz"
                found.append(row)
        if found:
            _write_rows(out / table.relative_to(root), [rows[0], *found])


def _rows(path: Path) -> list[list[str]]:
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError):
        return []
    return [[cell.strip() for cell in line.split("\t")] for line in text.splitlines() if line]


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def _copy(root: Path, out: Path, name: Path) -> None:
    try:
        text = read_text(root / name)
        if name.suffix == ".json":
            json.loads(text)
    except (OSError, ValueError):
        return
    write_text(out / name, text)
