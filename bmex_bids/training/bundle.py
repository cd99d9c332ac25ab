"""Enter one stage-conditioned pair into models.json as the model of every stage and contrast.

All entries share one weights file; what differs is the condition, the ages, and the reference whose
intensities define the stage's common scale.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.age import STAGES
from bmex_bids.training.export import add_mixing, enter, export, mixing, reference_of
from bmex_bids.training.labels import HELD_OUT
from bmex_bids.training.pool import GRID
from bmex_bids.training.settings import ARCHITECTURES
from bmex_bids.training.stages import CONDITIONS
from bmex_bids.weights import ModelRecord, list_models, write_models

__all__ = ["main", "measure_references", "records"]

FILE = "bmex-pair"
BEFORE_BIRTH = (-10.0, 0.0)
REFERENCES = {"fetal": "Fetal", "3": "Month0", "18": "Month12"}
"""Template of a stage where its name does not say so; the published method shares them likewise."""


def records(data: str, held_out: Sequence[str]) -> list[ModelRecord]:
    """An entry for every stage and contrast, without weights yet."""
    ages = {stage: (low, high) for stage, low, high in STAGES} | {"fetal": BEFORE_BIRTH}
    made = []
    for index, condition in enumerate(CONDITIONS):
        if condition == "any":
            continue
        suffix, stage = condition.split("-")
        made.append(
            ModelRecord(
                name=f"bmex-{condition}",
                kind="enhance",
                set="bundled",
                suffixes=(suffix,),
                stage=stage,
                ages_months=ages[stage],
                grid_mm=GRID,
                architecture={**ARCHITECTURES["enhance"], "condition": index},
                file="",
                sha256="",
                version=__version__,
                licence="Apache-2.0",
                source="trained by bmex_bids.training",
                training={
                    "Data": data,
                    "HeldOutLabelMaps": list(HELD_OUT),
                    "HeldOutImages": list(held_out),
                },
            )
        )
    return made


def measure_references(folder: Path, templates: Path) -> list[str]:
    """Measure the reference of every bundled model again on its own image.

    Args:
        folder: models folder.
        templates: folder with the images that the references name.

    Returns:
        The names of the models that have one.
    """
    found = []
    for record in list_models([folder]):
        if record.set == "bundled" and record.reference:
            image = templates / str(record.reference["Image"])
            enter(replace(record, reference=reference_of(record, image)))
            found.append(record.name)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the weights once and enter all models."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.training.bundle", description=__doc__
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="models folder")
    parser.add_argument("--templates", type=Path, required=True, help="Template-*.nii.gz")
    parser.add_argument("--data", default="", help="what it was trained on, in words")
    parser.add_argument("--held-out", nargs="*", default=[], help="images kept out")
    add_mixing(parser)
    args = parser.parse_args(argv)
    written: ModelRecord | None = None
    for record in records(args.data, args.held_out):
        if written is None:
            written = export(
                args.checkpoint, replace(record, name=FILE), args.folder, mixed=mixing(args)
            )
        suffix, stage = record.suffixes[0], str(record.stage)
        own = replace(
            record,
            architecture={
                **written.architecture, "condition": record.architecture["condition"]
            },
            file=written.file,
            sha256=written.sha256,
            training={**written.training, **record.training},
            directory=args.folder,
        )
        template = f"Template-{REFERENCES.get(stage, f'Month{stage}')}-{suffix}.nii.gz"
        own = enter(replace(own, reference=reference_of(own, args.templates / template)))
        print(own.name, own.reference["TissueMeans"] if own.reference else None, flush=True)
    write_models(args.folder, [r for r in list_models([args.folder]) if r.name != FILE])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
