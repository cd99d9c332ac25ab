"""All runs in all spaces: what is missing is done, what cannot be done is said and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from templateflow.client import TemplateFlowClient
from templates import make_template
from test_spacefiles import finished_run

from bmex_bids import registration, spacejobs
from bmex_bids.bids import Job
from bmex_bids.layout import InputError
from bmex_bids.options import Options
from bmex_bids.spacejobs import bring_to_spaces, check_spaces, space_notes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "templateflow"
    monkeypatch.setattr(registration, "GRID_MM", 8.0)
    monkeypatch.setattr(registration, "LEVELS", (5, 5))
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder))

    def offline(self: TemplateFlowClient, *names: object, **query: object) -> list[Path]:
        raise ConnectionError("no network")

    monkeypatch.setattr(TemplateFlowClient, "get", offline)
    make_template(folder)
    make_template(folder, "TestInfant", cohort="2")
    yield make_template(folder, "TestEmpty", cached=False)


def options(out: Path, *spaces: str, **other: object) -> Options:
    made = Options(out.parent / "raw", out, "participant", output_spaces=spaces)
    return replace(made, registration="affine", **other)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Job]:
    out, job = finished_run(tmp_path)
    return out, replace(job, action="done", age_months=3.0)


def spaces_in(out: Path) -> set[str]:
    anat = out / "sub-01" / "anat"
    return {p.name.split("_to-")[1].split("_")[0] for p in anat.glob("*_from-T1w_to-*.json")}


def test_all_that_can_be_done_is_done(
    run: tuple[Path, Job], caplog: pytest.LogCaptureFixture
) -> None:
    out, job = run
    (outcome,) = bring_to_spaces(options(out, "TestEmpty", "TestBrain", "TestInfant"), [job])
    assert outcome.failed
    assert "TestEmpty: not cached; run 'templateflow get TestEmpty" in outcome.message
    assert spaces_in(out) == {"TestBrain", "TestInfant+2"}
    crash = out / "logs" / "crash-sub-01_T1w_space.txt"  # the report shows it
    assert "TestEmpty: not cached" in crash.read_text()
    assert "tried: ConnectionError" in caplog.text


def test_later_start_does_only_what_is_missing(run: tuple[Path, Job], home: Path) -> None:
    out, job = run
    asked = options(out, "TestEmpty", "TestBrain")
    bring_to_spaces(asked, [job])
    anat = out / "sub-01" / "anat"
    before = {path.name: path.stat().st_mtime_ns for path in anat.iterdir()}
    make_template(home, "TestEmpty")  # cached meanwhile
    (outcome,) = bring_to_spaces(asked, [job])
    assert not outcome.failed
    assert spaces_in(out) == {"TestBrain", "TestEmpty"}
    assert {name: (anat / name).stat().st_mtime_ns for name in before} == before
    assert not (out / "logs" / "crash-sub-01_T1w_space.txt").exists()
    assert bring_to_spaces(asked, [job]) == []
    assert bring_to_spaces(options(out), [job]) == []


def test_runs_without_native_outputs_are_left_out(run: tuple[Path, Job]) -> None:
    out, job = run
    skipped = replace(job, action="skip")
    failed = replace(job, action="enhance", entities={"sub": "02"})
    assert bring_to_spaces(options(out, "TestBrain"), [skipped, failed]) == []


def test_age_that_no_cohort_has(run: tuple[Path, Job]) -> None:
    out, job = run
    (outcome,) = bring_to_spaces(
        options(out, "TestInfant", "TestBrain"), [replace(job, age_months=300.0)]
    )
    assert outcome.failed
    assert "the image is of 300.0" in outcome.message
    assert spaces_in(out) == {"TestBrain"}


def test_registration_that_fails_harms_no_other_space(
    run: tuple[Path, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, job = run
    from bmex_bids import spacefiles

    real, calls = registration.register, []

    def register(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise registration.RegistrationError("the optimiser failed")
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(spacefiles, "register", register)
    (outcome,) = bring_to_spaces(options(out, "TestInfant", "TestBrain"), [job])
    assert outcome.message == "TestInfant:cohort-2: the optimiser failed"
    assert spaces_in(out) == {"TestBrain"}


def test_names_are_checked_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_spaces(options(tmp_path, "TestBrain:res-2", "anat"))
    with pytest.raises(InputError, match="did you mean TestBrain"):
        check_spaces(options(tmp_path, "TestBrian"))
    monkeypatch.setattr(spacejobs, "find_spec", lambda name: None)
    check_spaces(options(tmp_path, "TestBrain"))
    with pytest.raises(InputError, match="needs DIPY; install it with"):
        check_spaces(replace(options(tmp_path, "TestBrain"), registration="syn"))


def test_dry_run_says_what_would_be_done(run: tuple[Path, Job]) -> None:
    out, job = run
    said = "\n".join(space_notes(options(out, "TestBrain:res-2", "TestInfant", "TestEmpty"), job))
    assert "space TestBrain:res-2" in said
    assert "space TestInfant:cohort-2" in said
    assert "space TestEmpty: not cached" in said
    assert list(space_notes(options(out), job)) == []
