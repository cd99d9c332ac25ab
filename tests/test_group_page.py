"""The group page in a real browser; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, browser, find_browser
from synthetic_group import write_group

from bmex_bids.group import group_report

SELECT = """(() => {{ const s = document.querySelector({0}); s.value = {1};
    s.dispatchEvent(new Event({2}, {{bubbles: true}})); }})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    write_group(out, 36, 3, suffixes=("T1w", "T2w"))
    return group_report(out)[-1]


@pytest.fixture(scope="module")
def shown(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with browser(executable, tmp_path_factory.mktemp("profile")) as tab:
        tab.size(1400, 900)
        tab.open(page)
        tab.run("""new Promise((done) => { const look = () => document.body.dataset.drawn === "all"
            ? done() : setTimeout(look, 50); look(); })""")
        yield tab


def choose(tab: Tab, selector: str, value: str, event: str = "input") -> None:
    tab.run(SELECT.format(*map(json.dumps, (selector, value, event))))
    tab.settle()


def first_column(tab: Tab) -> list[str]:
    return list(tab.run("[...document.querySelectorAll('#table tbody tr')].map(r => "
                        "r.cells[0].textContent)"))


def clear(tab: Tab) -> None:
    tab.run("document.getElementById('filter-clear').click()")


def test_everything_is_drawn_and_nothing_is_asked_of_a_network(shown: Tab, page: Path) -> None:
    assert shown.problems == []
    assert shown.requests[0] == page.resolve().as_uri()
    assert all(url.startswith(("data:", "blob:")) for url in shown.requests[1:])
    drawn = shown.run("[...document.querySelectorAll('figure.plot')].map(f => "
                      "f.querySelectorAll('.main-svg').length)")
    assert len(drawn) == 21 and all(count > 0 for count in drawn)
    empty = shown.run("""[...document.querySelectorAll('figure[data-figure]')].filter(f =>
        !f.querySelector('.trace, .hm, .boxes, .scatterlayer path')).map(f => f.dataset.figure)""")
    assert empty == []
    assert shown.run("document.documentElement.scrollWidth <= innerWidth")


def test_filters_and_pages(shown: Tab) -> None:
    clear(shown)
    assert shown.run("document.getElementById('rows-shown').textContent") == "1 to 50 of 72 runs"
    shown.run("document.getElementById('page-on').click()")
    assert len(first_column(shown)) == 22
    assert shown.run("document.getElementById('page-on').disabled")
    choose(shown, "#filter-suffix", "T2w")
    assert len(first_column(shown)) == 36
    assert all(name.endswith("_T2w") for name in first_column(shown))
    choose(shown, "#filter-flags", "1")
    assert first_column(shown) == [f"sub-{n:04d}_T2w" for n in (0, 9, 18, 27)]
    choose(shown, "#filter-text", "THICK slices")
    assert first_column(shown) == ["sub-0009_T2w", "sub-0027_T2w"]
    choose(shown, "#filter-text", "nothing like this")
    assert first_column(shown) == []
    clear(shown)
    site = shown.run("document.querySelector('#filter-site').options[2].value")
    choose(shown, "#filter-site", site)
    said = shown.run("document.getElementById('rows-shown').textContent")
    assert said.startswith("1 to 24 of 24")
    clear(shown)


def test_sorting_with_the_keyboard(shown: Tab) -> None:
    clear(shown)
    title = "TCT after"
    shown.run(f"""[...document.querySelectorAll('#table thead button')]
        .find(b => b.textContent === {json.dumps(title)}).focus()""")
    number = shown.run(f"""[...document.querySelectorAll('#table thead button')]
        .findIndex(b => b.textContent === {json.dumps(title)})""")
    rows = "[...document.querySelectorAll('#table tbody tr')]"
    values = f"{rows}.map(r => +r.cells[{number}].textContent)"
    for order, sign in (("ascending", 1), ("descending", -1)):
        # a button is pressed by Enter: the browser makes the click
        for kind in ("keyDown", "keyUp"):
            shown.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter",
                       windowsVirtualKeyCode=13, text="\r" if kind == "keyDown" else "")
        shown.settle()
        assert shown.run("document.querySelector('th[aria-sort]').ariaSort") == order
        assert (np.diff(shown.run(values)) * sign >= 0).all()


def test_plots_are_walked_with_arrow_keys(shown: Tab) -> None:
    place = "document.querySelector('[data-figure=T1w-tct] .canvas')"
    shown.run(f"{place}.scrollIntoView()")
    shown.run(f"{place}.focus()")
    said = []
    for _ in range(3):
        shown.key("ArrowRight")
        said.append(shown.run("document.querySelector('[data-figure=T1w-tct] .said').textContent"))
    assert len(set(said)) == 3 and all(text.startswith("sub-") for text in said)
    before = [float(text.rpartition(": ")[2].split(",")[0]) for text in said]
    assert before == sorted(before)
    assert shown.run("!!document.querySelector('[data-figure=T1w-tct] .hovertext')")


def test_choosing_draws_another_picture(shown: Tab) -> None:
    for selector, value in (
        ("[data-figure=T1w-histograms] select", "Grey matter"),
        ("[data-figure=T1w-embedding] select", "ComBat"),
        ("#explore-by", "age"),
        ("#explore-by", "sex"),
        ("#explore-measure", "3"),
    ):
        figure = f"document.querySelector({json.dumps(selector)}).closest('section')"
        picture = f"{figure}.querySelector('.main-svg').outerHTML"
        before = shown.run(picture)
        choose(shown, selector, value, "change")
        assert shown.run(picture) != before, selector
    assert shown.problems == []


def test_print_shows_all_rows_and_numbers(shown: Tab) -> None:
    clear(shown)
    shown.run("dispatchEvent(new Event('beforeprint'))")
    assert len(first_column(shown)) == 72
    assert shown.run("[...document.querySelectorAll('details')].every(d => d.open)")
    shown.run("dispatchEvent(new Event('afterprint'))")
    assert len(first_column(shown)) == 50
    assert not shown.run("document.querySelector('details').open")


def test_a_row_opens_the_report_of_its_run(shown: Tab, page: Path) -> None:
    """The last one: it leaves the page."""
    clear(shown)
    choose(shown, "#filter-text", "sub-0007_T1w")
    shown.loaded = False
    shown.run("document.querySelector('#table tbody a').click()")
    while not shown.loaded:
        shown._next()
    expected = page.with_name("sub-0007.html").resolve().as_uri() + "#sub-0007_T1w"
    assert shown.run("location.href") == expected
    assert shown.problems == []
