"""The promise of ``--mem``: what a process may hold, enforced by the system itself.

Estimates decide how large tiles are (:mod:`bmex_bids.inference`). Where an estimate is too low, the
system refuses the allocation, which is an error that can be handled and explained, instead of a
kill that cannot.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["OWN_BYTES", "held_to"]

OWN_BYTES = 2**30  # of a process beside the networks: libraries, the image, its outputs
FILE_BYTES = 300 * 2**20  # pages of libraries' files, which count as memory but not for the limit


@contextmanager
def held_to(most: int | None) -> Iterator[None]:
    """Let this process hold no more memory while the block runs; asking for more is a MemoryError.

    Args:
        most: bytes, all in all; None for no limit. Where the system knows no such limit (it is
            Linux that does), there is none.
    """
    if most is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    soft = max(most - FILE_BYTES, 1)
    for there in before:
        soft = soft if there == resource.RLIM_INFINITY else min(soft, there)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, before)
