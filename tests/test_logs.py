"""Logs: lines of text and of JSON, one log per run, and a log that cannot be written."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest

from bmex_bids.logs import Lines, attached, facts, file_handler, log_path, printable, run_log

log = logging.getLogger("bmex")


def record(text: str, **values: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": text, "levelname": "WARNING", "created": 0.25})
    vars(made).update(facts(**values) if values else {})
    return made


def test_lines() -> None:
    line = "1970-01-01T00:00:00.250+00:00 WARNING a"
    assert Lines().format(record("a")) == line
    assert Lines(timed=False).format(record("a")) == "a"
    entry = json.loads(Lines("json").format(record("a", run="sub-01_T1w", path=Path("/x"))))
    assert entry == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "warning",
        "message": "a",
        "run": "sub-01_T1w",
        "path": "/x",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("café", "café"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nERROR b", r"a\nERROR b"),
        ("\udcff", r"\udcff"),
        ("\u202egpj", r"\u202egpj"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, said: str) -> None:
    assert printable(text) == said
    assert Lines(timed=False).format(record(text)) == said
    assert json.loads(Lines("json").format(record(text)))["message"] == text


@pytest.mark.parametrize(("kind", "ext"), [("text", ".log"), ("json", ".jsonl")])
def test_one_log_per_run(tmp_path: Path, kind: str, ext: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for stem in ("sub-01_T1w", "sub-02_T1w", "sub-01_T1w"):
            with run_log(tmp_path, stem, kind) as own:
                log.debug("a step of %s", stem)
                own.info("for %s alone", stem)
                warnings.warn("a library warns", UserWarning, stacklevel=1)
            log.debug("not of a run")
    first, second = (
        (tmp_path / "logs" / f"sub-{label}_T1w{ext}").read_text() for label in ("01", "02")
    )
    assert log_path(tmp_path, "sub-01_T1w", kind).suffix == ext
    assert first.count("a step of sub-01_T1w") == first.count("for sub-01_T1w alone") == 2
    said = "UserWarning: a library warns"
    assert (first.count(said), second.count(said)) == (2, 1)
    assert "sub-02" not in first and "not of a run" not in first + second
    if kind == "json":
        lines = [json.loads(line) for line in first.splitlines()]
        assert {line["level"] for line in lines} == {"debug", "info", "warning"}
    assert not log.handlers


def test_a_log_that_cannot_be_opened_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with run_log(tmp_path, "sub-01_T1w", "text") as own:
        own.error("lost")
    assert (tmp_path / "logs").read_text() == "in the way"


def test_a_full_disk_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    handler = file_handler(Path("/dev/full"), "text")
    with attached((handler,), ("bmex",)):
        log.error("lost")
    assert capsys.readouterr() == ("", "")
