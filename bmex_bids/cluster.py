"""Runs on other machines: the workers of a Dask scheduler, or jobs of SLURM, PBS or SGE.

One task per run. A worker computes it in a process of its own, exactly as ``--nprocs`` does here,
so that the same threads give the same bytes, and a run that is killed does not take its worker
along. The tasks of a worker that is lost go to another one; what it had claimed is free again.
All machines have to see the same input and output folders.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import platform
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids import __version__
from bmex_bids.bids import Job, output_stem
from bmex_bids.claims import is_claimed, run_claim
from bmex_bids.executor import Execute, Outcomes, in_processes
from bmex_bids.jobs import Outcome, run_job, write_crash
from bmex_bids.layout import InputError
from bmex_bids.options import Options
from bmex_bids.plan import is_finished
from bmex_bids.resources import request_of, settings_of, threads_of
from bmex_bids.start import new_name, scratch

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["cluster", "on_cluster"]

log = logging.getLogger("bmex")

INSTALL = "install them with: pip install 'bmex-bids[hpc]'"
PATIENCE = 30.0  # seconds for a scheduler to answer
MEMORY = 8 * 2**30  # bytes of a job where neither the options nor the site say


@contextmanager
def cluster(options: Options) -> Iterator[Execute]:
    """Connect to the scheduler, or submit jobs, and yield what computes runs there.

    Jobs that were submitted are cancelled at the end; a scheduler that ran before keeps running.

    Raises:
        InputError: Dask is not installed, the scheduler does not answer, or the batch system or
            its options cannot be used.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(f"--executor {options.executor} needs Dask; {INSTALL}") from error
    if options.executor != "dask":
        with _jobs(options) as (queue, shared):
            with Client(queue) as client:
                yield functools.partial(on_cluster, client=client, options=shared)
        return
    address = str(options.dask_scheduler)
    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = Client(**where, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler at {address} ({error}); is it running?") from error
    with client:
        log.info("Dask scheduler %s, %d workers", address, len(client.scheduler_info()["workers"]))
        yield functools.partial(on_cluster, client=client, options=options)


def on_cluster(jobs: Iterable[Job], *, client: Client, options: Options) -> Outcomes:
    """Submit every job as one task and yield what comes back, the first that is ready first.

    Args:
        jobs: the runs.
        client: of the scheduler.
        options: of this start; ``nprocs`` counts the runs at a time on one worker.
    """
    from distributed import as_completed

    start = secrets.token_hex(4)
    futures = {}
    for job in jobs:
        name = f"bmex-{output_stem(job)}-{start}"
        future = client.submit(_task, job, options, __version__, key=name, pure=False)
        futures[future] = job
    try:
        for future in as_completed(list(futures)):
            yield _outcome(future, futures.pop(future), options.output_dir)
    finally:
        client.cancel(list(futures))


def _outcome(future: Future[Any], job: Job, out: Path) -> Outcome:
    """Return what became of a task; one that was lost is a failed run."""
    from distributed import KilledWorker

    stem = output_stem(job)
    error = future.exception()
    if future.status == "finished":
        outcome = future.result()
        if isinstance(outcome, Outcome):
            return outcome
    if isinstance(error, KilledWorker):
        message = "the workers that computed it were lost again and again; is their time or memory "
        message += "too short? See their logs"
    elif error is None:
        message = "the scheduler was lost; start again, finished runs are kept"
    elif isinstance(error, RuntimeError):
        message = str(error)
    else:
        message = f"the worker could not compute it ({type(error).__name__}: {error})"
    write_crash(out, stem, message)
    return Outcome(stem, job.entities["sub"], failed=True, message=message)


def _task(job: Job, options: Options, version: str) -> Outcome:
    """Compute one run in a process of its own; runs in a thread of a worker."""
    from distributed import get_worker

    stem, subject, out = output_stem(job), job.entities["sub"], options.output_dir
    host = platform.node()
    problem = ""
    if version != __version__:
        problem = f"the worker on {host} has bmex {__version__}, this start has {version}"
    elif not (out / "dataset_description.json").exists():
        problem = f"the worker on {host} does not see {out}; it has to be on a shared file system"
    if problem:
        raise RuntimeError(problem)
    if is_claimed(run_claim(out, stem)):
        return Outcome(stem, subject, busy=True)
    multiprocessing.current_process().daemon = False  # of a nanny; this one ends its children
    own = replace(options, nprocs=get_worker().state.nthreads)
    (outcome,) = in_processes([job], functools.partial(_run_there, options=own), 1, out=out)
    return outcome


def _run_there(job: Job, *, options: Options) -> Outcome:
    """Run one job with what this machine has."""
    out = options.output_dir
    try:
        with scratch(options.work_dir, f"{new_name()}-{secrets.token_hex(4)}"):
            return run_job(
                job,
                out=out,
                settings=settings_of(options),
                threads=threads_of(options),
                finished=functools.partial(is_finished, request=request_of(options)),
                log_format=options.log_format,
            )
    except (InputError, OSError) as error:
        message = f"on {platform.node()}: {error}"
        write_crash(out, output_stem(job), message)
        return Outcome(output_stem(job), job.entities["sub"], failed=True, message=message)


@contextmanager
def _jobs(options: Options) -> Iterator[tuple[Any, Options]]:
    """Submit jobs to a batch system; yield dask-jobqueue's cluster and the options of a job."""
    try:
        import dask
        import dask_jobqueue
    except ImportError as error:
        raise InputError(f"--executor {options.executor} needs dask-jobqueue; {INSTALL}") from error
    makers = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}
    make = getattr(dask_jobqueue, makers[options.executor])
    with dask.config.set(_site(options.cluster_config, dask.config.config)):
        site = dask.config.get(f"jobqueue.{options.executor}")
        cores = site["cores"] or (options.omp_nthreads or 1) * options.nprocs
        memory = site["memory"] or options.mem or MEMORY
        extra = [*(site["worker-extra-args"] or []), "--nthreads", str(options.nprocs)]
        share = replace(
            options,
            omp_nthreads=options.omp_nthreads or max(1, cores // options.nprocs),
            mem=options.mem or dask.utils.parse_bytes(memory),
        )
        try:
            queue = make(
                cores=cores,
                memory=dask.utils.format_bytes(memory) if isinstance(memory, int) else memory,
                processes=site["processes"] or 1,
                job_name=site["name"] if site["name"] != "dask-worker" else "bmex",
                local_directory=site["local-directory"] or "/tmp",
                log_directory=site["log-directory"] or str(options.output_dir / "logs"),
                worker_extra_args=extra,
                # Any free port: several starts on one login node must not want the same one.
                scheduler_options={"dashboard_address": ":0"} | (site["scheduler-options"] or {}),
            )
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise InputError(f"--executor {options.executor}: {error}") from error
        with queue:
            log.debug("job script:\n%s", queue.job_script())
            log.info("%s: %d jobs of %s cores", options.executor, options.jobs, cores)
            log.info("how it goes: %s", queue.dashboard_link)
            queue.scale(jobs=options.jobs)
            yield queue, share


def _site(path: Path | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return Dask's configuration with that of a YAML file over it."""
    import dask
    import yaml

    if path is None:
        return dict(config)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--cluster-config {path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("jobqueue"), dict):
        raise InputError(f"--cluster-config {path}: expected 'jobqueue:' with a batch system in it")
    return dict(dask.config.merge(config, content))
