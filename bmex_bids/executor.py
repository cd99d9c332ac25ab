"""Where runs are computed: here, one after the other, or each in a process of its own.

All executors take jobs one by one, when they have room for one, and yield outcomes as they come;
closing the iterator ends what still runs. A failed run, or a process that dies, never stops the
others. Executors on other machines are in :mod:`bmex_bids.cluster`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from bmex_bids.bids import Job, output_stem
from bmex_bids.claims import is_claimed, run_claim
from bmex_bids.jobs import Outcome, write_crash

__all__ = ["Execute", "Outcomes", "Work", "in_processes", "in_turn", "shared"]

Work = Callable[[Job], Outcome]
Outcomes = Generator[Outcome, None, None]
Execute = Callable[[Iterable[Job]], Outcomes]
PAUSE = 1.0  # seconds between two looks at runs that another start is doing


def shared(
    jobs: Iterable[Job], execute: Execute, *, out: Path, finished: Callable[[Job], bool]
) -> Outcomes:
    """Run jobs, leaving to other starts what they are doing, and wait for what becomes of it.

    Several starts on the same runs so share them; should one be killed, another does its run.

    Args:
        jobs: the runs that are not done.
        execute: computes them; asks for the next one when it has room.
        out: root of the output dataset.
        finished: tells whether a run is complete by now.
    """
    waiting = list(jobs)
    while waiting:
        named = {output_stem(job): job for job in waiting}
        left: list[Job] = []
        done: list[Outcome] = []
        moved = False
        with closing(execute(_free(waiting, left, done, out, finished))) as outcomes:
            for outcome in outcomes:
                if outcome.busy:
                    left.append(named[outcome.stem])
                else:
                    moved = True
                    yield outcome
        yield from done
        waiting = left
        if waiting and not moved:
            time.sleep(PAUSE)


def _free(
    jobs: Iterable[Job],
    left: list[Job],
    done: list[Outcome],
    out: Path,
    finished: Callable[[Job], bool],
) -> Iterator[Job]:
    """Yield the jobs that nobody does; put those that are being done, or are done, aside."""
    for job in jobs:
        if is_claimed(run_claim(out, output_stem(job))):
            left.append(job)
        elif finished(job):
            done.append(Outcome(output_stem(job), job.entities["sub"], elsewhere=True))
        else:
            yield job


def in_turn(jobs: Iterable[Job], work: Work) -> Outcomes:
    """Run one job after the other in this process."""
    for job in jobs:
        yield work(job)


def in_processes(jobs: Iterable[Job], work: Work, nprocs: int, *, out: Path) -> Outcomes:
    """Run each job in a new process, at most ``nprocs`` at a time, and yield what comes back.

    A process that dies (killed for its memory, a fault in a library) is one failed run. Closing the
    iterator ends the processes that still run.
    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(jobs)
    running: dict[Connection, tuple[SpawnProcess, Job, float]] = {}
    try:
        while True:
            while len(running) < nprocs and (job := next(waiting, None)) is not None:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(sender, work, job), daemon=True)
                process.start()
                sender.close()  # so that the end of the process ends the pipe
                running[receiver] = process, job, time.monotonic()
            if not running:
                return
            for ready in wait(list(running)):
                if not isinstance(ready, Connection):
                    continue
                process, job, started = running[ready]
                try:
                    outcome = ready.recv()
                    process.join()
                except EOFError:
                    process.join()
                    outcome = _dead(process.exitcode, job, time.monotonic() - started, out)
                del running[ready]
                ready.close()
                yield outcome
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def _child(sender: Connection, work: Work, job: Job) -> None:
    """Do the work in the new process and send back what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_the_one_to_kill()
    sender.send(work(job))
    sender.close()


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, whatever ended it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _be_the_one_to_kill() -> None:
    """Ask Linux to end this process first when memory is short, and not the one that started it."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    except OSError:
        return  # no Linux, or not allowed


def _dead(exitcode: int | None, job: Job, seconds: float, out: Path) -> Outcome:
    """Return the failure of a run whose process ended without a result."""
    if exitcode in (-signal.SIGTERM, -signal.SIGHUP):
        time.sleep(0.5)  # sent to all of us, perhaps: then this process is told now, and ends too
    message = _died(exitcode)
    write_crash(out, output_stem(job), message)
    return Outcome(output_stem(job), job.entities["sub"], True, message, seconds)


def _died(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        likely = "most likely out of memory; " if name == "SIGKILL" else ""
        return f"its process was ended by {name}; {likely}lower --nprocs, or set --mem"
    return f"its process ended without a result (exit code {exitcode}); try --nprocs 1"
