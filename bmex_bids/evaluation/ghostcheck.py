"""How well ghosts in the air tell a head that moved: heads from label maps kept out of training.

    python -m bmex_bids.evaluation.ghostcheck LABEL_MAPS

Whole heads of several contrasts with noise in the air, still or moved; and perhaps a real head
whose own air is empty (``--head``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.ghosts import STRONG, ghost_ratio
from bmex_bids.image import load_image
from bmex_bids.training import labels
from bmex_bids.training.degrade import PHASE_AXES, Recipe, degrade, standard_recipe
from bmex_bids.training.fields import uniform
from bmex_bids.training.motion import KINDS
from bmex_bids.training.stages import draw_contrast
from bmex_bids.training.synthesis import Geometry, synthesise

__all__ = ["Row", "coarse_head", "main", "measured"]

GRID = 1.6  # mm
CONTRASTS = ("T1w-24", "T2w-24", "T1w-6", "T2w-0")
SEVERITIES = ("minor", "moderate", "severe")
DRAWS = 2  # of each kind and severity, of a head


@dataclass(frozen=True)
class Row:
    """One image: ``kind`` and ``severity`` of its motion, empty where it is still."""

    kind: str
    severity: str
    ratio: float


def measured(head: Tensor, side: float, seed: int, draws: int) -> Iterator[Row]:
    """The ghost ratio of a head, still and after every kind of motion at every severity.

    Args:
        head: (x, y, z) clean, its median about 1.
        side: of its voxels, in mm.
        seed: of all that is random.
        draws: of each kind and severity, and of a still head each.
    """
    zooms = torch.full((3,), side)
    generator = torch.Generator().manual_seed(seed)
    recipes = [("", "", Recipe())]
    recipes += [(k, s, standard_recipe(k, s)) for k in KINDS for s in SEVERITIES]
    for draw in range(draws):
        for kind, severity, recipe in recipes:
            noisy = replace(
                recipe, noise=uniform(0.01, 0.06, generator),
                axis=PHASE_AXES[(seed + draw) % len(PHASE_AXES)],
            )
            made = degrade(head, zooms, noisy, generator, states=12)
            yield Row(kind, severity, ghost_ratio(made.numpy(), zooms.numpy().astype(float)))


def _heads(label_maps: Path) -> Iterator[Tensor]:
    table = labels.load_table(label_maps / "dseg.tsv")
    for number, path in enumerate(labels.split(label_maps)[1]):
        given = labels.load_label_map(path, table)
        shape = [int(size / GRID) for size in given.labels.shape]
        for condition in CONTRASTS:
            generator = torch.Generator().manual_seed(60_000 + number)
            contrast = draw_contrast(condition, table.names, table.tissue, generator)
            contrast.means[0] = 0  # air, to which the synthesis gives some intensity
            made = synthesise(
                given.labels, given.brain, contrast, table.tissue, generator,
                geometry=Geometry(GRID, (shape[0], shape[1], shape[2])),
            )
            clean = made.clean * made.bias
            yield clean / clean[made.brain].median()


def coarse_head(path: Path, factor: int) -> tuple[Tensor, Tensor]:
    """A real head (x, y, z) averaged over ``factor`` voxels, and its (3,) voxel size in mm."""
    image = load_image(path)
    coarse = F.avg_pool3d(torch.from_numpy(image.data)[None, None], factor)[0, 0]
    return coarse, factor * torch.tensor(image.zooms, dtype=torch.float32)


def _real(path: Path) -> tuple[Tensor, float]:
    """A real head at about twice its voxel size, and that size in mm."""
    coarse, zooms = coarse_head(path, 2)
    return coarse / coarse[coarse > coarse.mean()].median(), float(zooms.mean())


def _summary(rows: list[Row]) -> str:
    lines = [f"| motion | severity | n | not known | median | above {STRONG:g} |"]
    lines.append("|---|---|---|---|---|---|")
    for kind, severity in dict.fromkeys((row.kind, row.severity) for row in rows):
        found = [row.ratio for row in rows if (row.kind, row.severity) == (kind, severity)]
        known = np.array([ratio for ratio in found if np.isfinite(ratio)])
        middle = f"{np.median(known):.3f}" if known.size else ""
        lines.append(
            f"| {kind or 'none'} | {severity} | {len(found)} | {len(found) - known.size} | "
            f"{middle} | {int((known > STRONG).sum())} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for the synthetic heads, and one for the real head."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.ghostcheck", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--head", type=Path, help="a real, clean, whole head")
    args = parser.parse_args(argv)
    rows = [
        row for number, head in enumerate(_heads(args.label_maps))
        for row in measured(head, GRID, number, DRAWS)
    ]
    print(_summary(rows))
    if args.head is not None:
        head, side = _real(args.head)
        rows = [row for seed in range(4) for row in measured(head, side, seed, DRAWS)]
        print(f"\n{args.head.name}\n\n{_summary(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
