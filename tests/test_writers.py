"""Short forms of the two long tests: kills at random moments, many starts at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str, *arguments: str) -> dict[str, object]:
    """Run a script in a process of its own, since it forks, and return what it printed."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, object] = json.loads(done.stdout[done.stdout.index("{") :])
    return summary


def test_kill_and_resume() -> None:
    summary = script("crash-test.py", "--kills", "5", "--several", "0")
    assert summary["kills"] == 5 and summary["trials with a problem"] == 0


def test_many_starts_into_one_output() -> None:
    summary = script("writers-test.py", "--writers", "5", "--same", "2")
    assert [part["problems"] for part in summary.values()] == [[], []]  # type: ignore[index]
