"""Mean and spread of all runs in a space."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.group import group_report
from bmex_bids.groupspaces import space_sections, spread_of
from bmex_bids.spacefiles import result_digest

SHAPE = (20, 24, 18)
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])


def volume(level: float) -> np.ndarray:
    data = np.zeros(SHAPE, np.float32)
    data[4:16, 4:20, 4:14] = level
    data[8:12, 8:16, 6:12] = 2 * level
    return data


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def in_space(out: Path, subject: str, *, before: float, after: float, stale: bool = False) -> None:
    """Write what a run leaves in a space."""
    anat = out / f"sub-{subject}" / "anat"
    main = anat / f"sub-{subject}_desc-enhanced_T1w.json"
    main.parent.mkdir(parents=True)
    main.write_text(json.dumps({"Metrics": {"TCTAfter": after}}))
    names = []
    for desc, level in (("input", before), ("enhanced", after)):
        path = anat / f"sub-{subject}_space-MNIInfant+2_desc-{desc}_T1w.nii.gz"
        write(path, volume(level))
        names.append(path.relative_to(out).as_posix())
    marker = anat / f"sub-{subject}_from-T1w_to-MNIInfant+2_mode-image_xfm.json"
    digest = "" if stale else result_digest(main)
    marker.write_text(json.dumps({"Outputs": names, "SourceSHA256": digest}))


def test_spread_is_numpys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volumes = [rng.random(SHAPE).astype(np.float32) for _ in range(4)]
    paths = [write(tmp_path / f"{i}.nii.gz", data) for i, data in enumerate(volumes)]
    paths.append(write(tmp_path / "other_grid.nii.gz", volumes[0], AFFINE * 2))
    paths.append(tmp_path / "missing.nii.gz")
    spread, left_out = spread_of(paths)
    np.testing.assert_allclose(spread.mean, np.mean(volumes, 0), rtol=1e-5)
    np.testing.assert_allclose(spread.sd, np.std(volumes, 0, ddof=1), rtol=1e-4)
    assert spread.count == 4
    assert left_out == ["other_grid.nii.gz", "missing.nii.gz"]


def test_section(tmp_path: Path) -> None:
    in_space(tmp_path, "01", before=100, after=290)
    in_space(tmp_path, "02", before=300, after=310)
    in_space(tmp_path, "03", before=900, after=900, stale=True)  # of an earlier result
    (section,) = space_sections(tmp_path)
    assert section.anchor == "T1w-space-MNIInfant-2"
    assert section.title == "T1w: all runs in MNIInfant+2"
    assert "2 of 2 T1w runs" in section.html
    assert 'src="data:image/png;base64,' in section.html
    cells = [
        part.split("<")[0] for part in section.html.split('<td class="number">')[1:]
    ]  # mean, standard deviation, percent; before and after each
    found = [float(cell) for cell in cells]
    sd = [np.std([100, 300], ddof=1), np.std([290, 310], ddof=1)]
    expected = [200, 300, sd[0], sd[1], 100 * sd[0] / 200, 100 * sd[1] / 300]
    assert found == pytest.approx(expected, rel=1e-3)


def test_nothing_to_show(tmp_path: Path) -> None:
    assert space_sections(tmp_path) == []
    in_space(tmp_path, "01", before=100, after=290)  # one run has no spread
    assert space_sections(tmp_path) == []


def test_damaged_image_is_left_out_and_named(tmp_path: Path) -> None:
    for label in ("01", "02", "03"):
        in_space(tmp_path, label, before=100, after=290)
    damaged = tmp_path / "sub-02" / "anat" / "sub-02_space-MNIInfant+2_desc-input_T1w.nii.gz"
    damaged.write_bytes(b"no image")
    (section,) = space_sections(tmp_path)
    assert damaged.name in section.html
    assert "2 of 3 T1w runs" in section.html  # neither before nor after


def test_page_has_the_section(tmp_path: Path) -> None:
    from test_spacefiles import finished_run

    out, _ = finished_run(tmp_path)
    in_space(out, "02", before=100, after=290)
    in_space(out, "03", before=300, after=310)
    group_report(out)
    page = (out / "group.html").read_text(encoding="utf-8")
    assert 'id="T1w-space-MNIInfant-2"' in page
    assert "all runs in MNIInfant+2" in page
