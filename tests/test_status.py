"""The status at the end: what became of every run, where to look, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bmex_bids.bids import Job
from bmex_bids.jobs import Outcome, write_crash
from bmex_bids.options import EXIT_CODES
from bmex_bids.status import MOST_LINES, Status, as_json, as_text, say, status_of

README = Path(__file__).parents[1] / "docs" / "reliability.d" / "logs.md"


def job(label: str, action: str, **values: object) -> Job:
    path = Path(f"/bids/sub-{label}/anat/sub-{label}_T1w.nii.gz")
    places = (path, Path("/bids"), {"sub": label}, "T1w", {}, 300.0, "", "24", "m", None)
    return replace(Job(*places, action, ""), **values)  # type: ignore[arg-type]


def outcome(label: str, **values: object) -> Outcome:
    return replace(Outcome(f"sub-{label}_T1w", label), **values)  # type: ignore[arg-type]


@pytest.fixture
def status(tmp_path: Path) -> Status:
    jobs = [job(label, "enhance") for label in ("new", "other", "bad", "late")]
    jobs += [job("old", "done"), job("redrawn", "done")]
    jobs += [job(f"mask{k}", "skip", reason="a mask", wanted=False) for k in range(3)]
    jobs += [job("age", "skip", reason="no age")]
    outcomes = [
        outcome("age", failed=True, message="no age"),
        outcome("new", seconds=3.0),
        outcome("other", elsewhere=True),
        outcome("redrawn"),
        outcome("bad", failed=True, message="empty\x1b image"),
    ]
    report = Outcome("report of sub-new", "new", failed=True, message="no report")
    write_crash(tmp_path, "sub-bad_T1w", "empty")
    write_crash(tmp_path, "sub-new", "no report")
    return status_of(jobs, outcomes, [report], out=tmp_path, seconds=61.24)


def test_every_run_is_counted_once(status: Status, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert as_text(status).splitlines() == [
        "2 done, 1 done by another start, 1 done before, 3 left out, 1 not started, 3 failed "
        "(61 s)",
        "left out: sub-mask0_T1w.nii.gz and 2 more: a mask",
        "failed: sub-age_T1w: no age",
        r"failed: sub-bad_T1w: empty\x1b image",
        f"  look at {logs / 'crash-sub-bad_T1w.txt'}",
        "failed: report of sub-new: no report",
        f"  look at {logs / 'crash-sub-new.txt'}",
    ]
    assert status.exit_code == 1


def test_json_names_every_run(
    status: Status, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say(status, "json")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(json.dumps(as_json(status)))
    content = json.loads(line)
    assert content["event"] == "status" and content["exit_code"] == 1
    assert content["done"] == ["sub-new_T1w", "sub-redrawn_T1w"]
    assert content["done_before"] == ["sub-old_T1w"] and content["not_started"] == ["sub-late_T1w"]
    assert content["left_out"][2] == {"image": "sub-mask2_T1w.nii.gz", "reason": "a mask"}
    assert content["failed"][0] == {"run": "sub-age_T1w", "reason": "no age", "look_at": ""}


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [([outcome("a")], 0), ([outcome("a", elsewhere=True)], 0), ([outcome("a", failed=True)], 1),
     ([], 1)],
)  # fmt: skip
def test_exit_code(tmp_path: Path, outcomes: list[Outcome], code: int) -> None:
    status = status_of([job("a", "enhance")], outcomes, [], out=tmp_path, seconds=0)
    assert status.exit_code == code


def test_ten_thousand_failures_do_not_fill_the_terminal(tmp_path: Path) -> None:
    jobs = [job(str(k), "skip", reason="no age") for k in range(10_000)]
    outcomes = [outcome(str(k), failed=True, message="no age") for k in range(10_000)]
    lines = as_text(status_of(jobs, outcomes, [], out=tmp_path, seconds=0)).splitlines()
    assert lines[0] == "10000 failed (0 s)" and len(lines) == MOST_LINES + 2
    assert lines[-1] == "failed: 9900 more, see the log"


def test_exit_codes_are_documented() -> None:
    text = README.read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in text
