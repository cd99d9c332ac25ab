"""What every bundled model reaches, stage by stage, on images that none was trained on.

Synthetic brains of the stage's contrast come from label maps kept out of training, real ones from
clean images kept out; both are degraded in the same ways. Each result is compared with the clean
image inside the brain; data range: the clean brain's 99.9th percentile; SSIM is 3-D with a uniform
window of 7 voxels. ``--peers`` adds non-local means (dipy, doi:10.1109/TMI.2007.906087) and ANTs'
DenoiseImage (doi:10.1002/jmri.22003), and cubic interpolation where slices are thick.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bmex_bids import metrics
from bmex_bids.evaluation.baselines.filters import (
    Mask,
    Volume,
    ants_denoise,
    interpolated,
    non_local_means,
)
from bmex_bids.evaluation.experiments.brains import Brain, adult, real_brain, synthetic_brains
from bmex_bids.inference import Compute, enhance_volume, resolve, three_tissues
from bmex_bids.training.degrade import Recipe, standard_recipe
from bmex_bids.training.motion import KINDS
from bmex_bids.weights import ModelRecord, list_models, load_network, models_dir

__all__ = ["CASES", "main", "rows_of", "summary"]

CASES: dict[str, Callable[[str], Recipe]] = {
    "clean": lambda kind: Recipe(),
    "minor motion": lambda kind: standard_recipe(kind, "minor", 0.02),
    "severe motion": lambda kind: standard_recipe(kind, "severe", 0.02),
    "5% noise": lambda kind: Recipe(noise=0.05),
    "5% noise, 1 mm": lambda kind: Recipe(noise=0.05, voxel=(1.25, 1.25, 1.25)),
    "2.4 mm slices": lambda kind: Recipe(slice_factor=3.0),
}
NUMBERS = ("psnr_before", "psnr", "ssim_before", "ssim", "dice_CSF", "dice_GM", "dice_WM")


def _peers(
    given: Volume, brain: Mask, condition: str, *, thick: bool, ants: str | None
) -> Iterator[tuple[str, Volume]]:
    """Results of methods without training."""
    yield "non-local means", non_local_means(given, brain, condition)
    if ants is not None:
        yield "ANTs DenoiseImage", ants_denoise(ants)(given, brain, condition)
    if thick:
        yield "cubic", interpolated(3)(given, brain, condition)


def rows_of(
    brain: Brain, record: ModelRecord, compute: Compute, *, number: int, peers: bool = False,
    ants: str | None = None, cases: Sequence[str] = tuple(CASES),
) -> Iterator[dict[str, object]]:
    """One row per case and method: what it was, PSNR, SSIM, Dice of the tissues."""
    network = load_network(record)
    for case in cases:
        sample = brain.make(CASES[case](KINDS[number % len(KINDS)]), 70_000 + number)
        given, target = (sample[key].float().numpy() for key in ("input", "target"))
        inside, truth = sample["brain"].numpy() > 0, sample["tissue"].numpy()
        shares, enhanced, _ = enhance_volume(network, given * np.float32(record.scale), compute)
        labels = three_tissues(shares).argmax(0) + 1
        truth = np.where(truth == 4, 3, truth)
        results = [("bmex", enhanced / np.float32(record.scale))]
        if peers:
            results += list(_peers(
                given, inside, brain.condition, thick=case == "2.4 mm slices", ants=ants
            ))
        top = float(np.percentile(target[inside], 99.9))
        for method, volume in results:
            row: dict[str, object] = {
                "model": record.name, "source": brain.source, "image": brain.name, "case": case,
                "method": method,
            }
            for name, values in (("_before", given), ("", volume)):
                row[f"psnr{name}"] = metrics.psnr(values, target, inside, top)
                row[f"ssim{name}"] = metrics.ssim(values, target, inside, top, window="uniform")
            known = inside & (truth < 4)
            for tissue, name in ((1, "CSF"), (2, "GM"), (3, "WM")):
                found = method == "bmex" and bool((truth[known] > 0).any())
                row[f"dice_{name}"] = (
                    metrics.dice((labels == tissue) & known, (truth == tissue) & known)
                    if found
                    else float("nan")
                )
            yield row


def summary(rows: Sequence[dict[str, object]]) -> str:
    """Markdown: mean (worst) per model, source, case and method."""
    keys = ("model", "source", "case", "method")
    head = [*keys, "n", "PSNR dB", "SSIM", "Dice CSF", "Dice GM", "Dice WM"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    groups = dict.fromkeys(tuple(str(row[k]) for k in keys) for row in rows)
    for group in groups:
        chosen = [r for r in rows if tuple(str(r[k]) for k in keys) == group]
        values = {k: np.array([float(str(r[k])) for r in chosen]) for k in NUMBERS}
        gain = values["psnr"] - values["psnr_before"]
        cells = [
            f"{values['psnr_before'].mean():.2f} -> {values['psnr'].mean():.2f} "
            f"(worst {gain.min():+.2f})",
            f"{values['ssim_before'].mean():.3f} -> {values['ssim'].mean():.3f}",
        ]
        for name in ("dice_CSF", "dice_GM", "dice_WM"):
            some = values[name][np.isfinite(values[name])]
            cells.append(f"{some.mean():.3f} ({some.min():.3f})" if some.size else "")
        lines.append("| " + " | ".join([*group, str(len(chosen)), *cells]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write every row."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.stages", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--heads", type=int, default=2, help="held-out label maps per model")
    parser.add_argument("--models", nargs="+", help="names, such as bmex-T1w-24 (default: all)")
    parser.add_argument(
        "--real", nargs="*", default=[], metavar="MODEL=IMAGE",
        help="clean images kept out; MNI152 is that of nilearn, with its tissue maps",
    )
    parser.add_argument("--real-labels", type=Path, help="folder with their *_dseg.nii.gz")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--peers", action="store_true", help="compare with untrained methods")
    parser.add_argument("--ants", metavar="PYTHON", help="with antspyx: DenoiseImage is a peer")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--save", type=Path, help="write the rows as TSV")
    args = parser.parse_args(argv)
    compute = resolve("cpu", "auto")
    rows: list[dict[str, object]] = []
    for record in list_models(models_dir(args.models_dir)):
        if record.kind != "enhance" or (args.models and record.name not in args.models):
            continue
        condition = f"{record.suffixes[0]}-{record.stage}"
        brains = list(synthetic_brains(args.label_maps, condition, args.heads))
        for argument in args.real:
            name, _, path = argument.partition("=")
            if name == record.name:
                brains.append(
                    adult() if path == "MNI152"
                    else real_brain(Path(path), condition, args.real_labels)
                )
        for number, brain in enumerate(brains):
            for row in rows_of(
                brain, record, compute, number=number, peers=args.peers, ants=args.ants,
                cases=args.cases,
            ):
                rows.append(row)
                print(*(row[k] for k in ("model", "image", "case", "method")), flush=True)
            if args.save is not None:
                _save(rows, args.save)
    print("\n" + summary(rows))
    return 0


def _save(rows: Sequence[dict[str, object]], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    raise SystemExit(main())
