"""What became of every run of a start, for people, for programs, and as an exit code."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bmex_bids.bids import Job, output_stem
from bmex_bids.jobs import Outcome, crash_path
from bmex_bids.logs import facts, printable

__all__ = ["Failure", "Status", "as_json", "as_text", "say", "status_of"]

log = logging.getLogger("bmex")

MOST_LINES = 100  # of one kind, on the terminal


@dataclass(frozen=True)
class Failure:
    """A run, or a report, that failed: why, and the file to look at ("" where it is missing)."""

    run: str
    reason: str
    look_at: str


@dataclass(frozen=True)
class Status:
    """What became of every run.

    Attributes:
        done: by this start.
        done_by_another_start: meanwhile.
        done_before: finished by an earlier start, so that nothing was to do.
        left_out: (file name, reason) of images that are no runs of their own.
        not_started: after the first failure, with ``--stop-on-first-crash``.
        failed: runs and reports.
        seconds: of the whole start.
    """

    done: tuple[str, ...]
    done_by_another_start: tuple[str, ...]
    done_before: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    not_started: tuple[str, ...]
    failed: tuple[Failure, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 when every requested run succeeded, else 1."""
        return 1 if self.failed or self.not_started else 0


def status_of(
    jobs: Sequence[Job],
    outcomes: Sequence[Outcome],
    reports: Sequence[Outcome],
    *,
    out: Path,
    seconds: float,
) -> Status:
    """Return what became of the planned jobs.

    Args:
        jobs: all of the plan.
        outcomes: of the runs that were tried, and of those that could not be.
        reports: of the reports that were written.
        out: root of the output dataset.
        seconds: of the whole start.
    """
    ended = {outcome.stem: outcome for outcome in outcomes}
    good = [outcome for outcome in ended.values() if not outcome.failed]
    return Status(
        done=tuple(o.stem for o in good if not o.elsewhere),
        done_by_another_start=tuple(o.stem for o in good if o.elsewhere),
        done_before=tuple(s for s in _stems(jobs, "done") if s not in ended),
        left_out=tuple((job.path.name, job.reason) for job in jobs if not job.wanted),
        not_started=tuple(s for s in _stems(jobs, "enhance") if s not in ended),
        failed=tuple(_failure(o, out) for o in (*outcomes, *reports) if o.failed),
        seconds=round(seconds, 1),
    )


def _stems(jobs: Sequence[Job], action: str) -> list[str]:
    return [output_stem(job) for job in jobs if job.action == action]


def _failure(outcome: Outcome, out: Path) -> Failure:
    path = crash_path(out, outcome.stem.removeprefix("report of "))
    return Failure(outcome.stem, outcome.message, str(path) if path.exists() else "")


def as_text(status: Status) -> str:
    """Return lines for people: how many of each kind, then reasons and where to look."""
    counts = {
        "done": len(status.done),
        "done by another start": len(status.done_by_another_start),
        "done before": len(status.done_before),
        "left out": len(status.left_out),
        "not started": len(status.not_started),
        "failed": len(status.failed),
    }
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    lines = [f"{said or 'nothing to do'} ({status.seconds:.0f} s)"]
    reasons: dict[str, list[str]] = {}
    for name, reason in status.left_out:
        reasons.setdefault(reason, []).append(name)
    for reason, names in list(reasons.items())[:MOST_LINES]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"left out: {names[0]}{more}: {reason}")
    for failure in status.failed[:MOST_LINES]:
        lines.append(f"failed: {failure.run}: {failure.reason}")
        if failure.look_at:
            lines.append(f"  look at {failure.look_at}")
    if len(status.failed) > MOST_LINES:
        lines.append(f"failed: {len(status.failed) - MOST_LINES} more, see the log")
    return "".join(f"{printable(line)}\n" for line in lines)


def as_json(status: Status) -> dict[str, Any]:
    """Return what a program wants to know, every run by its name, ready for JSON."""
    left_out = [{"image": name, "reason": reason} for name, reason in status.left_out]
    rest = {"left_out": left_out, "exit_code": status.exit_code}
    return {"event": "status"} | asdict(status) | rest


def say(status: Status, kind: str) -> None:
    """Print the status, as ``text`` or one line of ``json``, and log it."""
    text = as_text(status)
    for line in text.splitlines():
        log.debug("%s", line)
    if kind == "json":
        text = json.dumps(as_json(status)) + "\n"
        log.debug("status", extra=facts(**as_json(status)))
    sys.stdout.write(text)
    sys.stdout.flush()
