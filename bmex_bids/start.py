"""Before the work: checks of the directories, temporary files, the log."""

from __future__ import annotations

import errno
import logging
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from bmex_bids import __version__
from bmex_bids.bids import read_json, write_text
from bmex_bids.claims import TEMPORARY, claimed, sweep_folders
from bmex_bids.jobs import explain
from bmex_bids.layout import InputError
from bmex_bids.logs import Lines, attached, dress, file_handler, log_path
from bmex_bids.options import Options, to_toml

__all__ = ["check_paths", "logging_to", "new_name", "scratch", "stopping"]

log = logging.getLogger("bmex")


def new_name() -> str:
    """Return a name for this start that no other has: UTC time, machine and process."""
    host = re.sub(r"[^a-zA-Z0-9-]", "", platform.node().split(".")[0])[:30] or "host"
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{host}-{os.getpid()}"


@contextmanager
def stopping() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) end the block as Ctrl-C does, by an exception.

    Raises:
        KeyboardInterrupt: with the number of the signal; a second one is not listened to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set what signals do
        return
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def stop(number: int, frame: FrameType | None) -> None:
        for name in before:
            signal.signal(name, signal.SIG_IGN)
        if number == signal.SIGHUP:  # what is written to a terminal that is gone is an error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in terminals:
                os.dup2(nowhere, fd)
        raise KeyboardInterrupt(number)

    chosen = [
        name
        for name in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(name) is not signal.SIG_IGN  # as nohup does
    ]
    before = {name: signal.signal(name, stop) for name in chosen}
    try:
        yield
    except OSError as error:
        gone = error.errno == errno.EIO and not all(os.isatty(fd) for fd in terminals)
        if gone and signal.SIGHUP in before:  # its signal comes a moment after the first error
            stop(signal.SIGHUP, None)
        raise
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


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
        with tempfile.TemporaryFile(prefix=TEMPORARY, dir=out):
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
def scratch(work_dir: Path | None, name: str) -> Iterator[None]:
    """Point temporary files to a folder of this start, and remove those of killed ones.

    Caches of a home that cannot be written go to ``work_dir``, which is kept.

    Args:
        work_dir: where the folder is made; None for the system's place.
        name: of this start.
    """
    base = Path(tempfile.gettempdir()) if work_dir is None else work_dir
    base.mkdir(parents=True, exist_ok=True)
    sweep_folders(base, "bmex-")
    folder = base / f"bmex-{name}"
    before, before_folder = dict(os.environ), tempfile.tempdir
    with claimed(folder.with_name(f"{folder.name}.lock")):
        folder.mkdir(mode=0o700)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        if not os.access(os.path.expanduser("~"), os.W_OK):
            for variable in ("MPLCONFIGDIR", "TEMPLATEFLOW_HOME", "XDG_CACHE_HOME"):
                os.environ.setdefault(variable, str((work_dir or folder) / variable.lower()))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            tempfile.tempdir = before_folder
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def logging_to(options: Options, stem: str) -> Iterator[None]:
    """Log to the terminal and to logs/<name of the start>.log; save the options beside it."""
    out, kind = options.output_dir, options.log_format
    write_text(out / "logs" / f"{stem}.toml", to_toml(options))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    dress(terminal, Lines(kind, timed=False))
    with attached((terminal, file_handler(log_path(out, stem, kind), kind)), ("bmex",)):
        log.info("bmex %s: %s -> %s", __version__, options.bids_dir, out)
        yield
