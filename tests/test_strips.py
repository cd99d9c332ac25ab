import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from bmex_bids.strips import MOST_TICKS, PAD, WIDTH, strip_svg

OTHERS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])


def test_values_stand_on_one_axis() -> None:
    lanes = [("before", 1.0, OTHERS), ("after", 9.0, OTHERS)]
    text = strip_svg(lanes, "TCT & <more>")
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == "TCT & <more>" and root.get("role") == "img"
    circle = next(item for item in root if item.tag == "circle")
    assert float(circle.get("cx") or 0) == WIDTH - PAD
    diamond = next(item for item in root if item.get("class") == "before")
    assert (diamond.get("d") or "").startswith(f"M{PAD}.0 ")
    half = next(item for item in root if item.get("class") == "half")
    scale = (WIDTH - 2 * PAD) / 8  # from 1 to 9
    assert float(half.get("x") or 0) == round(PAD + scale, 1)  # quartiles 2 and 4
    assert abs(float(half.get("width") or 0) - 2 * scale) < 0.11


def test_many_runs_have_no_ticks() -> None:
    few, many = (
        strip_svg([("value", 1.0, np.linspace(0, 2, n))], "") for n in (MOST_TICKS, MOST_TICKS + 1)
    )
    assert 'class="single"' in few and 'class="single"' not in many


def test_nothing_to_compare_with() -> None:
    assert strip_svg([("value", 1.0, np.array([]))], "") == ""
    assert strip_svg([("value", float("nan"), OTHERS)], "") == ""


def test_equal_values_have_a_place() -> None:
    text = strip_svg([("value", 2.0, np.array([2.0, 2.0]))], "")
    assert not re.search("nan|inf", text) and ElementTree.fromstring(text) is not None
