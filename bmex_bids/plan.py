"""From a dataset to a list of jobs: ages, stages, models, and reasons to skip. Reads no voxel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.age import Age, AgeError, find_age, stage_of
from bmex_bids.bids import Job, derivative_path, parse_entities
from bmex_bids.layout import (
    InputError,
    Selection,
    check_dataset,
    find_images,
    find_mask,
    sidecar_reader,
    suffix_of,
)
from bmex_bids.tables import read_table

if TYPE_CHECKING:
    from bmex_bids.weights import ModelRecord

__all__ = ["COLUMNS", "Request", "format_plan", "is_finished", "left_out", "plan_jobs"]

COLUMNS = ("path", "suffix", "age_months", "age_source", "stage", "weights", "action")
DERIVED = ("space", "res", "den", "label", "desc", "seg", "atlas")  # entities no raw image has


@dataclass(frozen=True)
class Request:
    """What the plan depends on.

    Attributes:
        bids_dir: absolute root of the raw dataset.
        output_dir: absolute root of the output dataset.
        selection: the images that are wanted.
        derivatives: roots of derivative datasets that may hold brain masks.
        age_months: the age of every image, in place of that of the tables.
        stage: the age stage of every image, in place of that of the age.
        models_dir: folder with a models.json; None for the models of the package.
        model_set: ``bundled``, ``published``, ...
        overwrite: do finished runs again.
        measure_only: only measures are wanted.
        high_res: the enhanced image on the model grid is wanted too.
        uncertainty: the map of uncertainty is wanted too.
        lesions: the map of lesions is wanted too.
        reports_only: only finished runs are wanted, whichever model made them.
    """

    bids_dir: Path
    output_dir: Path
    selection: Selection = Selection()
    derivatives: tuple[Path, ...] = ()
    age_months: float | None = None
    stage: str | None = None
    models_dir: Path | None = None
    model_set: str = "bundled"
    overwrite: bool = False
    measure_only: bool = False
    high_res: bool = False
    uncertainty: bool = False
    lesions: bool = False
    reports_only: bool = False


def plan_jobs(request: Request) -> list[Job]:
    """Decide for every image what is done with it, and why.

    Returns:
        One job per image, sorted by path; cost grows linearly with their number.

    Raises:
        InputError: the dataset, the selection or the set of models cannot be used.
    """
    root = request.bids_dir
    check_dataset(root)
    images = find_images(root, request.selection, ignore=(request.output_dir,))
    reasons = left_out(images)
    folders: dict[Path, list[Path]] = {}
    for image in images:
        if image not in reasons:
            folders.setdefault(image.parent, []).append(image)
    read_sidecar = sidecar_reader(root)
    cached_table = functools.cache(read_table)
    model_of = _model_finder(request)
    jobs = []
    for image in images:
        metadata, problem = read_sidecar(image)
        job = Job(
            path=image,
            bids_root=root,
            entities=parse_entities(image.name),
            suffix=suffix_of(image),
            metadata=metadata,
            age_months=None,
            age_source="",
            stage=None,
            weights=None,
            mask=None,
            action="skip",
            reason=reasons.get(image, ""),
            notes=(problem,) if problem else (),
            wanted=image not in reasons,
        )
        if job.wanted:
            mask = find_mask(request.derivatives, image, folders[image.parent])
            find = functools.partial(
                find_age, root, job.entities, image, metadata, read=cached_table
            )
            job = _decide(replace(job, mask=mask), request, find, model_of)
        jobs.append(job)
    return jobs


def is_finished(job: Job, request: Request) -> bool:
    """Tell whether a run of the plan has become complete; never so when all is to be done again.

    Raises:
        WeightsError: the list of models has changed and the model is gone.
    """
    if request.overwrite or job.action == "skip":
        return False
    record = _model_finder(request)(job.suffix, job.stage or "")
    return _is_done(job, request, record.sha256)


def left_out(images: Sequence[Path]) -> dict[Path, str]:
    """Return the images that are not enhanced on purpose, and the reason for each."""
    everything = {(path.parent, frozenset(_parts(path))) for path in images}
    names = {str(path) for path in images}
    reasons = {}
    for path in images:
        entities = parse_entities(path.name)
        defaced = [key for key, value in entities.items() if "deface" in value.lower()]
        derived = [key for key in entities if key in DERIVED]
        part = entities.get("part", "mag")
        if suffix_of(path) == "defacemask":
            reasons[path] = "a defacing mask, not an image"
        elif defaced and _original(path, defaced) in everything:
            reasons[path] = "defaced copy of an image that is there too"
        elif derived:
            reasons[path] = f"a derivative ({derived[0]}-{entities[derived[0]]}), not a raw image"
        elif part != "mag":
            reasons[path] = f"part-{part}; only magnitude images are enhanced"
        elif path.suffix == ".nii" and f"{path}.gz" in names:
            reasons[path] = f"the same image is there as {path.name}.gz"
    return reasons


def format_plan(jobs: Iterable[Job]) -> str:
    """Return a header and one tab-separated line per job, ending in a newline."""
    lines = ["\t".join(COLUMNS)]
    for job in jobs:
        months = (
            "n/a" if job.age_months is None else f"{job.age_months:.2f}".rstrip("0").rstrip(".")
        )
        action = f"{job.action}: {job.reason}" if job.reason else job.action
        cells = (
            *(job.path.relative_to(job.bids_root).as_posix(), job.suffix, months),
            *(job.age_source or "n/a", job.stage or "n/a", job.weights or "n/a", action),
        )
        lines.append("\t".join(" ".join(cell.split()) for cell in cells))
    return "\n".join(lines) + "\n"


def _decide(
    job: Job,
    request: Request,
    find: Callable[[], Age],
    model_of: Callable[[str, str], ModelRecord],
) -> Job:
    """Complete a job with age, stage, model and action."""
    if request.reports_only:
        return _reported(job, request)
    try:
        age = _age(request, find)
        stage = request.stage or stage_of(age.months or 0.0, fetal=age.fetal)
    except AgeError as error:
        return replace(job, reason=str(error))
    job = replace(
        job,
        age_months=age.months,
        age_source=age.source,
        stage=stage,
        notes=(*job.notes, *([age.note] if age.note else [])),
    )
    from bmex_bids.weights import UnknownSetError, WeightsError

    try:
        record = model_of(job.suffix, stage)
    except UnknownSetError as error:  # the same for every image
        raise InputError(str(error)) from error
    except WeightsError as error:
        return replace(job, reason=str(error))
    job = replace(job, weights=record.name)
    done = not request.overwrite and _is_done(job, request, record.sha256)
    return replace(job, action="done" if done else "enhance")


def _age(request: Request, find: Callable[[], Age]) -> Age:
    """Return the age as the options or the tables say it; with --stage it may stay unknown."""
    if request.age_months is not None:
        return Age(request.age_months, "--age-months", fetal=request.age_months < 0)
    try:
        return find()
    except AgeError as error:
        if request.stage is None:
            raise
        return Age(None, "", f"stage {request.stage} from --stage; {error}")


def _model_finder(request: Request) -> Callable[[str, str], ModelRecord]:
    """Return a function (suffix, stage) -> model, which raises WeightsError."""
    from bmex_bids.weights import find_model, list_models, models_dir

    @functools.cache
    def records() -> list[ModelRecord]:
        return list_models(models_dir(request.models_dir))

    @functools.cache
    def find(suffix: str, stage: str) -> ModelRecord:
        return find_model(records(), suffix=suffix, stage=stage, model_set=request.model_set)

    return find


def _is_done(job: Job, request: Request, sha256: str) -> bool:
    from bmex_bids.derivatives import is_done

    out = request.output_dir
    promised = [
        *([derivative_path(out, job, res="hi", desc="enhanced")] if request.high_res else []),
        *([derivative_path(out, job, desc="uncertainty")] if request.uncertainty else []),
    ]
    if request.lesions:
        promised.append(
            derivative_path(out, job, space=job.suffix, label="L", suffix="probseg")
        )
    there = request.measure_only or all(path.exists() for path in promised)
    return there and is_done(out, job, sha256, request.measure_only)


def _reported(job: Job, request: Request) -> Job:
    """Complete a job of which only the report is wanted."""
    from bmex_bids.derivatives import marker_path

    out = request.output_dir
    if any(marker_path(out, job, measure_only=only).exists() for only in (False, True)):
        return replace(job, action="done")
    return replace(job, reason="not finished yet, nothing to report", wanted=False)


def _parts(path: Path) -> Iterable[tuple[str, str]]:
    return {**parse_entities(path.name), "": suffix_of(path)}.items()


def _original(path: Path, defaced: Sequence[str]) -> tuple[Path, frozenset[tuple[str, str]]]:
    """Return the key of the image that a defaced copy was made from."""
    parts: Mapping[str, str] = dict(_parts(path))
    return path.parent, frozenset((k, v) for k, v in parts.items() if k not in defaced)
