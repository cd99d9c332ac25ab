"""Seconds and megabytes that the subject report takes per run, for a head at 1 mm.

Wall time, and processor time, which is what an idle machine would need with one core. The image is
nilearn's MNI152 with a shell of scalp and Rician noise; "after" is a smoothed copy, so nothing here
says anything about enhancement. Every layer is there, the map of uncertainty too.

Run ``python benchmarks/report.py [--noise SHARE] [--keep FOLDER]``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from bmex_bids import derivatives, report
from bmex_bids.bids import Job
from bmex_bids.derivatives import Result
from bmex_bids.evaluation.demo import reference_brain
from bmex_bids.image import Image, save_image


def noisy_head(noise: float) -> tuple[Image, np.ndarray, np.ndarray]:
    """Return a noisy head, its brain mask and labels (1 CSF, 2 GM, 3 WM)."""
    image, mask, labels = reference_brain()
    top = float(np.percentile(image.data[mask], 98))
    away = ndimage.distance_transform_edt(~mask)
    head = np.where(mask, image.data, 0) + top * np.exp(-(((away - 11) / 3) ** 2)) * ~mask
    draw = np.random.default_rng(0).normal(0, noise * top, (2, *head.shape))
    data = np.sqrt((head + draw[0]) ** 2 + draw[1] ** 2).astype(np.float32)
    return Image(data, image.affine, image.header), mask, labels


def make_result(folder: Path, noise: float) -> Result:
    """Write the raw image and return what a pipeline could make of it."""
    image, mask, labels = noisy_head(noise)
    path = folder / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    save_image(path, image.data, image)
    after = np.where(mask, ndimage.gaussian_filter(image.data, 0.7), image.data)
    spread = np.abs(ndimage.gaussian_filter(after - image.data, 1.0)) * mask
    ids = ({"sub": "01"}, "T1w", {}, 360.0, "benchmark", "24", "none", None, "enhance", "")
    return Result(
        job=Job(path, folder / "raw", *ids),
        image=image,
        mask=mask,
        labels=labels,
        probabilities=np.stack([labels == k for k in (1, 2, 3)]).astype(np.float32),
        enhanced=(after * mask).astype(np.float32),
        preproc=after.astype(np.float32),
        high_res=None,
        uncertainty=spread.astype(np.float32),
        metrics={"TCTBefore": 1.0, "TCTAfter": 1.2},
        histograms={"Edges": [0.0, 1.0, 2.0], "Before": [0.4, 0.6], "After": [0.5, 0.5]},
        flags=(),
        provenance={"AgeStage": "24"},
    )


def clocked(name: str, work: Callable[[], object]) -> tuple[float, float]:
    """Do some work, print its wall and processor seconds, and return them."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    spent = time.perf_counter() - wall, time.process_time() - processor
    print(f"{name:34} {spent[0]:6.2f} s wall {spent[1]:6.2f} s processor")
    return spent


def main() -> None:
    """Print the time of each step and the size of what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise", type=float, default=0.05, help="of white matter, default 0.05")
    parser.add_argument("--keep", type=Path, help="leave the page in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        result, out = make_result(folder, args.noise), folder / "out"
        shape = " x ".join(map(str, result.image.data.shape))
        print(f"{shape} voxels, {int(result.mask.sum()):,} of brain, noise {args.noise:.0%}")
        derivatives.write(result, out)
        figures = clocked("figures", lambda: report.run_figures(out, result.job))
        page = clocked("page, libraries imported", lambda: report.subject_report(out, "01"))
        clocked("page of the next participant", lambda: report.subject_report(out, "01"))
        wall, processor = (a + b for a, b in zip(figures, page, strict=True))
        print(f"{'figures and page':34} {wall:6.2f} s wall {processor:6.2f} s processor")
        files = [*(out / "sub-01" / "figures").iterdir(), out / "sub-01.html"]
        for path in sorted(files, key=lambda path: -path.stat().st_size):
            print(f"{path.name:42} {path.stat().st_size / 1e6:6.2f} MB")
        print(f"{'all':42} {sum(path.stat().st_size for path in files) / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
