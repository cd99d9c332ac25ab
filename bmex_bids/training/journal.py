"""What a training tells while it runs: CSV tables, TensorBoard, a progress bar or printed lines."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmex_bids.bids import atomic_path
from bmex_bids.training.settings import Settings

__all__ = ["Journal", "for_json", "opened", "read_rows"]


@dataclass(frozen=True)
class Journal:
    """Where a training writes.

    Attributes:
        folder: receives ``log.csv`` and ``validation.csv``.
        board: TensorBoard's writer, None where it is not installed.
        bar: progress bar, silent where there is no terminal.
        begun: step and clock at which this start began.
    """

    folder: Path
    board: Any
    bar: Any
    begun: tuple[int, float]

    def trained(self, row: Mapping[str, float], steps: int) -> None:
        """Note the means since the last report, and tell them."""
        _append(self.folder / "log.csv", row)
        self._draw("train", row)
        done, clock = self.begun
        rate = (row["step"] - done) / max(time.monotonic() - clock, 1e-9)
        told = {key: round(value, 5) for key, value in row.items() if not math.isnan(value)}
        if self.bar.disable:
            left = _clock((steps - row["step"]) / rate)
            told |= {"per_second": float(f"{rate:.3g}")}
            print(json.dumps({**told, "left": left}), flush=True)
        else:
            self.bar.set_postfix({k: v for k, v in told.items() if k not in FIXED})

    def validated(self, row: Mapping[str, float]) -> None:
        """Note and tell the result of a validation."""
        _append(self.folder / "validation.csv", row)
        self._draw("validation", row)
        told = {k: round(v, 5) for k, v in row.items() if not math.isnan(v)}
        text = json.dumps({"validation": told})
        print(text, flush=True) if self.bar.disable else self.bar.write(text)

    def _draw(self, group: str, row: Mapping[str, float]) -> None:
        if self.board is not None:
            for key, value in row.items():
                if key != "step" and not math.isnan(value):
                    self.board.add_scalar(f"{group}/{key}", value, int(row["step"]))


FIXED = ("step", "seconds", "rate", "pool")  # in the log, not in the progress bar


@contextmanager
def opened(folder: Path, settings: Settings, step: int) -> Iterator[Journal]:
    """Open the journal of a run at a step; what a start that was killed wrote after it is cut."""
    from tqdm import tqdm

    for name in ("log.csv", "validation.csv"):
        _cut(folder / name, step)
    bar = tqdm(total=settings.steps, initial=step, unit="step", disable=not sys.stderr.isatty())
    board = _board(folder / "tensorboard", step)
    try:
        yield Journal(folder, board, bar, (step, time.monotonic()))
    finally:
        bar.close()
        if board is not None:
            board.close()


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV table of numbers, none where there is no table."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def for_json(row: Mapping[str, float]) -> dict[str, float | None]:
    """A row with six digits a number; None, which JSON has, for NaN, which it has not."""
    return {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in row.items()}


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed (pip install 'bmex-bids[train]'): CSV only", flush=True)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _append(path: Path, row: Mapping[str, float]) -> None:
    """Add a row; a table that another version began keeps its columns."""
    there = path.exists()
    names = path.read_text(encoding="utf-8").splitlines()[0].split(",") if there else list(row)
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, restval="nan", extrasaction="ignore")
        if not there:
            writer.writeheader()
        writer.writerow(row)


def _cut(path: Path, step: int) -> None:
    """Leave the rows up to a step; a line that was cut off by a kill goes too."""
    if not path.exists():
        return
    head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    commas, place = head.count(","), head.split(",").index("step") if "step" in head else 0
    kept = [
        line for line in lines
        if line.count(",") == commas and float(line.split(",")[place]) <= step
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in (head, *kept)), encoding="utf-8")


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    whole = int(seconds) if math.isfinite(seconds) else 0
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
