"""What the pages share: templates, the order of runs, and how ages are said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

__all__ = ["TEMPLATES", "format_age", "natural_key", "templates"]

TEMPLATES = Path(__file__).parent / "templates"
DAYS_PER_MONTH = 30.4375


def templates(*, escape: bool = True) -> jinja2.Environment:
    """Return the environment of the templates.

    Args:
        escape: True for HTML, where everything from data is escaped; False for plain text only.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(
        loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True
    )


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key under which ``run-2`` comes before ``run-10``."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def format_age(months: object) -> str:
    """Return an age in the unit people use for it: weeks of gestation, months or years."""
    if not isinstance(months, int | float):
        return "not known"
    if months < 0:
        return f"{40 + months * DAYS_PER_MONTH / 7:.1f} weeks of gestation"
    if months < 24:
        return f"{months:.1f} months"
    return f"{months / 12:.1f} years"
