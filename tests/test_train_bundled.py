"""scripts/train-bundled.sh: from label maps and templates to models, in one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bmex_bids.weights import list_models

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not (DATA / "label_maps").exists(), reason="the shared label maps are not here")
def test_one_command_trains_every_bundled_model(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(ROOT / "data" / "models", models)
    own = [record for record in list_models([models]) if record.set == "bundled"]
    before = {record.name: record.sha256 for record in own}
    # only one label map to read for training, and those that are kept out
    data = tmp_path / "data"
    (data / "label_maps").mkdir(parents=True)
    (data / "templates").symlink_to(DATA / "templates")
    for name in ("dseg.tsv", "head-01_dseg.nii.gz", "head-16_dseg.nii.gz"):
        (data / "label_maps" / name).symlink_to(DATA / "label_maps" / name)
    tiny = {
        "SAMPLES": "5", "STEPS": "2", "BATCH": "1", "PATCH": "32", "MASK_SAMPLES": "1",
        "MASK_STEPS": "2", "MASK_BATCH": "1", "DEVICE": "cpu", "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT), "WORKERS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [ROOT / "scripts" / "train-bundled.sh", data, tmp_path / "work", models],
        env={**os.environ, **tiny}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    after = {record.name: record for record in list_models([models])}
    assert set(after) >= set(before) and len(before) == 16
    assert all(after[name].sha256 != before[name] for name in before)
    assert after["bmex-T1w-24"].training["Steps"] == 2
