"""Run the app on real heads and state time, memory and, where a clean image is known, the gain.

Three datasets: Colin27 as it is and with simulated severe motion (whole head, adult), and a small
real dataset with messy age tables. No model was trained on any of these images.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bmex_bids import metrics
from bmex_bids.bids import write_text
from bmex_bids.image import load_image, save_image
from bmex_bids.training.degrade import degrade, standard_recipe
from bmex_bids.training.motion import KINDS

__all__ = ["Cost", "main", "make_colin", "run_app"]


@dataclass(frozen=True)
class Cost:
    """What one call of the app took: seconds, peak resident memory in GB, exit code."""

    seconds: float
    gigabytes: float
    code: int


def make_colin(head: Path, folder: Path, *, severity: str = "severe", seed: int = 3) -> None:
    """Write one head as a BIDS dataset: clean, and with each kind of motion and 2% noise."""
    image = load_image(head)
    scale = float(np.percentile(image.data[image.data > 0], 95))
    clean = torch.from_numpy(image.data / scale)
    zooms = torch.tensor(image.zooms, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    description = {"Name": "Colin27 with simulated motion", "BIDSVersion": "1.10.0",
                   "DatasetType": "raw", "Authors": ["bmex"]}
    write_text(folder / "dataset_description.json", json.dumps(description))
    write_text(folder / "README.md", "Colin27 (Holmes et al., 1998), motion simulated by bmex.\n")
    rows = ["participant_id\tage"]
    for number, kind in enumerate((None, *KINDS)):
        name = kind or "clean"
        made = clean
        if kind is not None:
            recipe = standard_recipe(kind, severity, 0.02)
            made = degrade(clean, zooms, recipe, torch.Generator().manual_seed(seed + number))
        path = folder / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(path, (made * scale).numpy().astype(np.float32), image)
        rows.append(f"sub-{name}\t27")
    write_text(folder / "participants.tsv", "\n".join(rows) + "\n")
    ages = {"age": {"Description": "age at the scan", "Units": "years"}}
    write_text(folder / "participants.json", json.dumps(ages))


def run_app(arguments: Sequence[str]) -> Cost:
    """Run ``bmex`` in a process of its own and measure it."""
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "bmex_bids.cli", *arguments], check=False, stdin=subprocess.DEVNULL
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return Cost(time.monotonic() - start, peak, process.returncode)


def _colin_table(bids: Path, out: Path) -> list[dict[str, object]]:
    """PSNR and SSIM in the brain of the clean head (its own mask), before and after."""
    clean = load_image(bids / "sub-clean" / "anat" / "sub-clean_T1w.nii.gz").data
    anat = out / "sub-clean" / "anat"
    mask = load_image(anat / "sub-clean_space-T1w_desc-brain_mask.nii.gz").data > 0
    top = float(np.percentile(clean[mask], 99.9))
    rows = []
    for name in ("clean", *KINDS):
        given = load_image(bids / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz").data
        folder = out / f"sub-{name}" / "anat"
        made = load_image(folder / f"sub-{name}_desc-preproc_T1w.nii.gz").data
        found = load_image(folder / f"sub-{name}_space-T1w_desc-brain_mask.nii.gz").data > 0
        sidecar = json.loads((folder / f"sub-{name}_desc-enhanced_T1w.json").read_text())
        ghosts = sidecar["Metrics"].get("GhostRatio")  # not known where the air is empty
        rows.append({
            "image": f"Colin27, {name}",
            "psnr_before": round(metrics.psnr(given, clean, mask, top), 2),
            "psnr_after": round(metrics.psnr(made, clean, mask, top), 2),
            "ssim_before": round(metrics.ssim(given, clean, mask, top, window="uniform"), 4),
            "ssim_after": round(metrics.ssim(made, clean, mask, top, window="uniform"), 4),
            "mask_dice_to_clean": round(metrics.dice(found, mask), 4),
            "tct_before": round(float(sidecar["Metrics"]["TCTBefore"]), 3),
            "tct_after": round(float(sidecar["Metrics"]["TCTAfter"]), 3),
            "ghosts": "n/a" if ghosts is None else round(float(ghosts), 4),
        })
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Make the datasets, run the app on each, print the costs and the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.realdata", description=__doc__
    )
    parser.add_argument("data", type=Path, help="folder with heads/ and lifespan_bids/")
    parser.add_argument("work", type=Path)
    args, rest = parser.parse_known_args(argv)
    if args.work.exists():
        shutil.rmtree(args.work)
    colin, lifespan = args.work / "colin", args.work / "lifespan"
    make_colin(args.data / "heads" / "colin27_T1w.nii.gz", colin)
    shutil.copytree(args.data / "lifespan_bids", lifespan)
    costs = {
        "one whole head (Colin27), outputs and report": run_app(
            [str(colin), str(args.work / "one"), "participant", "--participant-label", "clean",
             *rest]
        ),
        "five whole heads": run_app([str(colin), str(args.work / "out"), "participant", *rest]),
        "group": run_app([str(colin), str(args.work / "out"), "group", *rest]),
        "lifespan_bids": run_app(
            [str(lifespan), str(args.work / "lifespan-out"), "participant", *rest]
        ),
    }
    print("\n| run | seconds | peak GB so far | exit code |\n|---|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost.seconds:.0f} | {cost.gigabytes:.2f} | {cost.code} |")
    rows = _colin_table(colin, args.work / "out")
    with open(args.work / "colin.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(v) for v in row.values()) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
