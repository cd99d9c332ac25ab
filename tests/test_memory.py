"""The limit that the system enforces: an error that can be explained, never a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bmex_bids.memory import FILE_BYTES, OWN_BYTES, held_to

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what is allocated")
HOLD = """
import resource, sys
import numpy as np
from bmex_bids.memory import held_to
most = int(sys.argv[1])
with held_to(most):
    kept = []
    try:
        while True:
            kept.append(np.ones(1 << 21, np.float64))
    except MemoryError as error:
        print("MemoryError", error)
    kept.clear()
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak)
"""


def test_own_share_is_more_than_the_files() -> None:
    assert OWN_BYTES > 2 * FILE_BYTES


@LINUX
def test_a_process_gets_an_error_before_it_holds_more() -> None:
    most = 2 << 30
    done = subprocess.run(
        [sys.executable, "-c", HOLD, str(most)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    said, peak = done.stdout.splitlines()
    assert said.startswith("MemoryError")
    assert 0.3 * most < int(peak) <= most


@LINUX
def test_the_limit_ends_with_the_block() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with held_to(8 << 30):
        inside = resource.getrlimit(resource.RLIMIT_DATA)
    assert inside == ((8 << 30) - FILE_BYTES, before[1])
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with held_to(None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
