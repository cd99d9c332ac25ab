"""A BIDS dataset of clean scans -> pools of degraded samples, made by several processes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bmex_bids.bids import atomic_path, read_json, write_json
from bmex_bids.layout import InputError
from bmex_bids.training.labels import load_label_map, load_table, split
from bmex_bids.training.pool import GRID, enhancement_sample
from bmex_bids.training.prepare import Preparation, degraded_sample, generator_of, prepare
from bmex_bids.training.scans import Scan, split_subjects
from bmex_bids.training.settings import Settings, SettingsError

__all__ = ["Source", "make_pools", "training_data"]

TRAINING, VALIDATION = "training", "validation"
DATA = "data.json"


@dataclass(frozen=True)
class Source:
    """Where samples come from, beside the settings.

    Attributes:
        scans: every clean image.
        how: how they are prepared.
        label_maps: folder of label maps to synthesise heads from, None for none.
    """

    scans: tuple[Scan, ...]
    how: Preparation
    label_maps: Path | None = None


def training_data(source: Source, settings: Settings) -> dict[str, Any]:
    """What a training is made of: the images and people on either side, and whose labels.

    Raises:
        InputError: there are too few people, or labels or label maps that cannot be used.
    """
    training, held = split_subjects(source.scans, settings.validation, settings.seed)
    if source.label_maps is not None and source.how.grid_mm != GRID:
        raise InputError(f"--label-maps: heads are synthesised on a grid of {GRID} mm only")
    own = source.how.label_model
    images = [
        {
            "image": scan.job.path.relative_to(scan.job.bids_root).as_posix(),
            "condition": scan.condition,
            "age_months": scan.job.age_months,
            "side": VALIDATION if scan.job.entities["sub"] in held else TRAINING,
            "mask": scan.job.mask.name if scan.job.mask else source.how.mask_model.name,
            "labels": scan.labels.name if scan.labels else own.name if own else None,
        }
        for scan in source.scans
    ]
    chosen = ("seed", "samples", "validation_samples", "synthetic")
    return {
        "subjects": {TRAINING: list(training), VALIDATION: list(held)},
        "images": images,
        "label_maps": [p.name for p in split(source.label_maps)[0]] if source.label_maps else [],
        "grid_mm": source.how.grid_mm,
        "settings": {key: asdict(settings)[key] for key in chosen},
    }


def make_pools(
    source: Source, settings: Settings, work: Path, *, processes: int, allow_changes: bool = False
) -> dict[str, Any]:
    """Prepare every scan and write the samples that are not there yet.

    Args:
        source: where samples come from.
        settings: how many there are to be, and the seed.
        work: receives ``data.json``, ``prepared/``, ``training/`` and ``validation/``.
        processes: how many work at a time.
        allow_changes: go on although the dataset or the settings changed.

    Returns:
        :func:`training_data`, with ``failed``: image -> why it could not be used.

    Raises:
        InputError: the dataset cannot be used, or one side of the split has no image left.
        SettingsError: ``work`` holds the samples of something else.
    """
    data = training_data(source, settings)
    _same_data(work / DATA, data, allow_changes)
    write_json(work / DATA, data)
    tasks: list[_Task] = [
        _Task(_prepare_scan, (scan, source.how, _prepared(work, scan)), scan.stem)
        for scan in source.scans
    ]
    failed = _all_of(tasks, processes, "prepared")
    held = data["subjects"][VALIDATION]
    tasks = []
    for scan in source.scans:
        side = VALIDATION if scan.job.entities["sub"] in held else TRAINING
        count = settings.validation_samples if side == VALIDATION else settings.samples
        if scan.stem not in failed:
            tasks += [_sample_task(scan, work, side, n, source, settings) for n in range(count)]
    for side in (TRAINING, VALIDATION):
        if not any(task.arguments[1].parent == work / side for task in tasks):
            told = "; ".join(f"{stem}: {why}" for stem, why in failed.items())
            raise InputError(f"no image for {side} could be used: {told}")
    if source.label_maps is not None:
        tasks += _synthetic_tasks(source, settings, work)
    broken = _all_of(tasks, processes, "samples")
    if broken:
        stem, why = next(iter(broken.items()))
        raise InputError(f"{len(broken)} samples could not be made; {stem}: {why}")
    return data | {"failed": failed}


def _same_data(path: Path, data: dict[str, Any], allow_changes: bool) -> None:
    """Refuse a folder that holds the samples of other images or settings."""
    if not path.exists() or allow_changes:
        return
    before = read_json(path)
    told = [key for key in data if before.get(key) != data[key]]
    if told:
        raise SettingsError(
            f"{path.parent} holds the samples of another training ({', '.join(told)} differ); "
            "choose another --work-dir to start anew, or --allow-changes to go on all the same"
        )


@dataclass(frozen=True)
class _Task:
    """One piece of work for a process; the second argument of a sample's is its path."""

    do: Callable[..., None]
    arguments: tuple[Any, ...]
    name: str


def _prepared(work: Path, scan: Scan) -> Path:
    return work / "prepared" / f"{scan.stem}.safetensors"


def _sample_task(
    scan: Scan, work: Path, side: str, number: int, source: Source, settings: Settings
) -> _Task:
    path = work / side / f"{scan.stem}-{number:03d}.safetensors"
    seed = (settings.seed, scan.stem, number)
    return _Task(
        _degrade_scan, (_prepared(work, scan), path, source.how.grid_mm, seed), path.stem
    )


def _synthetic_tasks(source: Source, settings: Settings, work: Path) -> list[_Task]:
    """Heads of label maps, of the conditions in turn."""
    conditions = sorted({scan.condition for scan in source.scans})
    return [
        _Task(
            _synthesise,
            (
                source.label_maps,
                work / TRAINING / f"synthetic-{number:05d}.safetensors",
                conditions[number % len(conditions)],
                (settings.seed, "synthetic", number),
            ),
            f"synthetic-{number:05d}",
        )
        for number in range(settings.synthetic)
    ]


def _prepare_scan(scan: Scan, how: Preparation, path: Path) -> None:
    if not path.exists():
        _write(path, prepare(scan, how))


def _degrade_scan(prepared: Path, path: Path, grid_mm: float, seed: tuple[object, ...]) -> None:
    if not path.exists():
        _write(path, degraded_sample(load_file(prepared), grid_mm, generator_of(*seed)))


def _synthesise(folder: Path, path: Path, condition: str, seed: tuple[object, ...]) -> None:
    if path.exists():
        return
    generator = generator_of(*seed)
    table = load_table(folder / "dseg.tsv")
    training, _ = split(folder)
    chosen = training[int(generator.initial_seed()) % len(training)]
    head = load_label_map(chosen, table)
    _write(path, enhancement_sample(head, table, generator, condition=condition))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def _all_of(tasks: Sequence[_Task], processes: int, what: str) -> dict[str, str]:
    """Do every task; name -> why of those that the input does not allow."""
    from tqdm import tqdm

    failed: dict[str, str] = {}
    with tqdm(total=len(tasks), unit=what, disable=not sys.stderr.isatty()) as bar:
        for task, error in _done(tasks, processes):
            bar.update()
            if error:
                failed[task.name] = error
                bar.write(f"{task.name}: not used: {error}", file=sys.stderr)
    print(f"{what}: {len(tasks) - len(failed)} of {len(tasks)}", flush=True)
    return failed


def _done(tasks: Sequence[_Task], processes: int) -> Iterable[tuple[_Task, str]]:
    if processes == 1:
        yield from ((task, _attempt(task)) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _one_thread) as pool:
        running = {pool.submit(_attempt, task): task for task in tasks}
        for future in as_completed(running):
            yield running[future], future.result()


def _attempt(task: _Task) -> str:
    """Do a task; what the input does not allow comes back as text."""
    try:
        task.do(*task.arguments)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


def _one_thread() -> None:
    import SimpleITK
    import torch

    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
