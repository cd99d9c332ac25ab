"""One brain onto another: an affine by SimpleITK, then symmetric diffeomorphic warps by DIPY.

Everything is estimated on a coarse grid over the fixed brain, with one thread and a regular
sampling, so that the same images give the same transforms. World space is RAS+ mm; ITK's is LPS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

__all__ = [
    "METHODS",
    "Brain",
    "RegistrationError",
    "Warp",
    "limit_threads",
    "register",
    "resample",
    "save_transform",
]

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

METHODS = ("syn", "affine")
GRID_MM = 2.0  # of the grid that everything is estimated on
MARGIN_MM = 12.0  # of that grid around the fixed brain
LEVELS = (100, 60, 30)  # iterations of SyN at a quarter, a half and all of the grid's resolution
LEAST_GAIN = 0.9  # a little less than 1, for brains that lay together already
LPS = np.diag([-1.0, -1.0, 1.0])


class RegistrationError(ValueError):
    """The images could not be brought together; the message says what was found."""


@dataclass(frozen=True)
class Brain:
    """A skull-stripped volume in world space.

    Attributes:
        data: (x, y, z) float32, 0 outside the brain.
        affine: (4, 4) voxel -> RAS+ mm.
    """

    data: Array
    affine: Affine


@dataclass(frozen=True)
class Warp:
    """How a moving image is brought to a fixed one.

    Attributes:
        forward: points of the fixed image -> points of the moving image (LPS mm); this one
            resamples the moving image on the fixed grid.
        inverse: points of the moving image -> points of the fixed image.
        before: mutual information of the two brains (nats) with their centres of mass together.
        after: the same after the registration; higher is better.
    """

    forward: sitk.CompositeTransform
    inverse: sitk.CompositeTransform
    before: float
    after: float


def register(fixed: Brain, moving: Brain, *, method: str = "syn") -> Warp:
    """Register one brain to another of the same or another contrast.

    The affine maximises Mattes' mutual information (doi:10.1109/TMI.2003.809072); ``syn`` adds a
    symmetric diffeomorphic map with the cross-correlation metric (doi:10.1016/j.media.2007.06.004).

    Args:
        fixed: for instance the brain of a template.
        moving: the brain to bring there.
        method: ``syn`` or ``affine``.

    Raises:
        RegistrationError: a brain is empty, or the optimiser failed.
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"registration '{method}': expected one of {', '.join(METHODS)}")
    for name, brain in (("fixed", fixed), ("moving", moving)):
        if not (brain.data > 0).any():
            raise RegistrationError(f"the {name} brain is empty")
    with _one_thread():
        return _registered(fixed, moving, method)


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK with one thread, also where a method's own setting does not reach: sums keep an order."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _registered(fixed: Brain, moving: Brain, method: str) -> Warp:
    grid = _coarse_grid(fixed)
    still, images = _on_grid(fixed, grid), _to_itk(moving.data, moving.affine)
    start = sitk.CenteredTransformInitializer(
        _to_itk(fixed.data, fixed.affine),
        images,
        sitk.AffineTransform(3),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )
    start = sitk.AffineTransform(start)
    before = _information(still, _on_grid(moving, grid, start))
    affine = _affine(still, _smoothed(images, GRID_MM), start)
    forward, inverse = sitk.CompositeTransform(3), sitk.CompositeTransform(3)
    forward.AddTransform(affine)  # of a composite, what was added last comes first
    if method == "syn":
        there, back = _syn(still, _on_grid(moving, grid, affine))
        forward.AddTransform(there)
        inverse.AddTransform(back)
    inverse.AddTransform(affine.GetInverse())
    after = _information(still, _on_grid(moving, grid, forward))
    if not after >= LEAST_GAIN * before:
        raise RegistrationError(
            f"the brains are less alike than before (mutual information {before:.3f} nats, then "
            f"{after:.3f}); are mask and orientation of the image right?"
        )
    return Warp(forward, inverse, before, after)


def resample(
    moving: Array, affine: Affine, grid: tuple[tuple[int, ...], Affine], warp: Warp, *, order: int
) -> Array:
    """Bring an image onto a grid in the space of the fixed image.

    Args:
        moving: (x, y, z).
        affine: (4, 4) of ``moving``.
        grid: shape and (4, 4) affine of the wanted grid.
        warp: from :func:`register`.
        order: 0 nearest voxel, 1 linear, 3 cubic B-spline; below zero is cut off where the image
            has nothing below zero.

    Returns:
        (x, y, z) float32 on the grid, 0 outside the moving image.
    """
    shape, target = grid
    method = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline}[order]
    reference = _to_itk(np.zeros(shape, np.float32), target)
    made = sitk.Resample(_to_itk(moving, affine), reference, warp.forward, method, 0.0)
    data = np.ascontiguousarray(sitk.GetArrayFromImage(made).T, np.float32)
    return np.maximum(data, 0) if order > 1 and float(moving.min()) >= 0 else data


def limit_threads(threads: int) -> None:
    """Let ITK resample with this many threads; the registration itself always takes one."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def save_transform(path: str, transform: sitk.CompositeTransform) -> None:
    """Write a transform as ITK, ANTs, Slicer and nitransforms read it (``.h5``).

    ITK's own writer stores the time and the operating system, so that no two files are the same,
    and does not compress.

    Args:
        path: of the file; one that is there is replaced.
        transform: of affines and displacement fields.
    """
    import h5py

    parts = [transform.GetNthTransform(i) for i in range(transform.GetNumberOfTransforms())]
    with h5py.File(path, "w", track_order=False) as file:
        groups = file.create_group("TransformGroup", track_times=False)
        for index, part in enumerate([transform, *parts]):
            group = groups.create_group(str(index), track_times=False)
            kind = np.array([f"{part.GetName()}_double_3_3"], h5py.string_dtype("ascii"))
            group.create_dataset("TransformType", data=kind, track_times=False)
            if index == 0:
                continue
            for name, values in (
                ("TransformFixedParameters", part.GetFixedParameters()),
                ("TransformParameters", part.GetParameters()),
            ):
                data = np.asarray(values, np.float64)
                packing = {"compression": "gzip", "shuffle": True} if len(data) > 1000 else {}
                group.create_dataset(name, data=data, track_times=False, **packing)


def _to_itk(data: npt.NDArray[np.generic], affine: Affine) -> sitk.Image:
    """The same image for ITK: axes kept, world turned from RAS+ to LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(0))
    image.SetSpacing([float(zoom) for zoom in zooms])
    image.SetOrigin([float(x) for x in LPS @ affine[:3, 3]])
    image.SetDirection([float(x) for x in (LPS @ affine[:3, :3] / zooms).ravel()])
    return image


def _coarse_grid(fixed: Brain) -> sitk.Image:
    """An empty image along RAS+ axes over the fixed brain and a margin."""
    corners = np.argwhere(fixed.data > 0)
    low, high = corners.min(0), corners.max(0)
    box = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1)
    world = fixed.affine[:3, :3] @ box + fixed.affine[:3, 3:]
    first = world.min(1) - MARGIN_MM
    size = np.ceil((world.max(1) + MARGIN_MM - first) / GRID_MM).astype(int) + 1
    affine = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
    affine[:3, 3] = first
    return _to_itk(np.zeros(size, np.float32), affine)


def _smoothed(image: sitk.Image, millimetres: float) -> sitk.Image:
    """Blurred as a coarse voxel would, so that no detail is aliased."""
    finest = min(image.GetSpacing())
    if finest >= 0.9 * millimetres or min(image.GetSize()) < 4:
        return image
    blurred: sitk.Image = sitk.SmoothingRecursiveGaussian(image, 0.4 * millimetres)
    return blurred


def _on_grid(brain: Brain, grid: sitk.Image, transform: sitk.Transform | None = None) -> sitk.Image:
    image = _smoothed(_to_itk(brain.data, brain.affine), GRID_MM)
    made: sitk.Image = sitk.Resample(
        image, grid, transform or sitk.Transform(3, sitk.sitkIdentity)
    )
    return made


def _affine(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.AffineTransform
) -> sitk.AffineTransform:
    """Rotation, shift and one scale first, then all twelve parameters, then these in detail."""
    similar = sitk.Similarity3DTransform()
    similar.SetCenter(start.GetCenter())
    similar.SetTranslation(start.GetTranslation())
    _optimise(fixed, moving, similar, shrink=2, step=1.0)
    whole = sitk.AffineTransform(3)
    whole.SetCenter(similar.GetCenter())
    whole.SetTranslation(similar.GetTranslation())
    whole.SetMatrix(similar.GetMatrix())
    # Near the optimum a long step of so many parameters leads away for good.
    _optimise(fixed, moving, whole, shrink=2, step=0.2)
    _optimise(fixed, moving, whole, shrink=1, step=0.1)
    return whole


def _optimise(
    fixed: sitk.Image,
    moving: sitk.Image,
    transform: sitk.Transform,
    *,
    shrink: int,
    step: float,
) -> None:
    """Improve the transform in place, or leave it where the end is worse than the start.

    ``step`` is about the shift of the first iteration in mm.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # the sums of several threads come in any order
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(1.0 if shrink > 1 else 0.15, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step,
        minStep=1e-3,
        numberOfIterations=60,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-9,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([shrink])
    method.SetSmoothingSigmasPerLevel([0.5 * GRID_MM * shrink if shrink > 1 else 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    kept = transform.GetParameters()
    try:
        before = method.MetricEvaluate(fixed, moving)
        method.Execute(fixed, moving)
        if not method.MetricEvaluate(fixed, moving) <= before:  # the negative information
            transform.SetParameters(kept)
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1]
        raise RegistrationError(
            f"the affine registration failed ({said}); do the brains overlap?"
        ) from error


def _syn(fixed: sitk.Image, moving: sitk.Image) -> tuple[sitk.Transform, sitk.Transform]:
    """Displacement fields fixed -> moving and moving -> fixed of two images on one grid."""

    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    still, other = (sitk.GetArrayFromImage(i).T.astype(np.float64) for i in (fixed, moving))
    optimiser = SymmetricDiffeomorphicRegistration(
        CCMetric(3, sigma_diff=2.0, radius=2), level_iters=list(LEVELS), step_length=0.25
    )
    optimiser.verbosity = 0  # of its levels the one that says nothing
    mapping = optimiser.optimize(still, other)
    return _field(mapping.get_forward_field(), fixed), _field(mapping.get_backward_field(), fixed)


def _field(voxels: npt.NDArray[np.floating], grid: sitk.Image) -> sitk.DisplacementFieldTransform:
    """A displacement (x, y, z, 3) in voxels of the grid as ITK's field in LPS mm."""
    turn = np.reshape(grid.GetDirection(), (3, 3)) * np.array(grid.GetSpacing())
    moved = np.asarray(voxels, np.float64) @ turn.T
    image = sitk.GetImageFromArray(np.ascontiguousarray(moved.transpose(2, 1, 0, 3)), isVector=True)
    image.CopyInformation(grid)
    return sitk.DisplacementFieldTransform(image)


def _information(one: sitk.Image, other: sitk.Image) -> float:
    """Mutual information of two images on one grid, in nats."""
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    return -float(method.MetricEvaluate(one, other))
