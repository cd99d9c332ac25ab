"""What is found in a dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import make_dataset

from bmex_bids.layout import (
    InputError,
    Selection,
    check_dataset,
    find_images,
    find_mask,
    read_filters,
    sidecar_reader,
)

IMAGES = (
    "sub-01_ses-1_acq-mprage_run-1_T1w.nii.gz",
    "sub-01_ses-1_acq-mprage_run-2_T1w.nii.gz",
    "sub-01_ses-1_acq-vnav_T1w.nii.gz",
    "sub-01_ses-1_T2w.nii.gz",
    "sub-01_ses-2_T1w.nii",
    "sub-02_T1w.nii.gz",
)


def names(root: Path, **selection: object) -> list[str]:
    return [path.name for path in find_images(root, Selection(**selection))]  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    other = {
        "sub-02/func/sub-02_T1w.nii.gz": "",
        "sub-02/anat/sub-02_FLAIR.nii.gz": "",
        "derivatives/x/sub-02/anat/sub-02_desc-preproc_T1w.nii.gz": "",
        "sourcedata/sub-02/anat/sub-02_T1w.nii.gz": "",
        "out/sub-02/anat/sub-02_acq-new_T1w.nii.gz": "",
    }
    return make_dataset(tmp_path / "bids", IMAGES, other)


def test_all_images_sorted_and_nothing_else(root: Path) -> None:
    found = find_images(root, Selection(), ignore=[root / "out"])
    assert [path.name for path in found] == sorted(IMAGES)
    assert all(path.is_absolute() and path.exists() for path in found)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"participants": ("02",)}, IMAGES[5:]),
        ({"sessions": ("2",)}, IMAGES[4:5]),
        ({"suffixes": ("T2w",)}, IMAGES[3:4]),
        ({"suffixes": ("T1w",), "sessions": ("1",)}, IMAGES[:3]),
        ({"participants": ("01",), "filters": {"t1w": {"run": None}}}, (*IMAGES[2:5],)),
        ({"participants": ("01",), "filters": {"t1w": {"acquisition": "*"}}}, IMAGES[:4]),
        (
            {"filters": {"t1w": {"acquisition": ["vnav", "x"]}, "t2w": {"session": "2"}}},
            IMAGES[2:3],
        ),
        ({"filters": {"t1w": {"session": None}, "bold": {"task": "rest"}}}, (IMAGES[3], IMAGES[5])),
    ],
)
def test_selection(root: Path, selection: dict[str, object], expected: tuple[str, ...]) -> None:
    (root / "out").rename(root.parent / "out")
    assert names(root, **selection) == sorted(expected)


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"participants": ("03", "01", "4")}, "no sub-03, sub-4 (there is sub-01, sub-02)"),
        ({"sessions": ("3",)}, "no ses-3 (there is ses-1, ses-2)"),
        ({"participants": ("02",), "sessions": ("1",)}, "no ses-1 (there is none)"),
        ({"participants": ("02",), "suffixes": ("T2w",)}, "no T2w image found"),
        ({"filters": {"t1w": {"run": "9"}, "t2w": {"run": "9"}}}, "with the filter file"),
        ({"filters": {"t1w": {"flavour": "x"}}}, "'flavour' is not a recognized entity"),
    ],
)
def test_what_does_not_exist_is_named(root: Path, selection: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        names(root, **selection)
    assert said in str(caught.value)


def test_the_index_is_kept_and_shared(root: Path, tmp_path: Path) -> None:
    (root / "out").rename(root.parent / "out")
    kept = tmp_path / "index"
    assert names(root, participants=("02",), database_dir=kept) == ["sub-02_T1w.nii.gz"]
    assert (kept / "layout_index.sqlite").exists()
    assert names(root, participants=("01",), database_dir=kept) == sorted(IMAGES[:5])


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        check_dataset(tmp_path / "x")
    with pytest.raises(InputError, match=r"no dataset_description\.json"):
        check_dataset(tmp_path)
    (tmp_path / "dataset_description.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        check_dataset(tmp_path)
    (tmp_path / "dataset_description.json").write_text("{}")
    with pytest.raises(InputError, match=r"no sub-\* folder"):
        check_dataset(tmp_path)


def test_filter_file(tmp_path: Path) -> None:
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"t1w": {"run": None}}))
    assert read_filters(path) == {"t1w": {"run": None}}
    for text, said in (("{", "not valid JSON"), ('{"t1w": "x"}', "has to be an object")):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            read_filters(path)
    with pytest.raises(InputError, match="nothing"):
        read_filters(tmp_path / "nothing.json")


def test_sidecars_are_inherited(root: Path) -> None:
    for name, content in {
        "T1w.json": {"A": 0, "B": 0, "C": 0},
        "T2w.json": {"A": 9},
        "acq-vnav_T1w.json": {"A": 9},
        "sub-01/sub-01_T1w.json": {"B": 1},
        "sub-01/ses-1/anat/sub-01_ses-1_acq-mprage_T1w.json": {"C": 2, "D": 2},
        "sub-01/ses-1/anat/sub-01_ses-1_acq-mprage_run-1_T1w.json": {"D": 3},
    }.items():
        (root / name).write_text(json.dumps(content))
    read = sidecar_reader(root)
    anat = root / "sub-01/ses-1/anat"
    assert read(anat / IMAGES[0]) == ({"A": 0, "B": 1, "C": 2, "D": 3}, "")
    assert read(anat / IMAGES[1]) == ({"A": 0, "B": 1, "C": 2, "D": 2}, "")
    (root / "T1w.json").write_text("{")
    metadata, problem = sidecar_reader(root)(anat / IMAGES[0])
    assert metadata == {"B": 1, "C": 2, "D": 3}
    assert "T1w.json: not valid JSON" in problem


@pytest.mark.parametrize(
    ("mask", "image", "siblings", "found"),
    [
        ("sub-01_desc-brain_mask.nii.gz", "sub-01_T1w.nii.gz", (), True),
        ("sub-01_space-T1w_desc-brain_mask.nii.gz", "sub-01_T1w.nii.gz", (), True),
        ("sub-01_space-MNI152_desc-brain_mask.nii.gz", "sub-01_T1w.nii.gz", (), False),
        ("sub-01_space-T1w_desc-brain_mask.nii.gz", "sub-01_T2w.nii.gz", (), False),
        ("sub-01_space-T2w_desc-brain_mask.nii.gz", "sub-01_T2w.nii.gz", (), True),
        ("sub-01_desc-brain_mask.nii.gz", "sub-01_T2w.nii.gz", (), True),
        ("sub-01_desc-brain_mask.nii.gz", "sub-01_T2w.nii.gz", ("sub-01_T1w.nii.gz",), False),
        ("sub-01_desc-brain_mask.nii.gz", "sub-01_run-1_T1w.nii.gz", (), True),
        (
            "sub-01_desc-brain_mask.nii.gz",
            "sub-01_run-1_T1w.nii.gz",
            ("sub-01_run-2_T1w.nii.gz",),
            False,
        ),
        ("sub-01_run-2_desc-brain_mask.nii.gz", "sub-01_run-1_T1w.nii.gz", (), False),
        ("sub-01_res-2_desc-brain_mask.nii.gz", "sub-01_T1w.nii.gz", (), False),
    ],
)
def test_brain_masks(
    tmp_path: Path, mask: str, image: str, siblings: tuple[str, ...], found: bool
) -> None:
    dataset = make_dataset(tmp_path / "masks", [mask])
    raw = Path("/raw/sub-01/anat")
    path = find_mask(
        [tmp_path / "none", dataset], raw / image, [raw / name for name in (image, *siblings)]
    )
    assert (path is not None) == found
