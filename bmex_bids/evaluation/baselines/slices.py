"""Slices of the samples in a pool, in three orientations, paired or unpaired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def to(self, device: str) -> Slices:
        """The same on a device."""
        return Slices(self.artefact.to(device), self.paired.to(device), self.clean.to(device))


def steps_of(paths: Sequence[Path], batch: int, side: int, generator: torch.Generator) -> Iterator[
    Slices
]:
    """Random slices for ever: each with artefacts from one sample and a clean one from another.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(paths) < 2:
        raise ValueError("unpaired training needs at least two samples")
    while True:
        rows = []
        for _ in range(batch):
            one, other = torch.randperm(len(paths), generator=generator)[:2].tolist()
            artefact, paired = read_slices(paths[one], 1, side, generator)
            _, clean = read_slices(paths[other], 1, side, generator)
            rows.append((artefact, paired, clean))
        yield Slices(*(torch.cat(part) for part in zip(*rows, strict=True)))


def read_slices(
    path: Path, count: int, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random square cuts of a sample: ``input`` and ``target``, each (count, 1, side, side).

    Along each axis alike; at least a tenth of a cut is brain where the sample allows it. Half of
    them are mirrored.
    """
    with safe_open(path, framework="pt") as sample:
        given, clean, brain = (sample.get_slice(key) for key in ("input", "target", "brain"))
        cuts = [_cut(given, clean, brain, side, generator) for _ in range(count)]
    made = torch.stack(cuts).clamp(0, 4)
    return made[:, :1], made[:, 1:]


def _cut(given: Any, clean: Any, brain: Any, side: int, generator: torch.Generator) -> Tensor:
    """Of volumes on disk, of which one plane is read."""

    def below(most: int) -> int:
        return int(torch.randint(0, max(most, 1), (1,), generator=generator))

    shape = brain.get_shape()
    for _ in range(20):
        axis = below(3)
        where = [slice(low, low + side) for low in (below(size - side + 1) for size in shape)]
        index = below(shape[axis])
        where[axis] = slice(index, index + 1)
        place = tuple(where)
        if float(brain[place].float().sum()) >= 0.1 * side * side:
            break
    plane = torch.stack([volume[place].float().squeeze(axis) for volume in (given, clean)])
    plane = F.pad(plane, [0, side - plane.shape[2], 0, side - plane.shape[1]])
    return plane.flip(2) if below(2) else plane
