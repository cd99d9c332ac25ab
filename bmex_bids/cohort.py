"""The other runs of the output folder, against which the numbers of one run can be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bmex_bids.derivatives import Run, read_run, run_sidecars
from bmex_bids.measures import finite

__all__ = ["Cohort", "cohort_of", "cohort_words", "neighbours", "rank_words"]

Floats = npt.NDArray[np.float64]

FEWEST_RUNS = 5  # fewer say nothing about a spread
MOST_SUBJECTS = 300  # whose sidecars are read for one page; of more, an even sample


@dataclass(frozen=True)
class Cohort:
    """Measures of other runs of the same contrast and age stage.

    Attributes:
        runs: number of runs.
        subjects: number of participants they come from.
        values: measure, e.g. ``TCTAfter`` -> (n) values, those that are numbers.
        sampled: True when the folder holds more participants than were read.
    """

    runs: int
    subjects: int
    values: dict[str, Floats]
    sampled: bool = False

    @property
    def is_enough(self) -> bool:
        """Whether there are enough runs to show how they are spread."""
        return self.runs >= FEWEST_RUNS


def neighbours(out: Path, subject: str) -> tuple[list[Run], bool]:
    """Read the runs of the output folder, the subject's own included.

    Args:
        out: root of the output dataset.
        subject: label without ``sub-``, who is always among those read.

    Returns:
        The runs, and whether they are a sample. Sidecars that cannot be read are left out.
    """
    names = (entry.name for entry in os.scandir(out) if entry.name.startswith("sub-"))
    labels = sorted(n.removeprefix("sub-") for n in names if "." not in n)
    sampled = len(labels) > MOST_SUBJECTS
    if sampled:
        chosen = np.linspace(0, len(labels) - 1, MOST_SUBJECTS).round().astype(int)
        labels = sorted({subject, *(labels[i] for i in chosen)})
    runs = []
    for label in labels:
        for sidecar in run_sidecars(out, label):
            try:
                run = read_run(sidecar)
            except (OSError, ValueError):
                continue
            if run is not None:
                runs.append(run)
    return runs, sampled


def cohort_of(run: Run, runs: Iterable[Run], *, sampled: bool = False) -> Cohort:
    """Choose the runs that a run can be compared with: same contrast and age stage, not itself."""
    stage = run.content.get("AgeStage")
    others = [
        other
        for other in runs
        if other.suffix == run.suffix
        and other.content.get("AgeStage") == stage
        and other.stem != run.stem
    ]
    columns: dict[str, list[float]] = {}
    for other in others:
        metrics = other.content["Metrics"]
        for name, value in metrics.items() if isinstance(metrics, dict) else ():
            if finite(value):
                columns.setdefault(name, []).append(float(value))
    values = {name: np.array(column) for name, column in columns.items()}
    return Cohort(len(others), len({o.entities["sub"] for o in others}), values, sampled)


def cohort_words(cohort: Cohort, suffix: str, stage: str) -> str:
    """Say what stands behind the numbers of a run, or why nothing does."""
    kind = f"{suffix} run{'' if cohort.runs == 1 else 's'} of age stage {stage}"
    if not cohort.is_enough:
        count = cohort.runs or "no"
        return (
            f"There {'is' if cohort.runs == 1 else 'are'} {count} other {kind} in this output "
            f"folder, and at least {FEWEST_RUNS} are needed to show how such runs are spread. No "
            "distribution of these measures from other data comes with bmex, so here the numbers "
            "can only be compared before with after."
        )
    people = f"{cohort.subjects} participant{'' if cohort.subjects == 1 else 's'}"
    sample = ", from a sample of the participants" if cohort.sampled else ""
    return (
        f"Grey: the {cohort.runs} other {kind} ({people}) that this output folder held when the "
        f"page was written{sample}. They are what these data are like, not a norm: they may all "
        "be good, or all be bad."
    )


def rank_words(value: float, others: Sequence[float] | Floats) -> str:
    """Say where a value stands, e.g. ``above 7 of 9`` or ``the lowest of 10``."""
    count = len(others)
    below = int((np.asarray(others) < value).sum())
    equal = int((np.asarray(others) == value).sum())
    if count and equal == 0 and below == 0:
        return f"the lowest of {count + 1}"
    if count and equal == 0 and below == count:
        return f"the highest of {count + 1}"
    return f"above {below} of {count}"
