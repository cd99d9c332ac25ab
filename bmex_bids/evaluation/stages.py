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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bmex_bids import metrics
from bmex_bids.image import load_image
from bmex_bids.inference import Compute, enhance_volume, resolve, three_tissues
from bmex_bids.spatial import conform, model_grid
from bmex_bids.training import pool
from bmex_bids.training.degrade import Recipe, standard_recipe
from bmex_bids.training.labels import load_label_map, load_table, split
from bmex_bids.training.motion import KINDS
from bmex_bids.weights import ModelRecord, list_models, load_network, models_dir

__all__ = ["CASES", "Brain", "main", "rows_of", "summary"]

Volume = npt.NDArray[np.float32]
CASES: dict[str, Callable[[str], Recipe]] = {
    "clean": lambda kind: Recipe(),
    "minor motion": lambda kind: standard_recipe(kind, "minor", 0.02),
    "severe motion": lambda kind: standard_recipe(kind, "severe", 0.02),
    "5% noise": lambda kind: Recipe(noise=0.05),
    "2.4 mm slices": lambda kind: Recipe(slice_factor=3.0),
}
NUMBERS = ("psnr_before", "psnr", "ssim_before", "ssim", "dice_CSF", "dice_GM", "dice_WM")


@dataclass(frozen=True)
class Brain:
    """One clean brain and how to degrade it.

    Attributes:
        name: of the image or label map.
        source: ``synthetic`` or ``real``.
        make: recipe and seed -> sample, see :mod:`bmex_bids.training.pool`.
    """

    name: str
    source: str
    make: Callable[[Recipe, int], dict[str, torch.Tensor]]


def synthetic_brains(label_maps: Path, condition: str, count: int) -> Iterator[Brain]:
    """Brains of a condition's contrast from the held-out label maps."""
    table = load_table(label_maps / "dseg.tsv")
    for path in split(label_maps)[1][:count]:
        head = load_label_map(path, table)

        def make(recipe: Recipe, seed: int, head=head) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
            generator = torch.Generator().manual_seed(seed)
            return pool.enhancement_sample(
                head, table, generator, recipe, condition=condition, states=16
            )

        yield Brain(head.name, "synthetic", make)


def real_brain(path: Path, condition: str, labels: Path | None) -> Brain:
    """A clean, skull-stripped image; with labels, ``NAME_dseg.nii.gz`` in that folder."""
    image = load_image(path)
    mask = image.data > 0
    grid = model_grid(image.data.shape, image.affine, pool.GRID, mask=mask)
    inside = conform(mask.astype(np.float32), grid, order=1) > 0.5
    clean = np.where(inside, np.maximum(conform(image.data, grid), 1e-3), 0).astype(np.float32)
    tissue = None
    found = labels / path.name.replace(".nii", "_dseg.nii") if labels is not None else None
    if found is not None and found.exists():
        given = load_image(found).data
        shares = [conform((given == c).astype(np.float32), grid, order=1) for c in range(4)]
        tissue = torch.from_numpy(np.argmax(shares, axis=0).astype(np.uint8))

    def make(recipe: Recipe, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return pool.real_sample(
            torch.from_numpy(clean), generator, recipe, condition=condition, tissue=tissue,
            states=16,
        )

    return Brain(path.name.split(".")[0], "real", make)


def _peers(
    given: Volume, brain: npt.NDArray[np.bool_], thick: bool
) -> Iterator[tuple[str, Volume]]:
    """Results of methods without training."""
    import ants
    from dipy.denoise.nlmeans import nlmeans
    from dipy.denoise.noise_estimate import estimate_sigma
    from scipy.ndimage import zoom

    sigma = float(np.mean(estimate_sigma(given, N=1)))
    denoised = nlmeans(given, sigma=sigma, mask=brain, rician=True, num_threads=1)
    yield "non-local means", np.asarray(denoised, np.float32)
    image = ants.denoise_image(
        ants.from_numpy(given), mask=ants.from_numpy(brain.astype(np.float32)), noise_model="Rician"
    )
    yield "ANTs DenoiseImage", image.numpy().astype(np.float32)
    if thick:
        centres = given[:, :, 1::3]
        full = zoom(centres, (1, 1, given.shape[2] / centres.shape[2]), order=3, grid_mode=True,
                    mode="nearest")
        yield "cubic", np.where(brain, full, 0).astype(np.float32)


def rows_of(
    brain: Brain, record: ModelRecord, compute: Compute, *, number: int, peers: bool = False
) -> Iterator[dict[str, object]]:
    """One row per case and method: what it was, PSNR, SSIM, Dice of the tissues."""
    network = load_network(record)
    for case, recipe in CASES.items():
        sample = brain.make(recipe(KINDS[number % len(KINDS)]), 70_000 + number)
        given, target = (sample[key].float().numpy() for key in ("input", "target"))
        inside, truth = sample["brain"].numpy() > 0, sample["tissue"].numpy()
        shares, enhanced, _ = enhance_volume(network, given * np.float32(record.scale), compute)
        labels = three_tissues(shares).argmax(0) + 1
        truth = np.where(truth == 4, 3, truth)
        results = [("bmex", enhanced / np.float32(record.scale))]
        if peers:
            results += list(_peers(given, inside, case == "2.4 mm slices"))
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
        "--real", nargs="*", default=[], metavar="MODEL=IMAGE", help="clean images kept out"
    )
    parser.add_argument("--real-labels", type=Path, help="folder with their *_dseg.nii.gz")
    parser.add_argument("--peers", action="store_true", help="compare with untrained methods")
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
                brains.append(real_brain(Path(path), condition, args.real_labels))
        for number, brain in enumerate(brains):
            for row in rows_of(brain, record, compute, number=number, peers=args.peers):
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
