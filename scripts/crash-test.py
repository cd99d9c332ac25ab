#!/usr/bin/env python3
"""Kill the app at random moments, start it again, and compare with a run that nobody disturbed.

Each trial starts the app in a new process (forked from this one, where all libraries are loaded),
with its own terminal and output folder, and ends it after a random time: by SIGKILL, by SIGTERM or
by closing its terminal. Some are killed a second time on the way. Then the same command runs to its
end. The outputs have to equal those of an undisturbed run byte for byte (all but logs/); runs that
were complete at the kill have to be untouched; nothing temporary may be left in the output, in the
work folder or among the claims. A kill that came after the end is not counted.

    python scripts/crash-test.py --kills 100            quick results in place of the networks
    python scripts/crash-test.py --kills 20 --real      the real pipeline, on tiny images
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import crash_app  # noqa: E402  also in the processes that --nprocs starts

IMAGES = ("sub-01_T1w", "sub-02_ses-1_T1w", "sub-02_ses-2_T1w")
WAYS = ("SIGKILL", "SIGTERM", "terminal closed")
ENDS = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "terminal closed": {129, -1}}


@dataclass(frozen=True)
class Kill:
    """One kill: how, when (seconds), what was there, and what was wrong after the next start."""

    way: str
    nprocs: int
    seconds: float
    done: int
    temporaries: int
    problems: tuple[str, ...]


def complete(out: Path) -> dict[str, tuple[int, int]]:
    """Files of the runs that are complete with their pictures: name -> inode and time."""
    found = {}
    for pictures in out.rglob("*_desc-pictures_T1w.json"):
        entities = pictures.name.removesuffix("_desc-pictures_T1w.json")
        for marker in out.rglob(f"{entities}_desc-enhanced_T1w.json"):
            for path in (*marker.parent.glob("*"), *pictures.parent.glob(f"{entities}_*")):
                if not path.name.startswith("."):
                    stat = path.stat()
                    found[path.relative_to(out).as_posix()] = (stat.st_ino, stat.st_mtime_ns)
    return found


def trial(argv: Sequence[str], out: Path, work: Path, way: str, after: float) -> Kill | None:
    """Kill one start, start again, and compare; None when the kill came too late.

    ``tree(out)`` of the undisturbed run is taken from the file beside the output.
    """
    shutil.rmtree(out, ignore_errors=True)
    code = crash_app.start(argv, after, way)
    if code == 0:
        return None
    problems = [] if code in ENDS[way] else [f"exit code {code}"]
    before = complete(out) if out.exists() else {}
    left = crash_app.leftovers(out, work) if out.exists() else []
    temporaries = sum(not name.endswith(".lock") for name in left)
    if code in (143, 129) and left:
        problems.append(f"left by a clean end: {left}")
    if random.random() < 0.25:
        crash_app.start(argv, random.uniform(0, after), random.choice(WAYS))
    code = crash_app.start(argv)
    if code:
        problems.append(f"the next start ended with {code}")
    after_restart = complete(out)
    changed = [name for name, value in before.items() if after_restart.get(name) != value]
    if changed:
        problems.append(f"done again: {changed}")
    if left := crash_app.leftovers(out, work):
        problems.append(f"left: {left}")
    now, expected = crash_app.tree(out), crash_app.load(out.with_suffix(".reference"))
    if now != expected:
        names = sorted(set(now) ^ set(expected)) or [n for n in now if now[n] != expected[n]]
        problems.append(f"differs: {names}")
    done = len([name for name in before if name.endswith("_desc-enhanced_T1w.json")])
    nprocs = int(argv[argv.index("--nprocs") + 1])
    return Kill(way, nprocs, after, done, temporaries, tuple(problems))


def run(kills: int, *, real: bool, several: int, say: Callable[[str], None] = print) -> list[Kill]:
    """Do as many kills as asked for and return them.

    Args:
        kills: number of kills that count.
        real: use the real pipeline.
        several: every how many trials the app has two workers (0: never).
        say: told how it goes.
    """
    results: list[Kill] = []
    with tempfile.TemporaryDirectory(prefix="crash-test-") as folder:
        root = Path(folder)
        out, work = root / "out", root / "work"
        work.mkdir()
        plain = crash_app.prepare(root, out, IMAGES, real=real)
        seconds = {}
        for nprocs in (1, 2) if several else (1,):
            argv = [*plain, "--work-dir", str(work), "--nprocs", str(nprocs)]
            shutil.rmtree(out, ignore_errors=True)
            began = time.monotonic()
            if crash_app.start(argv):
                raise SystemExit("the undisturbed run failed")
            seconds[nprocs] = time.monotonic() - began
            if nprocs == 1:
                crash_app.save(crash_app.tree(out), out.with_suffix(".reference"))
            elif crash_app.tree(out) != crash_app.load(out.with_suffix(".reference")):
                raise SystemExit("two workers do not give the bytes of one")
            files = len(crash_app.tree(out))
            say(f"undisturbed, {nprocs} at a time: {seconds[nprocs]:.1f} s, {files} files")
        tries = 0
        while len(results) < kills:
            nprocs = 2 if several and tries % several == several - 1 else 1
            argv = [*plain, "--work-dir", str(work), "--nprocs", str(nprocs)]
            tries += 1
            kill = trial(argv, out, work, WAYS[tries % 3], random.uniform(0, seconds[nprocs]))
            if kill is not None:
                results.append(kill)
                if kill.problems or len(results) % 10 == 0:
                    say(f"{len(results)} kills: {kill.way}, {'; '.join(kill.problems) or 'well'}")
    return results


def main() -> int:
    """Read the command line, do the kills, print what came of them."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="the real pipeline on tiny images")
    parser.add_argument("--several", type=int, default=10, help="every Nth trial: --nprocs 2")
    options = parser.parse_args()
    random.seed(options.seed)
    began = time.monotonic()
    kills = run(options.kills, real=options.real, several=options.several)
    bad = [kill for kill in kills if kill.problems]
    complete_runs = [kill.done for kill in kills]
    summary = {
        "kills": len(kills),
        "of them": dict(collections.Counter(kill.way for kill in kills)),
        "with two workers": sum(kill.nprocs == 2 for kill in kills),
        "runs complete at the kill": dict(sorted(collections.Counter(complete_runs).items())),
        "temporary files left by the kill": sum(kill.temporaries for kill in kills),
        "trials with a problem": len(bad),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(summary, indent=2))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
