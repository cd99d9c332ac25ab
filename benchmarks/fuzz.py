"""Ten thousand hostile files: no traceback, no hang, no memory beyond a file's honest size.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0]

Prints what came of them for each kind of file, the slowest case in seconds of computing, and for
images the largest allocation while one file of at most 270 kB was read. Exit code 1 if a case got
through.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from hostile import TARGETS, Tally, Target  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

SHARES = {"images": 0.4, "tables": 0.24, "json": 0.12, "filters": 0.12, "toml": 0.12}


def run(target: Target, cases: int, start: int, folder: Path) -> tuple[Tally, str]:
    """Meet ``cases`` cases; return the tally and the first problem, "" when there is none."""
    tally = Tally()

    @seed(start)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def meet(case: object) -> None:
        target.meet(case, folder, tally)

    try:
        meet()
    except Exception as error:  # a case that got through is what is looked for
        return tally, f"{type(error).__name__}: {error}"
    return tally, ""


def main() -> int:
    """Run all targets and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    failed = 0
    titles = ("cases", "accepted", "refused", "slowest", "memory")
    print("{:8s} {:>6s} {:>8s} {:>8s} {:>8s} {:>9s}".format("target", *titles))
    for name, target in TARGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            tally, problem = run(target, round(args.cases * SHARES[name]), args.seed, Path(folder))
        memory = f"{tally.largest / 2**20:.1f} MiB" if target.memory else "-"
        counts = f"{tally.cases:6d} {tally.accepted:8d} {sum(tally.refused.values()):8d}"
        print(f"{name:8s} {counts} {tally.slowest:6.2f} s {memory:>9s}  {problem}", flush=True)
        failed += bool(problem)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
