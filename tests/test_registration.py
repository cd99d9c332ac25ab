"""Registration of small synthetic brains, whose true transform is known."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nitransforms.io.itk import ITKCompositeH5
from scipy.ndimage import gaussian_filter, map_coordinates

from bmex_bids import registration
from bmex_bids.registration import (
    Brain,
    RegistrationError,
    Warp,
    register,
    resample,
    save_transform,
)

SHAPE = (36, 42, 34)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = -72, -84, -66


def brain() -> tuple[np.ndarray, np.ndarray]:
    """Return intensities and labels of an ellipsoid with folded tissues."""
    rng = np.random.default_rng(0)
    axes = np.indices(SHAPE).astype(float)
    centre = (np.array(SHAPE) - 1) / 2
    radius = np.sqrt(
        sum(((a - c) / s) ** 2 for a, c, s in zip(axes, centre, (14, 17, 13), strict=True))
    )
    folds = gaussian_filter(rng.normal(size=SHAPE), 1.7)
    folds /= folds.std()
    labels = np.where(radius < 1, np.select([folds > 0.3, folds > -0.6], [3, 2], 1), 0)
    return np.array([0, 100, 300, 500], np.float32)[labels], labels.astype(np.uint8)


def deformed(volume: np.ndarray, order: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    places = np.indices(SHAPE).astype(float)
    for axis in range(3):
        noise = gaussian_filter(rng.normal(size=SHAPE), 5)
        places[axis] += 0.8 * noise / noise.std()
    return np.asarray(map_coordinates(volume, places, order=order))


def turned() -> np.ndarray:
    """Return an affine that puts the moving brain elsewhere: oblique, larger, mirrored voxels."""
    a = np.deg2rad(7)
    world = np.array(
        [[np.cos(a), -np.sin(a), 0, 5], [np.sin(a), np.cos(a), 0, -6], [0, 0, 1, 3], [0, 0, 0, 1.0]]
    )
    world[:3, :3] *= 1.05
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    return world @ AFFINE @ flip


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean Dice of the three tissues."""
    pairs = [(one == k, other == k) for k in (1, 2, 3)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


@pytest.fixture(scope="module")
def warps() -> dict[str, Warp]:
    """Both methods on a grid of 4 mm, to be quick."""
    patch = pytest.MonkeyPatch()
    patch.setattr(registration, "GRID_MM", 4.0)
    patch.setattr(registration, "LEVELS", (20, 20, 15))
    data, _ = brain()
    moving = np.ascontiguousarray(deformed(data, 1)[::-1]).astype(np.float32)
    made = {
        method: register(Brain(data, AFFINE), Brain(moving, turned()), method=method)
        for method in registration.METHODS
    }
    patch.undo()
    return made


def moved_labels(warp: Warp) -> np.ndarray:
    _, labels = brain()
    moving = np.ascontiguousarray(deformed(labels, 0)[::-1]).astype(np.float32)
    return resample(moving, turned(), (SHAPE, AFFINE), warp, order=0).astype(np.uint8)


def test_tissues_come_together(warps: dict[str, Warp]) -> None:
    _, labels = brain()
    affine, syn = (overlap(labels, moved_labels(warps[name])) for name in ("affine", "syn"))
    assert affine > 0.6
    assert syn > affine + 0.1
    assert syn > 0.85
    assert warps["syn"].after > warps["affine"].after > warps["affine"].before


def test_affine_is_the_true_one(warps: dict[str, Warp]) -> None:
    """The smooth warp has no mean, so points go nearly where turn and scale bring them."""
    flip = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flip[:3, 3] = AFFINE[:3, 3] + AFFINE[:3, 0] * (SHAPE[0] - 1)
    world = turned() @ np.linalg.inv(flip)
    lps = np.diag([-1.0, -1.0, 1.0])
    for point in ((0, 0, 0), (30, 0, 0), (0, -40, 10), (-20, 20, -20)):
        found = lps @ warps["affine"].forward.TransformPoint(tuple(lps @ np.array(point, float)))
        true = world[:3, :3] @ point + world[:3, 3]
        assert np.linalg.norm(found - true) < 2.5


@pytest.mark.parametrize(("method", "limit"), [("affine", 1e-6), ("syn", 0.5)])
def test_inverse_is_one(warps: dict[str, Warp], method: str, limit: float) -> None:
    warp = warps[method]
    points = np.random.default_rng(2).normal(0, 20, (100, 3))
    there = [warp.forward.TransformPoint(tuple(map(float, p))) for p in points]
    back = np.array([warp.inverse.TransformPoint(p) for p in there])
    assert float(np.linalg.norm(back - points, axis=1).mean()) < limit


def test_same_input_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registration, "GRID_MM", 8.0)
    monkeypatch.setattr(registration, "LEVELS", (5, 5))
    data, _ = brain()
    other = Brain(deformed(data, 1).astype(np.float32), AFFINE)
    for name in ("one.h5", "two.h5"):
        warp = register(Brain(data, AFFINE), other)
        save_transform(str(tmp_path / name), warp.forward)
        save_transform(str(tmp_path / f"inverse-{name}"), warp.inverse)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    inverses = [(tmp_path / f"inverse-{name}.h5").read_bytes() for name in ("one", "two")]
    assert inverses[0] == inverses[1]


def test_saved_transform_is_read_back(warps: dict[str, Warp], tmp_path: Path) -> None:
    save_transform(str(tmp_path / "x.h5"), warps["syn"].forward)
    read = sitk.ReadTransform(str(tmp_path / "x.h5"))
    for point in ((0.0, 0.0, 0.0), (12.0, -20.0, 8.0)):
        np.testing.assert_allclose(
            read.TransformPoint(point), warps["syn"].forward.TransformPoint(point), atol=1e-9
        )
    composite = ITKCompositeH5.from_filename(tmp_path / "x.h5")
    assert len(composite) == 2


def test_resample_keeps_the_world() -> None:
    """An identity onto another orientation and grid is nibabel's own resampling."""
    data, _ = brain()
    identity = Warp(sitk.CompositeTransform(3), sitk.CompositeTransform(3), 0.0, 0.0)
    target = nib.as_closest_canonical(nib.Nifti1Image(data, turned())).affine
    made = resample(data, turned(), (SHAPE, target), identity, order=1)
    np.testing.assert_allclose(made, data[::-1], atol=1e-2)
    cubic = resample(data, turned(), (SHAPE, target), identity, order=3)
    assert cubic.min() >= 0


@pytest.mark.parametrize(
    ("fixed", "moving", "said"), [(0, 1, "fixed brain is empty"), (1, 0, "moving brain is empty")]
)
def test_empty_brains(fixed: int, moving: int, said: str) -> None:
    data, _ = brain()
    with pytest.raises(RegistrationError, match=said):
        register(Brain(data * fixed, AFFINE), Brain(data * moving, AFFINE))


def test_unknown_method() -> None:
    data, _ = brain()
    with pytest.raises(ValueError, match="expected one of syn, affine"):
        register(Brain(data, AFFINE), Brain(data, AFFINE), method="rigid")
