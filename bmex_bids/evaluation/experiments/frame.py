"""What the experiments share: options, methods, rows that are written as they come, tables."""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from bmex_bids import metrics
from bmex_bids.evaluation.baselines.filters import (
    Mask,
    Method,
    Volume,
    ants_denoise,
    interpolated,
    non_local_means,
)
from bmex_bids.evaluation.baselines.nlup import upsampled
from bmex_bids.evaluation.experiments.brains import Brain, Scene, held_out
from bmex_bids.inference import Compute, enhance_volume
from bmex_bids.training.degrade import Recipe
from bmex_bids.training.stages import CONDITIONS
from bmex_bids.weights import ModelRecord, list_models, load_network, models_dir

__all__ = [
    "SIX", "Row", "Setup", "fresh", "methods_for", "options", "record_of", "rows_kept", "setup_of",
    "six", "table", "tissues_of", "unmeasured",
]  # fmt: skip

Row = dict[str, str]
CPU = Compute("cpu", "float32")
OWN = ("bmex", "nlm", "nlup", "ants", "cubic", "linear")
SIX = ("MSE", "PSNR", "SSIM", "MS-SSIM", "UQI", "VIF")


@dataclass(frozen=True)
class Setup:
    """The choices of one call.

    Attributes:
        out: folder for ``NAME.tsv``, ``NAME.md`` and ``NAME.png``; its name holds the checksum of
            the weights and the crop, so that rows of other weights are never taken for theirs.
        brains: kept out of training.
        methods: their names; ``bmex`` is the bundled model set, any other set of the models folder
            (such as ``duncan``) is a method by its name.
        models: folder of models; None for the bundled ones.
        ants: Python that has antspyx, or None.
        quick: as little as shows that it runs.
    """

    out: Path
    brains: tuple[Brain, ...]
    methods: tuple[str, ...]
    models: Path | None
    ants: str | None
    quick: bool

    @property
    def labelled(self) -> list[Brain]:
        """The brains whose tissue is known."""
        return [brain for brain in self.brains if brain.labelled]


def options(name: str, text: str | None) -> argparse.ArgumentParser:
    """The options that every experiment has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bmex_bids.evaluation.experiments.{name}", description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with label_maps and templates; without it only MNI152")
    add("--out", type=Path, default=Path("work/experiments"),
        help="rows there are kept, and only what is missing is measured")
    add("--crop", type=int, default=112, help="central cube in voxels of 0.8 mm; 0: whole brains")
    add("--heads", type=int, default=1, help="held-out label maps per condition")
    add("--conditions", nargs="+", default=["T1w-24", "T2w-24", "T1w-12", "T2w-0"],
        choices=[c for c in CONDITIONS if c != "any"], metavar="CONDITION",
        help="contrasts and stages: %(choices)s")
    add("--methods", nargs="+", default=["bmex", "nlm", "nlup"],
        help=f"{', '.join(OWN)}, or another model set's name")
    add("--models-dir", type=Path)
    add("--ants", metavar="PYTHON", help="an interpreter that has antspyx")
    add("--quick", action="store_true", help="seconds: a small part of MNI152, few conditions")
    parser.set_defaults(refuse=parser.error)
    return parser


def setup_of(args: argparse.Namespace) -> Setup:
    """What the options ask for; what cannot be used ends the program with a line and code 2."""
    try:
        return _checked(args)
    except (ValueError, FileNotFoundError) as error:
        args.refuse(str(error))
        raise


def _checked(args: argparse.Namespace) -> Setup:
    """What the options ask for.

    Raises:
        ValueError: ``ants`` without an interpreter, an unknown method, or no brain.
        FileNotFoundError: the data folder has no label maps.
    """
    if "ants" in args.methods and not args.ants:
        raise ValueError("the method ants needs --ants PYTHON, an interpreter that has antspyx")
    if args.ants and not shutil.which(args.ants):
        raise ValueError(f"--ants {args.ants}: no such program")
    data, crop, heads, conditions = args.data, args.crop, args.heads, args.conditions
    if args.quick:
        data, crop, heads, conditions = None, min(crop, 64) or 64, 0, ["T1w-24"]
    brains = held_out(data, crop=crop, heads=heads, conditions=conditions)
    if not brains:
        raise ValueError(f"no held-out brain for {' '.join(conditions)}: give --data")
    for name in args.methods:
        if name not in OWN:
            record_of(args.models_dir, brains[0].condition, name)
    weights = record_of(args.models_dir, brains[0].condition).sha256[:12]
    out: Path = args.out / f"{weights}-crop{crop}"
    out.mkdir(parents=True, exist_ok=True)
    return Setup(
        out, tuple(brains), tuple(args.methods), args.models_dir, args.ants, args.quick
    )


def record_of(models: Path | None, condition: str, name: str = "bundled") -> ModelRecord:
    """The model of a condition.

    Raises:
        ValueError: there is none.
    """
    suffix, _, stage = condition.partition("-")
    for record in list_models(models_dir(models)):
        if (record.kind, record.set, record.stage) == ("enhance", name, stage):
            if suffix in record.suffixes:
                return record
    if name == "bundled":
        raise ValueError(f"no bundled model for {condition} in {models_dir(models)}")
    raise ValueError(
        f"{name}: neither one of {', '.join(OWN)} nor a set of models with one for {condition}"
    )


@lru_cache(maxsize=2)
def _network(models: Path | None, condition: str, name: str) -> tuple[nn.Module, ModelRecord]:
    record = record_of(models, condition, name)
    return load_network(record), record


def tissues_of(
    models: Path | None, volume: Volume, condition: str, *, name: str = "bundled",
    flips: bool = False, mixture: bool = True,
) -> tuple[Volume, Volume, Volume | None]:
    """Probabilities, enhanced image and, with flips, uncertainty, at a brain median of 1."""
    network, record = _network(models, condition, name)
    scale = np.float32(record.scale)
    shares, made, spread = enhance_volume(
        network, volume * scale, CPU, flips=flips, mixture=mixture
    )
    return shares, made / scale, None if spread is None else spread / scale


def methods_for(setup: Setup, recipe: Recipe) -> dict[str, Method]:
    """The image as it is given, ``input``, and the methods that apply to an image degraded so.

    Upsampling does not apply without thick slices.
    """
    found = {name: _method_of(setup, name, recipe) for name in ("input", *setup.methods)}
    return {name: method for name, method in found.items() if method is not None}


def _method_of(setup: Setup, name: str, recipe: Recipe) -> Method | None:
    """A method by its name; None where it does not apply."""
    thick, axis = recipe.slice_factor, recipe.slice_axis
    if name in ("nlup", "cubic", "linear"):
        if thick <= 1:
            return None
        if name == "nlup":
            return upsampled(thick, axis=axis)
        return interpolated(round(thick), axis=axis, order=3 if name == "cubic" else 1)
    if name == "input":
        return lambda volume, mask, condition: volume
    if name == "nlm":
        return non_local_means
    if name == "ants":
        return ants_denoise(str(setup.ants))
    chosen = "bundled" if name == "bmex" else name

    def network(volume: Volume, mask: Mask, condition: str) -> Volume:
        made = tissues_of(setup.models, volume, condition, name=chosen, mixture=False)[1]
        return np.where(mask, made, 0).astype(np.float32)

    return network


def six(volume: Volume, truth: Scene) -> dict[str, float]:
    """The six measures, 3-D, inside the brain; range: the clean brain's 99.9th percentile."""
    clean, mask, top = truth.clean, truth.mask, truth.top
    return {
        "MSE": metrics.mse(volume, clean, mask) / top**2,
        "PSNR": metrics.psnr(volume, clean, mask, top),
        "SSIM": metrics.ssim(volume, clean, mask, top),
        "MS-SSIM": metrics.ms_ssim(volume, clean, mask, top),
        "UQI": metrics.uqi(volume, clean, mask),
        "VIF": metrics.vif(volume, clean, mask, top),
    }


def rows_kept(path: Path) -> list[Row]:
    """The rows that are there."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _of(key: Mapping[str, str], rows: Iterable[Row]) -> list[Row]:
    """The rows of a key."""
    return [row for row in rows if all(row.get(k) == v for k, v in key.items())]


def fresh(
    path: Path, keys: Sequence[Mapping[str, str]]
) -> Iterator[tuple[Mapping[str, str], _Adder]]:
    """The keys without rows, each with a function that adds rows to the file at once.

    A start after an end goes on where it ended: a key whose rows are there is not asked for again.
    """
    there = rows_kept(path)
    for key in keys:
        if not _of(key, there):
            yield key, _Adder(path, dict(key))


def unmeasured(
    path: Path,
    wanted: Iterable[tuple[Mapping[str, str], Recipe]],
    methods: Callable[[Recipe], Mapping[str, Method]],
) -> Iterator[tuple[Mapping[str, str], Recipe, Mapping[str, Method], _Adder]]:
    """The keys that lack rows of a method, with the methods that they lack, as :func:`fresh`.

    Args:
        path: of the rows, which have a column ``method``.
        wanted: keys, and how the image of each is degraded.
        methods: by name, those that apply to an image degraded so, see :func:`methods_for`.
    """
    there = rows_kept(path)
    for key, recipe in wanted:
        done = {row["method"] for row in _of(key, there)}
        missing = {name: one for name, one in methods(recipe).items() if name not in done}
        if missing:
            yield key, recipe, missing, _Adder(path, dict(key))


@dataclass(frozen=True)
class _Adder:
    path: Path
    key: Row

    def __call__(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Append rows, all of one key together."""
        made = [self.key | {k: _text(v) for k, v in row.items()} for row in rows]
        new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(made[0]), delimiter="\t")
            if new:
                writer.writeheader()
            writer.writerows(made)
        print(*self.key.values(), flush=True)


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def numbers(rows: Iterable[Row], column: str) -> npt.NDArray[np.float64]:
    """A column's finite values."""
    values = np.array([float(row[column]) for row in rows], np.float64)
    return values[np.isfinite(values)]


def table(
    rows: Sequence[Row], by: Sequence[str], columns: Mapping[str, int], note: str = ""
) -> str:
    """Markdown: means of the columns, with so many digits, by groups.

    Each column of ``by`` has its values in the order in which they first come.
    """
    head = [*by, "n", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    ranks = [list(dict.fromkeys(row[k] for row in rows)) for k in by]
    for group in sorted(
        {tuple(row[k] for k in by) for row in rows},
        key=lambda group: [rank.index(v) for rank, v in zip(ranks, group, strict=True)],
    ):
        chosen = [row for row in rows if tuple(row[k] for k in by) == group]
        cells = []
        for column, digits in columns.items():
            values = numbers(chosen, column)
            cells.append(f"{values.mean():.{digits}f}" if values.size else "")
        lines.append("| " + " | ".join([*group, str(len(chosen)), *cells]) + " |")
    return "\n".join([*lines, "", note]) if note else "\n".join(lines)


def finish(setup: Setup, name: str, text: str, rows: Sequence[Row]) -> int:
    """Write and print the table, with the model and the images that made it."""
    record = record_of(setup.models, setup.brains[0].condition)
    images = ", ".join(dict.fromkeys(f"{row['image']} ({row['contrast']})" for row in rows))
    told = (
        f"Weights {record.file} of version {record.version}, sha256 {record.sha256[:12]}. "
        f"Images, kept out of the training of the bundled weights: {images}."
    )
    written = f"{text}\n\n{told}\n"
    (setup.out / f"{name}.md").write_text(written, encoding="utf-8")
    print("\n" + written)
    return 0
