"""What the bundled models reach on synthetic heads from label maps kept out of training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bmex_bids import metrics
from bmex_bids.brainmask import clean_mask, head_gain
from bmex_bids.inference import Compute, enhance_volume, mask_volume, resolve
from bmex_bids.training import pool
from bmex_bids.training.degrade import Recipe, standard_recipe
from bmex_bids.training.labels import LabelMap, LabelTable, load_label_map, load_table, split
from bmex_bids.training.motion import KINDS, SEVERITIES
from bmex_bids.weights import (
    find_mask_model,
    find_model,
    list_models,
    load_network,
    models_dir,
)

__all__ = ["enhancement_rows", "main", "mask_rows"]


def recipes(kind: str) -> dict[str, Recipe]:
    """The conditions of the table, with one kind of motion."""
    made = {name: standard_recipe(kind, name, 0.02) for name in list(SEVERITIES)[:3]}
    return {
        "clean": Recipe(),
        **made,
        "5% noise": Recipe(noise=0.05),
        "2.4 mm slices": Recipe(slice_factor=3.0),
    }


def mask_rows(
    heads: list[LabelMap], table: LabelTable, compute: Compute, count: int, models: Path | None
) -> list[dict[str, object]]:
    """Dice of the brain mask on heads of any contrast, by condition."""
    record = find_mask_model(list_models(models_dir(models)), model_set="bundled")
    network = load_network(record)
    rows: list[dict[str, object]] = []
    for condition in ("clean", "severe", "thick"):
        for number in range(count):
            generator = torch.Generator().manual_seed(50_000 + number)
            recipe = {
                "clean": Recipe(),
                "severe": standard_recipe(KINDS[number % 4], "severe"),
                "thick": Recipe(slice_axis=number % 3, slice_factor=2.5),  # 4 mm of 1.6 mm
            }[condition]
            sample = pool.mask_sample(heads[number % len(heads)], table, generator, recipe)
            volume = np.maximum(sample["input"].float().numpy(), 0)
            given = np.clip(volume * head_gain(volume), 0, 4)
            found = mask_volume(network, given, compute) > 0.5
            found = clean_mask(found) if found.any() else found
            truth: npt.NDArray[np.bool_] = sample["brain"].numpy() > 0
            rows.append({"condition": condition, "dice": metrics.dice(found, truth)})
    return rows


def enhancement_rows(
    heads: list[LabelMap],
    table: LabelTable,
    compute: Compute,
    count: int,
    models: Path | None,
) -> list[dict[str, object]]:
    """PSNR, SSIM and tissue Dice of the T1w pair of 24 months and older, by condition."""
    record = find_model(
        list_models(models_dir(models)), suffix="T1w", stage="24", model_set="bundled"
    )
    network = load_network(record)
    rows: list[dict[str, object]] = []
    for number in range(count):
        for condition, recipe in recipes(KINDS[number % 4]).items():
            generator = torch.Generator().manual_seed(70_000 + number)
            sample = pool.enhancement_sample(heads[number % len(heads)], table, generator, recipe)
            given, target = sample["input"].float().numpy(), sample["target"].float().numpy()
            brain, truth = sample["brain"].numpy() > 0, sample["tissue"].numpy()
            shares, enhanced, _ = enhance_volume(network, given, compute)
            labels = np.where(brain, shares[1:].argmax(0) + 1, 0).astype(np.uint8)
            top = float(np.percentile(target[brain], 99.9))
            row: dict[str, object] = {"condition": condition}
            for name, volume in (("before", given), ("after", enhanced)):
                row[f"psnr_{name}"] = metrics.psnr(volume, target, brain, top)
                row[f"ssim_{name}"] = metrics.ssim(volume, target, brain, top, window="uniform")
            for tissue, name in ((1, "CSF"), (2, "GM"), (3, "WM")):
                row[f"dice_{name}"] = metrics.dice(labels == tissue, truth == tissue)
            rows.append(row)
    return rows


def _summary(rows: list[dict[str, object]]) -> str:
    """Markdown table of the means (and the worst Dice of a mask) per condition."""
    keys = [k for k in rows[0] if k != "condition"]
    lines = ["| condition | n | " + " | ".join(keys) + " |", "|" + "---|" * (len(keys) + 2)]
    for condition in dict.fromkeys(str(r["condition"]) for r in rows):
        chosen = [r for r in rows if r["condition"] == condition]
        cells = []
        for key in keys:
            values = np.array([float(str(r[key])) for r in chosen])
            digits = 2 if key.startswith("psnr") else 3
            worst = f" (worst {values.min():.3f})" if key == "dice" else ""
            cells.append(f"{values.mean():.{digits}f}{worst}")
        lines.append(f"| {condition} | {len(chosen)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the two tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.heldout", description=__doc__
    )
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--masks", type=int, default=12, help="heads per condition")
    parser.add_argument("--brains", type=int, default=4, help="brains per condition")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--save", type=Path, help="write the rows as JSON")
    args = parser.parse_args(argv)
    table = load_table(args.label_maps / "dseg.tsv")
    heads = [load_label_map(p, table) for p in split(args.label_maps)[1]]
    compute = resolve("cpu", "auto")
    found: dict[str, list[dict[str, object]]] = {}
    if args.masks:
        found["brain mask"] = mask_rows(heads, table, compute, args.masks, args.models_dir)
    if args.brains:
        found["enhancement"] = enhancement_rows(
            heads, table, compute, args.brains, args.models_dir
        )
    for name, rows in found.items():
        print(f"\n{name}, held-out label maps\n\n{_summary(rows)}")
    if args.save is not None:
        args.save.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
