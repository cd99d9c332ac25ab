"""What is done for one run, and what becomes of it when it fails."""

from __future__ import annotations

import errno
import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids import __version__
from bmex_bids.bids import Job, output_stem, read_json, write_json, write_text
from bmex_bids.claims import claimed, run_claim
from bmex_bids.logs import facts, printable, run_log
from bmex_bids.memory import OWN_BYTES, held_to

if TYPE_CHECKING:
    from bmex_bids.pipeline import Settings

__all__ = [
    "Outcome",
    "attempt",
    "crash_path",
    "explain",
    "has_pictures",
    "picture_list",
    "run_job",
    "write_crash",
]


log = logging.getLogger("bmex")

# How torch, oneDNN, ITK and CUDA say it.
OUT_OF_MEMORY = re.compile(r"out[ _]of[ _]memory|allocate memory|bad_alloc|to allocate", re.I)


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
        steps: seconds of each step.
        busy: whether another start is doing it at this moment, so that nothing was done here.
        elsewhere: whether another start has done it meanwhile.
    """

    stem: str
    subject: str
    failed: bool = False
    message: str = ""
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    steps: Mapping[str, float] = field(default_factory=dict)
    busy: bool = False
    elsewhere: bool = False


def run_job(
    job: Job,
    *,
    out: Path,
    settings: Settings | None,
    threads: int = 0,
    finished: Callable[[Job], bool] | None = None,
    progress: Callable[[str], None] | None = None,
    log_format: str = "text",
) -> Outcome:
    """Enhance one image, write its derivatives and draw its pictures, unless another does it.

    Args:
        job: the run; of one that is done before, only the pictures are drawn.
        out: root of the output dataset.
        settings: of the pipeline; None when only pictures are wanted.
        threads: of each library; 0 leaves them as they are.
        finished: tells whether the derivatives are complete by now; None to make them anyway.
        progress: told what is being done.
        log_format: of the run's own log, ``text`` or ``json``.
    """
    stem, subject = output_stem(job), job.entities["sub"]

    def tell(step: str) -> None:
        log.debug("%s: %s", stem, step, extra=facts(run=stem, step=step))
        if progress is not None:
            progress(f"{stem}: {step}")

    def work() -> Outcome:
        if job.action != "enhance" or settings is None:
            _draw(job, out, tell)
            return Outcome(stem, subject)
        if finished is not None and finished(job):  # by another start, since this one planned
            if not has_pictures(out, job):
                _draw(job, out, tell)
            return Outcome(stem, subject, elsewhere=True)
        from bmex_bids import derivatives, pipeline

        _limit_threads(threads)
        result = pipeline.enhance_run(job, settings, tell)
        tell("writing")
        picture_list(out, job).unlink(missing_ok=True)  # those of an earlier result
        derivatives.write(result, out)
        outcome = Outcome(stem, subject, flags=result.flags, steps=result.seconds)
        del result  # the figures read files, and need the memory
        _draw(job, out, tell)
        return outcome

    with claimed(run_claim(out, stem)) as mine:
        if not mine:
            return Outcome(stem, subject, busy=True)
        with run_log(out, stem, log_format) as own, held_to(_promised(settings)):
            _say_what(job, settings, own)
            outcome = attempt(stem, subject, out, work)
            _say_how(outcome, out, own)
        return outcome


def _promised(settings: Settings | None) -> int | None:
    """Return the bytes that a run may hold, None where nothing was promised or a GPU computes."""
    if settings is None or settings.compute.device != "cpu" or settings.compute.max_bytes is None:
        return None
    return settings.compute.max_bytes + OWN_BYTES


def _say_what(job: Job, settings: Settings | None, own: logging.Logger) -> None:
    """Log what a run begins with."""
    place = "" if settings is None else f" on {settings.compute.device}"
    own.info(
        *("bmex %s: %s, age %s months (%s), stage %s, model %s%s", __version__, job.path),
        *(job.age_months, job.age_source or "not known", job.stage, job.weights, place),
        extra=facts(run=output_stem(job), image=str(job.path), model=job.weights, stage=job.stage),
    )
    for note in job.notes:
        own.warning("%s", note, extra=facts(run=output_stem(job)))


def _say_how(outcome: Outcome, out: Path, own: logging.Logger) -> None:
    """Log how a run ended."""
    extra = facts(run=outcome.stem, failed=outcome.failed, seconds=round(outcome.seconds, 2))
    for flag in outcome.flags:
        own.warning("%s", flag, extra=facts(run=outcome.stem))
    if outcome.failed:
        own.error("failed: %s; see %s", outcome.message, crash_path(out, outcome.stem), extra=extra)
    else:
        own.info("done in %.1f s", outcome.seconds, extra=extra)


def attempt(stem: str, subject: str, out: Path, work: Callable[[], Outcome | None]) -> Outcome:
    """Do one piece of work; whatever goes wrong becomes an outcome and a crash file.

    Args:
        stem: name of the work, and of its crash file.
        subject: label without ``sub-``.
        out: root of the output dataset.
        work: returns what came of it, or nothing when there is nothing to say.
    """
    started = time.monotonic()
    try:
        outcome = work() or Outcome(stem, subject)
        crash_path(out, stem).unlink(missing_ok=True)
    except Exception as error:  # the only broad one: one failed run must not stop the others
        message = explain(error, out)
        write_crash(out, stem, message, traceback.format_exc())
        return Outcome(stem, subject, True, message, time.monotonic() - started)
    return replace(outcome, seconds=time.monotonic() - started)


def has_pictures(out: Path, job: Job) -> bool:
    """Tell whether all pictures of a run were drawn, and are still there."""
    path = picture_list(out, job)
    try:
        names = read_json(path).get("Pictures")
    except (OSError, ValueError):
        return False
    return isinstance(names, list) and all((path.parent / str(name)).exists() for name in names)


def _draw(job: Job, out: Path, tell: Callable[[str], None]) -> None:
    """Draw the pictures of a run, then list them: without the list they are not complete."""
    from bmex_bids import report

    tell("figures")
    path = picture_list(out, job)
    path.unlink(missing_ok=True)
    report.run_figures(out, job)
    pattern = path.with_suffix(".*").name.replace("_desc-pictures_", "_desc-*_")
    drawn = sorted(picture.name for picture in path.parent.glob(pattern))
    write_json(path, {"Pictures": drawn})


def picture_list(out: Path, job: Job) -> Path:
    """Return the file that lists the pictures of a run; it is written after them."""
    entities = output_stem(job).removesuffix(f"_{job.suffix}")
    folder = out / f"sub-{job.entities['sub']}" / "figures"
    return folder / f"{entities}_desc-pictures_{job.suffix}.json"


def explain(error: BaseException, out: Path) -> str:
    """Return a message in one line that says what went wrong and what can be done."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left for {out}; free some and start again, finished runs are kept"
    if code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO):
        return f"the disk or the network failed ({text}); start again, finished runs are kept"
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        name = getattr(error, "filename", None) or out
        return f"no permission for {name} ({text}); for output choose a folder that can be written"
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
        return f"not enough memory ({text}); allow each run more: raise --mem or lower --nprocs"
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


def _limit_threads(threads: int) -> None:
    """Set the number of threads of torch and ITK."""
    if threads > 0:
        import SimpleITK
        import torch

        torch.set_num_threads(threads)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
