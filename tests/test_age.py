"""Ages in every shape that tables have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bmex_bids.age import AgeError, find_age, parse_age, parse_unit, stage_of
from bmex_bids.bids import parse_entities
from bmex_bids.tables import TableError, read_table

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "lifespan_bids"
LONG = "participant_id\tsession_id\tage\n"
WEEK = 7 / 30.4375  # months


def dataset(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def age_of(root: Path, name: str = "sub-01_T1w.nii.gz", **metadata: object):  # type: ignore[no-untyped-def]
    entities = parse_entities(name)
    folder = root / f"sub-{entities['sub']}"
    folder = folder / f"ses-{entities['ses']}" if "ses" in entities else folder
    return find_age(root, entities, folder / "anat" / name, metadata)


@pytest.mark.parametrize(
    ("months", "fetal", "stage"),
    [
        (-1, False, "fetal"),
        (0.2, True, "fetal"),
        (0, False, "0"),
        (1.99, False, "0"),
        (2, False, "3"),
        (4.99, False, "3"),
        (5, False, "6"),
        (6.99, False, "6"),
        (7, False, "9"),
        (10, False, "12"),
        (15, False, "18"),
        (20.99, False, "18"),
        (21, False, "24"),
        (72, False, "24"),
        (1200, False, "24"),
    ],
)
def test_stage_table(months: float, fetal: bool, stage: str) -> None:
    assert stage_of(months, fetal=fetal) == stage


@pytest.mark.parametrize("months", [1201, 1e6, -9, -999])
def test_ages_beyond_every_stage(months: float) -> None:
    with pytest.raises(AgeError, match="--stage"):
        stage_of(months)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[(text, ("day", "")) for text in ("d", "day", "days", "Days")],
        *[(text, ("week", "")) for text in ("w", "wk", "wks", "week", "weeks", "weeks of age")],
        *[(text, ("month", "")) for text in ("m", "mo", "mos", "mo.", "month", "Months ")],
        *[(text, ("year", "")) for text in ("y", "yr", "yrs", "year", "YEARS", "a")],
        *[
            (text, ("week", "gestational"))
            for text in ("gestational_weeks", "gestational week", "weeks gestation", "GA", "ga wks")
        ],
        ("gestational days", ("day", "gestational")),
        ("postmenstrual weeks", ("week", "postmenstrual")),
        ("weeks post-menstrual age", ("week", "postmenstrual")),
        ("parsecs", None),
        ("", None),
    ],
)
def test_units(text: str, expected: tuple[str, str] | None) -> None:
    assert parse_unit(text) == expected


@pytest.mark.parametrize(
    ("cell", "unit", "months"),
    [
        ("6", ("year", ""), 72),
        ("6 ", ("month", ""), 6),
        (" 6 years", ("month", ""), 72),
        ("6years", ("month", ""), 72),
        ("89+", ("year", ""), 1068),
        ("1,5", ("year", ""), 18),
        ("006Y", ("month", ""), 72),
        ("018M", ("year", ""), 18),
        ("2 years 6 months", ("week", ""), 30),
        ("30 gestational_weeks", ("year", ""), -10 * WEEK),
        ("25", ("week", "gestational"), -15 * WEEK),
        ("42 weeks PMA", ("year", ""), 2 * WEEK),
        ("30.4375", ("day", ""), 1),
        ("-2", ("month", ""), -2),
    ],
)
def test_cells(cell: str, unit: tuple[str, str], months: float) -> None:
    found = parse_age(cell, unit)
    assert found is not None and found.months == pytest.approx(months, abs=1e-5)


@pytest.mark.parametrize("cell", ["", " ", "n/a", "N/A", "NaN", "na", "unknown", None])
def test_empty_cells(cell: str | None) -> None:
    assert parse_age(cell) is None


@pytest.mark.parametrize("cell", ["six", "6 parsecs", "6 7", "adult", "inf", "38+3"])
def test_cells_that_are_no_age(cell: str) -> None:
    with pytest.raises(AgeError, match="no age"):
        parse_age(cell)


YEARS = '{"age": {"Units": "years"}}'


@pytest.mark.parametrize(
    ("files", "months", "source"),
    [
        (
            {"participants.tsv": "participant_id\tage\nsub-01\t6\n"},
            72,
            "participants.tsv:age (years)",
        ),
        ({"participants.tsv": "participant_id\tage\n01\t6\n"}, 72, "participants.tsv:age (years)"),
        (
            {
                "participants.tsv": "participant_id\tage\nsub-02\t89+\nsub-01\t9\n",
                "participants.json": '{"age": {"Units": "month"}}',
            },
            9,
            "participants.tsv:age (months)",
        ),
        (
            {"participants.tsv": "participant_id\tage_weeks\tage\nsub-01\t4\tn/a\n"},
            4 * WEEK,
            "participants.tsv:age_weeks (weeks)",
        ),
        (
            {"participants.tsv": "participant_id\tage\tage_months\nsub-01\t2\t30\n"},
            30,
            "participants.tsv:age_months (months)",
        ),
        (
            {"participants.tsv": "participant_id\tAge (x)\tAge\nsub-01\t1\t6\n"},
            72,
            "participants.tsv:age (years)",
        ),
        (
            {"participants.tsv": "participant_id\tgestational_age\tage_months\nsub-01\t39\t3\n"},
            3,
            "participants.tsv:age_months (months)",
        ),
        (
            {"participants.tsv": "participant_id\tgestational_weeks\nsub-01\t30\n"},
            -10 * WEEK,
            "participants.tsv:gestational_weeks (gestational weeks)",
        ),
        (
            {
                "participants.tsv": "participant_id\tage\nsub-01\t5\n",
                "sub-01/sub-01_scans.tsv": "filename\tage\nanat/sub-01_T1w.nii.gz\t6\n",
                "scans.json": YEARS,
            },
            72,
            "sub-01/sub-01_scans.tsv:age (years)",
        ),
        (
            {"sub-01/anat/sub-01_scans.tsv": "filename\tage\nsub-01_T1w.nii.gz\t6 years\n"},
            72,
            "sub-01/anat/sub-01_scans.tsv:age (years)",
        ),
    ],
)
def test_tables(tmp_path: Path, files: dict[str, str], months: float, source: str) -> None:
    age = age_of(dataset(tmp_path, files))
    assert age.months == pytest.approx(months, abs=1e-5)
    assert age.source == source
    assert age.fetal == (months < 0)


@pytest.mark.parametrize(
    ("table", "months"),
    [
        ({"sub-01/sub-01_sessions.tsv": "session_id\tage\nses-1\t6\nses-2 \t8\n"}, 96),
        ({"sub-01/sub-01_sessions.tsv": "subject\tsession_id\tage\nsub-01\tses-2\t8 \n"}, 96),
        (
            {"sessions.tsv": LONG + "sub-02\tses-2\t7\nsub-01\tses-2\t8\n"},
            96,
        ),
        (
            {"participants.tsv": LONG + "sub-01\tses-1\t6\nsub-01\tses-2\t8\n"},
            96,
        ),
        ({"participants.tsv": "participant_id\tage\nsub-01\t8\nsub-01\t8\n"}, 96),
    ],
)
def test_sessions(tmp_path: Path, table: dict[str, str], months: float) -> None:
    assert age_of(dataset(tmp_path, table), "sub-01_ses-2_T1w.nii.gz").months == months


@pytest.mark.parametrize(
    ("metadata", "months"),
    [
        ({"Age": "6 years"}, 72),
        ({"AgeMonths": 9}, 9),
        ({"Age": 9, "AgeUnits": "months"}, 9),
        ({"PatientAge": "006M"}, 6),
        ({"Age": 6}, 72),
    ],
)
def test_age_in_the_sidecar(tmp_path: Path, metadata: dict[str, object], months: float) -> None:
    age = age_of(tmp_path, **metadata)
    assert age.months == months
    assert age.source.startswith("sub-01_T1w.json:")


def test_order_and_conflict(tmp_path: Path) -> None:
    root = dataset(
        tmp_path,
        {
            "sub-01/ses-1/sub-01_ses-1_scans.tsv": "filename\tage\nsub-01_ses-1_T1w.nii.gz\t6\n",
            "sub-01/sub-01_sessions.tsv": "session_id\tage\nses-1\t6\n",
            "participants.tsv": "participant_id\tage\nsub-01\t60\n",
        },
    )
    age = age_of(root, "sub-01_ses-1_T1w.nii.gz")
    assert age.months == 72
    assert age.note == "participants.tsv:age (years) disagrees (720 months)"


def test_rounded_ages_do_not_disagree(tmp_path: Path) -> None:
    root = dataset(
        tmp_path, {"participants.tsv": "participant_id\tage_months\tage\nsub-01\t80\t6\n"}
    )
    assert age_of(root).note == ""


def test_units_in_the_description_only(tmp_path: Path) -> None:
    root = dataset(
        tmp_path,
        {
            "participants.tsv": "participant_id\tage\nsub-01\t9\n",
            "participants.json": json.dumps({"age": {"Description": "Age in months at scan"}}),
        },
    )
    age = age_of(root)
    assert age.months == 9 and "no Units" in age.note


def test_preterm_newborn_is_no_fetus(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"participants.tsv": "participant_id\tpma_weeks\nsub-01\t35\n"})
    age = age_of(root)
    assert (age.months, age.fetal) == (0.0, False)
    assert "preterm" in age.note


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no scans.tsv, sessions.tsv or participants.tsv that names it"),
        ({"participants.tsv": "participant_id\tage\nsub-01\tn/a\n"}, "a row for it without an age"),
        ({"participants.tsv": "participant_id\tsex\nsub-01\tF\n"}, "a row for it without an age"),
        (
            {"participants.tsv": "participant_id\tage\nsub-02\t6\nsub-03\t7\n"},
            "2 rows, none for sub-01",
        ),
        (
            {"participants.tsv": "participant_id\tage\nsub-02\t6\n"},
            "for sub-02 (age 6), which was not used",
        ),
        ({"participants.tsv": "participant_id\tage\nsub-01\told\n"}, "'old' is no age"),
        (
            {"participants.tsv": "participant_id\tage\nsub-01\t6\nsub-01\t8\n"},
            "2 rows for it with different",
        ),
        ({"participants.tsv": "participant_id,age\nsub-01,6\n"}, "separated by commas"),
        ({"participants.tsv": ""}, "participants.tsv is empty"),
        ({"participants.tsv": "participant_id\tage\n"}, "participants.tsv has no rows"),
        (
            {"participants.tsv": "participant_id\tage\nsub-01\t6\n", "participants.json": "{"},
            "participants.json cannot be read",
        ),
        (
            {
                "participants.tsv": "participant_id\tage\nsub-01\t6\n",
                "participants.json": '{"age": {"Units": "moons"}}',
            },
            "'moons' is not known",
        ),
    ],
)
def test_no_age_says_what_was_read(tmp_path: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(AgeError) as caught:
        age_of(dataset(tmp_path, files))
    assert said in str(caught.value)
    assert "--age-months or --stage" in str(caught.value)


def test_a_row_of_another_session_is_not_used(tmp_path: Path) -> None:
    name = "sub-01/ses-1/anat/sub-01_ses-1_scans.tsv"
    text = "filename\tsession\tage\nsub-01_ses-1_T1w.nii.gz\tses-2\t6\n"
    with pytest.raises(AgeError):
        age_of(dataset(tmp_path, {name: text}), "sub-01_ses-1_T1w.nii.gz")


def test_table_inherits_its_description(tmp_path: Path) -> None:
    root = dataset(
        tmp_path,
        {
            "scans.json": YEARS,
            "sub-01/sub-01_scans.json": '{"age": {"Units": "weeks"}}',
            "sub-01/ses-1/sub-01_ses-1_scans.tsv": 'filename\tage\n"a.nii.gz"\t 6\n',
        },
    )
    table = read_table(root / "sub-01/ses-1/sub-01_ses-1_scans.tsv", root)
    assert table is not None
    assert table.fields["age"]["Units"] == "weeks"
    assert table.index["a"] == ({"filename": "a.nii.gz", "age": "6"},)
    assert read_table(root / "participants.tsv", root) is None


def test_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match="not UTF-8"):
        read_table(tmp_path / "participants.tsv", tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared lifespan_bids is not here")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "sub-0001_ses-V01_T1w.nii.gz",
            ("24", "sub-0001/ses-V01/sub-0001_ses-V01_scans.tsv:age (years)"),
        ),
        ("sub-0001_ses-V02_T1w.nii.gz", ("24", "sub-0001/sub-0001_sessions.tsv:age (years)")),
        (
            "sub-0007_ses-V01_T1w.nii.gz",
            ("3", "sub-0007/ses-V01/sub-0007_ses-V01_scans.tsv:age (months)"),
        ),
        (
            "sub-0009_ses-V01_T2w.nii.gz",
            ("fetal", "sub-0009/ses-V01/sub-0009_ses-V01_scans.tsv:age (gestational weeks)"),
        ),
    ],
)
def test_lifespan(name: str, expected: tuple[str, str]) -> None:
    age = age_of(SHARED, name)
    assert age.months is not None
    assert (stage_of(age.months, fetal=age.fetal), age.source) == expected


@pytest.mark.skipif(not SHARED.exists(), reason="the shared lifespan_bids is not here")
@pytest.mark.parametrize("subject", ["0003", "0005"])
def test_lifespan_rows_of_another_subject(subject: str) -> None:
    with pytest.raises(AgeError, match="is for sub-0002_ses-V01_T1w"):
        age_of(SHARED, f"sub-{subject}_ses-V01_T1w.nii.gz")
