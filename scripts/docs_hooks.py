"""Hooks of MkDocs: a navigation of the pages there are, parts joined, a table, MathML."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

# HTML of pymdownx.arithmatex: <span class="arithmatex">\(...\)</span>, <div ...>\[...\]</div>
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
JOINED = "reliability.md"  # gets the parts in reliability.d/ appended, by their names
MODELS = "<!-- bundled models -->"


def on_config(config: Any) -> Any:
    """Leave pages out of the navigation that are not there, and add those that it does not name."""
    docs = Path(config.docs_dir)
    there = {path.name for path in docs.glob("*.md")}
    nav = _present(config.nav, there)
    rest = sorted(there - _named(nav))
    config.nav = [*nav, {"More": rest}] if rest else nav
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Join the parts of a page, and write the table of models where a page wants it."""
    docs = Path(config.docs_dir)
    if page.file.src_uri == JOINED:
        parts = sorted((docs / JOINED).with_suffix(".d").glob("*.md"))
        markdown = "\n\n".join([markdown, *(part.read_text(encoding="utf-8") for part in parts)])
    if MODELS in markdown:
        content = json.loads((docs.parent / "data/models/models.json").read_text(encoding="utf-8"))
        markdown = markdown.replace(MODELS, _models_table(content["models"]))
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers draw without a script."""
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    kind = "inline" if match[1] == "span" else "block"
    return convert(html.unescape(match[2]), display=kind)


def _models_table(models: list[dict[str, Any]]) -> str:
    lines = ["| name | set | for | contrast | months after birth | grid | version |"]
    lines.append("|---|---|---|---|---|---|---|")
    for model in models:
        ages = model["ages_months"]
        purpose = "brain mask" if model["kind"] == "brainmask" else f"stage `{model['stage']}`"
        months = "all" if ages is None else f"{ages[0]:g} to {ages[1]:g}"
        contrasts = ", ".join(model["suffixes"])
        grid = f"{model['grid_mm']:g} mm"
        cells = (f"`{model['name']}`", model["set"], purpose, contrasts, months, grid)
        lines.append(f"| {' | '.join(cells)} | {model['version']} |")
    return "\n".join(lines)


def _present(nav: list[Any], there: set[str]) -> list[Any]:
    """Return the navigation without pages that are missing and without empty sections."""
    kept = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            target = _present(target, there)
        elif target not in there:
            target = None
        if target:
            kept.append({title: target})
    return kept


def _named(nav: list[Any]) -> set[str]:
    """Return the pages that a navigation names."""
    pages: set[str] = set()
    for entry in nav:
        for target in entry.values():
            pages |= _named(target) if isinstance(target, list) else {target}
    return pages
