from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import make_result

from bmex_bids import cohort, derivatives


def fill(folder: Path, scores: dict[str, float]) -> Path:
    out = folder / "out"
    for label, score in scores.items():
        result = make_result(folder, {"sub": label})
        metrics = result.metrics | {"TCTAfter": score}
        derivatives.write(replace(result, metrics=metrics), out)
    return out


def the_run(runs: list[derivatives.Run], label: str) -> derivatives.Run:
    return next(run for run in runs if run.entities["sub"] == label)


def test_others_of_the_same_kind(tmp_path: Path) -> None:
    out = fill(tmp_path, {"01": 1.0, "02": 2.0, "03": float("nan")})
    derivatives.write(make_result(tmp_path, {"sub": "04"}, suffix="T2w"), out)
    old = make_result(tmp_path, {"sub": "05"})
    derivatives.write(replace(old, provenance=old.provenance | {"AgeStage": "6"}), out)
    (out / "sub-02" / "anat" / "sub-02_run-9_desc-enhanced_T1w.json").write_text("{")
    (out / "sub-01.html").touch()
    runs, sampled = cohort.neighbours(out, "01")
    found = cohort.cohort_of(the_run(runs, "01"), runs)
    assert (found.runs, found.subjects, sampled) == (2, 2, False)
    assert found.values["TCTAfter"].tolist() == [2.0]  # not its own, not what is missing
    assert not found.is_enough
    words = cohort.cohort_words(found, "T1w", "24")
    assert "2 other T1w runs of age stage 24" in words and "at least 5" in words


def test_many_participants_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "MOST_SUBJECTS", 3)
    out = fill(tmp_path, {f"{n:02}": n for n in range(1, 9)})
    runs, sampled = cohort.neighbours(out, "02")
    assert sampled and {run.entities["sub"] for run in runs} == {"01", "02", "05", "08"}
    found = cohort.cohort_of(the_run(runs, "02"), runs, sampled=True)
    assert found.runs == 3


def test_words_for_enough_runs() -> None:
    found = cohort.Cohort(7, 1, {}, sampled=True)
    words = cohort.cohort_words(found, "T2w", "fetal")
    assert "the 7 other T2w runs of age stage fetal (1 participant)" in words
    assert "a sample" in words and "not a norm" in words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "the lowest of 4"),
        (9.0, "the highest of 4"),
        (2.5, "above 2 of 3"),
        (1.0, "above 0 of 3"),
        (3.0, "above 2 of 3"),
    ],
)
def test_rank(value: float, words: str) -> None:
    assert cohort.rank_words(value, np.array([1.0, 2.0, 3.0])) == words
