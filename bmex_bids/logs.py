"""Where the program says what it does: the terminal, the log of a start, and one log per run.

Lines are text, or one JSON object each (``--log-format json``) with ``time`` (UTC), ``level``,
``message`` and, where it concerns one, ``run`` and ``step``. A log that cannot be written (no space
left) never ends a run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

__all__ = ["FORMATS", "Lines", "facts", "file_handler", "log_path", "printable", "run_log"]

FORMATS = ("text", "json")
EXTENSIONS = {"text": ".log", "json": ".jsonl"}
# What libraries warn of during a run belongs into its log; so does what is logged to RUN alone.
RUN = "bmex-run"
KEPT = ("bmex", "py.warnings", RUN)


@dataclass(frozen=True)
class Lines:
    """A formatter of log records, one line for each.

    Attributes:
        kind: ``text`` or ``json``.
        timed: whether a line of text begins with time and level.
    """

    kind: str = "text"
    timed: bool = True

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record, without control characters."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = record.getMessage()
        if self.kind == "json":
            entry = {"time": time, "level": record.levelname.lower(), "message": message}
            return json.dumps(entry | getattr(record, "facts", {}), default=str)
        text = printable(message)
        return f"{time} {record.levelname} {text}" if self.timed else text


def facts(**values: object) -> dict[str, dict[str, object]]:
    """Return the ``extra`` of a log call: what a line of JSON says beside its message."""
    return {"facts": values}


def printable(text: str) -> str:
    """Return text without what could steer a terminal or begin a new line, which is escaped.

    File names and cells of tables can hold anything.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def log_path(out: Path, name: str, kind: str) -> Path:
    """Return the log of a start, or of a run (``sub-01_T1w``)."""
    return out / "logs" / f"{name}{EXTENSIONS[kind]}"


def file_handler(path: Path, kind: str) -> logging.FileHandler:
    """Open a log, to which lines are appended, and which swallows its own errors.

    Raises:
        OSError: it cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    dress(handler, Lines(kind))
    return handler


def dress(handler: logging.StreamHandler[TextIO] | logging.FileHandler, lines: Lines) -> None:
    """Let a handler write lines, and be silent about its own errors instead of printing them."""
    handler.setFormatter(lines)  # type: ignore[arg-type]
    handler.handleError = lambda record: None  # type: ignore[method-assign]


@contextmanager
def attached(handlers: Sequence[logging.Handler], names: Sequence[str]) -> Iterator[None]:
    """Let loggers write to handlers, from DEBUG on, while the block runs; then close the files."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            if isinstance(handler, logging.FileHandler):
                with suppress(OSError):  # no space left for its last lines
                    handler.close()


@contextmanager
def run_log(out: Path, stem: str, kind: str) -> Iterator[logging.Logger]:
    """Keep what is logged, and what libraries warn of, in the log of a run too.

    Args:
        out: root of the output dataset.
        stem: of the run, e.g. ``sub-01_T1w``.
        kind: ``text`` or ``json``.

    Yields:
        A logger whose lines go into that log alone.
    """
    alone = logging.getLogger(RUN)
    alone.propagate = False
    try:
        handlers: list[logging.Handler] = [file_handler(log_path(out, stem, kind), kind)]
    except OSError:
        handlers = [logging.NullHandler()]  # what is written next says it better
    logging.captureWarnings(True)
    try:
        with attached(handlers, KEPT):
            yield alone
    finally:
        logging.captureWarnings(False)
