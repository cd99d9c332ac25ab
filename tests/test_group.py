import csv
import json
import re
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import make_result

from bmex_bids import derivatives
from bmex_bids.group import collect, group_report
from bmex_bids.rendering import natural_key

EDGES = np.linspace(0, 1.5, 61)


def density(shift: float) -> list[float]:
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    curve = np.exp(-0.5 * ((centres - 0.8 - shift) / 0.1) ** 2)
    return [float(x) for x in curve / (curve.sum() * np.diff(EDGES))]


def sidecar(
    out: Path, number: int, *, site: str | None = None, enhanced: bool = True, **changes: object
) -> Path:
    """Write the main sidecar of one run as `derivatives.write` would."""
    shift = 0.1 if site == "B" else 0.0
    rng = np.random.default_rng(number)
    tct = 1.5 + 0.1 * float(rng.normal())
    metrics: dict[str, object] = {"TCTBefore": tct, "VolumeGM": 700 + 5 * float(rng.normal())}
    histograms = {"Edges": EDGES.tolist(), "Before": density(shift + 0.01 * float(rng.normal()))}
    histograms["Reference"] = density(0)
    if enhanced:
        metrics |= {"TCTAfter": tct + 0.3 + 0.05 * float(rng.normal()), "QualityIndex": 0.8}
        histograms["After"] = density(0.01 * float(rng.normal()))
    content: dict[str, object] = {
        "AgeMonths": 24 + 10 * (number % 7),
        "AgeSource": "participants.tsv:age",
        "AgeStage": "24",
        "Model": {"Name": "m", "SHA256": "ab"},
        "Metrics": metrics,
        "Histograms": histograms,
        "Flags": [],
    }
    if site:
        content |= {"InstitutionName": site, "Manufacturer": "GE", "MagneticFieldStrength": 3}
    anat = out / f"sub-{number:02d}" / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    kind = "desc-enhanced_T1w" if enhanced else "space-T1w_dseg"
    path = anat / f"sub-{number:02d}_{kind}.json"
    path.write_text(json.dumps(content | changes))
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def words(out: Path) -> str:
    text = (out / "group.html").read_text()
    return re.sub(
        r"\s+", " ", re.sub(r"<svg.*?</svg>|<script.*?</script>|<[^>]+>", " ", text, flags=re.S)
    )


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
    names = ["group_T1w.tsv", "group_T1w.json", "group_T2w.tsv", "group_T2w.json", "group.html"]
    assert [path.name for path in written] == names
    first, second = read(out / "group_T1w.tsv")
    assert (first["run"], second["run"], second["acquisition"]) == ("2", "10", "x") or (
        first["run"],
        second["run"],
    ) == ("10", "2")
    row = first if first["run"] == "2" else second
    assert row["participant_id"] == "sub-01" and row["session_id"] == "ses-1"
    assert row["acquisition"] == "n/a" and row["site"] == "Siemens 3 T"
    assert (row["TCTBefore"], row["TCTAfter"], row["VolumeGM"]) == ("2", "2.5", "700.5")
    assert row["flags"] == "first warning | second" and row["n_flags"] == "2"
    assert row["report"] == "sub-01.html" and (out / row["sidecar"]).is_file()
    dictionary = json.loads((out / "group_T1w.json").read_text())
    assert set(dictionary) == set(row)
    assert all(entry["Description"] for entry in dictionary.values())
    assert dictionary["VolumeGM"]["Units"] == "mL"
    (measured,) = read(out / "group_T2w.tsv")
    assert measured["enhanced"] == "no" and measured["session_id"] == "n/a"
    assert "TCTAfter" not in measured and measured["report"] == "n/a"


def test_page_of_two_sites(tmp_path: Path) -> None:
    for number in range(24):
        sidecar(tmp_path, number, site="AB"[number % 2])
        (tmp_path / f"sub-{number:02d}.html").write_text("page")
    sidecar(tmp_path, 24, site="A", Metrics={"TCTBefore": 9.0, "TCTAfter": 9.5}, Flags=["<odd>"])
    group_report(tmp_path)
    text = (tmp_path / "group.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    page = re.sub(r"<svg.*?</svg>", "", text, flags=re.S)
    assert "http" not in page and "<odd>" not in page and "&lt;odd&gt;" in page
    assert 'href="sub-03.html#sub-03_T1w"' in page
    for link in re.findall(r'href="(sub-[^"#]+)', page):
        assert (tmp_path / link).exists()
    said = words(tmp_path)
    assert "TCT is higher after enhancement in 25 of 25 runs" in said
    assert "Cohen's d_z" in said.replace("&#39;", "'") and "Wilcoxon" in said
    assert "before between sites" in said and "after within a site" in said
    assert "Brain, median 25" in said
    assert re.search(r"sub-24_T1w TCT before 9.00 \+", said)


def test_harmonisation_shows_in_the_numbers(tmp_path: Path) -> None:
    for number in range(20):
        sidecar(tmp_path, number, site="AB"[number % 2])
    group_report(tmp_path)
    said = words(tmp_path)
    share = re.search(r"Brain, median 20 (\d+)% . (\d+)% 5%", said)
    assert share and int(share[1]) > 90 and int(share[2]) < 40
    between = [float(x) for x in re.findall(r"between sites \d+ ([\d.]+)", said)]
    assert between[0] == pytest.approx(0.1, abs=0.02) and between[1] < 0.03


def test_what_the_scale_makes_constant_is_said(tmp_path: Path) -> None:
    same = {"Edges": EDGES.tolist(), "Before": density(0), "After": density(0)}
    for number in range(8):
        rng = np.random.default_rng(number)
        medians = {"MedianGMBefore": 0.7 + 0.1 * (number % 2) + 0.01 * float(rng.normal())}
        metrics = {"TCTBefore": 1.0, "TCTAfter": 2.0, "MedianGMAfter": 0.75} | medians
        sidecar(tmp_path, number, site="AB"[number % 2], Metrics=metrics, Histograms=same)
    group_report(tmp_path)
    said = words(tmp_path)
    assert "Brain, median, Brain, 75th percentile: the same in every run" in said
    assert re.search(r"GM, median 8 \d+% . no variance", said)


@pytest.mark.parametrize(
    ("count", "site", "expected"),
    [
        (1, None, ["needs at least 5 participants", "is 1 participant", "is 1 run", "no site"]),
        (3, "A", ["at least 5 participants", "one site only", "All runs come from one site"]),
        (9, None, ["name no site or scanner", "Wilcoxon"]),
    ],
)
def test_what_cannot_be_computed_is_said(
    tmp_path: Path, count: int, site: str | None, expected: list[str]
) -> None:
    for number in range(count):
        sidecar(tmp_path, number, site=site)
    group_report(tmp_path)
    said = words(tmp_path)
    for text in expected:
        assert text in said, text
    assert len(read(tmp_path / "group_T1w.tsv")) == count


def test_measured_only_runs(tmp_path: Path) -> None:
    for number in range(6):
        sidecar(tmp_path, number, site="A", enhanced=False)
    group_report(tmp_path)
    assert "the runs were measured only" in words(tmp_path)


def test_repeated_runs_count_once_per_participant(tmp_path: Path) -> None:
    for number in range(6):
        path = sidecar(tmp_path, number)
        for run in (1, 2):
            copy = path.name.replace("_desc", f"_run-{run}_desc")
            (path.parent / copy).write_text(path.read_text())
        path.unlink()
    group_report(tmp_path)
    assert "Over 6 participants (mean of a participant" in words(tmp_path)


def test_broken_and_unfinished_runs_are_named_and_left_out(tmp_path: Path) -> None:
    sidecar(tmp_path, 1)
    sidecar(tmp_path, 2).write_text("{")
    sidecar(tmp_path, 3, enhanced=False, Metrics=None)
    bad = {"Edges": [0, 1], "Before": [1, 2, 3], "After": ["x"]}
    sidecar(tmp_path, 4, Histograms={**bad, "After": [None]}, AgeMonths=None, AgeStage=None)
    group_report(tmp_path)
    said = words(tmp_path)
    assert "not valid JSON" in said and "1 run was begun and not finished" in said
    assert [row["participant_id"] for row in read(tmp_path / "group_T1w.tsv")] == [
        "sub-01",
        "sub-04",
    ]


def test_histograms_on_different_edges(tmp_path: Path) -> None:
    for number in range(6):
        sidecar(tmp_path, number, site="AB"[number % 2])
    other = {"Edges": [0.0, 0.75, 1.5], "Before": [0.5, 0.8], "After": [0.4, 0.9]}
    sidecar(tmp_path, 7, site="B", Histograms=other)
    group_report(tmp_path)
    assert "before between sites" in words(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run 'participant' before"):
        group_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        group_report(tmp_path / "missing")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for number in range(8):
        sidecar(tmp_path, number, site="AB"[number % 2])
    pages = [group_report(tmp_path)[-1].read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


def test_cost_is_linear_in_runs(tmp_path: Path) -> None:
    """500 runs are read in the share that the budget of 60 s for 10,000 gives them."""
    for number in range(500):
        sidecar(tmp_path, number, site="AB"[number % 2])
    start = time.perf_counter()
    collected = collect(tmp_path)
    assert time.perf_counter() - start < 3
    names = [run.name for run in collected.runs["T1w"]]
    assert len(names) == 500 and names == sorted(names, key=natural_key)
