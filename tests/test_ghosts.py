"""Ghosts in the air: of a head that moved, not of noise, and not where there is no air."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bmex_bids.evaluation import ghostcheck
from bmex_bids.ghosts import STRONG, ghost_ratio
from bmex_bids.training.degrade import degrade, standard_recipe

ZOOMS = np.array([2.0, 2.0, 2.0])


def head(shape: tuple[int, int, int] = (100, 116, 108)) -> npt.NDArray[np.float32]:
    """An ellipsoid with folds, half as wide as the field of view."""
    places = np.stack(np.indices(shape), -1) / np.array(shape) - 0.5
    away = np.sqrt(((places / 0.27) ** 2).sum(-1))
    folds = 1 + 0.3 * np.sin(40 * places).prod(-1)
    return ((away < 1) * folds).astype(np.float32)


def noisy(volume: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(3)
    real, imaginary = (rng.normal(0, sigma, volume.shape) for _ in range(2))
    return np.hypot(volume + real, imaginary).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.005, 0.03, 0.08])
def test_noise_is_no_ghost(sigma: float) -> None:
    assert ghost_ratio(noisy(head(), sigma), ZOOMS) < STRONG


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ghost_is_found_along_any_axis_at_any_scale(axis: int) -> None:
    """A copy half a field of view away, a tenth as bright, lies in the air beside the head."""
    ghost = 0.1 * np.roll(head(), head().shape[axis] // 2, axis)
    made = 700 * noisy(head() + ghost, 0.03)
    spread = 0.1  # of the ghost, where it fills the air; it fills a part of it
    assert 3 * STRONG < ghost_ratio(made, ZOOMS) < spread


def test_it_grows_with_the_motion() -> None:
    found = []
    for severity in ("minor", "moderate", "severe"):
        generator = torch.Generator().manual_seed(2)
        recipe = standard_recipe("periodic", severity, 0.03)
        volume = torch.from_numpy(head())
        made = degrade(volume, torch.full((3,), 2.0), recipe, generator, states=6)
        found.append(ghost_ratio(made.numpy(), ZOOMS))
    assert STRONG < found[0] < found[1] < found[2]


def test_where_there_is_no_air_nothing_is_said() -> None:
    brain = noisy(head(), 0.03) * (head() > 0)  # zeros around it
    tight = noisy(head(), 0.03)[30:70, 34:82, 32:76]
    for volume in (brain, tight, np.zeros((40, 40, 40), np.float32), head()[:3]):
        assert np.isnan(ghost_ratio(volume, ZOOMS))


def test_large_voxels_and_small_ones_agree() -> None:
    ghost = 0.1 * np.roll(head(), 58, 1)
    made = noisy(head() + ghost, 0.03)
    fine = made.repeat(2, 0).repeat(2, 1)
    first = ghost_ratio(made, ZOOMS)
    assert ghost_ratio(fine, np.array([1.0, 1.0, 2.0])) == pytest.approx(first, rel=0.1)


def test_the_check_measures_still_and_moved_heads() -> None:
    rows = list(ghostcheck.measured(torch.from_numpy(head()), 2.0, 0, 1))
    assert [row.kind for row in rows[:2]] == ["", "rotation"] and len(rows) == 13
    assert rows[0].ratio < STRONG
    assert any(row.ratio > STRONG for row in rows if row.severity == "severe")


def test_thin_ghosts_that_stick_to_the_head_are_not_its_shape() -> None:
    """A bright sheet, joined to the head by a rod, hides all air but that beside it along x."""
    made = noisy(head() + 0.1 * np.roll(head(), 58, 1), 0.03)
    free = ghost_ratio(made, ZOOMS)
    made[:4] = 1
    made[:50, 56:60, 52:56] = 1
    assert ghost_ratio(made, ZOOMS) == pytest.approx(free, rel=0.2)
    made[:, 4:-4] = 1  # nothing but the sheets' ends is left
    assert np.isnan(ghost_ratio(made, ZOOMS))
