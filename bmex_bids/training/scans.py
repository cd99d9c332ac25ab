"""Which images of a BIDS dataset a training uses, and which people it keeps out."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bmex_bids.age import AgeError, find_age, stage_of
from bmex_bids.bids import Job, output_stem, parse_entities
from bmex_bids.layout import (
    InputError,
    Selection,
    check_dataset,
    find_images,
    find_mask,
    sidecar_reader,
    suffix_of,
)
from bmex_bids.plan import left_out
from bmex_bids.tables import read_table
from bmex_bids.training.dseg import find_dseg, read_classes

__all__ = ["Scan", "Wanted", "find_scans", "split_subjects"]


@dataclass(frozen=True)
class Wanted:
    """What a training is to use.

    Attributes:
        bids_dir: absolute root of the raw dataset.
        selection: the images that are wanted.
        stages: age stages; an image of another one is left out.
        masks: roots of derivative datasets with brain masks.
        labels: roots of derivative datasets with tissue labels.
    """

    bids_dir: Path
    selection: Selection
    stages: tuple[str, ...]
    masks: tuple[Path, ...] = ()
    labels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Scan:
    """One image to train on.

    Attributes:
        job: the image, its age stage and brain mask.
        labels: image of tissue labels, None where there is none.
        classes: label -> tissue class, see :func:`bmex_bids.training.dseg.read_classes`.
    """

    job: Job
    labels: Path | None
    classes: dict[int, int]

    @property
    def condition(self) -> str:
        """Contrast and stage, such as ``T1w-24``."""
        return f"{self.job.suffix}-{self.job.stage}"

    @property
    def stem(self) -> str:
        """What names the image among all, such as ``sub-01_T1w``."""
        return output_stem(self.job)


def find_scans(wanted: Wanted) -> tuple[list[Scan], list[str]]:
    """The images to train on, found as the app finds them, and a line for each that is left out.

    Raises:
        InputError: the dataset or the selection cannot be used, or no image is left.
    """
    root = wanted.bids_dir
    check_dataset(root)
    images = find_images(root, wanted.selection)
    reasons = left_out(images)
    kept = [image for image in images if image not in reasons]
    notes = [f"{image.name}: {reason}" for image, reason in reasons.items()]
    read_sidecar, read = sidecar_reader(root), functools.cache(read_table)
    scans = []
    for image in kept:
        siblings = [other for other in kept if other.parent == image.parent]
        metadata, _ = read_sidecar(image)
        entities = parse_entities(image.name)
        try:
            age = find_age(root, entities, image, metadata, read=read)
            stage = stage_of(age.months or 0.0, fetal=age.fetal)
            months, source = age.months, age.source
        except AgeError as error:
            if len(wanted.stages) != 1:
                notes.append(f"{image.name}: {error}")
                continue
            stage, months, source = wanted.stages[0], None, ""
            notes.append(f"{image.name}: age not known, taken for stage {stage}")
        if stage not in wanted.stages:
            notes.append(f"{image.name}: left out, its age belongs to stage {stage}")
            continue
        job = Job(
            path=image, bids_root=root, entities=entities, suffix=suffix_of(image),
            metadata=metadata, age_months=months, age_source=source, stage=stage, weights=None,
            mask=find_mask(wanted.masks, image, siblings), action="train", reason="",
        )
        scans.append(_labelled(job, wanted.labels))
    if not scans:
        told = "; ".join(notes[:5])
        raise InputError(f"no image of stage {' or '.join(wanted.stages)} in {root}: {told}")
    return scans, notes


def _labelled(job: Job, datasets: Sequence[Path]) -> Scan:
    """The image with its tissue labels, where a dataset has them."""
    for dataset in datasets:
        path = find_dseg([dataset], job.path)
        if path is not None:
            return Scan(job, path, read_classes(path, dataset))
    return Scan(job, None, {})


def split_subjects(
    scans: Sequence[Scan], share: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The people to train on and those to validate on, drawn at random; nobody is in both.

    Args:
        scans: all images.
        share: of the people who are kept out, at least one of them.
        seed: of the draw.

    Raises:
        InputError: there is one person only.
    """
    subjects = sorted({scan.job.entities["sub"] for scan in scans})
    if len(subjects) < 2:
        raise InputError(
            f"only sub-{subjects[0]} is there; at least one person has to be kept out of the "
            "training to validate on, so that two are needed"
        )
    count = min(max(round(share * len(subjects)), 1), len(subjects) - 1)
    held = set(random.Random(seed).sample(subjects, count))
    return tuple(s for s in subjects if s not in held), tuple(sorted(held))
