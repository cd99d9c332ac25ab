"""Small BIDS datasets of empty files, and a list of models, for tests of the plan and the app."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

SHA = "0" * 64


def make_dataset(root: Path, images: Iterable[str], files: Mapping[str, str] | None = None) -> Path:
    """Write empty images (``sub-01_ses-1_T1w.nii.gz``) and other files with their content."""
    root.mkdir(parents=True, exist_ok=True)
    text = {"dataset_description.json": '{"Name": "Test", "BIDSVersion": "1.10.0"}'}
    for name in images:
        parts = name.split("_")
        folder = root / parts[0] / (parts[1] if parts[1].startswith("ses-") else "") / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, content in (text | dict(files or {})).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def ages(**months: float) -> dict[str, str]:
    """Return participants.tsv, e.g. ``ages(**{"01": 72})``, in months."""
    rows = "".join(f"sub-{label}\t{value}\n" for label, value in months.items())
    return {
        "participants.tsv": "participant_id\tage\n" + rows,
        "participants.json": '{"age": {"Units": "months"}}',
    }


def make_models(folder: Path, *, name: str = "first", sha256: str = SHA) -> Path:
    """Write a models.json with one T1w model of the stage of 24 months and older."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {
        "name": name,
        "kind": "enhance",
        "set": "test",
        "suffixes": ["T1w"],
        "stage": "24",
        "ages_months": [21, 1200],
        "grid_mm": 0.8,
        "architecture": {"name": "UNet"},
        "file": "first.safetensors",
        "sha256": sha256,
        "version": "1",
        "licence": "CC0",
        "source": "test",
    }
    (folder / "models.json").write_text(json.dumps({"schema": 1, "models": [model]}))
    return folder
