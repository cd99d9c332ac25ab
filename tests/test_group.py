import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_group import write_group, write_participants, write_run
from synthetic_run import make_result

from bmex_bids import bids, derivatives, grouphistograms, intensity, pipeline
from bmex_bids.group import group_report
from bmex_bids.groupdrawing import run_points, site_styles
from bmex_bids.groupruns import collect
from bmex_bids.grouptables import STATISTICS
from bmex_bids.layout import InputError
from bmex_bids.options import parse_options
from bmex_bids.participants import check_site_column, find_person, participants_table
from bmex_bids.rendering import natural_key
from bmex_bids.run import run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def words(out: Path) -> str:
    text = (out / "group.html").read_text()
    text = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", text, flags=re.S)
    return re.sub(r"\s+", " ", text).replace("&#39;", "'")


def page_data(out: Path) -> dict:
    text = (out / "group.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return dict(json.loads(found[1]))


def statistics(out: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    rows = read(out / "group_harmonization.tsv")
    return {(row["statistic"], row["feature"], row["condition"]): row for row in rows}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 runs of 3 sites whose scanners differ before and hardly after; two odd runs."""
    out = tmp_path_factory.mktemp("sites")
    write_group(out, 48, 3)
    write_participants(out, 49, {"sex": ("M", "F"), "group": ("control", "patient")})
    metrics = {"TCTBefore": 9.0, "TCTAfter": 9.5}
    write_run(out, 48, 0, Metrics=metrics, Flags=["<odd> </script>"])
    group_report(out)
    return out


def test_table_and_dictionary(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number, entities in enumerate(
        ({"sub": "01", "ses": "1", "acq": "x", "run": "10"}, {"sub": "01", "ses": "1", "run": "2"})
    ):
        flags = ("first\twarning", "second") if number else ()
        derivatives.write(make_result(tmp_path, entities, flags=flags), out)
    derivatives.write(make_result(tmp_path, {"sub": "02"}, suffix="T2w", measure_only=True), out)
    (out / "sub-01.html").write_text("page")
    written = group_report(out)
    names = [f"group_{n}.{e}" for n in ("T1w", "T2w", "harmonization") for e in ("tsv", "json")]
    assert [path.name for path in written] == [*names, "group.html"]
    rows = read(out / "group_T1w.tsv")
    assert {row["run"] for row in rows} == {"2", "10"}
    (row,) = (row for row in rows if row["run"] == "2")
    assert row["participant_id"] == "sub-01" and row["session_id"] == "ses-1"
    assert row["acquisition"] == "n/a" and row["site"] == "Siemens 3 T" and row["sex"] == "n/a"
    assert (row["TCTBefore"], row["TCTAfter"], row["VolumeGM"]) == ("2", "2.5", "700.5")
    assert row["flags"] == "first warning | second" and row["n_flags"] == "2"
    assert row["report"] == "sub-01.html" and (out / row["sidecar"]).is_file()
    (measured,) = read(out / "group_T2w.tsv")
    assert measured["enhanced"] == "no" and measured["session_id"] == "n/a"
    assert "TCTAfter" not in measured and measured["report"] == "n/a"


def test_every_column_is_described_and_every_number_has_a_unit(sites: Path) -> None:
    for name in ("T1w", "harmonization"):
        (first, *_) = read(sites / f"group_{name}.tsv")
        described = json.loads((sites / f"group_{name}.json").read_text())
        assert list(described) == list(first)
        assert all(entry["Description"] for entry in described.values())
        for column, cell in first.items():
            if re.fullmatch(r"-?\d+(\.\d+)?(e-\d+)?", cell) and column not in ("stage", "run"):
                assert described[column]["Units"], column
    assert json.loads((sites / "group_T1w.json").read_text())["VolumeGM"]["Units"] == "mL"
    levels = json.loads((sites / "group_harmonization.json").read_text())["condition"]["Levels"]
    rows = read(sites / "group_harmonization.tsv")
    assert {row["statistic"] for row in rows} <= set(STATISTICS)
    assert {row["condition"] for row in rows} <= set(levels)


def test_harmonisation_shows_in_the_numbers(sites: Path) -> None:
    found = statistics(sites)

    def value(*key: str) -> float:
        return float(found[key]["value"])

    ratios = [value("distance_ratio", "WM", c) for c in ("before", "matching", "after", "combat")]
    assert min(ratios[:2]) > 3 > ratios[2] and ratios[3] < 1.3
    between = [value("distance_between", "WM", c) for c in ("before", "matching", "after")]
    assert between[0] > 3 * max(between[1:])
    assert value("distance_between", "Brain", "matching") < 1e-3  # equal by construction
    shares = [value("site_share", "histograms", c) for c in ("before", "after")]
    assert shares[0] > 0.6 > 2 * shares[1]
    assert float(found["site_share", "histograms", "before"]["p"]) == 0.001
    assert value("site_auc", "histograms", "before") > 0.95
    assert value("site_auc", "histograms", "combat") < 0.75
    # age moves grey matter the same before and after; it survives, and stands out more
    age = [value("age_share_beyond_site", "mean GM", c) for c in ("before", "after")]
    assert age[1] > 0.5 and age[1] > age[0]
    assert value("sex_share_beyond_site", "mean GM", "after") < 0.15
    assert int(found["mean_difference", "TCT", "after-before"]["n"]) == 49
    assert 0.28 < value("mean_difference", "TCT", "after-before") < 0.34


def test_a_name_of_a_site_is_no_markup() -> None:
    style = {"color": "#000000", "symbol": "circle", "dash": "solid"}
    one = np.ones(1)
    (trace,) = run_points(one, one, [0], [0], ["<b>North</b>"], {"<b>North</b>": style})
    assert trace["name"] == "&lt;b&gt;North&lt;/b&gt;"


def test_page_of_three_sites(sites: Path) -> None:
    text = (sites / "group.html").read_text()
    page = re.sub(r"<script\b(?! type=\"application).*?</script>", "", text, flags=re.S)
    assert "http" not in page and "<odd>" not in page
    said = words(sites)
    assert "TCT is higher after enhancement in 49 of 49 runs" in said
    assert "Cohen's d_z" in said and "Wilcoxon" in said
    assert "Distance between sites / within a site, White matter" in said
    assert "ComBat preserved age, sex, group" in said
    assert re.search(r"sub-0048_T1w TCT before 9.00 \+", said)
    data = page_data(sites)
    assert data["runs"]["name"][48] == "sub-0048_T1w" and data["runs"]["page"][48] == 0
    assert sum(data["runs"]["page"]) == 48
    assert "<odd> </script>" in data["runs"]["flags"]["levels"]
    figures = data["figures"]
    assert set(figures["T1w-histograms"]) == {
        "Whole brain", "CSF", "Grey matter", "White matter"
    }
    assert set(figures["T1w-embedding"]) == {"after", "matching alone", "ComBat"}
    for name in ("tct", "distances", "matrix", "shares-site", "shares-age", "classifier"):
        assert figures[f"T1w-{name}"]
    for link in re.findall(r'href="(group[^"]+)"', page):
        assert (sites / link).is_file()
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page


def test_no_two_sites_look_the_same(tmp_path: Path) -> None:
    for number in range(30):
        write_run(tmp_path, number, number)
    styles = site_styles(collect(tmp_path).runs["T1w"])
    assert len({(style["color"], style["symbol"]) for style in styles.values()}) == 30
    assert len({(style["color"], style["dash"]) for style in styles.values()}) == 30


def test_sex_group_and_site_come_from_participants(tmp_path: Path) -> None:
    for number in range(12):
        write_run(tmp_path, number, None)
    write_participants(tmp_path, 12, {"gender": ("F", "m"), "diagnosis": ("x", "n/a"),
                                      "Scan Site": ("here", "there")})
    group_report(tmp_path, "Scan Site")
    rows = read(tmp_path / "group_T1w.tsv")
    assert {row["sex"] for row in rows} == {"female", "male"}
    assert {row["group"] for row in rows} == {"x", "n/a"}
    assert {row["site"] for row in rows} == {"here", "there"}
    assert "the column Scan Site of participants.tsv" in words(tmp_path)


def test_the_column_site_is_taken_when_no_sidecar_names_a_scanner(tmp_path: Path) -> None:
    for number in range(6):
        write_run(tmp_path, number, None)
    write_participants(tmp_path, 6, {"site": ("p", "q")})
    assert {run.site for run in collect(tmp_path).runs["T1w"]} == {"p", "q"}
    write_run(tmp_path, 0, 1)
    found = {run.site for run in collect(tmp_path).runs["T1w"]}
    assert found == {"unknown", "Hospital B, GE MEDICAL SYSTEMS Signa HDxt 1.5 T"}


def test_a_site_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no participants.tsv"):
        check_site_column(tmp_path, "centre")
    write_participants(tmp_path, 3, {"sex": ("F",), "site": ("x",)})
    check_site_column(tmp_path, "Site")
    check_site_column(tmp_path, None)
    with pytest.raises(InputError, match="columns participant_id, sex, site"):
        check_site_column(tmp_path, "centre")


def test_tables_with_a_row_per_session(tmp_path: Path) -> None:
    text = "participant_id\tsession_id\tsite\tsex\nsub-1\tses-a\tX\tF\nsub-1\tses-b\tY\tF\n"
    (tmp_path / "participants.tsv").write_text(text)
    table = participants_table(tmp_path)
    assert find_person(table, "1", "b", None).site == "Y"
    whole = find_person(table, "1", None, None)  # the rows agree on sex alone
    assert (whole.site, whole.sex) == ("", "female")
    assert find_person(table, "2", None, None).sex == ""


def test_spelling_and_stations(tmp_path: Path) -> None:
    for number, changes in enumerate((
        {"Manufacturer": "SIEMENS"}, {"Manufacturer": "Siemens"}, {"Manufacturer": "Siemens"},
        {"Manufacturer": "GE", "StationName": "MR1"}, {"Manufacturer": "GE", "StationName": "MR2"},
        {"Manufacturer": "Philips", "StationName": "only"}, {"StationName": "alone"},
    )):
        write_run(tmp_path, number, None, **changes)
    sites = [run.site for run in collect(tmp_path).runs["T1w"]]
    assert sites == ["Siemens"] * 3 + ["GE, MR1", "GE, MR2", "Philips", "alone"]


@pytest.mark.parametrize(
    ("count", "site", "expected"),
    [
        (1, None, ["at least 5 participants", "is 1 participant", "is 1 run", "at least two"]),
        (3, 0, ["at least 5 participants", "one site", "no distances between sites"]),
        (9, None, ["No site or scanner is known", "Wilcoxon", "--site-column"]),
    ],
)
def test_what_cannot_be_computed_is_said(
    tmp_path: Path, count: int, site: int | None, expected: list[str]
) -> None:
    for number in range(count):
        write_run(tmp_path, number, site)
    group_report(tmp_path)
    said = words(tmp_path)
    for text in expected:
        assert text in said, text
    assert len(read(tmp_path / "group_T1w.tsv")) == count


def test_a_run_of_each_site_and_more(tmp_path: Path) -> None:
    """Small numbers of everything compute what they can and never fail."""
    for count, sites in ((2, 2), (3, 3), (4, 2), (5, 4), (7, 3)):
        out = tmp_path / f"{count}-{sites}"
        write_group(out, count, sites)
        group_report(out)
        assert "at a glance" in words(out)


def test_measured_only_runs(tmp_path: Path) -> None:
    for number in range(6):
        write_run(tmp_path, number, number % 2, enhanced=False)
    group_report(tmp_path)
    said = words(tmp_path)
    assert "No run has TCT before and after" in said and "no picture after" in said
    assert read(tmp_path / "group_harmonization.tsv") == []


def test_sidecars_of_an_earlier_version(tmp_path: Path) -> None:
    """No histograms of tissues: the brain's are compared, tissues by their medians."""
    for number in range(12):
        site = number % 2
        medians = {f"Median{t}{w}": 300.0 + (40 * site + number) * (w == "Before")
                   for t in ("GM", "WM") for w in ("Before", "After")}
        metrics = {"TCTBefore": 1.0 + 0.01 * number, "TCTAfter": 2.0} | medians
        write_run(tmp_path, number, site, tissues=False, Metrics=metrics)
    group_report(tmp_path)
    said = words(tmp_path)
    assert "no histograms of single tissues" in said
    assert "Median intensity, GM (after)" in said  # the same in every run
    found = statistics(tmp_path)
    assert float(found["site_share", "median GM", "before"]["value"]) > 0.9
    assert ("site_share", "median GM", "after") not in found
    assert float(found["site_auc", "histograms", "before"]["value"]) > 0.9


def test_repeated_runs_count_once_per_participant(tmp_path: Path) -> None:
    for number in range(6):
        path = write_run(tmp_path, number, None)
        for repeat in (1, 2):
            copy = path.name.replace("_desc", f"_run-{repeat}_desc")
            (path.parent / copy).write_text(path.read_text())
        path.unlink()
    group_report(tmp_path)
    assert "Over 6 participants (mean of a participant" in words(tmp_path)


def test_travelling_participants(tmp_path: Path) -> None:
    for number in range(6):
        path = write_run(tmp_path, number, 0)
        other = write_run(tmp_path, number, 1)
        other.rename(path.parent / path.name.replace("_desc", "_run-2_desc"))
        write_run(tmp_path, number, 0).rename(
            path.parent / path.name.replace("_desc", "_run-1_desc")
        )
    group_report(tmp_path)
    found = statistics(tmp_path)
    pairs = [found["distance_travelling", "WM", c] for c in ("before", "after")]
    assert [pair["n"] for pair in pairs] == ["6", "6"]
    assert float(pairs[0]["value"]) > 2 * float(pairs[1]["value"])


def test_broken_and_unfinished_runs_are_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, 1, None)
    write_run(tmp_path, 2, None).write_text("{")
    write_run(tmp_path, 3, None, enhanced=False, Metrics=None)
    for number, bad in enumerate((
        {"Edges": [0, 1], "Before": [1, 2, 3], "After": [None]},
        {"Edges": [0, 1], "Before": ["x"], "After": [[1]]},
        {"Edges": [1, 0, 3], "Before": [1, 2], "After": [1, 2]},
        {"Edges": [], "Before": [], "After": []},
        ["no histograms"],
    ), 4):
        write_run(tmp_path, number, None, Histograms=bad, AgeMonths=None, AgeStage=None)
    (tmp_path / "participants.tsv").write_bytes(b"\xff\xfe")
    group_report(tmp_path)
    said = words(tmp_path)
    assert "not valid JSON" in said and "1 run was begun and not finished" in said
    assert "participants.tsv is not UTF-8 text" in said
    people = [row["participant_id"] for row in read(tmp_path / "group_T1w.tsv")]
    assert people == [f"sub-{n:04d}" for n in (1, 4, 5, 6, 7, 8)]


def test_histograms_on_different_edges(tmp_path: Path) -> None:
    for number in range(6):
        write_run(tmp_path, number, number % 2)
    other = {"Edges": [0.0, 500, 1000], "Before": [0.5, 0.5], "After": [0.6, 0.4]}
    write_run(tmp_path, 7, 1, Histograms=other)
    group_report(tmp_path)
    assert int(statistics(tmp_path)["distance_between", "Brain", "before"]["n"]) == 12


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run 'participant' before"):
        group_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        group_report(tmp_path / "missing")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    write_group(tmp_path, 12, 2)
    first = [path.read_bytes() for path in group_report(tmp_path)]
    assert [path.read_bytes() for path in group_report(tmp_path)] == first


def test_runs_are_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 33):
        write_run(tmp_path, number, 0)
    names = [run.name for run in collect(tmp_path).runs["T1w"]]
    assert names == sorted(names, key=natural_key)


def test_what_the_pipeline_stores_is_what_the_group_level_reads() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3], 4000).reshape(20, 20, 30).astype(np.uint8)
    before = (100.0 * labels + rng.normal(0, 15, labels.shape)).astype(np.float32)
    stored = pipeline._tissue_histograms(before, before + 50, labels)
    assert set(stored) == {"BeforeGM", "BeforeWM", "AfterGM", "AfterWM"}
    histograms = {key: np.array(value, np.float32) for key, value in stored.items()}
    histograms["Edges"] = intensity.EDGES.astype(np.float32)
    for when, move in (("Before", 0), ("After", 50)):
        found = grouphistograms.quantile_functions([histograms], when)
        assert found["GM"].mean() == pytest.approx(200 + move, abs=1)
        assert found["WM"][0, 24:26].mean() == pytest.approx(300 + move, abs=2)


def test_the_site_column_reaches_the_group_level(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(6):
        write_run(out, number, 0)
    write_participants(out, 6, {"scanner": ("p", "q")})
    bids.write_dataset_files(out, tmp_path / "raw")
    arguments = [str(tmp_path / "raw"), str(out), "group", "--site-column"]
    assert run(parse_options([*arguments, "scanner"])) == 0
    assert {row["site"] for row in read(out / "group_T1w.tsv")} == {"p", "q"}
    with pytest.raises(InputError, match="columns participant_id, scanner"):
        run(parse_options([*arguments, "centre"]))


def test_the_output_stays_valid(tmp_path: Path) -> None:
    validator = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    out = tmp_path / "out"
    for label in ("01", "02"):
        derivatives.write(make_result(tmp_path, {"sub": label}), out)
    text = "participant_id\tsex\tcentre\nsub-01\tF\tx\nsub-02\tM\ty\nsub-03\tM\ty\n"
    (tmp_path / "raw" / "participants.tsv").write_text(text)
    bids.write_dataset_files(out, tmp_path / "raw")
    group_report(out)
    found = subprocess.run(
        [validator, str(out), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
