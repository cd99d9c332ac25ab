"""Turn a checkpoint into a bundled model: float16 safetensors and an entry in models.json."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from bmex_bids import __version__, intensity
from bmex_bids.age import STAGES
from bmex_bids.bids import atomic_path
from bmex_bids.image import load_image
from bmex_bids.inference import enhance_volume, resolve, three_tissues
from bmex_bids.published import FETAL_AGES
from bmex_bids.spatial import conform, model_grid
from bmex_bids.training.architectures import averaged_state
from bmex_bids.training.journal import for_json, read_rows
from bmex_bids.training.labels import HELD_OUT
from bmex_bids.training.settings import ARCHITECTURES
from bmex_bids.training.stages import CONDITIONS
from bmex_bids.weights import ModelRecord, list_models, load_network, write_models

__all__ = [
    "AGES", "add_mixing", "enter", "entries", "export", "main", "mixing", "reference_of",
    "save_weights", "written",
]  # fmt: skip

AGES = {stage: (low, high) for stage, low, high in STAGES} | {"fetal": FETAL_AGES}
"""Months after birth of each stage."""


def export(
    checkpoint: Path, record: ModelRecord, folder: Path, *, mixed: tuple[Path, float] | None = None
) -> ModelRecord:
    """:func:`written`, then entered into models.json."""
    return enter(written(checkpoint, record, folder, mixed=mixed))


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write tensors in float16 (numbers that are whole as they are); the file's SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halved = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in weights.items()
    }
    with atomic_path(path) as temporary:
        save_file(halved, temporary)
        temporary.chmod(0o644)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(
    checkpoint: Path, record: ModelRecord, folder: Path, *, mixed: tuple[Path, float] | None = None
) -> ModelRecord:
    """Write the averaged weights of a checkpoint into a models folder.

    Args:
        checkpoint: ``checkpoint.pt`` or ``best.pt`` of a training run, ``log.csv`` beside it.
        record: the entry; its architecture (where the checkpoint has it), file, checksum and
            training record are filled in.
        folder: models folder.
        mixed: other weights of the same network, such as those that the run started from, and
            their share in what is written; the mean of both often serves images better that are
            unlike those of the run (doi:10.48550/arXiv.2109.01903).

    Returns:
        The entry, which is in no models.json yet.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    found, told = averaged_state(checkpoint), {}
    if mixed is not None:
        path, share = mixed
        others = averaged_state(path)
        found = {
            key: torch.lerp(value, others[key], share) if value.is_floating_point() else value
            for key, value in found.items()
        }
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        told = {"MixedWith": {"SHA256": checksum, "Share": share}}
    path = folder / f"{record.name}.safetensors"
    sha256 = save_weights(path, found)
    rows = read_rows(checkpoint.with_name("log.csv"))
    training = {
        **record.training,
        **told,
        "Settings": {k: v for k, v in state["settings"].items() if k != "architecture"},
        "Steps": state["step"],
        "Hours": round(state["seconds"] / 3600, 2),
        "LastLogEntry": for_json(rows[-1]) if rows else None,
    }
    return replace(
        record,
        architecture=state.get("architecture", record.architecture),
        file=path.name,
        sha256=sha256,
        training=training,
        directory=folder,
    )


def enter(record: ModelRecord) -> ModelRecord:
    """Put an entry into the models.json of its directory, where one of the same name stood."""
    there = {r.name: r for r in list_models([record.directory])}
    write_models(record.directory, list((there | {record.name: record}).values()))
    return record


def entries(record: ModelRecord, conditions: Sequence[str], prefix: str) -> list[ModelRecord]:
    """One entry for each contrast and stage that a network with conditions serves, of one file.

    Args:
        record: entry of the network, with its file.
        conditions: such as ``T1w-24``.
        prefix: of the names, such as ``bmex`` for ``bmex-T1w-24``.
    """
    made = []
    for condition in conditions:
        suffix, stage = condition.split("-")
        network = record.architecture | {"condition": CONDITIONS.index(condition)}
        made.append(
            replace(
                record, name=f"{prefix}-{condition}", suffixes=(suffix,), stage=stage,
                ages_months=AGES[stage], architecture=network,
            )
        )
    return made


def reference_of(record: ModelRecord, template: Path) -> dict[str, Any]:
    """Tissue intensities and histogram of a stage's clean reference image, on its own scale.

    Args:
        record: the model that labels it.
        template: skull-stripped image whose intensities (about 0 to 1000) define the scale.
    """
    image = load_image(template)
    mask = image.data > 0
    grid = model_grid(image.data.shape, image.affine, record.grid_mm, mask=mask)
    inside = conform(mask.astype(np.float32), grid, order=1) > 0.5
    volume: npt.NDArray[np.float32] = np.where(inside, conform(image.data, grid), 0)
    volume = np.maximum(volume, 0).astype(np.float32)
    gain = intensity.brain_gain(volume, inside) * record.scale
    probabilities, _, _ = enhance_volume(
        load_network(record), volume * np.float32(gain), resolve("cpu", "float32"),
        enhance=False,
    )
    shares = three_tissues(probabilities) * inside
    labels = np.where(inside, shares.argmax(0) + 1, 0)
    return {
        "Image": template.name,
        "TissueMeans": intensity.tissue_medians(volume, shares),
        "Median": float(np.median(volume[inside])),
        "Edges": intensity.EDGES.tolist(),
        "Density": intensity.histogram(volume, inside).tolist(),
        "TissueDensity": intensity.tissue_histograms(volume, labels),
    }


def add_mixing(parser: argparse.ArgumentParser) -> None:
    """The option ``--mix``, which :func:`mixing` reads."""
    parser.add_argument(
        "--mix", nargs=2, metavar=("WEIGHTS", "SHARE"),
        help="other weights of the network, such as those before, and their share in the mean",
    )


def mixing(args: argparse.Namespace) -> tuple[Path, float] | None:
    """What ``--mix`` said, as :func:`written` takes it."""
    return (Path(args.mix[0]), float(args.mix[1])) if args.mix else None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the export."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.training.export", description=__doc__
    )
    parser.add_argument("kind", choices=tuple(ARCHITECTURES))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--suffix", nargs="+", default=["T1w", "T2w"])
    parser.add_argument("--stage")
    parser.add_argument("--ages", type=float, nargs=2, metavar=("FROM", "TO"), help="in months")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS[1:], metavar="CONDITION",
                        help="such as T1w-24: an entry NAME-CONDITION for each, of one file")
    parser.add_argument("--grid", type=float, required=True, help="voxel side in mm")
    parser.add_argument("--reference", type=Path, nargs="+", default=[],
                        help="clean image that defines the common scale, of each condition in turn")
    parser.add_argument("--data", default="", help="what it was trained on, in words")
    add_mixing(parser)
    args = parser.parse_args(argv)
    if args.reference and len(args.reference) != len(args.conditions or [0]):
        parser.error("--reference: expected one image for each of --conditions")
    record = ModelRecord(
        name=args.name,
        kind=args.kind,
        set="bundled",
        suffixes=tuple(args.suffix),
        stage=args.stage,
        ages_months=tuple(args.ages) if args.ages else None,
        grid_mm=args.grid,
        architecture=ARCHITECTURES[args.kind],
        file="",
        sha256="",
        version=__version__,
        licence="Apache-2.0",
        source="trained by bmex_bids.training",
        training={"Data": args.data, "HeldOutLabelMaps": list(HELD_OUT)},
    )
    record = written(args.checkpoint, record, args.folder, mixed=mixing(args))
    records = entries(record, args.conditions, args.name) if args.conditions else [record]
    for number, entry in enumerate(records):
        if args.reference:
            entry = replace(entry, reference=reference_of(entry, args.reference[number]))
        enter(entry)
        print(json.dumps({"name": entry.name, "sha256": entry.sha256, "file": entry.file}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
