"""Patches of the samples in a pool, read ahead of the network."""

from __future__ import annotations

import math
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bmex_bids.brainmask import head_gain
from bmex_bids.training.degrade import PHASE_AXES, STRONGEST_NOISE, rician
from bmex_bids.training.fields import chance, uniform
from bmex_bids.training.settings import Settings, by_slices
from bmex_bids.training.stages import CONDITIONS

__all__ = ["Read", "condition_of", "read_ahead", "sample_paths"]


@dataclass(frozen=True)
class Read:
    """One batch, with what is needed to go on after it.

    Attributes:
        batch: ``input``, ``target`` (b, x, y, z) float32 and ``tissue``, ``brain``, ``condition``
            as the samples have them.
        generator: state of the generator after the batch was drawn.
        pool: samples that there were to draw from.
    """

    batch: dict[str, Tensor]
    generator: Tensor
    pool: int


def condition_of(given: Tensor | None) -> int:
    """The number of a sample's condition; the first pools, of one condition, do not say it."""
    return CONDITIONS.index("T1w-24") if given is None else int(given)


def sample_paths(folder: Path) -> list[Path]:
    """The samples of a pool, sorted.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))
    if not paths:
        raise FileNotFoundError(f"no samples in {folder}")
    return paths


def read_ahead(
    folder: Path, settings: Settings, generator: torch.Generator, step: int
) -> Generator[Read, None, None]:
    """The batches from a step on, each read while the network works on the one before.

    The pool is listed again at every report, so that it may grow.
    """
    pool: list[Path] = []
    gains: dict[Path, float] = {}

    def read(number: int) -> Read:
        if not pool or number % settings.every == 0:
            pool[:] = sample_paths(folder)
        shape = _shape(settings, generator)
        rows = []
        for _ in range(settings.batch):
            path = pool[int(torch.randint(0, len(pool), (1,), generator=generator))]
            rows.append(_patch(path, settings, shape, generator, gains))
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        return Read(batch, generator.get_state(), len(pool))

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, step)
        for coming_step in range(step + 1, settings.steps + 1):
            current = coming.result()
            if coming_step < settings.steps:
                coming = reader.submit(read, coming_step)
            yield current


@dataclass(frozen=True)
class _Shape:
    """Sides of a batch's patches as they are cut, and which axis becomes their first."""

    sides: tuple[int, int, int]
    first: int = 0


def _shape(settings: Settings, generator: torch.Generator) -> _Shape:
    """Cubes, cubes made longer along one axis, or a few slices along any axis."""
    sides, axis = [settings.patch] * 3, 0
    if settings.length:
        along = PHASE_AXES[int(torch.randint(0, len(PHASE_AXES), (1,), generator=generator))]
        sides[along] = settings.length
    if by_slices(settings):
        axis = int(torch.randint(0, 3, (1,), generator=generator))
        sides[axis] = settings.depth or settings.patch
    return _Shape((sides[0], sides[1], sides[2]), axis)


def _patch(
    path: Path, settings: Settings, shape: _Shape, generator: torch.Generator,
    gains: dict[Path, float],
) -> dict[str, Tensor]:
    """One random patch of a sample, flipped and scaled at random, zero-padded where needed."""
    masking = settings.kind == "brainmask"
    with safe_open(path, framework="pt") as sample:
        keys = [key for key in sample.keys() if key != "condition"]
        condition = sample.get_tensor("condition") if len(keys) < len(sample.keys()) else None
        cut: list[slice] = []
        pads: list[int] = []
        for size, side in zip(sample.get_slice("input").get_shape(), shape.sides, strict=True):
            room = size - side
            low = int(torch.randint(0, max(room, 0) + 1, (1,), generator=generator))
            cut.append(slice(low, min(low + side, size)))
            pads = [0, max(-room, 0), *pads]
        out = {key: sample.get_slice(key)[cut[0], cut[1], cut[2]].float() for key in keys}
        if masking and path not in gains:  # that of the whole head, as in the app
            gains[path] = head_gain(sample.get_tensor("input").float().numpy())
    flips = [a for a in range(3) if float(torch.rand(1, generator=generator)) < (0.5, 0.2, 0.2)[a]]
    for key, value in out.items():
        value = torch.nn.functional.pad(value, pads, value=0)
        value = value.flip(flips) if flips else value
        out[key] = value.movedim(shape.first, 0)
    if "target" in out and chance(settings.fresh_noise, generator):
        noisy = rician(out["target"], uniform(0.0, STRONGEST_NOISE, generator), generator)
        out["input"] = noisy * (out["brain"] > 0)
    spread = 0.2 if masking else 0.1
    gain = gains.get(path, 1.0) * math.exp(spread * float(torch.randn(1, generator=generator)))
    out["input"] = (out["input"] * gain).clamp(0, 4)
    if "target" in out:
        out["target"] = out["target"] * gain
        out["condition"] = torch.tensor(condition_of(condition))
    return out
