"""The command ``bmex-degrade``: a BIDS dataset of simulated corruptions of clean images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bmex_bids import __version__, metrics
from bmex_bids.bids import ENTITY_ORDER, parse_entities, read_json, session_dir, write_json
from bmex_bids.evaluation.conditions import (
    CLEAN,
    GRID_AXES,
    Condition,
    Setup,
    corrupt,
    list_conditions,
    parse_grid,
    parse_motion,
)
from bmex_bids.evaluation.datasetfiles import write_dataset
from bmex_bids.evaluation.grids import onto_reference, reference_mask
from bmex_bids.evaluation.tasks import run_tasks
from bmex_bids.image import Image, load_image, save_image
from bmex_bids.layout import (
    InputError,
    Selection,
    check_dataset,
    find_images,
    find_mask,
    sidecar_reader,
    suffix_of,
)
from bmex_bids.spatial import axis_matrix, resample
from bmex_bids.training.degrade import NOISES
from bmex_bids.training.motion import KINDS, SEVERITIES

__all__ = ["main"]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Value = TypeVar("Value")

EPILOG = f"""\
Each value is a corruption of its own. --grid A-by-B combines all values of both, and each with
nothing of the other; A, B: {', '.join(GRID_AXES)}. The corrupted image of
sub-01_T1w.nii.gz under rotation:severe is sub-01_rec-rotationSevere_T1w.nii.gz.

  bmex-degrade bids corrupted --motion all:severe --slice-thickness 1.6 2.4 --noise 0.02 0.05
  bmex-degrade bids corrupted --motion rotation:all --slice-thickness 1.6 3.2 \\
      --grid severity-by-resolution

Motion kinds: {', '.join(KINDS)}. Severities, as amplitude in mm and degrees / frequency:
{', '.join(f'{name} {a:g}/{f:g}' for name, (a, f) in SEVERITIES.items())}.
"""


@dataclass(frozen=True)
class Task:
    """One clean image and what is to be made of it."""

    path: Path
    root: Path
    out: Path
    mask: Path | None
    metadata: dict[str, object]
    conditions: tuple[Condition, ...]
    setup: Setup


@dataclass(frozen=True)
class Made:
    """What became of one task: images made, images there already, and problems in words."""

    made: int = 0
    kept: int = 0
    skipped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """``bmex-degrade``; 0 where all went well, 1 where an image failed, 2 for wrong input."""
    args = _parser().parse_args(argv)
    try:
        conditions = list_conditions(
            parse_motion(args.motion), args.slice_thickness, args.noise, args.smooth, args.grid,
            noise_kinds=args.noise_kind,
        )
        if args.clean:
            conditions = [CLEAN, *conditions]
        if not conditions:
            raise InputError("nothing to do; give --motion, --slice-thickness, --noise or --smooth")
        tasks = _tasks(args, tuple(conditions))
    except (InputError, ValueError, OSError) as error:
        print(f"bmex-degrade: {error}", file=sys.stderr)
        return 2
    print(f"{len(tasks)} images x {len(conditions)} conditions: "
          + ", ".join(condition.label for condition in conditions))
    failed = 0
    for task, done in zip(tasks, run_tasks(_degrade_one, tasks, args.nprocs), strict=True):
        print(f"{task.path.name}: {done.made} made, {done.kept} there already")
        for text in (*done.skipped, *done.failed):
            print(f"  {text}", file=sys.stderr)
        failed += len(done.failed)
    write_dataset(args.bids_dir, args.output_dir)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bmex-degrade",
        description="Write a BIDS dataset of simulated corruptions of clean images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bids_dir", type=_folder, help="BIDS dataset of clean images, whole heads or stripped")
    add("output_dir", type=_folder, help="where the corrupted dataset goes")
    add("--motion", nargs="+", default=[], metavar="KIND:SEVERITY",
        help="e.g. rotation:severe periodic:minor; 'all' for every kind or severity")
    add("--slice-thickness", nargs="+", type=float, default=[], metavar="MM",
        help="mean over slices so thick, on a grid with voxels so long")
    add("--noise", nargs="+", type=float, default=[], metavar="SHARE",
        help="noise; standard deviation as a share of the brain's 95th percentile")
    add("--noise-kind", nargs="+", choices=tuple(NOISES), default=["rician"],
        help="one or both (default: rician)")
    add("--smooth", nargs="+", type=float, default=[], metavar="MM",
        help="Gaussian filter; standard deviation in mm")
    add("--grid", type=_checked(parse_grid), default=(), metavar="A-by-B",
        help="combine all values of the named options, e.g. severity-by-resolution")
    add("--clean", action="store_true", help="write the clean image too, as rec-clean")
    add("--seed", type=int, default=0, help="of all randomness (default: 0)")
    add("--slice-axis", choices=("x", "y", "z"), default="z",
        help="left-right, back-front or bottom-top (default: z)")
    add("--phase-axis", choices=("x", "y", "z"), default="y",
        help="axis of phase encoding (default: y)")
    add("--keep-grid", action="store_true",
        help="interpolate thick slices back to the grid of the clean image")
    add("--participant-label", "--participant_label", nargs="+", default=[], metavar="LABEL",
        type=lambda text: text.removeprefix("sub-"))
    add("--session-label", nargs="+", default=[], metavar="LABEL",
        type=lambda text: text.removeprefix("ses-"))
    add("--suffix", nargs="+", choices=("T1w", "T2w"), default=["T1w", "T2w"])
    add("-d", "--derivatives", nargs="+", type=_folder, default=[], metavar="DIR",
        help="derivative datasets with brain masks, in which severity is measured "
        "(default: the voxels of a stripped image, else brain extraction)")
    add("--nprocs", type=_count, default=1, help="images at a time (default: 1)")
    add("--version", action="version", version=f"bmex {__version__}")
    return parser


def _tasks(args: argparse.Namespace, conditions: tuple[Condition, ...]) -> list[Task]:
    root, out = args.bids_dir, args.output_dir
    check_dataset(root)
    if out == root:
        raise InputError(f"output_dir is bids_dir ({root}); choose another")
    _check_output(out)
    for folder in args.derivatives:
        if not folder.is_dir():
            raise InputError(f"--derivatives {folder}: no such folder")
    selection = Selection(
        tuple(args.participant_label), tuple(args.session_label), tuple(args.suffix)
    )
    images = [p for p in find_images(root, selection, ignore=(out,))
              if suffix_of(p) in args.suffix]
    read = sidecar_reader(root)
    setup = Setup(args.seed, args.slice_axis, args.phase_axis, args.keep_grid)
    return [
        Task(
            path,
            root,
            out,
            find_mask(args.derivatives, path, [p for p in images if p.parent == path.parent]),
            read(path)[0],
            conditions,
            setup,
        )
        for path in images
    ]


def _check_output(out: Path) -> None:
    """Refuse a folder that holds another dataset."""
    try:
        made_by = read_json(out / "dataset_description.json").get("GeneratedBy")
    except FileNotFoundError:
        if out.is_dir() and any(out.glob("sub-*")):
            raise InputError(f"output_dir ({out}) holds another dataset; choose another") from None
        return
    names = [item.get("Name") for item in made_by] if isinstance(made_by, list) else []
    if "bmex-degrade" not in names:
        raise InputError(f"output_dir ({out}) holds another dataset; choose another folder")


def _degrade_one(task: Task) -> Made:
    """Make every corruption of one image that is not there yet."""
    left = [c for c in task.conditions if not _is_there(task, c)]
    kept = len(task.conditions) - len(left)
    if not left:
        return Made(kept=kept)
    try:
        image = load_image(task.path)
        mask, origin, stripped = reference_mask(image, task.mask, task.metadata)
        scale = float(np.percentile(image.data[mask], 95))
        if not scale > 0:
            raise InputError(f"{task.path.name}: the brain is not above zero")
    except (OSError, ValueError) as error:
        return Made(kept=kept, failed=(str(error),))
    skipped, failed, made = [], [], 0
    for condition in left:
        name = f"{task.path.name}, {condition.label}"
        try:
            _make(task, condition, image, (mask, origin, stripped), scale)
            made += 1
        except OSError as error:
            failed.append(f"{name}: {error}")
        except ValueError as error:  # e.g. the slices are that thick already
            skipped.append(f"{name}: skipped: {error}")
    return Made(made, kept, tuple(skipped), tuple(failed))


def _make(
    task: Task, condition: Condition, image: Image, brain: tuple[Mask, str, bool], scale: float
) -> None:
    """Write one corrupted image and its sidecar; the sidecar comes last and makes it complete."""
    mask, origin, stripped = brain
    clean = np.asarray(np.maximum(image.data, 0) / scale, np.float32)
    key = task.path.relative_to(task.root).as_posix()
    made, affine = corrupt(clean, image.affine, condition, task.setup, key)
    if stripped:  # corrupting spreads the brain beyond itself, so it is stripped again
        made = np.where(_on_grid(image.data != 0, image.affine, made.shape, affine), made, 0)
    made = (made * scale).astype(np.float32) if condition != CLEAN else image.data
    path = _path(task, condition)
    path.parent.mkdir(parents=True, exist_ok=True)
    same = made.shape == image.data.shape
    save_image(path, made, image, affine=None if same else affine)
    back = onto_reference(Image(made, affine, image.header), image)
    top = float(np.percentile(image.data[mask], 99.9))
    severity: dict[str, object] = {
        "PSNR": _finite(metrics.psnr(back, image.data, mask, top)),
        "SSIM": round(metrics.ssim(back, image.data, mask, top), 6),
        "DataRange": top,
        "Mask": origin,
        "Description": "Against the clean image, on its grid, inside the mask. Data range: its "
        "99.9th percentile there. SSIM: 3-D, Gaussian window of 11 voxels.",
    }
    sidecar = {key: value for key, value in task.metadata.items() if key != "Sources"}
    if condition.thickness:
        sidecar["SliceThickness"] = condition.thickness
    sidecar |= {
        "SkullStripped": stripped,
        "Sources": [f"bids:clean:{task.path.relative_to(task.root).as_posix()}"],
        "SimulatedArtefacts": _parameters(task, condition),
        "MeasuredSeverity": severity,
    }
    write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar)


def _parameters(task: Task, condition: Condition) -> dict[str, object]:
    """What was done, in the order in which it was done; equal parameters give equal images."""
    found: dict[str, object] = {"Condition": condition.label, "Version": __version__}
    found |= asdict(task.setup)
    if condition.smooth:
        found["SmoothingSigma"] = condition.smooth
    if condition.kind:
        amplitude, frequency = SEVERITIES[condition.severity]
        found |= {"MotionKind": condition.kind, "MotionSeverity": condition.severity,
                  "MotionAmplitude": amplitude, "MotionFrequency": frequency,
                  "MotionReference": "mean position"}
    if condition.thickness:
        found["SliceThickness"] = condition.thickness
    if condition.noise:
        found[f"{condition.noise_kind.capitalize()}Noise"] = condition.noise
    return {key[:1].upper() + _camel(key[1:]): value for key, value in found.items()}


def _camel(text: str) -> str:
    first, *rest = text.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _is_there(task: Task, condition: Condition) -> bool:
    path = _path(task, condition)
    try:
        sidecar = read_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"))
    except (OSError, ValueError):
        return False
    return path.exists() and sidecar.get("SimulatedArtefacts") == _parameters(task, condition)


def _path(task: Task, condition: Condition) -> Path:
    """Where a corrupted image goes: the condition is the label of ``rec-``, after the image's."""
    entities = parse_entities(task.path.name)
    entities["rec"] = entities.get("rec", "") + condition.label
    order = sorted(entities, key=lambda key: (*ENTITY_ORDER, key).index(key))
    name = "_".join([*(f"{key}-{entities[key]}" for key in order), suffix_of(task.path)])
    return session_dir(task.out, entities) / "anat" / f"{name}.nii.gz"


def _on_grid(
    mask: Mask, affine: npt.NDArray[np.float64], shape: tuple[int, ...],
    target: npt.NDArray[np.float64],
) -> Mask:
    """A mask where at least half of a voxel of a coarser grid on the same axes lies in it."""
    if mask.shape == shape:
        return mask
    step = np.linalg.inv(affine) @ target
    matrices = [
        axis_matrix(mask.shape[a], float(step[a, 3]), float(step[a, a]), shape[a], order=1)
        for a in range(3)
    ]
    share = resample(mask.astype(np.float32), (matrices[0], matrices[1], matrices[2]))
    return np.asarray(share >= 0.5)


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def _checked(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """A reader whose message argparse shows as it is."""

    def checked(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


if __name__ == "__main__":
    raise SystemExit(main())
