"""Age stages and contrasts that one pair of networks tells apart, and their intensities.

The intensities of the stages are measured on clean images (:mod:`bmex_bids.training.measure`) and
kept in ``contrasts.json``: per condition and anatomical structure the mean, relative to the brain's
median, and the relative standard deviation inside the structure.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bmex_bids.training.fields import chance, uniform
from bmex_bids.training.labels import LESION, OUTSIDE

__all__ = [
    "CONDITIONS",
    "Contrast",
    "Myelination",
    "contrast_of",
    "draw_contrast",
    "random_contrast",
    "structure",
]

CONDITIONS = (
    "any",  # contrast drawn at random: the teacher that labels the templates
    *(f"T1w-{stage}" for stage in ("0", "3", "6", "9", "12", "18", "24")),
    *(f"T2w-{stage}" for stage in ("fetal", "0", "3", "6", "9", "12", "18", "24")),
)
"""What a training sample says about itself; its place is the network's condition."""

BETWEEN = {"3": ("0", "6"), "18": ("12", "24")}
"""Stages without a clean image of their own, and the measured ones around them."""

WHITE, GREY, FLUID = "cerebral white matter", "cerebral cortex", "lateral ventricle"
FLUIDS = (
    "CSF", "lateral ventricle", "inferior lateral ventricle", "3rd ventricle", "4th ventricle",
)
"""Structures that hold cerebrospinal fluid, which has one intensity in all of them."""
MYELINATED, ORIGIN = "ventral DC", ("thalamus", "ventral DC")
MYELINATING = ("0", "3", "6")
"""Stages whose white matter has begun to myelinate from the centre outwards."""


@dataclass(frozen=True)
class Myelination:
    """White matter that is brighter (or darker) where myelination has begun.

    Attributes:
        gain: relative to white matter's own intensity, below 0 for darker.
        reach: mm over which it fades towards the surface.
        white: (labels,) bool, white matter.
        origin: (labels,) bool, the structures beside which it begins.
    """

    gain: float
    reach: float
    white: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Contrast:
    """Intensity of each label and the relative standard deviation of its texture: (labels,)."""

    means: Tensor
    spread: Tensor
    myelination: Myelination | None = None


def structure(name: str) -> str:
    """Name of a label without its side."""
    return name.removeprefix("left ").removeprefix("right ")


@functools.cache
def _contrast_table() -> dict[str, dict[str, tuple[float, float]]]:
    path = Path(__file__).with_name("contrasts.json")
    return {
        condition: {name: (entry[0], entry[1]) for name, entry in structures.items()}
        for condition, structures in json.loads(path.read_text(encoding="utf-8")).items()
    }


def contrast_of(condition: str, share: float = 0.5) -> dict[str, tuple[float, float]]:
    """Measured (mean, relative standard deviation) of a condition's structures.

    Args:
        condition: one of :data:`CONDITIONS`, not ``any``.
        share: for stages without an image of their own, how far from the younger neighbour to the
            older one, 0 to 1.
    """
    suffix, stage = condition.split("-")
    table = _contrast_table()
    if stage not in BETWEEN:
        return table[condition]
    young, old = (table[f"{suffix}-{age}"] for age in BETWEEN[stage])
    return {
        name: (
            young[name][0] + share * (old[name][0] - young[name][0]),
            young[name][1] + share * (old[name][1] - young[name][1]),
        )
        for name in young
        if name in old
    }


def draw_contrast(
    condition: str, names: list[str], tissue: Tensor, generator: torch.Generator
) -> Contrast:
    """Draw the intensities of a stage and contrast: the measured ones, with scanners' variation.

    The distance of fluid and of grey matter from white matter is stretched or shrunk, every
    structure varies a little, and lesions lie between white matter and fluid. A stage without an
    image of its own lies anywhere between its neighbours: half-way from 0 to 6 months grey and
    white matter could not be told apart.

    Args:
        condition: one of :data:`CONDITIONS`, not ``any``.
        names: name of every label.
        tissue: (labels,) tissue class, 4 for lesions, 5 outside the brain.
        generator: source of randomness.
    """
    table = contrast_of(condition, uniform(0, 1, generator))
    white, fluid = table[WHITE][0], table[FLUID][0]
    grey_gain = float(torch.exp(0.2 * torch.randn(1, generator=generator)))
    fluid_gain = float(torch.exp(0.12 * torch.randn(1, generator=generator)))
    texture_gain = uniform(0.2, 0.8, generator)
    means, spread = torch.zeros(len(names)), torch.full((len(names),), 0.05)
    drawn: dict[str, float] = {}
    for index, name in enumerate(names):
        own, group = structure(name), int(tissue[index])
        if group == OUTSIDE:
            means[index] = _outside(generator) * max(white, fluid)
            continue
        if own not in drawn:  # both sides alike
            jitter = 1 + 0.03 * float(torch.randn(1, generator=generator))
            fallback = fluid if group == 1 else table[GREY if group == 2 else WHITE][0]
            mean = table[own][0] if own in table else fallback
            gain = fluid_gain if group == 1 else grey_gain if group == 2 else 1.0
            drawn[own] = (white + (mean - white) * gain) * jitter
            if group == LESION:
                drawn[own] = white + uniform(0.2, 0.7, generator) * (fluid - white)
            if own == "vessel":
                drawn[own] *= uniform(0.3, 1.5, generator)
        means[index] = drawn[own]
        spread[index] = texture_gain * (table[own][1] if own in table else 0.05)
    means[0], spread[0] = uniform(0, 0.03, generator), 0.0
    myelination = None
    if condition.split("-")[1] in MYELINATING:
        gain = (table[MYELINATED][0] / white - 1) * uniform(0.2, 1.0, generator)
        reach = uniform(12.0, 35.0, generator)
        plain = [structure(name) for name in names]
        labels = [torch.tensor([n in some for n in plain]) for some in ((WHITE,), ORIGIN)]
        myelination = Myelination(gain, reach, *labels)
    return Contrast(means.clamp_min(0), spread, myelination)


def _outside(generator: torch.Generator) -> float:
    if chance(0.3, generator):
        return uniform(0, 0.15, generator)  # bone, air
    return uniform(0.2, 1.4, generator)  # muscle to fat


def random_contrast(tissue: Tensor, generator: torch.Generator) -> Contrast:
    """Draw one intensity per label without any prior but what belongs together.

    Labels of a tissue class scatter around the class's own draw, so that cortex and deep grey
    matter look related; background stays dark in most heads.
    """
    classes = torch.rand(6, generator=generator) * 0.95 + 0.05
    scatter = uniform(0.02, 0.15, generator)
    means = classes[tissue] + scatter * torch.randn(tissue.shape, generator=generator)
    outside = torch.rand(tissue.shape, generator=generator)
    means = torch.where(tissue == OUTSIDE, outside, means).clamp(0, 1.2)
    means[0] = uniform(0, 0.05 if chance(0.9, generator) else 0.3, generator)
    spread = torch.full_like(means, uniform(0.01, 0.1, generator))
    return Contrast(means, spread)
