"""What the bundled brain extraction reaches on heads from label maps kept out of training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bmex_bids import metrics
from bmex_bids.brainmask import brain_probability, clean_mask
from bmex_bids.inference import Compute, resolve
from bmex_bids.training import pool
from bmex_bids.training.degrade import Recipe, standard_recipe
from bmex_bids.training.labels import LabelMap, LabelTable, load_label_map, load_table, split
from bmex_bids.training.motion import KINDS
from bmex_bids.weights import find_mask_model, list_models, load_network, models_dir

__all__ = ["main", "mask_rows"]


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
            found = brain_probability(sample["input"].float().numpy(), network, compute) > 0.5
            found = clean_mask(found) if found.any() else found
            truth: npt.NDArray[np.bool_] = sample["brain"].numpy() > 0
            rows.append({"condition": condition, "dice": metrics.dice(found, truth)})
    return rows


def _summary(rows: list[dict[str, object]]) -> str:
    """Markdown table of the mean and the worst Dice per condition."""
    lines = ["| condition | n | Dice |", "|---|---|---|"]
    for condition in dict.fromkeys(str(r["condition"]) for r in rows):
        values = np.array([float(str(r["dice"])) for r in rows if r["condition"] == condition])
        cell = f"{values.mean():.3f} (worst {values.min():.3f})"
        lines.append(f"| {condition} | {len(values)} | {cell} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.heldout", description=__doc__
    )
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--masks", type=int, default=12, help="heads per condition")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--save", type=Path, help="write the rows as JSON")
    args = parser.parse_args(argv)
    table = load_table(args.label_maps / "dseg.tsv")
    heads = [load_label_map(p, table) for p in split(args.label_maps)[1]]
    rows = mask_rows(heads, table, resolve("cpu", "auto"), args.masks, args.models_dir)
    print(_summary(rows))
    if args.save is not None:
        args.save.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
