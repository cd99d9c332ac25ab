"""The viewer of the subject page in a real browser, opened as a file."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, browser, find_browser
from scipy import ndimage
from synthetic_run import SHAPE, make_result

from bmex_bids import derivatives, report, sprites

LAYERS = ("Before", "After")
WINDOW = 900, 800


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with browser(executable, tmp_path_factory.mktemp("profile")) as found:
        found.size(*WINDOW)
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs; the first has all maps and slices that nothing mirrors onto itself."""
    folder = tmp_path_factory.mktemp("page")
    out = folder / "out"
    first = make_result(folder, {"sub": "01", "run": "1"}, extras=True)
    for result in (first, make_result(folder, {"sub": "01", "run": "2"}, measure_only=True)):
        derivatives.write(result, out)
        report.run_figures(out, result.job)
    sheet = sprites.plan_sheet(first.mask, first.image.affine)
    pages = [sprites.grey_sheet(volume, sheet, (0.0, 255.0)) for volume in volumes()]
    files = [out / "sub-01" / "figures" / f"sub-01_run-1_desc-slices{n}_T1w.jpg" for n in LAYERS]
    for path, data in zip(files, sprites.jpegs(pages, 10**9), strict=True):
        path.write_bytes(data)
    return report.subject_report(out, "01")


def volumes() -> list[np.ndarray]:
    """Two smooth volumes without symmetry, 0 to 255."""
    found = []
    for seed in (1, 2):
        noise = np.random.default_rng(seed).normal(size=SHAPE)
        smooth = ndimage.gaussian_filter(noise, 3)
        smooth = (smooth - smooth.min()) / np.ptp(smooth)
        found.append((40 + 200 * smooth).astype(np.float32))
    return found


def opened(tab: Tab, page: Path) -> None:
    """Open the page afresh with the first viewer in sight and drawn."""
    tab.problems.clear()
    tab.requests.clear()
    tab.run("try { localStorage.clear() } catch {}")  # of an earlier test
    tab.open(page)
    tab.run("document.querySelector('.viewer').scrollIntoView({behavior: 'instant'})")
    wait_for(tab, "document.querySelector('.view.big canvas')?.dataset.drawn")
    tab.run("document.querySelector('.viewer').focus()")
    tab.run("document.querySelector('[data-switch=cross]').click()")
    wait_for_picture(tab)


def wait_for(tab: Tab, condition: str) -> None:
    for _ in range(600):
        if tab.run(f"Boolean({condition})"):
            return
        tab.settle()
    pytest.fail(f"never came true: {condition}")


def wait_for_picture(tab: Tab, plane: str = "axial") -> None:
    for _ in range(200):
        tab.settle()
        if tab.picture(canvas(plane)).std() > 10:
            return
    pytest.fail("no picture appeared")


def canvas(plane: str) -> str:
    return f".view[data-plane={plane}] canvas"


def slice_of(volume: np.ndarray, plane: str, crop: tuple[slice, ...], at: list[int]) -> np.ndarray:
    """Return a slice as a radiographer hangs it: neurological, superior or anterior up."""
    shown, axis = volume[crop], {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    return np.take(shown, at[axis], axis).T[::-1]


def likeness(
    picture: np.ndarray, expected: np.ndarray, columns: tuple[float, float] = (0.17, 0.83)
) -> float:
    """Correlation of what a canvas shows with a slice that fills its height or width.

    The edges, where letters stand, do not count; ``columns`` says from where to where, as shares.
    """
    height, width = picture.shape[:2]
    scale = min(height / expected.shape[0], width / expected.shape[1])
    size = [round(n * scale) for n in expected.shape]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    grey = picture[top : top + size[0], left : left + size[1]].mean(axis=2)
    factors = np.array(grey.shape) / expected.shape
    wanted = ndimage.zoom(expected, factors, order=1, grid_mode=True, mode="nearest")
    edge, (first, last) = size[0] // 6, (round(share * size[1]) for share in columns)
    inner = np.s_[edge:-edge, first:last]
    return float(np.corrcoef(grey[inner].ravel(), wanted[inner].ravel())[0, 1])


def middle(page: Path) -> tuple[tuple[slice, ...], list[int]]:
    """Return the part of the volumes that is shown, and where the cross-hair starts."""
    result = page.parent / "sub-01/figures/sub-01_run-1_desc-slices_T1w.json"
    viewer = json.loads(result.read_text())
    starts = (np.array(viewer["affine"])[:, 3] - [-70, -90, -65]) / 5  # as synthetic_run has it
    sizes = viewer["shape"]
    crop = tuple(slice(round(a), round(a) + n) for a, n in zip(starts, sizes, strict=True))
    return crop, [n // 2 for n in sizes]


def test_planes_are_put_together_right(tab: Tab, page: Path) -> None:
    opened(tab, page)
    crop, at = middle(page)
    before, after = volumes()
    for key, volume in ((" ", before), (" ", after)):
        tab.key(key)
        for plane in ("axial", "coronal", "sagittal"):
            expected = slice_of(volume, plane, crop, at)
            shown = tab.picture(canvas(plane))
            assert likeness(shown, expected) > 0.98, plane
            assert likeness(shown, expected[:, ::-1]) < 0.9, plane
    tab.key("l")
    for plane, turned in (("axial", True), ("coronal", True), ("sagittal", False)):
        expected = slice_of(after, plane, crop, at)
        expected = expected[:, ::-1] if turned else expected
        assert likeness(tab.picture(canvas(plane)), expected) > 0.98, plane
    assert not tab.problems, tab.problems


def test_scrolling_by_key_wheel_slider_and_click(tab: Tab, page: Path) -> None:
    opened(tab, page)
    crop, at = middle(page)
    tab.key(" ")
    tab.key("ArrowUp")
    tab.key("PageDown")
    at[2] = max(at[2] + 1 - 10, 0)
    expected = slice_of(volumes()[0], "axial", crop, at)
    assert likeness(tab.picture(canvas("axial")), expected) > 0.98
    box = tab.box(canvas("coronal"))
    tab.mouse("mouseWheel", box["x"] + 40, box["y"] + 40, deltaX=0, deltaY=-40)
    wait_for(tab, f"document.querySelector({json.dumps(canvas('coronal'))}).dataset.drawn"
                  f" === 'before,{at[1] + 1},'")
    tab.run("""(() => { const s = document.querySelector('.view[data-plane=sagittal] input');
        s.value = 3; s.dispatchEvent(new Event('input')); })()""")
    tab.settle()
    at[0] = 3
    expected = slice_of(volumes()[0], "sagittal", crop, at)
    assert likeness(tab.picture(canvas("sagittal")), expected) > 0.98
    box = tab.box(canvas("axial"))
    place = box["x"] + box["width"] / 2 + 30, box["y"] + 60
    tab.mouse("mousePressed", *place)
    tab.mouse("mouseReleased", *place)
    drawn = tab.run(f"document.querySelector({json.dumps(canvas('sagittal'))}).dataset.drawn")
    assert int(drawn.split(",")[1]) > 3  # to the right of the middle


def test_the_line_swipes(tab: Tab, page: Path) -> None:
    opened(tab, page)
    crop, at = middle(page)
    before, after = (slice_of(v, "axial", crop, at) for v in volumes())
    shown = tab.picture(canvas("axial"))
    left, right = (0.17, 0.45), (0.55, 0.83)
    assert likeness(shown, before, left) > 0.98 > 0.9 > likeness(shown, after, left)
    assert likeness(shown, after, right) > 0.98 > 0.9 > likeness(shown, before, right)
    box = tab.box(canvas("axial"))
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse("mousePressed", x, y)
    tab.mouse("mouseMoved", box["x"] + box["width"] - 2, y)
    tab.mouse("mouseReleased", box["x"] + box["width"] - 2, y)
    assert likeness(tab.picture(canvas("axial")), before) > 0.98
    for _ in range(100):
        tab.key("ArrowLeft")
        if likeness(tab.picture(canvas("axial")), after) > 0.98:
            break
    else:
        pytest.fail("the arrow keys did not move the line")


def test_flicker_shows_both(tab: Tab, page: Path) -> None:
    opened(tab, page)
    tab.key("f")
    drawn = f"document.querySelector({json.dumps(canvas('axial'))}).dataset.drawn"
    wait_for(tab, f"{drawn}.startsWith('after')")
    wait_for(tab, f"{drawn}.startsWith('before')")
    tab.key("s")
    assert tab.run(drawn).startswith("swipe")


def test_overlays_contours_zoom_and_large_view(tab: Tab, page: Path) -> None:
    opened(tab, page)
    tab.key(" ")
    seen = [tab.picture(canvas("axial"))]
    for key in ("r", "u", "c", "+"):
        tab.key(key)
        for _ in range(100):
            if not np.array_equal(tab.picture(canvas("axial")), seen[-1]):
                break
            tab.settle()
        else:
            pytest.fail(f"{key} changed nothing")
        seen.append(tab.picture(canvas("axial")))
    colourful = [np.ptp(picture.astype(int), axis=2).mean() for picture in seen]
    assert colourful[0] < 2 < min(colourful[1:])
    assert "border of grey matter" in tab.run("document.querySelector('.key').textContent")
    tab.key("2")
    assert tab.run("document.querySelector('.view.big').dataset.plane") == "coronal"
    opacity = """(() => { const s = document.querySelector('[data-opacity]');
        s.value = 0; s.dispatchEvent(new Event('input')); })()"""
    with_overlay = tab.picture(canvas("coronal"))
    tab.run(opacity)
    tab.settle()
    assert not np.array_equal(tab.picture(canvas("coronal")), with_overlay)


def test_no_network_and_no_error(tab: Tab, page: Path) -> None:
    opened(tab, page)
    for key in "rucfs+-x123l ":
        tab.key(key)
    tab.run("document.querySelectorAll('.viewer')[1].scrollIntoView({behavior: 'instant'})")
    tab.settle()
    assert not tab.problems, tab.problems
    assert tab.requests and all(url.startswith("file:") for url in tab.requests)


def test_keys_in_controls_stay_theirs(tab: Tab, page: Path) -> None:
    opened(tab, page)
    tab.run("document.querySelector('[data-overlay]').focus()")
    tab.key("2")
    assert tab.run("document.querySelector('.view.big').dataset.plane") == "axial"


def test_a_missing_sheet_is_named(tab: Tab, page: Path) -> None:
    sheet = page.parent / "sub-01/figures/sub-01_run-1_desc-slicesMasks_T1w.png"
    content = sheet.read_bytes()
    sheet.unlink()
    try:
        opened(tab, page)
        tab.key("c")
        wait_for(tab, "!document.querySelector('.wrong').hidden")
        assert sheet.name in tab.run("document.querySelector('.wrong').textContent")
    finally:
        sheet.write_bytes(content)


def visible(tab: Tab, selector: str) -> bool:
    return bool(tab.run(f"document.querySelector('{selector}').getClientRects().length"))


def test_paper_gets_the_still_pictures(tab: Tab, page: Path) -> None:
    opened(tab, page)
    assert visible(tab, ".viewer .views") and not visible(tab, ".still img.before")
    tab.run("document.querySelector('[data-show]').click()")
    assert visible(tab, ".still img.before")
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert not visible(tab, ".viewer .views") and visible(tab, ".still img.before")
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")


def test_without_scripts_the_still_pictures_stay(tab: Tab, page: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page)
        assert not visible(tab, ".viewer") and visible(tab, ".still img.before")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_narrow_window_has_no_sideways_scrolling(tab: Tab, page: Path) -> None:
    tab.size(390, 800)
    try:
        opened(tab, page)
        assert tab.run("document.documentElement.scrollWidth") <= 390
        widths = [tab.box(canvas(plane))["width"] for plane in ("axial", "coronal", "sagittal")]
        assert min(widths) > 250
    finally:
        tab.size(*WINDOW)
