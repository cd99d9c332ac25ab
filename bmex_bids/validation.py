"""Findings of the BIDS validators about a dataset, in a few plain lines."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

__all__ = ["validate"]

MOST_LINES = 5
PATIENCE = 180  # seconds for the whole dataset
SKIPPED_FOLDERS = ("derivatives", "sourcedata", "code", "stimuli")
FIELD_CODES = ("JSON_KEY_RECOMMENDED", "SIDECAR_KEY_RECOMMENDED", "NOT_INCLUDED")


def validate(
    root: Path, *, participants: Sequence[str] = (), ignore: Iterable[Path] = ()
) -> list[str]:
    """Check a dataset with bids-validator-deno, where it is installed, and its file names always.

    Args:
        root: root of the raw dataset.
        participants: labels whose file names are checked; empty means all.
        ignore: folders that are no part of the dataset.

    Returns:
        At most a handful of lines, the most frequent kind of error first; empty when all is well.
    """
    lines = _name_findings(root, participants, set(ignore)) + _deno_findings(root)
    if len(lines) > MOST_LINES:
        rest = len(lines) - MOST_LINES
        kinds = "1 more kind" if rest == 1 else f"{rest} more kinds"
        lines = [*lines[:MOST_LINES], f"and {kinds}; run bids-validator-deno on {root}"]
    return lines


def _name_findings(root: Path, participants: Sequence[str], ignore: set[Path]) -> list[str]:
    from bids_validator import BIDSValidator

    validator = BIDSValidator()
    names = _names(root, participants, ignore)
    wrong = [name for name in names if not validator.is_bids(f"/{name}")]
    if not wrong:
        return []
    files = "1 file" if len(wrong) == 1 else f"{len(wrong)} files"
    return [f"{files} with a name that BIDS does not know, e.g. {wrong[0]}"]


def _names(root: Path, participants: Sequence[str], ignore: set[Path]) -> Iterator[str]:
    """Yield the names of files, relative to the root, that BIDS has a say in."""
    try:
        text = (root / ".bidsignore").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    patterns = [line.strip().strip("/") for line in text.splitlines() if line.strip()[:1] != "#"]
    chosen = {f"sub-{label}" for label in participants}
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        top = here == root
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and here / name not in ignore
            and not name.endswith((".ds", ".zarr"))
            and not (top and name in SKIPPED_FOLDERS)
            and not (top and chosen and name.startswith("sub-") and name not in chosen)
        )
        for name in sorted(files):
            path = (here / name).relative_to(root).as_posix()
            parts = [*path.split("/"), path]
            ignored = any(
                fnmatch.fnmatch(p, pattern) for pattern in patterns if pattern for p in parts
            )
            if not name.startswith(".") and not ignored:
                yield path


def _deno_findings(root: Path) -> list[str]:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = shutil.which("bids-validator-deno") or (str(beside) if beside.exists() else None)
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, str(root), "--format", "json"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        report = json.loads(done.stdout)["issues"]
        return _grouped(report["issues"], report.get("codeMessages", {}))
    except subprocess.TimeoutExpired:
        return [
            f"the validator was stopped after {PATIENCE} s; --skip-bids-validation leaves it out"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return ["bids-validator-deno could not run here; only file names were checked"]


def _grouped(issues: Sequence[dict[str, str]], messages: dict[str, str]) -> list[str]:
    """Return one line per kind of error, and one that counts the kinds of recommendations."""
    errors: dict[tuple[str, str], list[str]] = {}
    advice = set()
    for issue in issues:
        code = issue.get("code", "")
        if issue.get("severity") == "error":
            if code not in FIELD_CODES:
                errors.setdefault((code, issue.get("subCode", "")), []).append(
                    issue.get("location", "")
                )
        else:
            advice.add((code, issue.get("subCode", "")))
    lines = []
    for (code, field), places in sorted(errors.items(), key=lambda item: -len(item[1])):
        said = " ".join(messages.get(code, "").split()).split(". ")[0].rstrip(".")
        what = said or code.replace("_", " ").lower()
        where = places[0].lstrip("/")
        count = f"{len(places)} places, e.g. {where}" if len(places) > 1 else where
        lines.append(f"{what}{f' ({field})' if field else ''}: {count}")
    if advice:
        kinds = "kind" if len(advice) == 1 else "kinds"
        lines.append(f"{len(advice)} {kinds} of recommended information are missing")
    return lines
