"""Five hundred hostile files, the same ones each time; 'benchmarks/fuzz.py' makes thousands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import TARGETS, Tally
from hypothesis import HealthCheck, given, settings

CASES = {"images": 200, "tables": 120, "json": 60, "filters": 60, "toml": 60}


def test_five_hundred_in_all() -> None:
    assert sum(CASES.values()) == 500 and set(CASES) == set(TARGETS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, about the numbers of a header
@pytest.mark.parametrize("name", CASES)
def test_no_case_gets_through(name: str, tmp_path: Path) -> None:
    target, tally = TARGETS[name], Tally()

    @settings(
        max_examples=CASES[name], deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def meet(case: object) -> None:
        target.meet(case, tmp_path, tally)

    meet()
    assert tally.cases >= CASES[name]
    assert tally.refused  # a few dozen cases may all be bad ones: that good ones pass, others test
