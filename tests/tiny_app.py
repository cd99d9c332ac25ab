"""A dataset and networks so small that a whole run of the real pipeline costs almost nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from datasets import ages, make_dataset
from safetensors.torch import save_file
from synthetic_run import head

from bmex_bids.weights import new_network

GRID_MM = 6.0
ZOOM = 5.0
PART = {"widths": [4, 8], "thin": 0, "norm": "layer"}
ARCHITECTURE = {"name": "TissueGuidedUNet", "tissue": PART, "enhance": PART}


def tiny_dataset(root: Path, images: Sequence[str]) -> Path:
    """Write heads of 30 x 36 x 28 voxels, e.g. ``sub-01_T1w``, and brain masks as derivatives.

    Args:
        root: the raw dataset becomes ``root/bids``, the masks lie in ``root/masks``.
        images: stems of the images.

    Returns:
        The raw dataset.
    """
    labels = {name.split("_")[0].removeprefix("sub-"): 96.0 for name in images}
    raw = make_dataset(root / "bids", [f"{name}.nii.gz" for name in images], ages(**labels))
    data, tissues = head()
    affine = np.diag([ZOOM, ZOOM, ZOOM, 1.0])
    for number, path in enumerate(sorted(raw.rglob("*_T1w.nii.gz"))):
        noise = np.random.default_rng(number).normal(0, 20, data.shape)
        image = nib.Nifti1Image(np.maximum(data + noise * (data > 0), 0).astype(np.float32), affine)
        image.set_qform(affine, 1)
        nib.save(image, path)
        mask = root / "masks" / path.relative_to(raw).parent
        mask.mkdir(parents=True, exist_ok=True)
        name = path.name.replace("_T1w", "_space-T1w_desc-brain_mask")
        nib.save(nib.Nifti1Image((tissues > 0).astype(np.uint8), affine), mask / name)
    description = {"Name": "masks", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (root / "masks" / "dataset_description.json").write_text(json.dumps(description))
    return raw


def tiny_models(folder: Path) -> Path:
    """Make a pair of small networks with random weights: quick, repeatable and meaningless.

    Returns:
        The folder, for ``--models-dir``; the set is called ``tiny``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file(new_network(ARCHITECTURE, "tiny").state_dict(), folder / "tiny.safetensors")
    bundled = Path(__file__).parents[1] / "data" / "models"
    listed = json.loads((bundled / "models.json").read_text())
    model = next(m for m in listed["models"] if m["stage"] == "24" and "T1w" in m["suffixes"])
    digest = hashlib.sha256((folder / "tiny.safetensors").read_bytes()).hexdigest()
    model |= {"name": "tiny", "set": "tiny", "grid_mm": GRID_MM, "architecture": ARCHITECTURE}
    model |= {"file": "tiny.safetensors", "sha256": digest}
    (folder / "models.json").write_text(json.dumps({"schema": listed["schema"], "models": [model]}))
    return folder


def tiny_argv(root: Path, out: Path, images: Sequence[str]) -> list[str]:
    """Make the dataset and the models below ``root`` and return the arguments of the app."""
    raw, models = tiny_dataset(root, images), tiny_models(root / "models")
    return [
        *(str(raw), str(out), "participant", "--skip-bids-validation"),
        *("--models-dir", str(models), "--model-set", "tiny", "--derivatives", str(root / "masks")),
        *("--device", "cpu", "--precision", "float32", "--omp-nthreads", "1", "--mem", "4G"),
    ]
