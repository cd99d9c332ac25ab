"""Failures that stay where they are, and processes that die."""

from __future__ import annotations

import errno
import functools
import os
import signal
import time
from pathlib import Path

import pytest

from bmex_bids.bids import Job, output_stem
from bmex_bids.jobs import Outcome, attempt, crash_path, explain, in_processes


def job_of(label: str) -> Job:
    name = f"sub-{label}_T1w.nii.gz"
    path = Path("/raw") / f"sub-{label}" / "anat" / name
    return Job(
        path, Path("/raw"), {"sub": label}, "T1w", {}, 72, "x", "24", "m", None, "enhance", ""
    )


def act(job: Job, *, out: Path) -> Outcome:
    """What a worker process does; the label says how it ends."""

    def work() -> tuple[str, ...]:
        match job.entities["sub"]:
            case "fails":
                raise ValueError("a bad image")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "sleeps":
                time.sleep(600)
        return (str(os.getpid()),)

    return attempt(output_stem(job), job.entities["sub"], out, work)


def test_one_bad_run_of_several(tmp_path: Path) -> None:
    jobs = [job_of(label) for label in ("a", "fails", "killed", "exits", "b")]
    work = functools.partial(act, out=tmp_path)
    outcomes = {o.subject: o for o in in_processes(jobs, work, 3, out=tmp_path)}
    assert {label for label, outcome in outcomes.items() if not outcome.failed} == {"a", "b"}
    assert outcomes["a"].flags != outcomes["b"].flags != (str(os.getpid()),)
    assert outcomes["fails"].message == "a bad image"
    assert "ended by SIGKILL; most likely out of memory" in outcomes["killed"].message
    assert "exit code 3" in outcomes["exits"].message
    for label in ("fails", "killed", "exits"):
        text = crash_path(tmp_path, f"sub-{label}_T1w").read_text()
        assert text.splitlines()[0] == outcomes[label].message
    assert not crash_path(tmp_path, "sub-a_T1w").exists()


def test_closing_ends_the_processes(tmp_path: Path) -> None:
    jobs = [job_of(label) for label in ("sleeps", "fails", "never")]
    results = in_processes(jobs, functools.partial(act, out=tmp_path), 2, out=tmp_path)
    started = time.monotonic()
    assert next(results).subject == "fails"
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 60
    assert not crash_path(tmp_path, "sub-never_T1w").exists()


def test_a_crash_file_goes_when_the_run_succeeds(tmp_path: Path) -> None:
    def fail() -> tuple[str, ...]:
        raise RuntimeError("broken")

    outcome = attempt("sub-01_T1w", "01", tmp_path, fail)
    lines = crash_path(tmp_path, "sub-01_T1w").read_text().splitlines()
    assert outcome.failed and lines[0] == outcome.message == "RuntimeError: broken"
    assert "Traceback" in lines[2] and "test_jobs.py" in "\n".join(lines)
    assert not attempt("sub-01_T1w", "01", tmp_path, lambda: ("flag",)).failed
    assert not crash_path(tmp_path, "sub-01_T1w").exists()


def test_a_crash_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")

    def fail() -> tuple[str, ...]:
        raise ValueError("broken")

    assert attempt("sub-01_T1w", "01", tmp_path, fail).message == "broken"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n lines"), "two lines"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError: RuntimeError"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), "No such file: '/a'"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left for /out; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "no permission for /x"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "a folder that can be written"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "lower --nprocs"),
        (RuntimeError("CUDA out of memory. Tried"), "not enough memory"),
    ],
)
def test_messages_name_the_cure(error: Exception, said: str) -> None:
    assert said in explain(error, Path("/out"))
