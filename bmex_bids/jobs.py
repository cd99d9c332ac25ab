"""One run after the other, or each in a process of its own; a failed run never stops the others."""

from __future__ import annotations

import errno
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.bids import Job, output_stem, write_text

if TYPE_CHECKING:
    from bmex_bids.pipeline import Settings

__all__ = ["Outcome", "attempt", "crash_path", "explain", "in_processes", "run_job", "write_crash"]


@dataclass(frozen=True)
class Outcome:
    """How one run, or one report, ended.

    Attributes:
        stem: its name, e.g. ``sub-01_T1w``.
        subject: label without ``sub-``.
        failed: whether it failed.
        message: why it failed.
        seconds: how long it took.
        flags: warnings about the result.
    """

    stem: str
    subject: str
    failed: bool = False
    message: str = ""
    seconds: float = 0.0
    flags: tuple[str, ...] = ()


def run_job(
    job: Job,
    *,
    out: Path,
    settings: Settings | None,
    threads: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Enhance one image, write its derivatives and draw its pictures.

    Args:
        job: the run; of one that is done before, only the pictures are drawn.
        out: root of the output dataset.
        settings: of the pipeline; None when only pictures are wanted.
        threads: of each library; 0 leaves them as they are.
        progress: told what is being done.
    """
    stem = output_stem(job)
    tell = progress or (lambda text: None)

    def work() -> tuple[str, ...]:
        from bmex_bids import derivatives, pipeline, report

        flags: tuple[str, ...] = ()
        if job.action == "enhance" and settings is not None:
            _limit_threads(threads)
            result = pipeline.enhance_run(job, settings, lambda text: tell(f"{stem}: {text}"))
            tell(f"{stem}: writing")
            derivatives.write(result, out)
            flags = result.flags
        tell(f"{stem}: figures")
        report.run_figures(out, job)
        return flags

    return attempt(stem, job.entities["sub"], out, work)


def attempt(stem: str, subject: str, out: Path, work: Callable[[], tuple[str, ...]]) -> Outcome:
    """Do one piece of work; whatever goes wrong becomes an outcome and a crash file.

    Args:
        stem: name of the work, and of its crash file.
        subject: label without ``sub-``.
        out: root of the output dataset.
        work: returns warnings about its result.
    """
    started = time.monotonic()
    try:
        flags = work()
        crash_path(out, stem).unlink(missing_ok=True)
    except Exception as error:  # the only broad one: one failed run must not stop the others
        message = explain(error, out)
        write_crash(out, stem, message, traceback.format_exc())
        return Outcome(stem, subject, True, message, time.monotonic() - started)
    return Outcome(stem, subject, seconds=time.monotonic() - started, flags=flags)


def in_processes(
    jobs: Sequence[Job], work: Callable[[Job], Outcome], nprocs: int, *, out: Path
) -> Iterator[Outcome]:
    """Run each job in a new process, at most ``nprocs`` at a time, and yield what comes back.

    A process that dies (killed for its memory, a fault in a library) is one failed run. Closing the
    iterator ends the processes that still run.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    running: dict[Connection, tuple[SpawnProcess, Job, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < nprocs:
                job = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(sender, work, job), daemon=True)
                process.start()
                sender.close()  # so that the end of the process ends the pipe
                running[receiver] = process, job, time.monotonic()
            for ready in wait(list(running)):
                if not isinstance(ready, Connection):
                    continue
                process, job, started = running.pop(ready)
                try:
                    outcome = ready.recv()
                    process.join()
                except EOFError:
                    process.join()
                    message = _died(process.exitcode)
                    stem = output_stem(job)
                    write_crash(out, stem, message)
                    seconds = time.monotonic() - started
                    outcome = Outcome(stem, job.entities["sub"], True, message, seconds)
                ready.close()
                yield outcome
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()


def explain(error: BaseException, out: Path) -> str:
    """Return a message in one line that says what went wrong and what can be done."""
    text = " ".join(str(error).split()) or type(error).__name__
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {out}; free some and start again, finished runs are kept"
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        name = getattr(error, "filename", None) or out
        return f"no permission for {name} ({text}); for output choose a folder that can be written"
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return f"not enough memory ({text}); lower --nprocs, or limit each run with --mem"
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text}"


def crash_path(out: Path, stem: str) -> Path:
    """Return where the failure of a run is described."""
    return out / "logs" / f"crash-{stem}.txt"


def write_crash(out: Path, stem: str, message: str, details: str = "") -> None:
    """Write the crash file of a run: the message in the first line, then the traceback."""
    try:
        write_text(crash_path(out, stem), f"{message}\n\n{details}" if details else f"{message}\n")
    except OSError:
        return  # no space left, perhaps; the message is still logged and in the summary


def _child(sender: Connection, work: Callable[[Job], Outcome], job: Job) -> None:
    """Do the work in the new process and send back what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children itself
    sender.send(work(job))
    sender.close()


def _died(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        likely = "most likely out of memory; " if name == "SIGKILL" else ""
        return f"its process was ended by {name}; {likely}lower --nprocs, or set --mem"
    return f"its process ended without a result (exit code {exitcode}); try --nprocs 1"


def _limit_threads(threads: int) -> None:
    """Set the number of threads of torch and ITK."""
    if threads > 0:
        import SimpleITK
        import torch

        torch.set_num_threads(threads)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
