"""Draw every bundled model at work: clean, degraded, enhanced, labels; one row per model.

The brains are those of :mod:`bmex_bids.evaluation.stages`: a real image kept out of training where
one is given for the model, else a synthetic one from a held-out label map.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bmex_bids.evaluation.experiments.brains import Brain, real_brain, synthetic_brains
from bmex_bids.evaluation.stages import CASES
from bmex_bids.inference import Compute, enhance_volume, resolve, three_tissues
from bmex_bids.weights import ModelRecord, list_models, load_network, models_dir

__all__ = ["main", "row_of"]

SIDE = 240  # pixels of a cell
COLOURS = np.array([[0, 0, 0], [86, 180, 233], [230, 159, 0], [240, 240, 240]], np.uint8)
"""Background, CSF, GM, WM; colour-blind-safe."""


def _cell(plane: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A square cell of a slice (x, y) or (x, y, 3), front up, in the middle of black."""
    turned = np.rot90(plane if plane.ndim == 3 else np.repeat(plane[..., None], 3, 2))
    out = np.zeros((SIDE, SIDE, 3), np.uint8)
    turned = turned[:SIDE, :SIDE]
    top, left = ((SIDE - n) // 2 for n in turned.shape[:2])
    out[top : top + turned.shape[0], left : left + turned.shape[1]] = turned
    return out


def row_of(
    brain: Brain, record: ModelRecord, case: str, kind: str, compute: Compute
) -> Image.Image:
    """Clean, degraded, enhanced, labels: one axial slice, one intensity window."""
    sample = brain.make(CASES[case](kind), 90_000)
    given, target = (sample[key].float().numpy() for key in ("input", "target"))
    inside = sample["brain"].numpy() > 0
    shares, enhanced, _ = enhance_volume(
        load_network(record), given * np.float32(record.scale), compute
    )
    labels = np.where(inside, three_tissues(shares).argmax(0) + 1, 0)
    level = int(np.argmax(inside.sum((0, 1)))) + 4
    top = float(np.percentile(target[inside], 99.5))
    grey = [
        (np.clip(v * inside / top, 0, 1) * 255).astype(np.uint8)[:, :, level]
        for v in (target, given, enhanced / np.float32(record.scale))
    ]
    cells = [*map(_cell, grey), _cell(COLOURS[labels[:, :, level]])]
    return Image.fromarray(np.concatenate(cells, 1))


def main(argv: Sequence[str] | None = None) -> int:
    """Write one picture with a row per model, in the order of models.json."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.stagefigure", description=__doc__
    )
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--models", nargs="+", required=True, help="names, one row each")
    parser.add_argument("--real", nargs="*", default=[], metavar="MODEL=IMAGE")
    parser.add_argument("--case", default="severe motion", choices=tuple(CASES))
    parser.add_argument("--kind", default="rotation", help="of the motion")
    parser.add_argument("--models-dir", type=Path)
    args = parser.parse_args(argv)
    compute = resolve("cpu", "auto")
    real = dict(argument.split("=", 1) for argument in args.real)
    rows = []
    for record in list_models(models_dir(args.models_dir)):
        if record.name not in args.models:
            continue
        condition = f"{record.suffixes[0]}-{record.stage}"
        if record.name in real:
            brain = real_brain(Path(real[record.name]), condition, None)
        else:
            brain = next(synthetic_brains(args.label_maps, condition, 1))
        rows.append(np.asarray(row_of(brain, record, args.case, args.kind, compute)))
        print(record.name, brain.source, brain.name, flush=True)
    Image.fromarray(np.concatenate(rows, 0)).save(args.picture, quality=85)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
