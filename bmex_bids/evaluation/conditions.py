"""The corruptions that ``bmex-degrade`` simulates: from options to a list, and to one image."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from bmex_bids.training.degrade import (
    NOISES,
    Recipe,
    conformed,
    degrade,
    measured,
    slice_grid,
    standard_recipe,
)
from bmex_bids.training.motion import KINDS, SEVERITIES

__all__ = [
    "GRID_AXES",
    "CLEAN",
    "Condition",
    "Setup",
    "corrupt",
    "list_conditions",
    "parse_grid",
    "parse_motion",
    "world_axis",
]

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

GRID_AXES = ("severity", "resolution", "noise", "smoothing")


@dataclass(frozen=True)
class Condition:
    """One corruption; 0 or "" leaves a part out.

    Attributes:
        kind: kind of motion.
        severity: its severity.
        thickness: slice thickness in mm.
        noise: standard deviation of noise, as a share of the bright tissue's intensity.
        noise_kind: one of :data:`bmex_bids.training.degrade.NOISES`.
        smooth: standard deviation of a Gaussian filter in mm.
    """

    kind: str = ""
    severity: str = ""
    thickness: float = 0.0
    noise: float = 0.0
    noise_kind: str = "rician"
    smooth: float = 0.0

    @property
    def label(self) -> str:
        """What BIDS allows as a label, e.g. ``rotationSevereThick2p4``."""
        noise = "Noise" if self.noise_kind == "rician" else self.noise_kind.capitalize()
        parts = [self.kind + self.severity.capitalize().replace("+", "Plus")]
        for name, value in (
            ("Thick", self.thickness), (noise, self.noise), ("Smooth", self.smooth)
        ):
            parts += [f"{name}{value:g}".replace(".", "p")] if value else []
        text = "".join(parts)
        return text[:1].lower() + text[1:] if text else "clean"


CLEAN = Condition()


@dataclass(frozen=True)
class Setup:
    """What all conditions of a dataset share.

    Attributes:
        seed: of all randomness.
        slice_axis: world axis of thick slices, ``x`` (left-right), ``y`` or ``z``.
        phase_axis: world axis of phase encoding.
        keep_grid: interpolate thick slices back to the grid of the image.
    """

    seed: int = 0
    slice_axis: str = "z"
    phase_axis: str = "y"
    keep_grid: bool = False


def parse_motion(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Read ``kind:severity``; ``all`` stands for every kind or severity.

    Raises:
        ValueError: an unknown name.
    """
    found = []
    for text in texts:
        kind, _, severity = text.partition(":")
        kinds = KINDS if kind == "all" else (kind,)
        severities = tuple(SEVERITIES) if severity == "all" else (severity,)
        if not set(kinds) <= set(KINDS) or not set(severities) <= set(SEVERITIES):
            raise ValueError(
                f"{text!r}: expected kind:severity, of {', '.join(KINDS)}, all and "
                f"{', '.join(SEVERITIES)}, all"
            )
        found += list(itertools.product(kinds, severities))
    return list(dict.fromkeys(found))


def parse_grid(text: str) -> tuple[str, ...]:
    """Read ``severity-by-resolution`` and the like.

    Raises:
        ValueError: an unknown name, or fewer than two.
    """
    names = tuple(text.split("-by-")) if text else ()
    if names and (len(set(names)) < 2 or not set(names) <= set(GRID_AXES)):
        raise ValueError(f"{text!r}: expected two or more of {', '.join(GRID_AXES)}, with -by-")
    return names


def list_conditions(
    motion: Sequence[tuple[str, str]],
    thickness: Sequence[float],
    noise: Sequence[float],
    smooth: Sequence[float],
    grid: Sequence[str] = (),
    *,
    noise_kinds: Sequence[str] = ("rician",),
) -> list[Condition]:
    """Every value as a condition of its own; those of the grid's axes in all combinations.

    A crossed axis has "nothing" as one of its levels, so the margins of the grid are there too; the
    combination of nothing at all is left out.

    Raises:
        ValueError: a value that cannot be, or an axis of the grid without values.
    """
    for name, values, top in (("slice thickness", thickness, 12.0), ("noise", noise, 1.0),
                              ("smoothing", smooth, 20.0)):
        if bad := [v for v in values if not 0 < v <= top]:
            raise ValueError(f"{name} {bad[0]:g}: expected more than 0, at most {top:g}")
    levels: dict[str, list[dict[str, object]]] = {
        "severity": [{"kind": kind, "severity": severity} for kind, severity in motion],
        "resolution": [{"thickness": value} for value in thickness],
        "noise": [{"noise": value, "noise_kind": k} for value in noise for k in noise_kinds],
        "smoothing": [{"smooth": value} for value in smooth],
    }
    if empty := [name for name in grid if not levels[name]]:
        raise ValueError(f"the grid's {empty[0]} has no values; give the option for it too")
    made = [level for name in GRID_AXES if name not in grid for level in levels[name]]
    for parts in itertools.product(*([{}, *levels[name]] for name in grid)):
        made.append({key: value for part in parts for key, value in part.items()})
    found = dict.fromkeys(Condition(**values) for values in made)  # type: ignore[arg-type]
    return [condition for condition in found if condition != CLEAN]


def world_axis(affine: Affine, name: str) -> int:
    """The array axis that lies closest to world axis ``x``, ``y`` or ``z``."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == "xyz".index(name))[0])


def corrupt(
    volume: Array, affine: Affine, condition: Condition, setup: Setup, key: str
) -> tuple[Array, Affine]:
    """Corrupt one image: smoothing, then motion, then thick slices, then noise.

    The random draw depends on seed, key, and kind of motion alone, so the same head moves the same
    way at every severity and resolution, and no image depends on which others are made.

    Args:
        volume: (x, y, z) 0 and above, bright tissue near 1.
        affine: (4, 4) voxel -> RAS+ mm.
        condition: what to do.
        setup: seed and axes.
        key: what names the image.

    Returns:
        (x, y, z) corrupted, and its affine; the grid differs where slices are thick.

    Raises:
        ValueError: the voxels are as large as the slices that are wanted.
    """
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(0))
    recipe = Recipe(smooth=condition.smooth, axis=world_axis(affine, setup.phase_axis))
    if condition.kind:
        motion = standard_recipe(condition.kind, condition.severity)
        recipe = Recipe(
            kind=motion.kind, amplitude=motion.amplitude, frequency=motion.frequency,
            smooth=recipe.smooth, axis=recipe.axis,
        )
    made = degrade(
        torch.from_numpy(volume), torch.tensor(zooms, dtype=torch.float32), recipe,
        _generator(setup.seed, key, condition.kind),
    ).numpy()
    if condition.thickness:
        made, affine = _thickened(made, affine, condition.thickness, setup)
    if condition.noise:
        generator = _generator(setup.seed, key, "noise")
        noisy = NOISES[condition.noise_kind]
        made = noisy(torch.from_numpy(made), condition.noise, generator).numpy()
    return np.ascontiguousarray(made, np.float32), affine


def _thickened(
    volume: Array, affine: Affine, thickness: float, setup: Setup
) -> tuple[Array, Affine]:
    """Average over slices, on the coarse grid or interpolated back."""
    axis = world_axis(affine, setup.slice_axis)
    zoom = float(np.sqrt((affine[:3, axis] ** 2).sum()))
    if thickness <= 1.01 * zoom:
        raise ValueError(
            f"slices of {thickness:g} mm: the voxels are {zoom:.3g} mm already along "
            f"{setup.slice_axis}"
        )
    size, factor = volume.shape[axis], thickness / zoom
    factors = [factor if a == axis else 1.0 for a in range(3)]
    made = measured(torch.from_numpy(volume), factors)
    if setup.keep_grid:
        return conformed(made, factors, volume.shape).numpy(), affine
    step = np.eye(4)
    step[axis, axis], step[axis, 3] = factor, slice_grid(size, factor)[1]
    return made.numpy(), affine @ step


def _generator(seed: int, *words: str) -> torch.Generator:
    text = "|".join((str(seed), *words))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
