"""One run: failures that stay where they are, and pictures that are complete or not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bmex_bids.jobs import Outcome, attempt, crash_path, explain


def test_a_crash_file_goes_when_the_run_succeeds(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    outcome = attempt("sub-01_T1w", "01", tmp_path, fail)
    lines = crash_path(tmp_path, "sub-01_T1w").read_text().splitlines()
    assert outcome.failed and lines[0] == outcome.message == "RuntimeError: broken"
    assert "Traceback" in lines[2] and "test_jobs.py" in "\n".join(lines)
    done = attempt("x", "01", tmp_path, lambda: Outcome("sub-01_T1w", "01", flags=("odd",)))
    assert not done.failed and done.flags == ("odd",) and done.seconds > 0
    assert not attempt("sub-01_T1w", "01", tmp_path, lambda: None).failed
    assert not crash_path(tmp_path, "sub-01_T1w").exists()


def test_a_crash_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")

    def fail() -> None:
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
