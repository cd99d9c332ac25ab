"""Import of the weight files that the authors of BME-X distribute.

The files are PyTorch state dictionaries; they are checked key by key, converted to safetensors
with their values untouched, and listed in a models.json as the set "published".
doi:10.1038/s41551-024-01283-7
"""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.age import STAGES
from bmex_bids.weights import ModelRecord, WeightsError, build_network, list_models, write_models

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["import_published", "published_records"]

SET = "published"
# Stage -> the authors' template's median intensity inside the brain, T1w and T2w, on their scale
# of 0 to 1000, which the networks' input is matched to. They use the template of month 0 for
# month 3 too, and that of month 12 for month 18.
SCALES: dict[str, tuple[float | None, float]] = {
    "fetal": (None, 419),
    "0": (457, 585),
    "3": (457, 585),
    "6": (265, 538),
    "9": (350, 477),
    "12": (514, 458),
    "18": (514, 458),
    "24": (341, 367),
}
MASK_SCALE = 1e-4  # the mask network takes the image divided by 10,000
FETAL_AGES = (-9.2, 0.0)  # months after birth


def published_records() -> dict[str, ModelRecord]:
    """The authors' file names, and the record of each without checksum and folder."""
    mask = _record("published-brainmask", ("T1w", "T2w"), None)
    mask = replace(
        mask,
        kind="brainmask",
        grid_mm=1.6,
        architecture={"name": "DUNet", "width": 32, "inputs": 1, "outputs": 4},
        scale=MASK_SCALE,
    )
    records = {"T1T2w-model.pt": mask}
    for stage, scales in SCALES.items():
        age = "Fetal" if stage == "fetal" else f"Month{stage}"
        for contrast, scale in zip(("T1", "T2"), scales, strict=True):
            if scale is not None:
                record = _record(f"published-{contrast}w-{stage}", (f"{contrast}w",), stage)
                records[f"BMEX-{age}-{contrast}-model.pt"] = replace(record, scale=scale)
    return records


def _record(name: str, suffixes: tuple[str, ...], stage: str | None) -> ModelRecord:
    ages = {s: (float(first), float(end)) for s, first, end in STAGES} | {"fetal": FETAL_AGES}
    return ModelRecord(
        name=name,
        kind="enhance",
        set=SET,
        suffixes=suffixes,
        stage=stage,
        ages_months=None if stage is None else ages[stage],
        grid_mm=0.75 if stage == "fetal" else 0.8,
        architecture={"name": "BMEXPair", "width": 64},
        file=f"{name}.safetensors",
        sha256="",
        version="published",
        licence="the authors' terms",
        source="Sun et al., Nat Biomed Eng 2025, doi:10.1038/s41551-024-01283-7",
    )


def import_published(folder: Path, target: Path) -> list[ModelRecord]:
    """Convert the authors' weight files in ``folder`` to a models folder of the set "published".

    Any subset of the files will do. Values stay as they are (float32). Models that are in
    ``target`` already are kept, or replaced by those of the same name.

    Raises:
        WeightsError: no such file there, or one that is damaged or does not fit; nothing is then
            added to ``target``'s models.json.
    """
    known = published_records()
    found = [folder / name for name in known if (folder / name).is_file()]
    if not found:
        raise WeightsError(
            f"{folder}: none of the published files there; expected any of {', '.join(known)}"
        )
    target.mkdir(parents=True, exist_ok=True)
    records = [_convert(path, known[path.name], target) for path in found]
    names = {record.name for record in records}
    kept = [record for record in list_models([target]) if record.name not in names]
    write_models(target, [*kept, *records])
    return records


def _convert(path: Path, record: ModelRecord, target: Path) -> ModelRecord:
    import torch
    from safetensors.torch import save

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise WeightsError(
            f"{path}: not a PyTorch file of plain weights ({first}); copy it again"
        ) from error
    state = _plain_state(state, path)
    network = build_network(record.architecture, state, where=str(path))
    content = save({key: value.contiguous() for key, value in network.state_dict().items()})
    temporary = target / f".{record.file}-{os.getpid()}"
    temporary.write_bytes(content)
    os.replace(temporary, target / record.file)
    return replace(
        record,
        sha256=hashlib.sha256(content).hexdigest(),
        training={
            "By": "the authors of BME-X",
            "File": path.name,
            "FileSHA256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
        directory=target,
    )


def _plain_state(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state without wrapper (key ``state_dict``) and without ``module.`` before its keys."""
    import torch

    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise WeightsError(f"{path}: expected a state_dict, names and tensors")
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    if len(state) != len(loaded):
        raise WeightsError(f"{path}: the same key with and without 'module.'")
    for key in [k for k in state if k.endswith(".running_mean")]:
        # counted in training only; files of early PyTorch versions lack it
        state.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return state
