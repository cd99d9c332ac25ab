import xml.etree.ElementTree as ElementTree

import numpy as np

from bmex_bids import plots

EDGES = np.linspace(0, 1, 11)


def histograms() -> dict[str, list[float]]:
    return {"Edges": EDGES.tolist(), "Before": [1.0] * 10, "Reference": [0.5] * 5 + [1.5] * 5}


def test_same_data_same_bytes() -> None:
    distances = {"HistogramDistanceBefore": 0.25, "MedianGMBefore": 0.4, "MedianWMBefore": None}
    first = plots.histogram_svg(histograms(), distances)
    assert first == plots.histogram_svg(histograms(), distances)
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert first != plots.histogram_svg(histograms(), {})


def test_every_plot_is_one_svg_element() -> None:
    values = np.random.default_rng(0).normal(size=(2, 12))
    rows = np.ones((3, 10))
    drawings = [
        plots.paired_svg(values[0], values[1], "TCT"),
        plots.paired_svg(np.ones(400), np.ones(400) * 2, "TCT"),
        plots.group_histograms_svg(EDGES, {"Before": {"A $<b>": rows}}, None),
        plots.group_histograms_svg(
            EDGES, {"Before": {"A": rows, "B": rows}, "After": {"A": rows}}, np.ones(10)
        ),
        plots.distance_svg({"before within": values[0] ** 2, "after within": values[1] ** 2}, "d"),
        plots.shares_svg({"site\nalone": (0.5, 0.1)}, 0.1),
        plots.shares_svg({"site\nalone": (0.5, 0.1), "age": (0.1, 0.2)}, None),
    ]
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag.endswith("svg")


def test_many_runs_stay_small() -> None:
    values = np.random.default_rng(0).normal(size=(2, 10_000))
    assert len(plots.paired_svg(values[0], values[1], "TCT")) < 400_000
