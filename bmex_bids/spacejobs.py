"""The standard spaces of all runs: checks before the work, templates, the loop over finished runs.

This comes after the native outputs of every run are written. A space that cannot be made is a
failure of its own, which leaves these outputs, the other spaces and the other runs as they are.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from bmex_bids.bids import Job, output_stem, session_dir
from bmex_bids.claims import claimed, run_claim
from bmex_bids.executor import in_processes, in_turn
from bmex_bids.jobs import Outcome, attempt
from bmex_bids.layout import InputError
from bmex_bids.options import Options
from bmex_bids.resources import threads_of
from bmex_bids.spaces import Space, SpaceError, parse_spaces
from bmex_bids.templatefiles import check_names, fetch_template, find_template, resolve_spaces

__all__ = ["bring_to_spaces", "check_spaces", "space_notes"]

log = logging.getLogger("bmex")


def check_spaces(options: Options) -> None:
    """Refuse names that TemplateFlow does not know.

    Raises:
        InputError: there is no such template or cohort; nothing was started.
    """
    spaces = parse_spaces(options.output_spaces)
    if not spaces or options.analysis_level != "participant":
        return
    try:
        warnings = check_names(spaces)
    except ValueError as error:
        raise InputError(str(error)) from error
    for text in warnings:
        log.warning("--output-spaces: %s", text)
    if options.registration == "syn" and find_spec("dipy") is None:
        raise InputError(
            "--registration syn needs DIPY; install it with: pip install 'bmex-bids[spaces]', or "
            "write --registration affine"
        )


def space_notes(options: Options, job: Job) -> Iterator[str]:
    """Yield what would be done for one run, in words, as ``--dry-run`` shows it."""
    spaces, notes = resolve_spaces(parse_spaces(options.output_spaces), job.age_months)
    yield from notes
    for space in spaces:
        try:
            find_template(space, job.suffix, (space.res,), age_months=job.age_months)
            yield f"space {space}"
        except SpaceError as error:
            yield f"space {error}"


def bring_to_spaces(options: Options, jobs: Sequence[Job]) -> list[Outcome]:
    """Write the spaces that are missing, for every run whose native outputs are complete.

    Args:
        options: of this start.
        jobs: all runs of the plan; those that have just failed are left out by what they miss.

    Returns:
        One outcome for every run that had something to be done; failed where a space is missing.
    """
    spaces = parse_spaces(options.output_spaces)
    out = options.output_dir
    changed = [job for job in jobs if job.action == "enhance" and _has_spaces(out, job)]
    if not spaces and not changed:
        return []
    from bmex_bids.derivatives import marker_path
    from bmex_bids.spacefiles import remove_stale

    for job in changed:
        remove_stale(out, job)
    ready = [
        job
        for job in jobs
        if job.action in ("enhance", "done") and marker_path(out, job, measure_only=False).exists()
    ]
    todo = [job for job in ready if _is_wanted(options, spaces, job)]
    if not todo:
        return []
    _fetch(spaces, todo)
    work = functools.partial(
        _bring,
        out=out,
        spaces=spaces,
        method=options.registration,
        threads=threads_of(options),
        overwrite=options.overwrite,
    )
    outcomes = []
    if options.nprocs > 1 and len(todo) > 1:
        results = in_processes(todo, work, options.nprocs, out=out)
    else:
        results = in_turn(todo, work)
    with closing(results):
        for outcome in results:
            outcomes.append(outcome)
            count = f"[{len(outcomes)}/{len(todo)}]"
            if outcome.failed:
                log.warning("%s %s: %s", count, outcome.stem, outcome.message)
            else:
                log.info("%s %s: done in %.0f s", count, outcome.stem, outcome.seconds)
            for flag in outcome.flags:
                log.warning("%s: %s", outcome.stem, flag)
    return outcomes


def _bring(
    job: Job,
    progress: Callable[[str], None] = lambda text: None,
    *,
    out: Path,
    spaces: Sequence[Space],
    method: str,
    threads: int,
    overwrite: bool,
) -> Outcome:
    """Write the spaces of one run that are missing; what fails leaves the others as they are."""
    stem = f"{output_stem(job)}_space"
    wanted, notes = resolve_spaces(spaces, job.age_months)

    def work() -> Outcome:
        from bmex_bids.registration import RegistrationError, limit_threads
        from bmex_bids.spacefiles import missing_spaces, write_spaces

        limit_threads(threads)
        missing = missing_spaces(out, job, wanted, method, overwrite=overwrite)
        problems = []
        for space, grids in missing.items():
            try:
                write_spaces(out, job, space, grids, method=method, tell=progress)
            except SpaceError as error:
                problems.append(str(error))
            except RegistrationError as error:
                problems.append(f"{space}: {error}")
        if problems:
            raise SpaceError("; ".join(problems))
        return Outcome(stem, job.entities["sub"], flags=notes)

    with claimed(run_claim(out, stem), wait=True):  # another start may be writing the same
        return attempt(stem, job.entities["sub"], out, work)


def _has_spaces(out: Path, job: Job) -> bool:
    return any((session_dir(out, job.entities) / "anat").glob("*_xfm.json"))


def _is_wanted(options: Options, spaces: Sequence[Space], job: Job) -> bool:
    from bmex_bids.spacefiles import missing_spaces

    wanted, _ = resolve_spaces(spaces, job.age_months)
    missing = missing_spaces(
        options.output_dir, job, wanted, options.registration, overwrite=options.overwrite
    )
    return bool(missing)


def _fetch(spaces: Sequence[Space], jobs: Sequence[Job]) -> None:
    """Download, once and here, what is not cached; every run then says itself what it misses."""
    needed = {
        (space, job.suffix): None
        for job in jobs
        for space in resolve_spaces(spaces, job.age_months)[0]
    }
    for space, suffix in needed:
        problem = fetch_template(space, suffix)
        if problem:
            log.warning("%s", problem)
