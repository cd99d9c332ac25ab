"""The group page: one file with everything inside; the reader's browser draws plots and table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.groupdrawing import site_styles
from bmex_bids.groupharmony import Harmony
from bmex_bids.groupruns import Collected, GroupRun
from bmex_bids.groupsections import suffix_sections
from bmex_bids.measures import MEASURES
from bmex_bids.rendering import format_age, templates

__all__ = ["ExtraSection", "render_page"]

TABLE_MEASURES = ("TCTBefore", "TCTAfter", "HistogramDistanceBefore", "HistogramDistanceAfter",
                  "ResidualShare")


@dataclass(frozen=True)
class ExtraSection:
    """A section that another module adds to the page.

    Attributes:
        anchor: id of the section, without spaces.
        title: its heading.
        html: its content, self-contained (images as data URLs), everything from data escaped.
    """

    anchor: str
    title: str
    html: str


def render_page(
    out: Path,
    collected: Collected,
    results: Mapping[str, Harmony],
    tables: Sequence[str],
    extras: Sequence[ExtraSection] = (),
) -> str:
    """Return ``group.html``.

    Args:
        out: root of the output dataset.
        collected: what it holds.
        results: suffix -> what was computed about its sites.
        tables: names of the TSV files to link.
        extras: sections of other modules.
    """
    from plotly.offline import get_plotlyjs

    runs = [run for some in collected.runs.values() for run in some]
    styles = site_styles(runs)
    contrasts, figures, first = [], {}, 0
    for suffix, some in collected.runs.items():
        own = {site: style for site, style in styles.items() if any(r.site == site for r in some)}
        index = range(first, first + len(some))
        first += len(some)
        sections = suffix_sections(some, results[suffix], index, own)
        for section in sections:
            for figure in section.get("figures", ()):
                name = f"{suffix}-{figure['name']}"
                figures[name] = figure["variants"]
                figure["id"], figure["variants"] = name, list(figure["variants"])
        contrasts.append({"suffix": suffix, "summary": _summary(some), "sections": sections})
    data = {"runs": _columns(collected), "styles": styles, "figures": figures,
            "measures": _measures(runs), "table": _table_measures(runs)}
    return (
        templates()
        .get_template("group.html.j2")
        .render(
            version=__version__,
            name=out.resolve().name,
            contrasts=contrasts,
            extras=extras,
            tables=tables,
            data=data,
            plotly=get_plotlyjs(),
            count=len(runs),
            sites=list(styles),
            stages=sorted({run.stage for run in runs}),
            site_source=collected.site_source,
            unreadable=collected.unreadable,
            incomplete=collected.incomplete,
        )
    )


def _summary(runs: Sequence[GroupRun]) -> list[tuple[str, str]]:
    subjects = {run.participant for run in runs}
    ages = [run.age for run in runs if math.isfinite(run.age)]
    span = f"{format_age(min(ages))} to {format_age(max(ages))}" if ages else "not known"
    stages = Counter(run.stage for run in runs)
    sites = Counter(run.site for run in runs)
    named = ", ".join(f"{site} ({count})" for site, count in sites.most_common(8))
    if len(sites) > 8:
        named += f" and {len(sites) - 8} more"
    measured = sum(run.row["enhanced"] == "no" for run in runs)
    flagged = sum(bool(run.flags) for run in runs)
    text = f"{len(runs)} of {len(subjects)} participant{'' if len(subjects) == 1 else 's'}"
    return [
        ("Runs", text + (f", {measured} of them measured only" if measured else "")),
        ("Ages", span),
        ("Age stages", ", ".join(f"{stage} ({count})" for stage, count in stages.most_common())),
        ("Sites", named),
        ("Runs with warnings", str(flagged)),
    ]


def _columns(collected: Collected) -> dict[str, Any]:
    """Return the runs column by column; words that repeat are numbers into a list."""
    pairs = [(suffix, run) for suffix, runs in collected.runs.items() for run in runs]
    runs = [run for _, run in pairs]
    coded: dict[str, Any] = {}
    for name, words in (
        ("suffix", [suffix for suffix, _ in pairs]),
        ("site", [run.site for run in runs]),
        ("stage", [run.stage for run in runs]),
        ("sex", [run.sex or "n/a" for run in runs]),
        ("group", [run.group or "n/a" for run in runs]),
        ("flags", [" | ".join(run.flags) for run in runs]),
    ):
        levels = list(dict.fromkeys(words))
        number = {level: i for i, level in enumerate(levels)}
        coded[name] = {"levels": levels, "codes": [number[word] for word in words]}
    return coded | {
        "name": [run.name for run in runs],
        "page": [1 if run.link else 0 for run in runs],
        "n_flags": [len(run.flags) for run in runs],
        "age": [_short(run.age, 5) for run in runs],
        "metrics": {
            key: [_short(run.metrics.get(key, math.nan)) for run in runs]
            for measure in _measures(runs)
            for _, key in measure["keys"]
        },
    }


def _measures(runs: Sequence[GroupRun]) -> list[dict[str, Any]]:
    """Return label, unit and pairs of ``before``, ``after`` or "" and key, of what any run has."""
    there = {key for run in runs for key in run.metrics}
    found = []
    for measure in MEASURES:
        whens = ("Before", "After") if measure.paired else ("",)
        keys = [(when.lower(), measure.key + when) for when in whens if measure.key + when in there]
        if keys:
            found.append({"label": measure.label, "unit": measure.unit, "keys": keys})
    return found


def _table_measures(runs: Sequence[GroupRun]) -> list[str]:
    there = {key for run in runs for key in run.metrics}
    return [key for key in TABLE_MEASURES if key in there]


def _short(value: float, digits: int = 4) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
