"""The levels of the command line: checks, the loop over runs, reports, summary, exit code."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.bids import Job, output_stem, write_dataset_files
from bmex_bids.claims import claimed, present, run_claim
from bmex_bids.cluster import cluster
from bmex_bids.executor import Execute, in_processes, in_turn, shared
from bmex_bids.jobs import (
    Outcome,
    attempt,
    crash_path,
    explain,
    has_pictures,
    picture_list,
    run_job,
    write_crash,
)
from bmex_bids.layout import InputError
from bmex_bids.options import Options
from bmex_bids.participants import check_site_column
from bmex_bids.plan import format_plan, is_finished, plan_jobs
from bmex_bids.resources import request_of, settings_of, threads_of
from bmex_bids.spacejobs import bring_to_spaces, check_spaces, space_notes
from bmex_bids.start import check_paths, logging_to, new_name, scratch
from bmex_bids.status import say, status_of
from bmex_bids.validation import validate

if TYPE_CHECKING:
    from bmex_bids.pipeline import Settings

__all__ = ["run"]

log = logging.getLogger("bmex")


def run(options: Options) -> int:
    """Run the level that the options ask for and return the exit code (0 or 1).

    Raises:
        InputError: the input or the options cannot be used; nothing was started.
    """
    try:
        check_paths(options)
        check_spaces(options)
        jobs = plan_jobs(request_of(options)) if options.analysis_level == "participant" else []
    except OSError as error:  # a disk that fails, a folder that may not be read
        raise InputError(explain(error, options.output_dir)) from error
    if options.dry_run:
        sys.stdout.write(format_plan(jobs))
        for job in jobs:
            for note in (*job.notes, *space_notes(options, job)) if job.wanted else ():
                print(f"note: {output_stem(job)}: {note}", file=sys.stderr)
        return 0
    name = new_name()
    with ExitStack() as stack:
        try:
            stack.enter_context(scratch(options.work_dir, name))
            stack.enter_context(present(options.output_dir, name))
            stack.enter_context(logging_to(options, name))
        except OSError as error:
            raise InputError(explain(error, options.output_dir)) from error
        return _group(options) if options.analysis_level == "group" else _participant(options, jobs)


def _participant(options: Options, jobs: Sequence[Job]) -> int:
    out = options.output_dir
    if not any(job.wanted for job in jobs):
        reasons = sorted({job.reason for job in jobs})
        raise InputError(
            f"nothing to do, all {len(jobs)} images are left out: {'; '.join(reasons)}"
        )
    if not options.skip_bids_validation and not options.reports_only:
        found = validate(options.bids_dir, participants=options.participant_label, ignore=[out])
        for line in found:
            log.warning("BIDS: %s", line)
    for label in sorted(set(options.participant_label) - {job.entities["sub"] for job in jobs}):
        log.warning("sub-%s: no %s image", label, " or ".join(options.suffix))
    here = options.executor == "local" and not options.reports_only
    settings = settings_of(options) if here else None
    try:
        with claimed(run_claim(out, "dataset"), wait=True):
            write_dataset_files(out, options.bids_dir)
    except OSError as error:
        raise InputError(explain(error, out)) from error
    skipped = _skipped(jobs, out)
    started = time.monotonic()
    outcomes = [] if skipped and options.stop_on_first_crash else _loop(jobs, options, settings)
    ended = options.reports_only or options.stop_on_first_crash and any(
        outcome.failed for outcome in (*skipped, *outcomes)
    )
    spaces = [] if ended else bring_to_spaces(options, jobs)
    touched = {o.subject for o in (*skipped, *outcomes, *spaces) if not o.elsewhere}
    touched |= {job.entities["sub"] for job in jobs if job.wanted and not _is_reported(out, job)}
    reports = _reports(sorted(touched), out)
    seconds = time.monotonic() - started
    status = status_of(jobs, [*skipped, *outcomes], [*spaces, *reports], out=out, seconds=seconds)
    say(status, options.log_format)
    return status.exit_code


def _group(options: Options) -> int:
    out = options.output_dir
    if not any(out.glob("sub-*")):
        raise InputError(
            f"{out}: no results of single participants; run the participant level first"
        )

    check_site_column(out, options.site_column)

    def work() -> None:
        from bmex_bids.group import group_report

        paths = [str(path) for path in group_report(out, options.site_column)]
        as_line = json.dumps({"event": "group", "files": paths})
        print(as_line if options.log_format == "json" else "\n".join(paths))

    with claimed(run_claim(out, "group"), wait=True):
        outcome = attempt("group", "", out, work)
    if outcome.failed:
        log.error("group: failed: %s", outcome.message)
    return 1 if outcome.failed else 0


def _loop(jobs: Sequence[Job], options: Options, settings: Settings | None) -> list[Outcome]:
    """Run what is to be run, where the options say."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    out, request = options.output_dir, request_of(options)

    def to_draw(job: Job) -> bool:
        return options.reports_only or _unfinished(out, job)

    def finished(job: Job) -> bool:
        return not to_draw(job) and is_finished(job, request)

    todo = [job for job in jobs if job.action == "enhance"]
    todo += [job for job in jobs if job.action == "done" and to_draw(job)]

    outcomes: list[Outcome] = []
    terminal = sys.stderr.isatty()
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(todo), unit="run", disable=not terminal))
        if terminal:
            stack.enter_context(logging_redirect_tqdm([log]))

        if options.executor == "local" or not todo:
            execute = _executor(options, settings, len(todo), bar.set_postfix_str)
        else:
            execute = stack.enter_context(cluster(options))
        results = stack.enter_context(closing(shared(todo, execute, out=out, finished=finished)))
        for outcome in results:
            outcomes.append(outcome)
            bar.update()
            _say(outcome, f"[{len(outcomes)}/{len(todo)}]")
            if outcome.failed and options.stop_on_first_crash:
                log.warning("%d runs were not started", len(todo) - len(outcomes))
                break
    return outcomes


def _executor(
    options: Options, settings: Settings | None, count: int, step: Callable[[str], None]
) -> Execute:
    """Return what computes the runs on this machine: this process, or several."""
    out = options.output_dir
    work = functools.partial(
        run_job,
        out=out,
        settings=settings,
        threads=threads_of(options) if settings else 0,
        finished=functools.partial(is_finished, request=request_of(options)),
        log_format=options.log_format,
    )
    if options.nprocs > 1 and count > 1:
        return functools.partial(in_processes, work=work, nprocs=options.nprocs, out=out)
    return functools.partial(in_turn, work=functools.partial(work, progress=step))


def _say(outcome: Outcome, count: str) -> None:
    """Log how one run ended."""
    if outcome.failed:
        log.error("%s %s: failed: %s", count, outcome.stem, outcome.message)
    elif outcome.elsewhere:
        log.info("%s %s: done by another start", count, outcome.stem)
    else:
        log.info("%s %s: done in %.0f s", count, outcome.stem, outcome.seconds)
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in outcome.steps.items())
        log.debug("%s: seconds: %s", outcome.stem, steps)
    for flag in outcome.flags:
        log.warning("%s: %s", outcome.stem, flag)


def _skipped(jobs: Sequence[Job], out: Path) -> list[Outcome]:
    """Turn runs that cannot be done (no age, no model) into failures with a crash file."""
    outcomes = []
    for job in jobs:
        stem = output_stem(job)
        for note in job.notes if job.action == "enhance" else ():
            log.warning("%s: %s", stem, note)
        if job.action == "skip" and not job.wanted:
            log.info("%s: left out: %s", job.path.name, job.reason)
        elif job.action == "skip":
            log.error("%s: not done: %s", stem, job.reason)
            write_crash(out, stem, job.reason)
            outcomes.append(Outcome(stem, job.entities["sub"], failed=True, message=job.reason))
    return outcomes


def _unfinished(out: Path, job: Job) -> bool:
    """Whether the derivatives of a run are complete, but its pictures are not."""
    return crash_path(out, output_stem(job)).exists() or not has_pictures(out, job)


def _is_reported(out: Path, job: Job) -> bool:
    """Whether the subject's report is not older than the pictures of the run, if it has any."""
    report, pictures = out / f"sub-{job.entities['sub']}.html", picture_list(out, job)
    try:
        return pictures.stat().st_mtime_ns <= report.stat().st_mtime_ns
    except FileNotFoundError:
        return not pictures.exists()


def _reports(subjects: Sequence[str], out: Path) -> list[Outcome]:
    """Write the report of every subject that something was done for."""

    def work(subject: str) -> None:
        from bmex_bids.report import subject_report

        crash_path(out, f"sub-{subject}").unlink(missing_ok=True)  # of an earlier report
        log.debug("report %s", subject_report(out, subject))

    outcomes = []
    for subject in subjects:
        # One after the other, so that the last of several starts has seen the runs of all.
        with claimed(run_claim(out, f"sub-{subject}"), wait=True):
            outcome = attempt(f"sub-{subject}", subject, out, functools.partial(work, subject))
        outcomes.append(replace(outcome, stem=f"report of sub-{subject}"))
    return outcomes
