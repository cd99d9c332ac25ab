import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_run import SHA, make_result

from bmex_bids import derivatives
from bmex_bids.bids import write_dataset_files
from bmex_bids.derivatives import is_done, marker_path, read_run, run_sidecars, write

BASE = [
    "sub-01_space-T1w_desc-brain_mask",
    "sub-01_space-T1w_dseg",
    "sub-01_space-T1w_label-CSF_probseg",
    "sub-01_space-T1w_label-GM_probseg",
    "sub-01_space-T1w_label-WM_probseg",
]
ENHANCED = ["sub-01_desc-enhanced_T1w", "sub-01_desc-preproc_T1w"]
EXTRAS = ["sub-01_desc-uncertainty_T1w", "sub-01_res-hi_desc-enhanced_T1w"]


@pytest.mark.parametrize(
    ("options", "stems"),
    [
        ({}, BASE + ENHANCED),
        ({"extras": True}, BASE + ENHANCED + EXTRAS),
        ({"measure_only": True}, BASE),
    ],
)
def test_names_and_order(tmp_path: Path, options: dict[str, bool], stems: list[str]) -> None:
    written = write(make_result(tmp_path, **options), tmp_path / "out")
    anat = tmp_path / "out" / "sub-01" / "anat"
    names = {f"{stem}{ext}" for stem in stems for ext in (".nii.gz", ".json")}
    assert {path.name for path in anat.iterdir()} == names == {path.name for path in written}
    last = "sub-01_space-T1w_dseg.json" if "measure_only" in options else BASE_MARKER
    assert written[-1].name == last


BASE_MARKER = "sub-01_desc-enhanced_T1w.json"


def test_the_map_of_lesions_says_their_volume(tmp_path: Path) -> None:
    result = make_result(tmp_path)
    lesions = np.zeros(result.probabilities.shape[1:], np.float32)
    lesions[2, 2, 2:5] = 0.5, 0.6, 0.9
    write(replace(result, lesions=lesions), tmp_path / "out")
    path = tmp_path / "out" / "sub-01" / "anat" / "sub-01_space-T1w_label-L_probseg.json"
    voxel = float(np.prod(nib.load(result.job.path).header.get_zooms()))
    assert json.loads(path.read_text("utf-8"))["LesionVolume"] == round(2 * voxel / 1000, 3)


def test_images_keep_grid_codes_units_and_types(tmp_path: Path) -> None:
    result = make_result(tmp_path, extras=True)
    write(result, tmp_path / "out")
    raw = nib.load(result.job.path)
    for path in (tmp_path / "out" / "sub-01" / "anat").glob("*.nii.gz"):
        image = nib.load(path)
        whole = path.name.split("_")[-1] in ("mask.nii.gz", "dseg.nii.gz")
        assert image.get_data_dtype() == (np.uint8 if whole else np.float32), path.name
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        assert codes == (1, 2)
        assert image.header.get_xyzt_units() == ("mm", "sec")
        if "_res-hi_" in path.name:
            assert image.header.get_zooms() == (2.5, 5, 5)
        else:
            assert image.shape == raw.shape
            np.testing.assert_array_equal(image.affine, raw.affine)
    anat = tmp_path / "out" / "sub-01" / "anat"
    dseg = nib.load(anat / "sub-01_space-T1w_dseg.nii.gz")
    np.testing.assert_array_equal(np.asarray(dseg.dataobj), result.labels)
    gm = nib.load(anat / "sub-01_space-T1w_label-GM_probseg.nii.gz")
    np.testing.assert_array_equal(gm.get_fdata(), result.probabilities[1])
    preproc = nib.load(anat / "sub-01_desc-preproc_T1w.nii.gz").get_fdata()
    np.testing.assert_array_equal(preproc[~result.mask], raw.get_fdata()[~result.mask])


def test_sidecars(tmp_path: Path) -> None:
    result = make_result(tmp_path, {"sub": "01", "ses": "V1"}, extras=True)
    out = tmp_path / "out"
    write(result, out)
    uri = "bids:raw:sub-01/ses-V1/anat/sub-01_ses-V1_T1w.nii.gz"
    sidecars = list(out.rglob("*.json"))
    assert len(sidecars) == 9
    for path in sidecars:
        content = json.loads(path.read_text())
        assert content["Sources"] == [uri] and content["SpatialReference"] == uri
        assert content["Model"]["SHA256"] == SHA and content["Manufacturer"] == "Siemens"
        assert content["Odd"] == {"number": 2.0, "never": None} and "Seconds" not in content
        assert ("SkullStripped" in content) == path.name.endswith("_T1w.json")
        assert ("Resolution" in content) == ("_res-" in path.name)
        assert ("Metrics" in content) == (path == marker_path(out, result.job, measure_only=False))
    main = json.loads(marker_path(out, result.job, measure_only=False).read_text())
    assert main["SkullStripped"] is True and main["Metrics"] == result.metrics
    assert main["Histograms"] == result.histograms
    assert "1 is white matter." in main["Description"]
    assert main["InputGrid"] == {
        "Shape": [30, 36, 28],
        "VoxelSize": [5, 5, 5],
        "Orientation": "RAS",
    }
    preproc = json.loads(
        (out / f"{main['Outputs'][-3]}").with_suffix("").with_suffix(".json").read_text()
    )
    assert preproc["SkullStripped"] is False


def test_preproc_of_a_stripped_input_says_so(tmp_path: Path) -> None:
    write(make_result(tmp_path, stripped=True), tmp_path / "out")
    path = tmp_path / "out" / "sub-01" / "anat" / "sub-01_desc-preproc_T1w.json"
    assert json.loads(path.read_text())["SkullStripped"] is True


def test_is_done(tmp_path: Path) -> None:
    out, result = tmp_path / "out", make_result(tmp_path)
    job = result.job
    assert not is_done(out, job, SHA, False)
    write(result, out)
    assert is_done(out, job, SHA, False) and is_done(out, job, SHA, True)
    assert not is_done(out, job, "cd" * 32, False)
    mask = out / "sub-01" / "anat" / "sub-01_space-T1w_desc-brain_mask.nii.gz"
    mask.unlink()
    assert not is_done(out, job, SHA, False)
    write(result, out)
    marker_path(out, job, measure_only=False).write_text("{ half")
    assert not is_done(out, job, SHA, False)


def test_measured_is_not_enhanced(tmp_path: Path) -> None:
    out, result = tmp_path / "out", make_result(tmp_path, measure_only=True)
    write(result, out)
    assert is_done(out, result.job, SHA, True) and not is_done(out, result.job, SHA, False)


def test_failed_write_leaves_the_run_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = tmp_path / "out", make_result(tmp_path)
    write(result, out)
    calls = []

    def full_disk(path: Path, *args: object, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(derivatives, "save_image", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(result, out)
    assert not is_done(out, result.job, SHA, False)


def test_a_second_start_without_extras_removes_the_old_ones(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(make_result(tmp_path, extras=True), out)
    write(make_result(tmp_path), out)
    left = {path.name for path in (out / "sub-01" / "anat").iterdir()}
    assert not any("uncertainty" in name or "res-hi" in name for name in left)


def test_read_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(make_result(tmp_path, {"sub": "01", "run": "1"}, extras=True), out)
    write(make_result(tmp_path, {"sub": "01", "run": "2"}, measure_only=True), out)
    write(make_result(tmp_path, {"sub": "02", "ses": "a"}, suffix="T2w"), out)
    runs = [read_run(path) for path in run_sidecars(out)]
    found = {run.stem: run.measured_only for run in runs if run}
    assert found == {"sub-01_run-1_T1w": False, "sub-01_run-2_T1w": True, "sub-02_ses-a_T2w": False}
    assert len(run_sidecars(out, "02")) == 1 and run_sidecars(out, "03") == []


def test_an_unfinished_run_is_not_read(tmp_path: Path) -> None:
    out, result = tmp_path / "out", make_result(tmp_path)
    write(result, out)
    marker_path(out, result.job, measure_only=False).unlink()
    (sidecar,) = run_sidecars(out)
    assert read_run(sidecar) is None


def test_validator_finds_no_error(tmp_path: Path) -> None:
    validator = shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    out = tmp_path / "out"
    write_dataset_files(out, tmp_path / "raw")
    write(make_result(tmp_path, {"sub": "01", "ses": "1", "run": "1"}, extras=True), out)
    write(make_result(tmp_path, {"sub": "01", "ses": "1"}, suffix="T2w"), out)
    write(make_result(tmp_path, {"sub": "02", "ses": "1"}, measure_only=True), out)
    for name in ("sub-01.html", "group.html", "group_T1w.tsv", "group_T1w.json"):
        (out / name).write_text("x")
    (out / "sub-01" / "figures").mkdir()
    (out / "sub-01" / "figures" / "sub-01_ses-1_desc-before_T1w.png").write_text("x")
    done = subprocess.run(
        [validator, str(out), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert (done.returncode, errors) == (0, [])
    missing = [i for i in issues if i["code"] == "SIDECAR_KEY_RECOMMENDED"]
    assert not [i for i in missing if "/anat/" in i.get("location", "")]
