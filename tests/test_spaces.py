"""Names of spaces, and the cohort that fits an age."""

from __future__ import annotations

import pytest

from bmex_bids.spaces import Space, SpaceError, choose_cohort, parse_spaces

MNI_INFANT = {
    "cohort": {
        str(number): {"age": list(ages), "units": "months"}
        for number, ages in enumerate(
            [
                *((0, 2), (2, 5), (5, 8), (8, 11), (11, 14), (14, 17)),
                *((17, 21), (21, 27), (27, 33), (33, 44), (44, 60)),
            ],
            1,
        )
    }
}
UNC_INFANT = {  # weeks from the last menstrual period, as the neonate's show
    "cohort": {
        "1": {"age": [38.7, 46.4], "units": "weeks"},
        "2": {"age": [87.9, 109.1], "units": "weeks"},
        "3": {"age": [131.4, 163.4], "units": "weeks"},
    }
}
PEDIATRIC = {
    "cohort": {
        key: {"age": ages, "units": "yr"}
        for key, ages in {
            "1": [4.5, 18.5],
            "2": [4.5, 8.5],
            "3": [7.0, 11.0],
            "4": [7.5, 13.5],
            "5": [10.0, 14.0],
            "6": [13.0, 18.5],
        }.items()
    }
}
SINGLE_WEEKS = {"cohort": {str(w): {"age": [w], "units": "weeks"} for w in range(36, 45)}}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["MNI152NLin2009cAsym"], [Space("MNI152NLin2009cAsym")]),
        (["MNIInfant:cohort-2:res-1"], [Space("MNIInfant", "2", "1")]),
        (["MNIInfant:res-01:cohort-2"], [Space("MNIInfant", "2", "1")]),
        (["X:res-1:res-2"], [Space("X", None, "1"), Space("X", None, "2")]),
        (["X:cohort-1:cohort-2"], [Space("X", "1"), Space("X", "2")]),
        (["X", "X", "X:res-2"], [Space("X"), Space("X", None, "2")]),
        (["anat", "T1w", "T2w"], []),
    ],
)
def test_names(words: list[str], expected: list[Space]) -> None:
    assert list(parse_spaces(words)) == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("fsaverage", "is a surface"),
        ("X:den-10k", "is a surface"),
        ("X:foo-1", "unknown modifier 'foo-1'"),
        ("X:cohort-", "unknown modifier"),
        ("X:res-native", "unknown modifier"),
        ("../X", "expected a template"),
        ("", "expected a template"),
    ],
)
def test_names_without_sense(word: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_spaces([word])


def test_labels() -> None:
    assert Space("MNIInfant", "2", "1").label == "MNIInfant+2"
    assert Space("MNI152NLin2009cAsym", None, "2").label == "MNI152NLin2009cAsym"
    assert str(Space("MNIInfant", "2", "1")) == "MNIInfant:cohort-2:res-1"


@pytest.mark.parametrize(
    ("description", "months", "cohort"),
    [
        (MNI_INFANT, 0, "1"),
        (MNI_INFANT, 2, "1"),  # an upper bound belongs to the younger cohort
        (MNI_INFANT, 2.1, "2"),
        (MNI_INFANT, 44, "10"),
        (MNI_INFANT, 60, "11"),
        (UNC_INFANT, 0, "1"),  # born at term: 40 weeks
        (UNC_INFANT, 12, "2"),  # 92 weeks
        (UNC_INFANT, 24, "3"),
        (PEDIATRIC, 5 * 12, "2"),  # of all that hold the age, the narrowest
        (PEDIATRIC, 8 * 12, "3"),  # of two as narrow, the one whose middle is nearer
        (PEDIATRIC, 18 * 12, "6"),
        (SINGLE_WEEKS, 0, "40"),
        (SINGLE_WEEKS, (37.2 - 40) * 7 / 30.4375, "37"),
        ({}, 300, None),
    ],
)
def test_cohort_by_age(description: dict[str, object], months: float, cohort: str | None) -> None:
    assert choose_cohort(Space("X"), description, months) == (cohort, "")


def test_between_two_cohorts_the_nearer_one_is_taken_and_said() -> None:
    cohort, note = choose_cohort(Space("X"), UNC_INFANT, 9)  # 79.1 weeks
    assert cohort == "2"
    assert "no cohort for 9.0 months; cohort 2 (11.0 to 15.9) is the nearest" in note


@pytest.mark.parametrize(
    ("description", "months", "said"),
    [
        (MNI_INFANT, 300.0, "0.0 to 60.0 months after birth, the image is of 300.0"),
        (MNI_INFANT, None, "the age is not known"),
        ({"cohort": {"1": {"name": "old"}}}, 3.0, "has cohorts 1 without ages"),
        ({"cohort": {"1": {"age": [1, 2], "units": "moons"}}}, 3.0, "without ages"),
    ],
)
def test_no_cohort(description: dict[str, object], months: float | None, said: str) -> None:
    with pytest.raises(SpaceError, match=said) as caught:
        choose_cohort(Space("X"), description, months)
    assert "X:cohort-N" in str(caught.value)
    assert choose_cohort(Space("X", "1"), description, months) == ("1", "")
