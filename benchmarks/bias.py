"""How well and how fast the bias field is found: nilearn's MNI152 under known fields and noise.

    python benchmarks/bias.py

Per case: TCT (labels: nilearn's tissue maps; the clean image has 2.30) of the input, after division
by the true field, and after division by the estimate; standard deviation of the logarithm of
estimate over truth in the brain; seconds of processor.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from bmex_bids import intensity, metrics
from bmex_bids.evaluation.demo import reference_brain
from bmex_bids.training.degrade import rician
from bmex_bids.training.fields import bias_field


def main() -> None:
    """Measure and print."""
    image, mask, labels = reference_brain()
    top = float(np.percentile(image.data[mask], 95))
    shape = (image.data.shape[0], image.data.shape[1], image.data.shape[2])
    print("field noise | TCT given  ideal  found | error  seconds")
    for strength in (0.0, 0.2):
        field = bias_field(shape, strength, torch.Generator().manual_seed(1)).numpy()
        for noise in (0.0, 0.05, 0.08):
            clean = torch.from_numpy((image.data * field).astype(np.float32))
            given = rician(clean, noise * top, torch.Generator().manual_seed(2)).numpy() * mask
            start = time.process_time()
            found = intensity.bias_field(given, mask, image.zooms)
            seconds = time.process_time() - start
            error = float(np.log(found / field)[mask].std())
            tct = [metrics.tct((given / f).astype(np.float32), labels) for f in (1, field, found)]
            told = "  ".join(f"{value:5.2f}" for value in tct)
            print(f"{strength:5.1f} {noise:5.0%} |     {told} | {error:.3f}  {seconds:5.1f}",
                  flush=True)


if __name__ == "__main__":
    main()
