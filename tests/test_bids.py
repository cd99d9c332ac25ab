"""Names, atomic writes and the root files of the output."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from bmex_bids import __version__, bids
from bmex_bids.bids import Job, derivative_path


def job_of(name: str, root: Path = Path("/raw")) -> Job:
    entities = bids.parse_entities(name)
    path = bids.session_dir(root, entities) / "anat" / name
    suffix = name.split(".")[0].rsplit("_", 1)[-1]
    return Job(path, root, entities, suffix, {}, 72.0, "x", "24", "m", None, "enhance", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_T1w.nii.gz", {"sub": "01"}),
        (
            "sub-01_ses-V02_acq-mprage_run-1_T2w.nii",
            {"sub": "01", "ses": "V02", "acq": "mprage", "run": "1"},
        ),
        ("T1w.json", {}),
        ("sub-a+b_T1w.json", {"sub": "a+b"}),
    ],
)
def test_entities_keep_the_order_of_the_name(name: str, expected: dict[str, str]) -> None:
    assert list(bids.parse_entities(name).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("raw", "parts", "expected"),
    [
        ("sub-01_T1w.nii.gz", {"desc": "enhanced"}, "sub-01/anat/sub-01_desc-enhanced_T1w.nii.gz"),
        (
            "sub-01_ses-1_run-2_T2w.nii.gz",
            {"space": "T2w", "label": "GM", "suffix": "probseg"},
            "sub-01/ses-1/anat/sub-01_ses-1_run-2_space-T2w_label-GM_probseg.nii.gz",
        ),
        (
            "sub-01_chunk-3_T1w.nii.gz",  # BIDS wants chunk- after space-
            {"desc": "brain", "space": "T1w", "res": "hi", "suffix": "mask", "ext": ".json"},
            "sub-01/anat/sub-01_space-T1w_chunk-3_res-hi_desc-brain_mask.json",
        ),
    ],
)
def test_derivative_path(raw: str, parts: dict[str, str], expected: str) -> None:
    assert derivative_path(Path("/out"), job_of(raw), **parts) == Path("/out") / expected


def test_an_output_never_has_the_name_of_the_raw_image() -> None:
    with pytest.raises(ValueError, match="a name of its own"):
        derivative_path(Path("/out"), job_of("sub-01_T1w.nii.gz"))


def test_source_and_stem() -> None:
    job = job_of("sub-01_ses-1_T1w.nii.gz")
    assert bids.source_uri(job) == "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert bids.output_stem(job) == "sub-01_ses-1_T1w"


def test_atomic_path_replaces_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.nii.gz"
    with bids.atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".nii.gz")
        assert temporary.name.startswith(".")
        temporary.write_text("one")
    with pytest.raises(RuntimeError), bids.atomic_path(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["a.nii.gz"]


def test_written_files_have_the_permissions_of_the_user(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        bids.write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    bids.write_json(path, {"Größe": [1, 2.5, None]})
    assert bids.read_json(path) == {"Größe": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        bids.write_json(path, {"a": float("nan")})
    assert bids.read_json(path)["Größe"]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        bids.read_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, found a list"):
        bids.read_json(path)


def test_dataset_files(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    bids.write_json(raw / "dataset_description.json", {"Name": "Study", "DatasetDOI": "doi:10.1/x"})
    bids.write_dataset_files(out, raw)
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["Name"] == "Study: enhanced by bmex"
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "bmex"
    assert description["GeneratedBy"][0]["Version"] == __version__
    assert description["DatasetLinks"] == {"raw": raw.as_uri()}
    assert description["SourceDatasets"] == [{"URL": raw.as_uri(), "DOI": "doi:10.1/x"}]
    table = [line.split("\t") for line in (out / "dseg.tsv").read_text().splitlines()]
    assert table == [["index", "name"], ["0", "background"], ["1", "CSF"], ["2", "GM"], ["3", "WM"]]
    assert "desc-enhanced\t" in (out / "descriptions.tsv").read_text()
    assert not [line for line in (out / ".bidsignore").read_text().split() if line.endswith("/")]
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    bids.write_dataset_files(out, raw)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_the_container_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = {"Type": "docker", "Tag": "bmex:1"}
    bids.write_json(tmp_path / "container.json", container)
    for name, expected in (("none.json", None), ("container.json", container)):
        monkeypatch.setattr(bids, "CONTAINER_FILE", tmp_path / name)
        bids.write_dataset_files(tmp_path / "out", tmp_path)
        description = bids.read_json(tmp_path / "out" / "dataset_description.json")
        assert description["GeneratedBy"][0].get("Container") == expected  # type: ignore[index]


def test_many_writers_of_the_root_files(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    threads = [
        threading.Thread(target=bids.write_dataset_files, args=(out, raw)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [path for path in out.iterdir() if path.name.startswith(".tmp")]
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"


def test_participants_are_carried_and_kept_up_to_date(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    bids.write_dataset_files(out, raw)
    assert not (out / "participants.tsv").exists()
    for text in ("participant_id\tsex\nsub-1\tF\n", "participant_id\tsex\nsub-2\tM\n"):
        (raw / "participants.tsv").write_text("\ufeff" + text, encoding="utf-8")
        (raw / "participants.json").write_text("{}")
        bids.write_dataset_files(out, raw)
        assert (out / "participants.tsv").read_text() == text
        assert (out / "participants.json").read_text() == "{}"
    (raw / "participants.tsv").write_bytes(b"\xff\xfe")
    bids.write_dataset_files(out, raw)
    assert (out / "participants.tsv").read_text() == text
