"""An end to what hangs, for tests of hostile input."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WALL = 12  # times as long on the wall: a busy machine is slow, a pipe that nobody fills is not


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what computes for ``seconds``, or waits for many times as long."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still busy after {seconds} s of computing, or waiting for ever")

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, WALL))
    before = [(number, signal.signal(number, ring)) for number, _, _ in clocks]
    for _, timer, factor in clocks:
        signal.setitimer(timer, seconds * factor)
    try:
        yield
    finally:
        for _, timer, _ in clocks:
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)
