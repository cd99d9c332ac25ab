"""Before the work: checks of the directories, temporary files, the log."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.bids import read_json, write_text
from bmex_bids.jobs import explain
from bmex_bids.layout import InputError
from bmex_bids.options import Options, to_toml

__all__ = ["check_paths", "logging_to", "scratch"]

log = logging.getLogger("bmex")


def check_paths(options: Options) -> None:
    """Refuse directories that would harm the input or cannot be used."""
    raw, out, work = options.bids_dir, options.output_dir, options.work_dir
    if out == raw:
        raise InputError(
            f"output_dir is bids_dir ({raw}); choose another, e.g. {raw}/derivatives/bmex"
        )
    if work is not None and work.is_relative_to(raw):
        raise InputError(f"--work-dir ({work}) lies inside bids_dir ({raw}); choose another")
    if options.analysis_level == "participant" and not raw.is_dir():
        raise InputError(f"{raw}: no such folder; give the root of a BIDS dataset")
    _check_output(out)
    if options.dry_run:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(explain(error, out)) from error


def _check_output(out: Path) -> None:
    """Refuse a directory that holds another dataset, whose files would be overwritten."""
    try:
        description = read_json(out / "dataset_description.json")
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error
    made_by = description.get("GeneratedBy")
    names = [str(item.get("Name")) for item in made_by] if isinstance(made_by, list) else []
    if "bmex" not in names:
        kind = f"made by {', '.join(names)}" if names else "that bmex did not make"
        raise InputError(f"output_dir ({out}) holds a dataset {kind}; choose another folder")


@contextmanager
def scratch(work_dir: Path | None) -> Iterator[None]:
    """Point temporary files, and caches of a home that cannot be written, to one folder."""
    with ExitStack() as stack:
        if work_dir is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bmex-"))
        else:
            work_dir.mkdir(parents=True, exist_ok=True)
            folder = str(work_dir)
        before, before_folder = dict(os.environ), tempfile.tempdir
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        if not os.access(os.path.expanduser("~"), os.W_OK):
            for name in ("MPLCONFIGDIR", "TEMPLATEFLOW_HOME", "XDG_CACHE_HOME"):
                os.environ.setdefault(name, str(Path(folder, name.lower())))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            tempfile.tempdir = before_folder


@contextmanager
def logging_to(options: Options) -> Iterator[None]:
    """Log to the terminal and to logs/<UTC time>-<pid>.log; save the options beside it."""
    folder = options.output_dir / "logs"
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
    write_text(folder / f"{stem}.toml", to_toml(options))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    file = logging.FileHandler(folder / f"{stem}.log", encoding="utf-8")
    terminal.setFormatter(logging.Formatter("%(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.setLevel(logging.DEBUG)
    for handler in (terminal, file):
        log.addHandler(handler)
    log.info("bmex %s: %s -> %s", __version__, options.bids_dir, options.output_dir)
    try:
        yield
    finally:
        for handler in (terminal, file):
            log.removeHandler(handler)
            handler.close() if handler is file else None
        log.setLevel(level)
