"""Slices of the samples in a pool, in three orientations, paired or unpaired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

__all__ = ["Slices", "read_slices", "steps_of"]


@dataclass(frozen=True)
class Slices:
    """Slices of one step, (b, 1, side, side), on the scale of the pool (brain median 1).

    Attributes:
        artefact: with artefacts.
        paired: the same slices without them; unpaired methods do not look at it.
        clean: without artefacts, of another sample.
    """

    artefact: Tensor
    paired: Tensor
    clean: Tensor

    def to(self, device: torch.device) -> Slices:
        """The same on a device."""
        return Slices(self.artefact.to(device), self.paired.to(device), self.clean.to(device))


def steps_of(paths: Sequence[Path], batch: int, side: int, generator: torch.Generator) -> Iterator[
    Slices
]:
    """Random slices for ever: those with artefacts from one sample, the clean ones from another.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(paths) < 2:
        raise ValueError("unpaired training needs at least two samples")
    while True:
        one, other = torch.randperm(len(paths), generator=generator)[:2].tolist()
        artefact, paired = read_slices(paths[one], batch, side, generator)
        _, clean = read_slices(paths[other], batch, side, generator)
        yield Slices(artefact, paired, clean)


def read_slices(
    path: Path, count: int, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random square cuts of a sample: ``input`` and ``target``, each (count, 1, side, side).

    Along each axis alike; at least a tenth of a cut is brain where the sample allows it. Half of
    them are mirrored.
    """
    with safe_open(path, framework="pt") as sample:
        pair = torch.stack([sample.get_tensor(key).float() for key in ("input", "target")])
        brain = sample.get_tensor("brain") > 0
    cuts = [_cut(pair, brain, side, generator) for _ in range(count)]
    made = torch.stack(cuts).clamp(0, 4)
    return made[:, :1], made[:, 1:]


def _cut(pair: Tensor, brain: Tensor, side: int, generator: torch.Generator) -> Tensor:
    def below(most: int) -> int:
        return int(torch.randint(0, max(most, 1), (1,), generator=generator))

    for _ in range(20):
        axis = below(3)
        index = below(brain.shape[axis])
        plane, mask = pair.select(axis + 1, index), brain.select(axis, index)
        lows = [below(size - side + 1) for size in mask.shape]
        box = tuple(slice(low, low + side) for low in lows)
        if mask[box].float().sum() >= 0.1 * side * side:
            break
    plane = plane[:, box[0], box[1]]
    pads = [0, side - plane.shape[2], 0, side - plane.shape[1]]
    plane = F.pad(plane, pads)
    return plane.flip(2) if below(2) else plane
