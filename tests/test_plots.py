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
