"""How well and how fast the bias field is found, in clean brains under known fields and noise.

    python benchmarks/bias.py [CLEAN_STRIPPED.nii.gz ...]

Of nilearn's MNI152, and of images that have no field themselves, in the box that the app looks at:
standard deviations of the logarithm, in the brain, of the true field, of the estimate, and of
estimate over truth, which is the error (an estimate of 0 was left in the image); of MNI152 also TCT
(labels: nilearn's tissue maps) of the input, after division by the true field, and after division
by the estimate; seconds of processor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from bmex_bids import intensity, metrics
from bmex_bids.evaluation.demo import reference_brain
from bmex_bids.image import load_image
from bmex_bids.spatial import box_around
from bmex_bids.training.degrade import rician
from bmex_bids.training.fields import bias_field


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", type=Path)
    adult, brain, labels = reference_brain()
    cases = [("MNI152", adult, brain, labels)]
    for path in parser.parse_args().images:
        image = load_image(path)
        cases.append((path.name.split(".")[0], image, image.data > 0, None))
    print("| image | noise | true | found | error | TCT given | ideal | corrected | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, image, mask, tissue in cases:
        box = box_around(mask, image.zooms)
        clean, inside = image.data[box], mask[box]
        top = float(np.percentile(clean[inside], 95))
        for strength in (0.0, 0.1, 0.3):
            shape = (clean.shape[0], clean.shape[1], clean.shape[2])
            field = bias_field(shape, strength, torch.Generator().manual_seed(1)).numpy()
            for noise in (0.0, 0.05):
                shown = torch.from_numpy((clean * field).astype(np.float32))
                given = rician(shown, noise * top, torch.Generator().manual_seed(2)).numpy()
                given = given * inside
                start = time.process_time()
                found = intensity.bias_field(given, inside, image.zooms)
                seconds = time.process_time() - start
                spreads = [np.log(f)[inside].std() for f in (field, found, found / field)]
                cells = [f"{noise:.0%}", *(f"{value:.3f}" for value in spreads)]
                cells += [
                    f"{metrics.tct((given / f).astype(np.float32), tissue[box]):.2f}"
                    if tissue is not None else ""
                    for f in (1, field, found)
                ]
                print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
