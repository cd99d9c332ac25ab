"""Findings of the validators in plain words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from datasets import ages, make_dataset

from bmex_bids import validation


@pytest.fixture
def without_deno(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(validation.shutil, "which", lambda name: None)
    monkeypatch.setattr(validation.sys, "executable", str(tmp_path / "python"))


@pytest.mark.usefixtures("without_deno")
def test_file_names(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "bids",
        ["sub-01_T1w.nii.gz", "sub-01_T1weighted.nii.gz", "sub-02_T9w.nii.gz"],
        ages(**{"01": 6})
        | {
            "derivatives/x/anything.txt": "",
            ".hidden": "",
            "notes/plan.txt": "",
            "extra_data.txt": "",
            ".bidsignore": "notes/\n# a comment\nextra_*\n",
        },
    )
    (line,) = validation.validate(root)
    assert line == (
        "2 files with a name that BIDS does not know, e.g. sub-01/anat/sub-01_T1weighted.nii.gz"
    )
    (line,) = validation.validate(root, participants=("02",))
    assert line.startswith("1 file with") and "sub-02" in line
    assert validation.validate(root, ignore=[root / "sub-01", root / "sub-02"]) == []


def test_findings_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    issues = [
        {"code": "A_B", "severity": "error", "location": "/sub-01/x"},
        {"code": "A_B", "severity": "error", "location": "/sub-02/x"},
        {"code": "SOME_RULE", "subCode": "EchoTime", "severity": "error", "location": "/y.json"},
        {"code": "NOT_INCLUDED", "severity": "error", "location": "/z"},
        {"code": "W", "subCode": "1", "severity": "warning", "location": "/z"},
        {"code": "W", "subCode": "2", "severity": "warning", "location": "/z"},
        {"code": "W", "subCode": "2", "severity": "warning", "location": "/q"},
    ]
    messages = {"A_B": "The thing\nis wrong. Read on.\n"}
    assert validation._grouped(issues, messages) == [
        "The thing is wrong: 2 places, e.g. sub-01/x",
        "some rule (EchoTime): y.json",
        "2 kinds of recommended information are missing",
    ]


def test_never_a_wall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    many = [f"line {index}" for index in range(40)]
    monkeypatch.setattr(validation, "_deno_findings", lambda root: many)
    lines = validation.validate(make_dataset(tmp_path / "bids", []))
    assert lines[:-1] == many[: validation.MOST_LINES]
    assert lines[-1].startswith("and 35 more kinds")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError("cannot start"), "could not run here"),
        (subprocess.TimeoutExpired("x", 1), "--skip-bids-validation leaves it out"),
        (subprocess.CompletedProcess([], 1, "no json", ""), "could not run here"),
        (subprocess.CompletedProcess([], 1, "{}", ""), "could not run here"),
    ],
)
def test_a_validator_that_fails(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failure: Exception | subprocess.CompletedProcess[str],
    said: str,
) -> None:
    def run(*args: object, **options: object) -> object:
        if isinstance(failure, Exception):
            raise failure
        return failure

    monkeypatch.setattr(validation.shutil, "which", lambda name: "/bin/deno")
    monkeypatch.setattr(validation.subprocess, "run", run)
    assert said in validation.validate(make_dataset(tmp_path / "bids", []))[0]


def test_the_real_validator(tmp_path: Path) -> None:
    pytest.importorskip("bids_validator_deno")
    files = ages(**{"02": 6, "01": 7}) | {"sub-01/anat/sub-01_T1w.json": "{"}
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"], files)
    lines = validation.validate(root)
    assert 1 <= len(lines) <= validation.MOST_LINES + 1
    assert any("sub-01/anat/sub-01_T1w" in line for line in lines)
