"""Runs in this process and in others: failures, deaths, and work that several starts share."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from bmex_bids import executor
from bmex_bids.bids import Job, output_stem
from bmex_bids.claims import claimed, run_claim
from bmex_bids.executor import in_processes, in_turn, shared
from bmex_bids.jobs import Outcome, attempt, crash_path


def job_of(label: str) -> Job:
    name = f"sub-{label}_T1w.nii.gz"
    path = Path("/raw") / f"sub-{label}" / "anat" / name
    return Job(
        path, Path("/raw"), {"sub": label}, "T1w", {}, 72, "x", "24", "m", None, "enhance", ""
    )


def act(job: Job, *, out: Path) -> Outcome:
    """What a worker process does; the label says how it ends."""

    def work() -> Outcome:
        match job.entities["sub"]:
            case "fails":
                raise ValueError("a bad image")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "sleeps":
                time.sleep(600)
        return Outcome(output_stem(job), job.entities["sub"], flags=(str(os.getpid()),))

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
    results.close()
    assert time.monotonic() - started < 60
    assert not crash_path(tmp_path, "sub-never_T1w").exists()


def test_jobs_are_taken_when_there_is_room(tmp_path: Path) -> None:
    taken: list[str] = []

    def jobs() -> Iterable[Job]:
        for label in "abc":
            taken.append(label)
            yield job_of(label)

    results = in_turn(jobs(), functools.partial(act, out=tmp_path))
    assert next(results).subject == "a" and taken == ["a"]
    results.close()


def test_what_another_start_does_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three runs another start does two: one it finishes, one it leaves when it is killed."""
    jobs = [job_of(label) for label in ("theirs", "left", "ours")]
    finished: set[str] = set()
    theirs = claimed(run_claim(tmp_path, "sub-theirs_T1w"))
    left = claimed(run_claim(tmp_path, "sub-left_T1w"))
    theirs.__enter__(), left.__enter__()

    def pause(seconds: float) -> None:
        finished.add("theirs")
        theirs.__exit__(None, None, None), left.__exit__(None, None, None)

    monkeypatch.setattr(executor.time, "sleep", pause)
    outcomes = list(
        shared(
            jobs,
            functools.partial(in_turn, work=functools.partial(act, out=tmp_path)),
            out=tmp_path,
            finished=lambda job: job.entities["sub"] in finished,
        )
    )
    assert [outcome.subject for outcome in outcomes] == ["ours", "left", "theirs"]
    assert [outcome.elsewhere for outcome in outcomes] == [False, False, True]


def test_a_run_that_was_taken_at_the_last_moment_is_tried_again(tmp_path: Path) -> None:
    tries: list[str] = []

    def work(job: Job) -> Outcome:
        tries.append(job.entities["sub"])
        busy = tries == ["a"]
        return Outcome(output_stem(job), job.entities["sub"], busy=busy)

    execute = functools.partial(in_turn, work=work)
    jobs = [job_of(label) for label in "ab"]
    outcomes = list(shared(jobs, execute, out=tmp_path, finished=lambda job: False))
    assert tries == ["a", "b", "a"] and [outcome.subject for outcome in outcomes] == ["b", "a"]
