"""Seconds that the six measures against a reference take on one brain at 0.8 mm.

Wall time, and processor time, which is what an idle machine would need with one core.

Run ``python benchmarks/metrics.py``; the brain is nilearn's MNI152 resampled to 0.8 mm.
"""

from __future__ import annotations

import time

import numpy as np

from bmex_bids import metrics
from bmex_bids.evaluation.demo import reference_brain
from bmex_bids.spatial import conform, model_grid


def main() -> None:
    """Print value and time of every measure, 3-D and slice-wise."""
    image, mask, _ = reference_brain()
    grid = model_grid(image.data.shape, image.affine, 0.8, mask=mask)
    brain = conform(mask.astype(np.float32), grid, order=1) > 0.5
    clean = np.where(brain, np.maximum(conform(image.data, grid), 0), 0).astype(np.float32)
    noise = np.random.default_rng(1).normal(0, 50, clean.shape)
    noisy = np.where(brain, np.maximum(clean + noise, 0), 0).astype(np.float32)
    top = float(np.percentile(clean[brain], 99.9))
    print(f"{brain.sum():,} voxels of brain in {brain.shape}")
    for axis in (None, 2):
        jobs = {
            "MSE": lambda: metrics.mse(noisy / top, clean / top, brain),
            "PSNR": lambda: metrics.psnr(noisy, clean, brain, top),
            "SSIM": lambda axis=axis: metrics.ssim(noisy, clean, brain, top, axis=axis),
            "MS-SSIM": lambda axis=axis: metrics.ms_ssim(noisy, clean, brain, top, axis=axis),
            "UQI": lambda axis=axis: metrics.uqi(noisy, clean, brain, axis=axis),
            "VIF": lambda axis=axis: metrics.vif(noisy, clean, brain, top, axis=axis),
        }
        total, whole = 0.0, 0.0
        print("3-D" if axis is None else f"slice-wise, across axis {axis}")
        for name, job in jobs.items():
            start, used = time.perf_counter(), time.process_time()
            value = job()
            seconds, used = time.perf_counter() - start, time.process_time() - used
            total, whole = total + seconds, whole + used
            print(f"  {name:8s} {value:9.4f}  {seconds:6.2f} s wall  {used:6.2f} s processor")
        print(f"  {'all six':18s}  {total:6.2f} s wall  {whole:6.2f} s processor")


if __name__ == "__main__":
    main()
