"""A finished run in a standard space: files, sidecars, what is complete, what is stale."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_run import SHAPE, make_result
from templates import make_template

from bmex_bids import derivatives, registration
from bmex_bids.bids import Job, write_dataset_files
from bmex_bids.spacefiles import missing_spaces, remove_stale, space_markers, write_spaces
from bmex_bids.spaces import Space

BRAIN = Space("TestBrain")


def finished_run(folder: Path, factor: float = 0.5, **kwargs: object) -> tuple[Path, Job]:
    """Write the native derivatives of a run and return the output directory and the job."""
    result = make_result(folder, **kwargs)  # type: ignore[arg-type]
    scale = {"Enhanced": "1 is white matter.", "Preproc": "Input.", "InputFactor": factor}
    result = replace(result, provenance=result.provenance | {"IntensityScale": scale})
    out = folder / "out"
    write_dataset_files(out, folder / "raw")
    derivatives.write(result, out)
    return out, result.job


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Coarse registrations, and a private folder of templates."""
    home = tmp_path_factory.mktemp("templateflow")
    make_template(home)
    make_template(home, "TestInfant", cohort="2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "GRID_MM", 8.0)
        patch.setattr(registration, "LEVELS", (5, 5))
        patch.setenv("TEMPLATEFLOW_HOME", str(home))
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    """A T1w run in two grids of a template, and in a cohort of another, affinely."""
    out, job = finished_run(tmp_path_factory.mktemp("run"))
    write_spaces(out, job, BRAIN, [None, "2"], method="syn")
    write_spaces(out, job, Space("TestInfant", "2"), ["1"], method="affine")
    return out, job


def names(out: Path) -> set[str]:
    return {path.name for path in (out / "sub-01" / "anat").iterdir()}


def test_files(written: tuple[Path, Job]) -> None:
    out, _ = written
    for name in (
        *("space-TestBrain_desc-enhanced_T1w", "space-TestBrain_desc-input_T1w"),
        *("space-TestBrain_desc-brain_mask", "space-TestBrain_dseg"),
        *("space-TestBrain_res-2_desc-enhanced_T1w", "space-TestBrain_res-2_dseg"),
        "space-TestInfant+2_res-1_desc-enhanced_T1w",
    ):
        assert {f"sub-01_{name}.nii.gz", f"sub-01_{name}.json"} <= names(out)
    for name in (
        *("from-T1w_to-TestBrain", "from-TestBrain_to-T1w"),
        *("from-T1w_to-TestInfant+2", "from-TestInfant+2_to-T1w"),
    ):
        assert f"sub-01_{name}_mode-image_xfm.h5" in names(out)


def test_images_lie_on_the_grid_of_the_template(written: tuple[Path, Job]) -> None:
    anat = written[0] / "sub-01" / "anat"
    enhanced = nib.load(anat / "sub-01_space-TestBrain_desc-enhanced_T1w.nii.gz")
    coarse = nib.load(anat / "sub-01_space-TestBrain_res-2_desc-enhanced_T1w.nii.gz")
    assert enhanced.shape == SHAPE
    assert coarse.shape == tuple((n + 1) // 2 for n in SHAPE)
    assert int(enhanced.header["sform_code"]) == 4  # that of the template: MNI
    np.testing.assert_allclose(nib.affines.voxel_sizes(coarse.affine), 10)
    data, mask, labels, before = (
        np.asarray(nib.load(anat / f"sub-01_space-TestBrain_{name}.nii.gz").dataobj)
        for name in ("desc-enhanced_T1w", "desc-brain_mask", "dseg", "desc-input_T1w")
    )
    assert set(np.unique(mask)) == {0, 1}
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    for volume in (data, before):
        assert volume.dtype == np.float32
        assert volume[mask == 0].max() == 0
        assert volume[mask == 1].mean() > 0
    # The template is the same head: labels agree, and so do the tissues' intensities.
    from synthetic_run import head

    _, truth = head()
    both = (labels > 0) & (truth > 0)
    assert float((labels == truth)[both].mean()) > 0.8
    assert np.median(data[labels == 3]) == pytest.approx(1.0, abs=0.1)
    assert np.median(before[labels == 3]) == pytest.approx(250, abs=20)  # 500 times the factor


def test_sidecars(written: tuple[Path, Job]) -> None:
    anat = written[0] / "sub-01" / "anat"
    read = {path.name: json.loads(path.read_text()) for path in anat.glob("*space-Test*.json")}
    one = read["sub-01_space-TestInfant+2_res-1_desc-enhanced_T1w.json"]
    assert one["SpatialReference"].endswith("cohort-2/tpl-TestInfant_cohort-2_res-01_T1w.nii.gz")
    assert one["Resolution"] == "grid res-1 of the template, 5 x 5 x 5 mm"
    assert one["Sources"] == ["bids::sub-01/anat/sub-01_desc-enhanced_T1w.nii.gz"]
    assert one["SkullStripped"] is True
    source = read["sub-01_space-TestBrain_desc-input_T1w.json"]["Sources"]
    assert source == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    marker = json.loads((anat / "sub-01_from-T1w_to-TestBrain_mode-image_xfm.json").read_text())
    found = marker["Registration"]
    assert found["Name"] == "syn"
    assert found["MutualInformationAfter"] > 0.9 * found["MutualInformationBefore"]  # one head
    assert len(marker["Outputs"]) == 10


def test_validator(written: tuple[Path, Job]) -> None:
    validator = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    found = subprocess.run(
        [validator, str(written[0]), "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []


def test_native_runs_are_not_taken_for_others(written: tuple[Path, Job]) -> None:
    """The images in a space are no runs of their own."""
    sidecars = derivatives.run_sidecars(written[0])
    assert [path.name for path in sidecars] == ["sub-01_desc-enhanced_T1w.json"]


def test_what_is_missing(written: tuple[Path, Job]) -> None:
    out, job = written
    infant = Space("TestInfant", "2")
    wanted = [BRAIN, Space("TestBrain", None, "2"), Space("TestInfant", "2", "1")]
    assert missing_spaces(out, job, wanted[:2], "syn") == {}
    assert missing_spaces(out, job, wanted, "syn") == {infant: ["1"]}  # affine is not syn
    assert missing_spaces(out, job, wanted[2:], "affine") == {}
    assert missing_spaces(out, job, wanted[:1], "syn", overwrite=True) == {BRAIN: [None]}
    assert missing_spaces(out, job, [Space("TestBrain", None, "3")], "syn") == {BRAIN: ["3"]}


def test_a_lost_file_or_another_result_makes_it_missing(tmp_path: Path) -> None:
    out, job = finished_run(tmp_path)
    write_spaces(out, job, BRAIN, [None], method="affine")
    assert missing_spaces(out, job, [BRAIN], "affine") == {}
    lost = out / "sub-01" / "anat" / "sub-01_space-TestBrain_dseg.nii.gz"
    lost.unlink()
    assert missing_spaces(out, job, [BRAIN], "affine") == {BRAIN: [None]}
    lost.touch()
    remove_stale(out, job)  # nothing is
    assert len(space_markers(out, job)) == 1
    finished_run(tmp_path, factor=0.25)
    assert missing_spaces(out, job, [BRAIN], "affine") == {BRAIN: [None]}
    remove_stale(out, job)
    assert not {name for name in names(out) if "TestBrain" in name}
    assert "sub-01_desc-enhanced_T1w.nii.gz" in names(out)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        out, job = finished_run(folder)
        made = write_spaces(out, job, BRAIN, [None], method="syn")
        contents.append({path.name: path.read_bytes() for path in made})
    assert contents[0] == contents[1]


def test_two_contrasts_have_two_masks(tmp_path: Path) -> None:
    out, job = finished_run(tmp_path, suffix="T2w")
    write_spaces(out, job, BRAIN, [None], method="affine")
    made = {name for name in names(out) if "TestBrain" in name and name.endswith(".nii.gz")}
    assert made == {
        "sub-01_space-TestBrain_desc-T2wbrain_mask.nii.gz",
        "sub-01_space-TestBrain_desc-T2w_dseg.nii.gz",
        "sub-01_space-TestBrain_desc-enhanced_T2w.nii.gz",
        "sub-01_space-TestBrain_desc-input_T2w.nii.gz",
    }


def test_run_of_an_earlier_version(tmp_path: Path) -> None:
    result = make_result(tmp_path)
    out = tmp_path / "out"
    derivatives.write(result, out)
    with pytest.raises(ValueError, match="states no InputFactor.*--overwrite"):
        write_spaces(out, result.job, BRAIN, [None], method="affine")
