"""The app from end to end with the bundled weights, as a user runs it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bmex_bids import metrics
from bmex_bids.evaluation.demo import reference_brain
from bmex_bids.image import load_image
from bmex_bids.spatial import conform, model_grid
from bmex_bids.weights import list_models, models_dir

AXES = np.array([[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def bmex(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bmex_bids.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real brain at 1.5 mm (to be quick), noisy, for two people; one damaged; one baby."""
    root = tmp_path_factory.mktemp("bids")
    image, _, _ = reference_brain()
    grid = model_grid(image.data.shape, image.affine, 1.5)
    data = np.maximum(conform(image.data, grid), 0)
    data[data < 20] = 0
    rng = np.random.default_rng(1)
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "test", "BIDSVersion": "1.10.0"})
    )
    (root / "participants.tsv").write_text(
        "participant_id\tage\nsub-01\t30\nsub-02\t2.5\nsub-03\t40\nsub-04\t0.5\n"
    )
    (root / "participants.json").write_text(json.dumps({"age": {"Units": "years"}}))
    for label in ("01", "02", "03", "04"):
        path = root / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        noisy = np.where(data > 0, np.maximum(data + rng.normal(0, 30, data.shape), 1), 0)
        # another orientation than RAS, and both codes
        file = nib.Nifti1Image(noisy[::-1].astype(np.int16), _flipped(grid.affine, data.shape))
        file.set_sform(file.affine, 2)
        file.set_qform(file.affine, 1)
        file.header.set_xyzt_units("mm", "sec")
        file.to_filename(path)
    damaged = root / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    return root


def _flipped(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    turn = AXES.copy()
    turn[0, 3] = shape[0] - 1
    return affine @ turn


@pytest.fixture(scope="module")
def outputs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bmex"
    done = bmex(dataset, out, "participant", "--participant-label", "01", "02", "--high-res",
                "--skip-bids-validation")
    assert done.returncode == 0, done.stderr
    return out


def test_bundled_weights_are_whole() -> None:
    records = list_models(models_dir(None))
    assert {r.kind for r in records} >= {"brainmask", "enhance"}
    for record in records:
        assert record.training["HeldOutLabelMaps"]


def test_every_promised_file(outputs: Path) -> None:
    anat = outputs / "sub-01" / "anat"
    for name in (
        "desc-enhanced_T1w", "res-hi_desc-enhanced_T1w", "desc-preproc_T1w",
        "space-T1w_desc-brain_mask", "space-T1w_dseg", "space-T1w_label-CSF_probseg",
        "space-T1w_label-GM_probseg", "space-T1w_label-WM_probseg",
    ):
        assert (anat / f"sub-01_{name}.nii.gz").exists(), name
        assert (anat / f"sub-01_{name}.json").exists(), name
    assert (outputs / "sub-01.html").exists()
    assert (outputs / "dataset_description.json").exists()


def test_grid_and_header_survive(dataset: Path, outputs: Path) -> None:
    raw = nib.load(dataset / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    for name in ("desc-enhanced_T1w", "desc-preproc_T1w", "space-T1w_dseg"):
        made = nib.load(outputs / "sub-01" / "anat" / f"sub-01_{name}.nii.gz")
        assert made.shape == raw.shape
        np.testing.assert_allclose(made.affine, raw.affine, atol=1e-5)
        assert int(made.header["sform_code"]) == 2
        assert int(made.header["qform_code"]) == 1
        assert made.header.get_xyzt_units() == ("mm", "sec")
    preproc = nib.load(outputs / "sub-01" / "anat" / "sub-01_desc-preproc_T1w.nii.gz")
    mask = nib.load(outputs / "sub-01" / "anat" / "sub-01_space-T1w_desc-brain_mask.nii.gz")
    outside = np.asarray(mask.dataobj) == 0
    assert preproc.get_data_dtype() == np.float32
    np.testing.assert_array_equal(
        np.asarray(preproc.dataobj)[outside], np.asarray(raw.dataobj, np.float32)[outside]
    )


def test_sidecar_and_enhancement(dataset: Path, outputs: Path) -> None:
    path = outputs / "sub-02" / "anat" / "sub-02_desc-enhanced_T1w.json"
    sidecar = json.loads(path.read_text(encoding="utf-8"))
    assert sidecar["AgeMonths"] == pytest.approx(30)
    assert sidecar["AgeStage"] == "24"
    assert "participants.tsv" in sidecar["AgeSource"]
    assert set(sidecar["Model"]) >= {"Name", "SHA256"}
    assert sidecar["Sources"] == ["bids:raw:sub-02/anat/sub-02_T1w.nii.gz"]
    measures = sidecar["Metrics"]
    for key in (
        "TCTBefore", "TCTAfter", "QualityIndex", "CNRBefore", "CNRAfter", "CJVBefore", "CJVAfter",
        "HistogramDistanceBefore", "HistogramDistanceAfter", "VolumeCSF", "VolumeGM", "VolumeWM",
    ):
        assert np.isfinite(measures[key]), key
    # the network's own effect, on the input's scale: less noise within the tissues
    anat = outputs / "sub-02" / "anat"
    labels = load_image(anat / "sub-02_space-T1w_dseg.nii.gz").data.astype(np.uint8)
    raw = load_image(dataset / "sub-02" / "anat" / "sub-02_T1w.nii.gz").data
    made = load_image(anat / "sub-02_desc-preproc_T1w.nii.gz").data
    assert metrics.tct(raw, labels) == pytest.approx(measures["TCTBefore"], rel=1e-3)
    assert metrics.tct(made, labels) > metrics.tct(raw, labels)
    enhanced = load_image(anat / "sub-02_desc-enhanced_T1w.nii.gz").data
    assert metrics.tct(enhanced, labels) == pytest.approx(measures["TCTAfter"], rel=1e-3)


def test_group_and_validator(outputs: Path, dataset: Path) -> None:
    done = bmex(dataset, outputs, "group")
    assert done.returncode == 0, done.stderr
    with open(outputs / "group_T1w.tsv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [r["participant_id"] for r in rows] == ["sub-01", "sub-02"]
    page = (outputs / "group.html").read_text(encoding="utf-8")
    assert '"page": [1, 1]' in page  # both rows open the report of their subject
    assert not re.findall(r"""(?:src=|<link[^>]+href=|@import |url\()["']?https?:""", page)
    validator = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    found = subprocess.run(
        [validator, str(outputs), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []


def test_second_start_does_only_what_is_missing(dataset: Path, outputs: Path) -> None:
    anat = outputs / "sub-01" / "anat"
    before = {p.name: p.stat().st_mtime_ns for p in anat.iterdir()}
    (outputs / "sub-02" / "anat" / "sub-02_desc-preproc_T1w.nii.gz").unlink()
    done = bmex(dataset, outputs, "participant", "--participant-label", "01", "02", "--high-res",
                "--skip-bids-validation")
    assert done.returncode == 0, done.stderr
    assert {p.name: p.stat().st_mtime_ns for p in anat.iterdir()} == before
    assert (outputs / "sub-02" / "anat" / "sub-02_desc-preproc_T1w.nii.gz").exists()


def test_one_bad_run_harms_no_other(dataset: Path, outputs: Path) -> None:
    done = bmex(dataset, outputs, "participant", "--skip-bids-validation")
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "damaged or truncated" in said
    assert (outputs / "logs" / "crash-sub-03_T1w.txt").exists()
    assert "damaged or truncated" in (outputs / "sub-03.html").read_text(encoding="utf-8")
    # the baby of six months has the model of its age
    baby = json.loads((outputs / "sub-04" / "anat" / "sub-04_desc-enhanced_T1w.json").read_text())
    assert baby["AgeStage"] == "6"
    assert baby["Model"]["Name"] == "bmex-T1w-6"
    assert (outputs / "sub-01" / "anat" / "sub-01_desc-enhanced_T1w.json").exists()
