"""The demonstration: a small BIDS dataset made of one real brain, enhanced and measured.

nilearn's bundled MNI152 T1w average (1 mm, skull-stripped) is degraded in different ways, one per
participant; the app runs on the result as a user would run it; PSNR, SSIM and TCT are taken against
the clean image, with nilearn's own tissue maps as labels. No model was trained on this image.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from bmex_bids import cli, metrics
from bmex_bids.bids import write_text
from bmex_bids.image import Image, load_image, save_image
from bmex_bids.training.degrade import Recipe, degrade, standard_recipe

__all__ = ["CASES", "Row", "main", "make_dataset", "measure", "reference_brain"]

Array = npt.NDArray[np.float32]


CASES: dict[str, tuple[str, str, Recipe]] = {
    # label: (what was done, age as the table gives it, recipe)
    "clean": ("nothing", "29", Recipe()),
    "motion": ("severe rotation, 2% noise", "31", standard_recipe("rotation", "severe", 0.02)),
    "periodic": ("moderate periodic motion", "64", standard_recipe("periodic", "moderate")),
    "noisy": ("8% Rician noise", "2.5", Recipe(noise=0.08)),
    "thick": ("3 mm slices along z", "47", Recipe(slice_axis=2, slice_factor=3.0)),
}


@dataclass(frozen=True)
class Row:
    """One participant's result: values before and after against the clean image."""

    name: str
    done: str
    psnr: tuple[float, float]
    ssim: tuple[float, float]
    tct: tuple[float, float]


def reference_brain() -> tuple[Image, npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """MNI152 on a 0 to 1000 scale with its brain mask and labels (0 to 3) from nilearn's maps."""
    folder = files("nilearn") / "datasets" / "data"

    def load(name: str) -> nib.Nifti1Image:
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        return nib.Nifti1Image.from_filename(str(path))

    brain = load("t1")
    data = np.asarray(brain.dataobj, np.float32)
    grey, white = (np.asarray(load(n).dataobj, np.float32) for n in ("gm", "wm"))
    grey, white = grey / grey.max(), white / white.max()
    mask = data > 0
    labels = np.where(mask, metrics.CSF, 0).astype(np.uint8)
    labels[(grey > 0.5) & mask] = metrics.GM
    labels[(white > 0.5) & mask] = metrics.WM
    data = np.where(mask, data / data.max() * 1000, 0).astype(np.float32)
    return Image(data, np.asarray(brain.affine, np.float64), brain.header.copy()), mask, labels


def make_dataset(folder: Path, image: Image, *, seed: int = 7) -> None:
    """Write the degraded copies of a clean brain as a BIDS dataset with ages and units."""
    description = {"Name": "bmex demonstration", "BIDSVersion": "1.10.0", "DatasetType": "raw",
                   "License": "MNI152: see nilearn's data licence", "Authors": ["bmex"]}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "dataset_description.json", json.dumps(description, indent=2))
    write_text(folder / "README.md", "MNI152 (nilearn) with simulated artefacts, made by bmex.\n")
    rows = ["participant_id\tage\tdone"]
    zooms = torch.tensor(image.zooms, dtype=torch.float32)
    scale = float(np.percentile(image.data[image.data > 0], 95))
    for number, (name, (done, age, recipe)) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed + number)
        clean = torch.from_numpy(image.data / scale)
        made = degrade(clean, zooms, recipe, generator).numpy() * scale
        path = folder / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        # the degraded brain is stripped again, as the clean one is
        save_image(path, np.where(image.data > 0, made, 0).astype(np.float32), image)
        rows.append(f"sub-{name}\t{age}\t{done}")
    write_text(folder / "participants.tsv", "\n".join(rows) + "\n")
    columns = {
        "age": {"Description": "age at the scan", "Units": "years"},
        "done": {"Description": "artefact simulated in the image"},
    }
    write_text(folder / "participants.json", json.dumps(columns, indent=2))


def measure(
    bids: Path, out: Path, image: Image, mask: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.uint8],
) -> list[Row]:
    """PSNR, SSIM (data range: the clean brain's 99.9th percentile) and TCT, before and after."""
    top = float(np.percentile(image.data[mask], 99.9))
    rows = []
    for name, (done, _, _) in CASES.items():
        given = load_image(bids / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz").data
        made = load_image(out / f"sub-{name}" / "anat" / f"sub-{name}_desc-preproc_T1w.nii.gz").data
        rows.append(
            Row(
                name,
                done,
                (metrics.psnr(given, image.data, mask, top),
                 metrics.psnr(made, image.data, mask, top)),
                (metrics.ssim(given, image.data, mask, top, window="uniform"),
                 metrics.ssim(made, image.data, mask, top, window="uniform")),
                (metrics.tct(given, labels), metrics.tct(made, labels)),
            )
        )
    return rows


def _table(rows: Sequence[Row]) -> str:
    head = ("participant", "artefact", "PSNR dB", "SSIM", "TCT")
    lines = [head, *(
        (r.name, r.done, f"{r.psnr[0]:.2f} -> {r.psnr[1]:.2f}",
         f"{r.ssim[0]:.3f} -> {r.ssim[1]:.3f}", f"{r.tct[0]:.2f} -> {r.tct[1]:.2f}")
        for r in rows
    )]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _picture(figures: Path, stem: str, target: Path) -> None:
    """Put the report's pictures before and after side by side, 1600 pixels wide."""
    from PIL import Image

    panels = [Image.open(figures / f"{stem}_desc-{when}_T1w.jpg") for when in ("before", "after")]
    width, height = panels[0].size
    both = Image.new("RGB", (2 * width, height))
    for place, panel in enumerate(panels):
        both.paste(panel, (place * width, 0))
    small = both.resize((1600, round(height * 800 / width)), Image.Resampling.LANCZOS)
    small.quantize(128).save(target, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the dataset, run both levels of the app, print the table and the reports' paths."""
    parser = argparse.ArgumentParser(prog="python -m bmex_bids.evaluation.demo",
                                     description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--picture", type=Path, help="write before and after of one case, as PNG")
    args = parser.parse_args(argv)
    bids, out = args.folder / "bids", args.folder / "derivatives"
    image, mask, labels = reference_brain()
    make_dataset(bids, image)
    extra = ["--models-dir", str(args.models_dir)] if args.models_dir else []
    code = cli.main([str(bids), str(out), "participant", *extra])
    code = cli.main([str(bids), str(out), "group", *extra]) or code
    if code:
        return code
    rows = measure(bids, out, image, mask, labels)
    print("\nAgainst the clean image, inside the brain, before -> after "
          "(desc-preproc; labels: nilearn's tissue maps):\n")
    print(_table(rows))
    with open(out / "demo.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "done", "psnr_before", "psnr_after", "ssim_before", "ssim_after",
                         "tct_before", "tct_after"])
        writer.writerows((r.name, r.done, *r.psnr, *r.ssim, *r.tct) for r in rows)
    if args.picture is not None:
        _picture(out / "sub-noisy" / "figures", "sub-noisy", args.picture)
    print("\nReports:")
    for page in sorted(out.glob("sub-*.html")) + [out / "group.html"]:
        print(f"  {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
