"""The model card of a trained model: what it is, what it was made of, what it reaches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmex_bids.bids import atomic_path
from bmex_bids.training.journal import read_rows
from bmex_bids.training.settings import Settings, to_toml
from bmex_bids.weights import ModelRecord

__all__ = ["draw_curves", "model_card"]

CARD = """\
# {name}

A model of `bmex` that enhances {suffixes} brain MRI of stage {stages}. Weights: `{file}`
(SHA-256 `{sha}`), licence: {licence}.

```bash
bmex BIDS_DIR OUTPUT_DIR participant --models-dir {folder} --model-set {set}
```

## What it is for

Research on structural brain MRI of the contrast and ages above. Not for diagnosis: enhanced
intensities are an estimate. People, scanners and pathology unlike those below were not seen in
training; look at the residual map before using the images.

## Data

{data}.

{facts}

Nobody is on both sides of the split. The people and images are listed in `models.json`, under
`training`.
{warnings}
## Validation

Whole brains of people who were kept out, degraded at random with the recipes of the training,
through the weights file as it is. They say how well simulated artefacts are undone, which is
easier than real ones.

{validation}

![loss and PSNR gain over the steps]({curves})

## Network

{parameters} parameters, {grid:g} mm voxels.

```json
{network}
```

## Settings

```toml
{settings}```
"""
MEANINGS = {
    "psnr_input": "PSNR of the degraded input, dB (range: the brain's median)",
    "psnr": "PSNR of the enhanced image, dB",
    "psnr_gain": "gain, dB",
    "dice_csf": "Dice of CSF",
    "dice_gm": "Dice of GM",
    "dice_wm": "Dice of WM",
    "dice_lesion": "Dice of white-matter lesions",
    "loss": "loss",
}


def model_card(records: Sequence[ModelRecord], settings: Settings) -> str:
    """The card of the models that share one weights file, as Markdown.

    Args:
        records: their entries, complete.
        settings: of the training.
    """
    first = records[0]
    run = first.training
    return CARD.format(
        name=", ".join(record.name for record in records),
        suffixes=" and ".join(dict.fromkeys(s for record in records for s in record.suffixes)),
        stages=", ".join(dict.fromkeys(str(record.stage) for record in records)),
        file=first.file,
        sha=first.sha256,
        licence=first.licence,
        folder=first.directory.name,
        set=first.set,
        data=run["Data"],
        facts=_facts(run),
        warnings=_warnings(run),
        validation=_table(run["Validation"]),
        curves=first.file.replace(".safetensors", "_curves.png"),
        parameters=f"{_parameters(first):,}",
        grid=first.grid_mm,
        network=json.dumps(first.architecture, indent=2),
        settings=to_toml(settings),
    )


def _facts(run: Mapping[str, Any]) -> str:
    ages = [i["age_months"] for i in run["Images"] if i["age_months"] is not None]
    labels = {i["labels"] for i in run["Images"]}
    files = any(str(label).count(".nii") for label in labels)
    start = run["StartedFrom"]
    validation = run["Curves"]["Validation"]
    facts = {
        "Ages": f"{min(ages):.4g} to {max(ages):.4g} months" if ages else "not known",
        "Tissue labels": "derivative dataset" if files else ", ".join(map(str, labels)),
        "Started from": "nothing" if start is None else f"{start['Name']} ({start['SHA256'][:12]})",
        "Dataset": ", ".join(f"{k}: {v}" for k, v in run["Dataset"].items()) or "not described",
        "Program": f"bmex {run['Versions']['bmex']}, commit {run['Commit'] or 'not known'}, "
        f"PyTorch {run['Versions']['torch']}",
        "Training": f"{run['Steps']} steps to the best validation loss, {run['Hours']:g} hours, "
        f"seed {run['Seed']}, validated {len(validation)} times",
    }
    return "\n".join(f"* {key}: {value}" for key, value in facts.items())


def _warnings(run: Mapping[str, Any]) -> str:
    told = []
    unlabelled = [i for i in run["Images"] if i["labels"] is None]
    if unlabelled and not run["LabelMaps"] and run["StartedFrom"] is None:
        told.append(
            "**Tissue classes were not trained** (no labels were given): the tissue maps, and "
            "every measure that needs them, mean nothing."
        )
    if run["Failed"]:
        told.append(f"Could not be used: {', '.join(run['Failed'])}.")
    return "".join(f"\n{text}\n" for text in told)


def _table(found: Mapping[str, float | None]) -> str:
    lines = ["| measure | mean |", "|---|---|"]
    for key, meaning in MEANINGS.items():
        value = found.get(key)
        lines.append(f"| {meaning} | {'not measured' if value is None else f'{value:.4g}'} |")
    return "\n".join(lines)


def _parameters(record: ModelRecord) -> int:
    from safetensors import safe_open

    with safe_open(record.path, framework="pt") as weights:
        sizes = [weights.get_slice(key).get_shape() for key in weights.keys()]
    total = 0
    for shape in sizes:
        count = 1
        for side in shape:
            count *= side
        total += count
    return total


def draw_curves(work: Path, path: Path) -> None:
    """Draw a run's loss and its gain on the validation samples over the steps.

    Args:
        work: folder with ``log.csv`` and ``validation.csv``.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    log, held = read_rows(work / "log.csv"), read_rows(work / "validation.csv")
    figure = Figure(figsize=(8, 3), layout="constrained")
    loss, gain = figure.subplots(1, 2)
    for key, label in (("tissue", "tissue"), ("enhance", "enhancement")):
        if log and key in log[0]:
            loss.plot([r["step"] for r in log], [r[key] for r in log], label=label)
    loss.set(xlabel="step", ylabel="training loss")
    loss.legend(frameon=False)
    gain.plot([r["step"] for r in held], [r["psnr_gain"] for r in held], marker="o")
    gain.axhline(0, color="0.7", linewidth=1)
    gain.set(xlabel="step", ylabel="PSNR gain on people kept out, dB")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
