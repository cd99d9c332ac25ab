"""The app as the crash test starts it: all but the networks and the pictures is real."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pty
import select
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import make_models
from synthetic_run import SHA, _result, head
from tiny_app import tiny_argv

from bmex_bids.bids import Job, output_stem, write_text
from bmex_bids.derivatives import Result
from bmex_bids.image import load_image

__all__ = ["begin", "leftovers", "load", "prepare", "save", "start", "tree", "wait_for"]

FLAG = "BMEX_CRASH_TEST"  # said to the processes that --nprocs starts
RECORD = "BMEX_CRASH_TEST_RECORD"  # names the file that lists what was done


def prepare(root: Path, out: Path, images: Sequence[str], *, real: bool) -> list[str]:
    """Load the libraries, make dataset and models, and return the arguments of the app."""
    import bmex_bids.inference
    import bmex_bids.pipeline
    import bmex_bids.report
    import bmex_bids.run  # noqa: F401

    argv = tiny_argv(root, out, images)
    os.environ.pop(FLAG, None)
    if not real:
        os.environ[FLAG] = "1"
        make_models(root / "models", name="tiny", sha256=SHA)
        argv[argv.index("tiny")] = "test"
        _pretend()
        _warm_up(argv, root / "warm")
    return argv


def _warm_up(argv: list[str], out: Path) -> None:
    """Run the app once here, so that what it loads and compiles is there in every fork."""
    from bmex_bids.cli import main

    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        if main([argv[0], str(out), *argv[2:]]):
            raise SystemExit(f"the app does not run: {nowhere.getvalue()}")


def begin(argv: Sequence[str], *, terminal: bool) -> tuple[int, int]:
    """Run the app in a forked process; return its id and our side of its terminal, if it has one.

    Without a terminal, what it says is lost.
    """
    pid, ours = pty.fork() if terminal else (os.fork(), -1)
    if pid == 0:
        code = 70
        try:
            if terminal:
                os.write(1, b"\n")
            else:
                for fd in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
            from tqdm import tqdm

            from bmex_bids.cli import main

            # Else all forks share one lock across processes, and a killed one never gives it back.
            tqdm.set_lock(threading.RLock())
            code = main(list(argv))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
    if terminal:
        os.read(ours, 1)  # it has its terminal, without which forkpty() ends with code 1
    return pid, ours


def start(argv: Sequence[str], after: float | None = None, way: str = "SIGKILL") -> int:
    """Run the app in a forked process with a terminal of its own; return its exit code.

    Args:
        argv: of the app.
        after: seconds until it is killed; None to let it end.
        way: how it is killed.
    """
    pid, terminal = begin(argv, terminal=True)
    end = None if after is None else time.monotonic() + after
    said = b""
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([terminal], [], [], left)[0]:
            if way != "terminal closed":
                os.kill(pid, signal.Signals[way])
            break
        try:
            said += os.read(terminal, 65536)
        except OSError:  # it has ended
            break
    if way == "terminal closed" or end is None:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    else:
        status = wait_for(pid, terminal)
    code = os.waitstatus_to_exitcode(status)
    if end is None and code:
        sys.stderr.write(said.decode(errors="replace"))
    return code


def wait_for(pid: int, terminal: int) -> int:
    """Read what a process still says until it has ended; return its status."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            os.close(terminal)
            return status
        if select.select([terminal], [], [], 0.02)[0]:
            with contextlib.suppress(OSError):
                os.read(terminal, 65536)


def tree(out: Path) -> dict[str, bytes]:
    """All files and their bytes, without logs/ and without what is temporary."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.parent.name != "logs" and ".tmp-" not in str(path)
    }


def leftovers(*folders: Path) -> list[str]:
    """Names of temporary files and folders, claims and crash files."""
    return sorted(
        path.name
        for folder in folders
        for path in folder.rglob("*")
        if path.name.startswith((".tmp-", "crash-", "bmex-")) or path.suffix == ".lock"
    )


def save(files: dict[str, bytes], path: Path) -> None:
    """Keep the files of the undisturbed run."""
    path.write_bytes(pickle.dumps(files))


def load(path: Path) -> dict[str, bytes]:
    """Return the files of the undisturbed run."""
    files: dict[str, bytes] = pickle.loads(path.read_bytes())
    return files


def _enhance(job: Job, settings: object, progress: Callable[[str], None]) -> Result:
    progress("pretend")
    image = load_image(job.path)
    _record(output_stem(job))
    time.sleep(0.05)
    data, labels = head()
    return _result(job, image, data, labels, False, False, ())


def _record(name: str) -> None:
    """Say that something was done, in one line that no other process can cut."""
    if RECORD in os.environ:
        handle = os.open(os.environ[RECORD], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{name}\n".encode())
        os.close(handle)


def _write_text(path: Path, text: str) -> None:
    _record(path.name)
    write_text(path, text)


def _figures(out: Path, job: Job) -> None:
    folder = out / f"sub-{job.entities['sub']}" / "figures"
    stem = output_stem(job).removesuffix("_T1w")
    for desc in ("before", "after", "contours", "residual"):
        write_text(folder / f"{stem}_desc-{desc}_T1w.svg", f"<svg>{stem}</svg>" * 1000)
        time.sleep(0.01)


def _pretend() -> None:
    from bmex_bids import bids, pipeline, report

    for module, name, function in (
        (pipeline, "enhance_run", _enhance),
        (report, "run_figures", _figures),
        (bids, "write_text", _write_text),
    ):
        assert isinstance(getattr(module, name), types.FunctionType)
        setattr(module, name, function)


if FLAG in os.environ:
    _pretend()
