"""The end of a training: weights, entries of models.json, the record of the run, a model card."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bmex_bids import __version__
from bmex_bids.bids import read_json, write_text
from bmex_bids.inference import Compute
from bmex_bids.training.card import draw_curves, model_card
from bmex_bids.training.export import AGES, enter, entries, reference_of, written
from bmex_bids.training.journal import for_json, read_rows
from bmex_bids.training.loop import BEST, CHECKPOINT
from bmex_bids.training.samples import sample_paths
from bmex_bids.training.settings import Settings, architecture_of
from bmex_bids.training.validate import validate
from bmex_bids.weights import ModelRecord, list_models, load_network, models_dir

__all__ = ["Identity", "publish", "record_of_run"]

MOST_POINTS = 50  # of a curve in models.json


@dataclass(frozen=True)
class Identity:
    """What the new model is called, and whom it serves.

    Attributes:
        model_set: what ``bmex --model-set`` names.
        suffixes: contrasts.
        stages: age stages; more than one only for a network with conditions.
        grid_mm: voxel side.
        licence: of the weights.
        start: the model that it was started from.
        reference: clean image that defines the common scale.
    """

    model_set: str
    suffixes: tuple[str, ...]
    stages: tuple[str, ...]
    grid_mm: float
    licence: str
    start: ModelRecord | None = None
    reference: Path | None = None


def record_of_run(
    bids_dir: Path, data: Mapping[str, Any], settings: Settings, identity: Identity, work: Path
) -> dict[str, Any]:
    """What a run was: its data and split, program and commit, curves; goes into models.json."""
    try:
        described = read_json(bids_dir / "dataset_description.json")
    except (OSError, ValueError):
        described = {}
    start = identity.start
    images = data["images"]
    sides = {side: [i for i in images if i["side"] == side] for side in data["subjects"]}
    counts = ", ".join(
        f"{len(some)} images of {len(data['subjects'][side])} subjects for {side}"
        for side, some in sides.items()
    )
    maps = len(data["label_maps"])
    synthetic = f", {settings.synthetic} heads synthesised from {maps} label maps" * bool(maps)
    return {
        "Data": f"{described.get('Name') or bids_dir.name}: {counts}{synthetic}",
        "Dataset": {
            key: described[key]
            for key in ("Name", "DatasetDOI", "License", "BIDSVersion")
            if key in described
        },
        "Split": data["subjects"],
        "Images": images,
        "Failed": data["failed"],
        "LabelMaps": data["label_maps"],
        "Seed": settings.seed,
        "Commit": _commit(),
        "Versions": {
            "bmex": __version__, "torch": torch.__version__, "python": platform.python_version()
        },
        "StartedFrom": None if start is None else {"Name": start.name, "SHA256": start.sha256},
        "Curves": {
            "Training": _thinned(read_rows(work / "log.csv")),
            "Validation": _thinned(read_rows(work / "validation.csv")),
        },
    }


def _commit() -> str | None:
    """The commit of the program where it runs from a checkout of its own."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _thinned(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float | None]]:
    """At most :data:`MOST_POINTS` rows, the last one among them."""
    every = -(-len(rows) // MOST_POINTS) or 1
    return [for_json(row) for row in reversed(list(reversed(rows))[::every])]


def publish(
    identity: Identity,
    run: Mapping[str, Any],
    settings: Settings,
    work: Path,
    folder: Path,
    compute: Compute,
) -> list[ModelRecord]:
    """Write the best weights of a run, its entries in models.json, its model card and curves.

    The numbers of the validation in the entry are those of the file as written, in float16.

    Returns:
        The entries: one, or with a network of many conditions one for each contrast and stage.
    """
    conditional = bool(architecture_of(settings).get("conditions"))
    best = work / BEST if (work / BEST).exists() else work / CHECKPOINT
    record = written(best, replace(_record(identity, settings), training=dict(run)), folder)
    held_out = sample_paths(work / "validation")
    found = validate(load_network(record), held_out, settings, compute)
    record = replace(record, training=record.training | {"Validation": for_json(found)})
    served = sorted({image["condition"] for image in run["Images"]})
    records = entries(record, served, identity.model_set) if conditional else [record]
    records = [enter(replace(r, reference=_reference(r, identity, folder))) for r in records]
    draw_curves(work, folder / f"{record.name}_curves.png")
    write_text(folder / f"{record.name}_MODEL_CARD.md", model_card(records, settings))
    return records


def _record(identity: Identity, settings: Settings) -> ModelRecord:
    """The entry of the network as a whole, before its file is written."""
    name = "-".join((identity.model_set, *identity.suffixes, *identity.stages))
    return ModelRecord(
        name=name,
        kind="enhance",
        set=identity.model_set,
        suffixes=identity.suffixes,
        stage=identity.stages[0],
        ages_months=AGES[identity.stages[0]],
        grid_mm=identity.grid_mm,
        architecture=architecture_of(settings),
        file="",
        sha256="",
        version="1",
        licence=identity.licence,
        source="trained with bmex-train",
    )


def _reference(record: ModelRecord, identity: Identity, folder: Path) -> dict[str, Any] | None:
    """The common scale: of the image given, else of the model that it started from or replaces."""
    if identity.reference is not None:
        return reference_of(record, identity.reference)
    others = [identity.start] if identity.start else []
    others += list_models([folder, *models_dir(None)])
    for other in others:
        fits = other.stage in (None, record.stage) and set(record.suffixes) <= set(other.suffixes)
        if fits and other.name != record.name and other.reference:
            return other.reference
    return None
