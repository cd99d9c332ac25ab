"""Which library registers best: Dice of warped tissue labels, and seconds of processor time.

    python benchmarks/registration.py                      # MNI152 and a deformed copy of it
    python benchmarks/registration.py --label-maps FOLDER  # pairs of real anatomies

``FOLDER`` holds ``head-*_dseg.nii.gz`` and ``dseg.tsv`` (index, tissue), e.g. SynthSeg's training
labels; both heads get the same intensities per tissue, noise and one voxel of blur. The deformed
MNI152 is turned, scaled and warped by a smooth random field, with noise and another brightness.
antspyx is compared where it is installed. Every engine gets one thread.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import SimpleITK as sitk  # noqa: E402
from scipy.ndimage import gaussian_filter, map_coordinates  # noqa: E402

from bmex_bids.registration import Brain, Warp, register, resample  # noqa: E402
from bmex_bids.spatial import crop_to_mask  # noqa: E402

Labels = npt.NDArray[np.uint8]
Engine = Callable[[Brain, Brain, Labels], Labels]
TISSUES = {"CSF": 1, "GM": 2, "WM": 3}
LPS = np.diag([-1.0, -1.0, 1.0])


def deformed_mni() -> tuple[tuple[Brain, Labels], tuple[Brain, Labels]]:
    """MNI152 with its tissues, and a deformed, noisy and brighter copy on a turned grid."""
    from bmex_bids.evaluation.demo import reference_brain

    image, mask, labels = reference_brain()
    box = tuple(slice(max(low - 8, 0), high + 8) for low, high in crop_to_mask(mask))
    data, labels = image.data[box], labels[box]
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [cut.start for cut in box]
    rng = np.random.default_rng(3)
    places = np.indices(data.shape).astype(np.float32)
    for axis in range(3):
        noise = gaussian_filter(rng.normal(size=data.shape).astype(np.float32), 12)
        places[axis] += 3.0 * noise / noise.std()
    moved = map_coordinates(data, places, order=1)
    other = map_coordinates(labels, places, order=0)
    moved = np.maximum(1.3 * moved + rng.normal(0, 30, moved.shape), 0) * (other > 0)
    turn = np.eye(4)
    angle = np.deg2rad(8)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, :3] *= 1.06
    turn[:3, 3] = 6, -9, 5
    return (Brain(data, affine), labels), (Brain(moved.astype(np.float32), turn @ affine), other)


def head(path: Path, seed: int) -> tuple[Brain, Labels]:
    """One anatomy with the intensities of a T1w image."""
    with open(path.parent / "dseg.tsv", newline="", encoding="utf-8") as stream:
        names = {int(r["index"]): r["tissue"] for r in csv.DictReader(stream, delimiter="\t")}
    table = np.array([TISSUES.get(names.get(index, ""), 0) for index in range(256)], np.uint8)
    file = nib.load(path)
    labels = table[np.asarray(file.dataobj).astype(np.uint8)]
    box = tuple(slice(max(low - 5, 0), high + 5) for low, high in crop_to_mask(labels > 0))
    labels = labels[box]
    affine = file.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [cut.start for cut in box]
    clean = gaussian_filter(np.array([0, 150, 350, 520], np.float32)[labels], 0.6)
    noise = np.random.default_rng(seed).normal(0, 15, labels.shape)
    data = np.maximum(clean + noise, 0) * (labels > 0)
    return Brain(data.astype(np.float32), affine), labels


def own(method: str) -> Engine:
    """What bmex does."""

    def run(fixed: Brain, moving: Brain, labels: Labels) -> Labels:
        warp = register(fixed, moving, method=method)
        return _warped(fixed, moving, labels, warp)

    return run


def demons(fixed: Brain, moving: Brain, labels: Labels) -> Labels:
    """Affine as in bmex, then SimpleITK's diffeomorphic demons at 4, 2 and 1 mm."""
    affine = register(fixed, moving, method="affine")
    still, other = _itk(fixed), sitk.Resample(_itk(moving), _itk(fixed), affine.forward)
    other = sitk.HistogramMatching(other, still, 256, 15, True)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetStandardDeviations(1.5)
    field = None
    for iterations, shrink in ((60, 4), (40, 2), (15, 1)):
        a, b = (
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, shrink / 2), [shrink] * 3)
            if shrink > 1
            else i
            for i in (still, other)
        )
        method.SetNumberOfIterations(iterations)
        if field is None:
            field = sitk.Image(a.GetSize(), sitk.sitkVectorFloat64)
            field.CopyInformation(a)
        field = method.Execute(a, b, sitk.Resample(field, a))
    warp = sitk.CompositeTransform(affine.forward)
    warp.AddTransform(sitk.DisplacementFieldTransform(sitk.Resample(field, still)))
    return _warped(fixed, moving, labels, Warp(warp, warp, 0.0, 0.0))


def ants(kind: str) -> Engine:
    """antspyx, its own affine and SyN."""

    def run(fixed: Brain, moving: Brain, labels: Labels) -> Labels:
        import ants as library

        def image(data: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> object:
            zooms = np.sqrt((affine[:3, :3] ** 2).sum(0))
            return library.from_numpy(
                data.astype(np.float32),
                origin=list(LPS @ affine[:3, 3]),
                spacing=list(zooms),
                direction=LPS @ affine[:3, :3] / zooms,
            )

        still = image(fixed.data, fixed.affine)
        made = library.registration(
            still, image(moving.data, moving.affine), type_of_transform=kind, random_seed=1
        )
        there = library.apply_transforms(
            still, image(labels, moving.affine), made["fwdtransforms"], "nearestNeighbor"
        )
        return np.asarray(there.numpy()).astype(np.uint8)

    return run


def _itk(brain: Brain) -> sitk.Image:
    from bmex_bids.registration import _to_itk

    return _to_itk(brain.data, brain.affine)


def _warped(fixed: Brain, moving: Brain, labels: Labels, warp: Warp) -> Labels:
    grid = fixed.data.shape, fixed.affine
    there = resample(labels.astype(np.float32), moving.affine, grid, warp, order=0)
    return there.astype(np.uint8)


def dice(one: Labels, other: Labels) -> list[float]:
    """Overlap of CSF, GM and WM, 0 to 1."""
    pairs = [(one == tissue, other == tissue) for tissue in (1, 2, 3)]
    return [2 * float((a & b).sum()) / max(int(a.sum() + b.sum()), 1) for a, b in pairs]


def main() -> None:
    """Print one line per pair and engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label-maps", type=Path, help="folder of head-*_dseg.nii.gz")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of label maps (default: 1)")
    parser.add_argument("--engines", nargs="+", help="only these")
    arguments = parser.parse_args()
    engines: dict[str, Engine] = {
        "bmex affine": own("affine"),
        "bmex syn": own("syn"),
        "SimpleITK demons": demons,
        "antspyx SyNQuick": ants("antsRegistrationSyNQuick[s]"),
        "antspyx SyN": ants("SyN"),
    }
    pairs = {"MNI152, deformed": deformed_mni}
    if arguments.label_maps:
        paths = sorted(arguments.label_maps.glob("head-*_dseg.nii.gz"))
        pairs = {
            f"{a.name[:7]}, {b.name[:7]}": lambda a=a, b=b: (head(a, 1), head(b, 2))
            for a, b in list(zip(paths[::2], paths[1::2], strict=False))[: arguments.pairs]
        }
    print("| pair | engine | CSF | GM | WM | seconds of CPU |\n|---|---|---|---|---|---|")
    for name, make in pairs.items():
        (fixed, truth), (moving, labels) = make()
        for engine, run in engines.items():
            if arguments.engines and engine not in arguments.engines:
                continue
            started = time.process_time()
            try:
                found = run(fixed, moving, labels)
            except ImportError as error:
                print(f"{engine}: {error}")
                continue
            numbers = " | ".join(f"{value:.3f}" for value in dice(truth, found))
            seconds = time.process_time() - started
            print(f"| {name} | {engine} | {numbers} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
