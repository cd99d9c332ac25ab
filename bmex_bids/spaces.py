"""Standard spaces: their names on the command line, and the cohort that fits an age."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bmex_bids.age import DAYS, DAYS_PER_MONTH, TERM_DAYS, parse_unit

__all__ = [
    "Space",
    "SpaceError",
    "choose_cohort",
    "cohorts_of",
    "index_order",
    "parse_spaces",
    "plain_index",
]

NATIVE = ("T1w", "T2w", "anat", "native")  # always written, so that asking for them adds nothing
EXAMPLES = "MNI152NLin2009cAsym, MNI152NLin2009cAsym:res-2, MNIInfant, MNIInfant:cohort-2"


class SpaceError(ValueError):
    """A space cannot be made; the message says why, and the command that helps."""


@dataclass(frozen=True, order=True)
class Space:
    """A standard space as ``--output-spaces`` names it.

    Attributes:
        template: TemplateFlow's identifier, e.g. ``MNIInfant``.
        cohort: the template's cohort, e.g. ``"2"``; None for the one that fits the age.
        res: index of the grid the images are written on; None for the template's first.
    """

    template: str
    cohort: str | None = None
    res: str | None = None

    @property
    def label(self) -> str:
        """Return the value of ``space-``: BIDS has no cohort there, so it is joined with a plus."""
        return f"{self.template}+{self.cohort}" if self.cohort else self.template

    def __str__(self) -> str:
        parts = [("cohort", self.cohort), ("res", self.res)]
        return ":".join([self.template, *(f"{key}-{value}" for key, value in parts if value)])


def parse_spaces(texts: Iterable[str]) -> tuple[Space, ...]:
    """Return the spaces that words such as ``MNIInfant:cohort-2:res-1`` name, each once.

    As in fMRIPrep a modifier that is repeated (``X:res-1:res-2``) stands for one space each. The
    native space is always written; its names are accepted and add nothing.

    Raises:
        ValueError: the word is no space, or has a modifier that images in a volume do not have.
    """
    spaces: dict[Space, None] = {}
    for text in texts:
        name, *modifiers = text.strip().split(":")
        if name in NATIVE and not modifiers:
            continue
        if name.startswith("fs") or any(word.startswith("den-") for word in modifiers):
            raise ValueError(f"'{text}' is a surface; expected a space of volumes: {EXAMPLES}")
        if not re.fullmatch(r"[a-zA-Z0-9]+", name):
            raise ValueError(f"'{text}': expected a template of TemplateFlow, e.g. {EXAMPLES}")
        found: dict[str, list[str | None]] = {"cohort": [], "res": []}
        for word in modifiers:
            key, _, value = word.partition("-")
            if key not in found or not re.fullmatch(r"[a-zA-Z0-9]+", value) or value == "native":
                raise ValueError(
                    f"'{text}': unknown modifier '{word}'; expected :cohort-<label> or :res-<index>"
                )
            found[key].append(plain_index(value))
        pairs = itertools.product(found["cohort"] or [None], found["res"] or [None])
        spaces |= dict.fromkeys(Space(name, cohort, res) for cohort, res in pairs)
    return tuple(spaces)


def choose_cohort(
    space: Space, description: Mapping[str, object], age_months: float | None
) -> tuple[str | None, str]:
    """Choose the cohort of a template by age, as its template_description.json states the ages.

    Of the cohorts whose range holds the age, the narrowest is taken (a cohort of the whole range is
    the last resort), then the one whose middle is nearer. Between two ranges the nearer one is
    taken, and said. Weeks count from the last menstrual period, as in the templates of newborns.

    Args:
        space: the space; its own cohort is kept.
        description: content of template_description.json.
        age_months: months after birth, negative before a birth at term.

    Returns:
        The cohort, None for a template without cohorts; and a note, "" when nothing was odd.

    Raises:
        SpaceError: the age is not known, or lies outside the template's ages.
    """
    cohorts = cohorts_of(description)
    if space.cohort is not None or not cohorts:
        return space.cohort, ""
    name = f"{space.template}:cohort-N"
    if age_months is None:
        raise SpaceError(f"{space}: has cohorts, and the age is not known; write {name}")
    ranges = {key: span for key, value in cohorts.items() if (span := _months(value))}
    if not ranges:
        raise SpaceError(f"{space}: has cohorts {', '.join(cohorts)} without ages; write {name}")

    def rank(key: str) -> tuple[float, float, float]:
        low, high = ranges[key]
        distance = max(low - age_months, age_months - high, 0.0)
        return distance, high - low, abs(age_months - (low + high) / 2)

    low, high = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    if not low - 1e-6 <= age_months <= high + 1e-6:
        raise SpaceError(
            f"{space}: its cohorts are for {low:.1f} to {high:.1f} months after birth, the image "
            f"is of {age_months:.1f}; choose another template, or a cohort with {name}"
        )
    best = min(ranges, key=rank)
    if rank(best)[0] <= 1e-6:
        return best, ""
    spans = f"{ranges[best][0]:.1f} to {ranges[best][1]:.1f}"
    return best, (
        f"{space}: no cohort for {age_months:.1f} months; cohort {best} ({spans}) is the nearest"
    )


def cohorts_of(description: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Return the cohorts of a template_description.json in natural order."""
    value = description.get("cohort")
    found = dict(value) if isinstance(value, Mapping) else {}
    keys = sorted((key for key in found if isinstance(found[key], Mapping)), key=index_order)
    return {key: found[key] for key in keys}


def index_order(index: str | None) -> tuple[int, str]:
    """Sort 1, 2, 10, hi, None."""
    if index is None:
        return sys.maxsize, ""
    return (int(index), "") if index.isdigit() else (sys.maxsize - 1, index)


def _months(cohort: Mapping[str, object]) -> tuple[float, float] | None:
    """Return the cohort's first and last month after birth; a single age stands for its unit."""
    ages = cohort.get("age")
    ages = ages if isinstance(ages, list) else [ages]
    numbers = [float(age) for age in ages if isinstance(age, int | float)]
    found = parse_unit(str(cohort.get("units", "")))
    if not 1 <= len(numbers) <= 2 or found is None:
        return None
    low, high = (numbers[0] - 0.5, numbers[0] + 0.5) if len(numbers) == 1 else sorted(numbers)
    unit, kind = found
    before = TERM_DAYS if kind or unit == "week" else 0
    days = low * DAYS[unit] - before, high * DAYS[unit] - before
    return days[0] / DAYS_PER_MONTH, days[1] / DAYS_PER_MONTH


def plain_index(value: str) -> str:
    """Return an index without leading zeros: ``res-01`` is ``res-1``."""
    return str(int(value)) if value.isdigit() else value
