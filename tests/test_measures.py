import math

import pytest

from bmex_bids.measures import column_description, finite, number_text, table_rows


@pytest.mark.parametrize(
    ("key", "before", "after", "verdict"),
    [
        ("TCT", 2.0, 2.5, "better"),
        ("TCT", 2.5, 2.0, "worse"),
        ("TCT", 2.0, 2.01, "unchanged"),
        ("CJV", 0.5, 0.4, "better"),
        ("HistogramDistance", 0.01, 0.02, "worse"),
    ],
)
def test_verdict(key: str, before: float, after: float, verdict: str) -> None:
    (row,) = table_rows({f"{key}Before": before, f"{key}After": after})
    assert row["verdict"] == verdict and row["meaning"]


def test_missing_values_and_unknown_measures() -> None:
    rows = table_rows({"TCTBefore": None, "VolumeGM": 700.0, "GhostLevel": 0.02})
    assert [(r["label"].split(" (")[0], r["before"], r["after"]) for r in rows] == [
        ("Tissue contrast t-score", "n/a", "n/a"),
        ("Volume of grey matter", "", "700 mL"),
        ("Ghost Level", "", "0.0200"),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.50"), (0.01234, "0.0123"), (1234.5, "1234"), (math.nan, "n/a")]
)
def test_number_text(value: float, text: str) -> None:
    assert number_text(value) == text


def test_shares_are_said_in_percent() -> None:
    (row,) = table_rows({"DataConsistency": 0.0214})
    assert (row["after"], row["names"]) == ("2.14 %", ("DataConsistency",))


@pytest.mark.parametrize(
    ("value", "is_number"), [(1, True), (0.5, True), (True, False), (math.inf, False), ("1", False)]
)
def test_finite(value: object, is_number: bool) -> None:
    assert finite(value) is is_number


def test_column_description() -> None:
    assert column_description("VolumeGM")["Units"] == "mL"
    assert "Lower is better" in column_description("CJVAfter")["Description"]
