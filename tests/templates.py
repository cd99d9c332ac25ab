"""A TemplateFlow folder made on the spot: one small head as template, with and without cohorts."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from synthetic_run import head

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])
AFFINE[:3, 3] = -75, -88, -70
COHORTS = {
    "1": {"age": [0, 2], "units": "months"},
    "2": {"age": [2, 5], "units": "months"},
    "10": {"age": [33, 44], "units": "months"},
}


def make_template(
    home: Path, name: str = "TestBrain", *, cohort: str = "", cached: bool = True
) -> Path:
    """Write T1w (grids 1 and 2) and brain mask; empty files, as TemplateFlow's, if not cached."""
    folder = home / f"tpl-{name}"
    description: dict[str, object] = {"Identifier": name, "Name": name}
    stem = f"tpl-{name}"
    where = folder
    if cohort:
        description["cohort"] = COHORTS
        where, stem = folder / f"cohort-{cohort}", f"{stem}_cohort-{cohort}"
    where.mkdir(parents=True, exist_ok=True)
    (folder / "template_description.json").write_text(json.dumps(description))
    data, labels = head()
    coarse = AFFINE @ np.diag([2, 2, 2, 1])
    for path, voxels, affine in (
        (where / f"{stem}_res-01_T1w.nii.gz", data, AFFINE),
        (where / f"{stem}_res-01_desc-brain_mask.nii.gz", (labels > 0).astype(np.uint8), AFFINE),
        (where / f"{stem}_res-02_T1w.nii.gz", data[::2, ::2, ::2], coarse),
    ):
        if cached:
            file = nib.Nifti1Image(voxels, affine)
            file.set_sform(affine, 4)
            file.set_qform(affine, 4)
            file.header.set_xyzt_units("mm", "sec")
            nib.save(file, path)
        else:
            path.touch()
    return home
