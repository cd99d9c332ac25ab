#!/usr/bin/env python3
"""Many starts of the app into one output folder at the same time, compared with a single start.

Twenty with a participant each, then four with all participants, the same command four times. The
outputs have to equal those of a single start byte for byte (all but logs/), every run has to be
computed once and every shared file written once, and each start keeps a log and a saved
configuration of its own. The report of a participant compares it with the others that are there
when it is written; where they come one by one, --reports-only brings all reports to one state
before they are compared. The networks and the pictures are quick pretenders, all else is real.

    python scripts/writers-test.py --writers 20 --same 4
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import crash_app  # noqa: E402

SHARED = (".bidsignore", "README", "dataset_description.json", "descriptions.tsv", "dseg.tsv")


def together(commands: Sequence[list[str]], record: Path) -> tuple[list[int], dict[str, int]]:
    """Start all commands at once; return their exit codes and how often each thing was done."""
    record.unlink(missing_ok=True)
    os.environ[crash_app.RECORD] = str(record)
    begun = [crash_app.begin(command, terminal=False)[0] for command in commands]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in begun]
    return codes, dict(collections.Counter(record.read_text().split()))


def problems(out: Path, reference: Path, codes: list[int], done: dict[str, int]) -> list[str]:
    """What is wrong with an output folder that several starts wrote into."""
    found = [f"exit code {code}" for code in codes if code]
    expected, now = crash_app.tree(reference), crash_app.tree(out)
    found += [f"differs: {n}" for n in {*expected, *now} if expected.get(n) != now.get(n)]
    found += [f"left: {name}" for name in crash_app.leftovers(out)]
    runs = {name: count for name, count in done.items() if name.endswith("_T1w")}
    found += [f"{name} was computed {count} times" for name, count in runs.items() if count != 1]
    found += [f"{name} was written {done[name]} times" for name in SHARED if done[name] != 1]
    for ending in ("log", "toml"):
        count = len(list((out / "logs").glob(f"[0-9]*Z-*.{ending}")))
        if count != len(codes):
            found.append(f"{count} files .{ending} of {len(codes)} starts")
    return found


def main() -> int:
    """Read the command line, do both tests, print what came of them."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--writers", type=int, default=20, help="with a participant each")
    parser.add_argument("--same", type=int, default=4, help="with the same participants")
    parser.add_argument("--keep", type=Path, help="make the outputs here and keep them")
    options = parser.parse_args()
    labels = [f"{number:02}" for number in range(1, options.writers + 1)]
    summary: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="writers-test-") as folder:
        root = options.keep or Path(folder)
        images = [f"sub-{label}_T1w" for label in labels]
        argv = crash_app.prepare(root, root / "one", images, real=False)
        together([argv], root / "record")
        for name, commands in (
            ("different", [[*argv, "--participant-label", label] for label in labels]),
            ("same", [argv] * options.same),
        ):
            out = root / name
            commands = [[command[0], str(out), *command[2:]] for command in commands]
            codes, done = together(commands, root / "record")
            if name == "different":
                codes += together([[argv[0], str(out), *argv[2:], "--reports-only"]], root / "x")[0]
            found = problems(out, root / "one", codes, done)
            files = len(crash_app.tree(out))
            summary[name] = {"starts": len(codes), "files": files, "problems": found}
    print(json.dumps(summary, indent=2))
    return 1 if any(part["problems"] for part in summary.values()) else 0  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
