"""Measure the group level: seconds and memory of 10,000 runs, and its page in a browser at 5,000.

    python benchmarks/group.py [--runs 10000] [--page-runs 5000] [--sites 20] [--folder DIR]

Derivatives are generated (sidecars alone, as the group level reads no voxel). Prints what was
measured; nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import Tab, browser, find_browser
from synthetic_group import write_group

DRAWN = """new Promise((done) => { const look = () => document.body.dataset.drawn === "all"
    ? done() : setTimeout(look, 20); look(); })"""
FILTER = """(() => {{ const box = document.getElementById({0}); const start = performance.now();
    box.value = {1}; box.dispatchEvent(new Event("input", {{bubbles: true}}));
    document.body.getBoundingClientRect(); return performance.now() - start; }})()"""
PAINTED = "new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))"


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--page-runs", type=int, default=5_000)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="keep the derivatives here, and use them again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.page_runs:
            measure_page(_derivatives(folder, given.page_runs, given.sites), Path(temporary))
        if given.runs:
            measure_tables(_derivatives(folder, given.runs, given.sites))


def measure_tables(out: Path) -> None:
    """Print seconds, and the peak memory of this process (of all of its life)."""
    from bmex_bids.group import group_report

    wall, processor = time.perf_counter(), time.process_time()
    group_report(out)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = (out / "group_T1w.tsv").read_text().count("\n") - 1
    print(f"{rows} runs of {out.name}: {wall:.1f} s ({processor:.1f} s of processor), "
          f"peak {peak:.2f} GiB")


def measure_page(out: Path, temporary: Path) -> None:
    """Print how long the page takes to open, to draw everything, and to filter."""
    from bmex_bids.group import group_report

    executable = find_browser()
    if executable is None:
        print("no chromium on this machine: the page was not measured")
        return
    page = group_report(out)[-1]
    with browser(executable, temporary / "profile") as tab:
        tab.size(1400, 900)
        start, used = time.perf_counter(), _processor(tab)
        tab.open(page)
        opened, used_open = time.perf_counter() - start, _processor(tab) - used
        tab.run(DRAWN)
        drawn, used_all = time.perf_counter() - start, _processor(tab) - used
        size = page.stat().st_size / 2**20
        print(f"{out.name}: page of {size:.1f} MiB opens in {opened:.2f} s ({used_open:.2f} s of "
              f"processor, all processes of the browser); all is drawn after {drawn:.2f} s "
              f"({used_all:.2f} s of processor)")
        for name, box, words in (
            ("search", "filter-text", ['"sub-00"', '"thick"', '"hospital b"', '""']),
            ("site", "filter-site", ["document.getElementById('filter-site').options[3].value",
                                     '""']),
        ):
            used = _processor(tab)
            times = [_filtered(tab, box, word) for word in words for _ in range(5)]
            used = 1000 * (_processor(tab) - used) / len(times)
            print(f"{out.name}: filter by {name}: median {statistics.median(times):.0f} ms, "
                  f"longest {max(times):.0f} ms ({used:.0f} ms of processor with the painting)")


def _processor(tab: Tab) -> float:
    """Return the seconds of processor that the browser has used so far."""
    root = psutil.Process(tab.process.pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _filtered(tab: Tab, box: str, value: str) -> float:
    elapsed: Any = tab.run(FILTER.format(repr(box), value))
    tab.run(PAINTED)
    return float(elapsed)


def _derivatives(folder: Path, count: int, sites: int) -> Path:
    out = folder / f"{count}-runs-{sites}-sites"
    if not out.exists():
        begun = out.with_suffix(".begun")  # an interrupted start leaves no half of a group behind
        write_group(begun, count, sites)
        begun.rename(out)
    return out


if __name__ == "__main__":
    main()
