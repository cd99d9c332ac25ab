"""Conform and restore: positions, inverses, averages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bmex_bids.spatial import axis_matrix, conform, crop_to_mask, model_grid, onto_grid, restore


def test_axis_matrix_is_identity_on_its_own_grid() -> None:
    np.testing.assert_allclose(axis_matrix(9, 0, 1, 9), np.eye(9), atol=1e-6)


@pytest.mark.parametrize("step", [0.4, 0.8, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("order", [1, 3])
def test_axis_matrix_rows_sum_to_one(step: float, order: int) -> None:
    matrix = axis_matrix(20, 1.3, step, 6, order=order)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)


def test_axis_matrix_averages_larger_voxels() -> None:
    # two voxels of size 2 over a line of 4: means of pairs, up to the linear spline's ends
    matrix = axis_matrix(8, 0.5, 2.0, 4, order=1)
    np.testing.assert_allclose(matrix @ np.arange(8.0), [0.5, 2.5, 4.5, 6.5], atol=0.13)


def test_cubic_is_exact_for_cubics_inside() -> None:
    x = np.arange(20.0)
    target = 3 + 0.5 * np.arange(20)
    found = axis_matrix(20, 3.0, 0.5, 20) @ (0.1 * x**3 - x)
    np.testing.assert_allclose(found, 0.1 * target**3 - target, rtol=1e-4, atol=1e-2)


def orientations() -> list[np.ndarray]:
    made = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.zeros((4, 4))
            for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
                affine[world, axis] = sign * (1.0, 1.2, 0.9)[axis]
            affine[:, 3] = (5, -7, 11, 1)
            made.append(affine)
    return made


@pytest.mark.parametrize("affine", orientations())
def test_world_coordinates_are_kept_in_every_orientation(affine: np.ndarray) -> None:
    shape = (12, 14, 16)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    volume = (world @ (0.3, -0.7, 1.1)).astype(np.float32)  # linear in world space
    mask = np.zeros(shape, bool)
    mask[3:9, 4:10, 5:11] = True
    grid = model_grid(shape, affine, 0.8, mask=mask, margin=1.0)
    place = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    expected = (place @ grid.affine[:3, :3].T + grid.affine[:3, 3]) @ (0.3, -0.7, 1.1)
    np.testing.assert_allclose(conform(volume, grid), expected, atol=1e-3)
    assert np.all(np.diag(grid.affine)[:3] > 0)
    back = restore(conform(volume, grid), grid)
    # a target voxel averages where it is the larger: exact for a linear image inside
    np.testing.assert_allclose(back[mask], volume[mask], atol=2e-2)


def test_oblique_grid_keeps_its_axes() -> None:
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0],
                     [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn
    grid = model_grid((20, 20, 20), affine, 0.8)
    np.testing.assert_allclose(grid.affine[:3, :3], turn * 0.8, atol=1e-12)


def test_same_voxel_size_is_exact() -> None:
    volume = np.random.default_rng(1).random((10, 11, 12)).astype(np.float32)
    grid = model_grid(volume.shape, np.diag([-0.8, 0.8, -0.8, 1]), 0.8)
    np.testing.assert_allclose(restore(conform(volume, grid), grid), volume, atol=1e-6)


def test_crop_to_mask() -> None:
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2:4, 6] = True
    assert crop_to_mask(mask) == ((1, 2), (2, 4), (6, 7))
    with pytest.raises(ValueError, match="empty"):
        crop_to_mask(np.zeros((2, 2, 2), bool))


def test_onto_grid_meets_in_world_space() -> None:
    volume = np.zeros((10, 10, 10), np.float32)
    volume[4, 5, 6] = 1
    same = onto_grid(volume, np.eye(4), (10, 10, 10), np.eye(4))
    np.testing.assert_array_equal(same, volume)
    target = np.diag([-2.0, 1, 1, 1])
    target[:3, 3] = (8, 5, 0)  # voxel (2, 0, 6) lies at (4, 5, 6) mm
    moved = onto_grid(volume, np.eye(4), (5, 3, 10), target)
    assert moved[2, 0, 6] == 1
    assert moved.sum() == 1
