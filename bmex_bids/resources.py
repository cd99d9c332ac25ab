"""What the options mean on the machine at hand: device, threads, memory, models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from bmex_bids.layout import InputError, Selection, read_filters
from bmex_bids.memory import OWN_BYTES
from bmex_bids.options import Options
from bmex_bids.plan import Request

if TYPE_CHECKING:
    from bmex_bids.pipeline import Settings

__all__ = ["request_of", "settings_of", "threads_of"]


def request_of(options: Options) -> Request:
    """Return what the plan needs of the options."""
    path = options.bids_filter_file
    return Request(
        bids_dir=options.bids_dir,
        output_dir=options.output_dir,
        selection=Selection(
            participants=options.participant_label,
            sessions=options.session_label,
            suffixes=options.suffix,
            filters=read_filters(path) if path else {},
            database_dir=options.bids_database_dir,
        ),
        derivatives=tuple(path for _, path in options.derivatives),
        age_months=options.age_months,
        stage=options.stage,
        models_dir=options.models_dir,
        model_set=options.model_set,
        overwrite=options.overwrite,
        measure_only=options.measure_only,
        high_res=options.high_res,
        uncertainty=options.uncertainty,
        lesions=options.lesions,
        reports_only=options.reports_only,
    )


def threads_of(options: Options) -> int:
    """Return the threads of each run: as asked for, else its share of the cores."""
    return options.omp_nthreads or max(1, _cores() // options.nprocs)


def settings_of(options: Options) -> Settings:
    """Resolve device, precision, memory and models for this machine.

    Sets OMP_NUM_THREADS, for this process and those it starts.

    Raises:
        InputError: what the options ask for is not there, or too little.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads_of(options))  # read by torch on import
    from bmex_bids.inference import resolve
    from bmex_bids.pipeline import Settings
    from bmex_bids.weights import WeightsError, list_models, models_dir

    try:
        compute = resolve(options.device, options.precision)
        models = tuple(list_models(models_dir(options.models_dir)))
    except (WeightsError, ValueError, OSError) as error:
        raise InputError(str(error)) from error
    compute = replace(compute, max_bytes=_bytes_per_run(options))
    return Settings(
        compute=compute,
        models=models,
        measure_only=options.measure_only,
        high_res=options.high_res,
        uncertainty=options.uncertainty,
        lesions=options.lesions,
        seed=options.seed,
        model_set=options.model_set,
    )


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _bytes_per_run(options: Options) -> int:
    """Return what the networks of one run may hold, in bytes."""
    import psutil

    total = options.mem or psutil.virtual_memory().available
    if options.mem is None:
        total = min([total, *_limits()])
    share = total // options.nprocs
    if share <= OWN_BYTES:
        raise InputError(
            f"{share / 2**30:.1f} GiB of memory for each of {options.nprocs} runs at a time is too "
            "little; raise --mem or lower --nprocs"
        )
    return int(share - OWN_BYTES)


def _limits() -> Iterator[int]:
    """Yield the limits of memory, in bytes, of the control groups that this process is in."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = Path("/sys/fs/cgroup", controllers)
            parts = PurePosixPath(group).relative_to("/").parts
            for depth in range(len(parts) + 1):
                try:
                    yield int(folder.joinpath(*parts[:depth], name).read_text(encoding="ascii"))
                except (OSError, ValueError):  # not there, or "max"
                    continue
