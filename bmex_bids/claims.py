"""Claims: who works on what in a folder that many processes on many machines share.

A claim is a file that its holder locks, signs with the name of the machine and touches every few
seconds. Two things tell a claim that is held from one that a dead process left:

* the lock, which the kernel frees when its process ends, however it ends. Processes on one machine
  trust it alone, containers included.
* the time of the last touch. It counts between machines, since some network file systems keep
  their locks to one machine, and where a file system knows no locks at all.

Should a claim be held twice in spite of this (a clock that is minutes wrong, a process that slept
for minutes), the same work is done twice; files stay whole, as each is moved to its place at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["TEMPORARY", "claimed", "is_claimed", "present", "run_claim", "sweep_folders"]

TEMPORARY = ".tmp-"  # how the name of every temporary file and folder in an output begins
LOCK = ".lock"
TOUCHED_EVERY = 15.0  # seconds
DEAD_AFTER = 120.0  # seconds without a touch
PAUSE = 0.2  # seconds between two looks at a claim that is waited for


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a claim while the block runs.

    Args:
        path: of the claim; the file is there only while it is held, or after its holder was killed.
        wait: until it is free.

    Yields:
        Whether it is held now; False when another process holds it. A folder that takes no file
        (no space, no permission) grants every claim, as what is written next will say it better.
    """
    ended = threading.Event()
    try:
        handle = _take(path)
        while handle is None and wait:
            time.sleep(PAUSE)
            handle = _take(path)
    except OSError:
        yield True
        return
    if handle is None:
        yield False
        return
    try:
        threading.Thread(target=_touch, args=(path, ended), daemon=True).start()
        yield True
    finally:  # nothing here waits, so that an interrupt hardly comes between
        with suppress(OSError):  # of a disk that fails; the claim is free all the same
            path.unlink(missing_ok=True)
        os.close(handle)
        ended.set()


def is_claimed(path: Path) -> bool:
    """Tell whether some process holds a claim."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except PermissionError:  # of somebody else, who lives or not
        return path.exists() and abs(time.time() - path.stat().st_mtime) <= DEAD_AFTER
    except OSError:
        return False  # not there, or a disk that fails: what is written next will say it better
    try:
        return not _is_free(handle, path)
    except OSError:
        return False
    finally:
        os.close(handle)


def run_claim(out: Path, stem: str) -> Path:
    """Return the claim on a run (``sub-01_T1w``), on a report (``sub-01``) or on other work."""
    return out / "logs" / f"{stem}{LOCK}"


@contextmanager
def present(out: Path, name: str) -> Iterator[None]:
    """Let other processes know that this one writes into ``out``; remove what killed ones left.

    Temporary files go when a claim of a dead process is found and no living one has any: then
    nobody can need them. While others work they stay, and the last of those removes them.

    Args:
        out: root of the output dataset.
        name: unique name of this start of the program.
    """
    own = run_claim(out, name)
    with claimed(own):
        _sweep(out, own)
        try:
            yield
        except BaseException:  # interrupted, perhaps where a temporary file was just made
            _leave_trace(own)
            raise
        finally:
            _sweep(out, own)


def sweep_folders(folder: Path, prefix: str) -> None:
    """Remove the folders ``<prefix>*`` beside which a claim of the same name lies that is free."""
    for claim in folder.glob(f"{prefix}*{LOCK}"):
        if not is_claimed(claim):
            shutil.rmtree(claim.with_name(claim.name.removesuffix(LOCK)), ignore_errors=True)
            claim.unlink(missing_ok=True)


def _sweep(out: Path, own: Path) -> None:
    """Remove what killed processes left, if some were killed and none is at work.

    Who starts shows itself first and then comes here, so nobody writes while another removes.
    """
    sweep = run_claim(out, "sweep")
    with claimed(sweep, wait=True):
        claims = [path for path in own.parent.glob(f"*{LOCK}") if path not in (own, sweep)]
        if not claims or any(is_claimed(path) for path in claims):
            return
        for folder, folders, files in os.walk(out):
            for name in [name for name in folders if name.startswith(TEMPORARY)]:
                shutil.rmtree(Path(folder, name), ignore_errors=True)
                folders.remove(name)
            for name in files:
                if name.startswith(TEMPORARY):
                    Path(folder, name).unlink(missing_ok=True)
        for path in claims:
            path.unlink(missing_ok=True)


def _take(path: Path) -> int | None:
    """Return the open file of a claim that is now ours, None when it is held by another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        new = True
    except FileExistsError:
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:  # given up at this moment
            return _take(path)
        new = False
    try:
        if not _is_free(handle, path, new=new):
            os.close(handle)
            return None
        if not new and os.fstat(handle).st_size:  # of a dead process; it may have left more
            _leave_trace(path)
        os.ftruncate(handle, 0)
        os.write(handle, _machine().encode())
    except BaseException:  # an interrupt too
        os.close(handle)
        if new:
            path.unlink(missing_ok=True)
        raise
    return handle


def _leave_trace(path: Path) -> None:
    """Leave a claim that nobody holds, by which the next sweep knows that there is work."""
    path.with_name(f"left-{secrets.token_hex(4)}{LOCK}").touch()


def _is_free(handle: int, path: Path, *, new: bool = False) -> bool:
    """Whether nobody holds the claim; locks it where the file system can, until it is closed."""
    locks = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        locks = False  # unknown to this file system
    try:
        there, mine = os.stat(path), os.fstat(handle)
    except FileNotFoundError:
        return False
    if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
        return False  # given up, and taken again by another, while it was opened here
    holder = os.pread(handle, 200, 0).decode(errors="replace")
    if new or (locks and holder in ("", _machine())):
        return True
    return abs(time.time() - mine.st_mtime) > DEAD_AFTER


def _touch(path: Path, ended: threading.Event) -> None:
    """Say that the holder lives, until it has ended."""
    while not ended.wait(TOUCHED_EVERY):
        try:
            os.utime(path)
        except OSError:
            continue  # given up at this moment, or a server that is away


def _machine() -> str:
    """Return what names the running kernel; its containers share it, and its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # no Linux
        return platform.node()
