"""Turn a checkpoint into a bundled model: float16 safetensors and an entry in models.json."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from bmex_bids import __version__, intensity
from bmex_bids.bids import atomic_path
from bmex_bids.image import load_image
from bmex_bids.inference import enhance_volume, resolve
from bmex_bids.spatial import conform, model_grid
from bmex_bids.training.architectures import averaged_state
from bmex_bids.training.journal import for_json, read_rows
from bmex_bids.training.labels import HELD_OUT
from bmex_bids.training.settings import ARCHITECTURES
from bmex_bids.weights import ModelRecord, list_models, load_network, write_models

__all__ = ["enter", "export", "main", "reference_of"]


def export(checkpoint: Path, record: ModelRecord, folder: Path) -> ModelRecord:
    """Write the averaged weights of a checkpoint beside models.json and enter them there.

    Args:
        checkpoint: ``checkpoint.pt`` or ``best.pt`` of a training run, ``log.csv`` beside it.
        record: the entry; its architecture (where the checkpoint has it, with the ``condition`` of
            the entry), file, checksum and training record are filled in.
        folder: models folder.

    Returns:
        The entry as written.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in averaged_state(checkpoint).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.safetensors"
    with atomic_path(path) as temporary:
        save_file(weights, temporary)
        temporary.chmod(0o644)
    own = {k: v for k, v in record.architecture.items() if k == "condition"}
    rows = read_rows(checkpoint.with_name("log.csv"))
    training = {
        **record.training,
        "Settings": {k: v for k, v in state["settings"].items() if k != "architecture"},
        "Steps": state["step"],
        "Hours": round(state["seconds"] / 3600, 2),
        "LastLogEntry": for_json(rows[-1]) if rows else None,
    }
    record = replace(
        record,
        architecture=state.get("architecture", record.architecture) | own,
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        training=training,
        directory=folder,
    )
    return enter(record)


def enter(record: ModelRecord) -> ModelRecord:
    """Put an entry into the models.json of its directory, in place of one of the same name."""
    others = [r for r in list_models([record.directory]) if r.name != record.name]
    write_models(record.directory, [*others, record])
    return record


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
        load_network(record), volume * np.float32(gain), resolve("cpu", "float32")
    )
    return {
        "Image": template.name,
        "TissueMeans": intensity.tissue_medians(volume, probabilities[1:] * inside),
        "Median": float(np.median(volume[inside])),
        "Edges": intensity.EDGES.tolist(),
        "Density": intensity.histogram(volume, inside).tolist(),
    }


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
    parser.add_argument("--grid", type=float, required=True, help="voxel side in mm")
    parser.add_argument("--reference", type=Path, help="clean image that defines the common scale")
    parser.add_argument("--data", default="", help="what it was trained on, in words")
    args = parser.parse_args(argv)
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
    record = export(args.checkpoint, record, args.folder)
    if args.reference is not None:
        record = enter(replace(record, reference=reference_of(record, args.reference)))
    print(json.dumps({"name": record.name, "sha256": record.sha256, "file": record.file}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
