"""The training loop: steps, reports, validation, checkpoints from which a run goes on exactly."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bmex_bids.bids import atomic_path
from bmex_bids.inference import Compute, lay_out, resolve
from bmex_bids.networks import TissueGuidedUNet
from bmex_bids.training.architectures import (
    build,
    freeze_unweighted,
    groups,
    take_over,
    to_training,
)
from bmex_bids.training.journal import opened
from bmex_bids.training.objective import forward
from bmex_bids.training.ranks import ALONE, Ranks, gathered, shared
from bmex_bids.training.samples import Read, read_ahead, sample_paths
from bmex_bids.training.settings import Settings, SettingsError, architecture_of, changes
from bmex_bids.training.validate import validate

__all__ = ["BEST", "CHECKPOINT", "train"]

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
Record = dict[str, Tensor]


@dataclass(frozen=True)
class _Parts:
    """What a step changes, and what a checkpoint therefore holds."""

    network: nn.Module
    average: torch.optim.swa_utils.AveragedModel
    optimiser: torch.optim.Optimizer
    shares: list[float]
    generator: torch.Generator


@dataclass(frozen=True)
class _Progress:
    """How far a run is: steps, seconds in all its starts, lowest validation loss."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf


def train(
    settings: Settings,
    pool: Path,
    out: Path,
    *,
    validation: Path | None = None,
    start: Mapping[str, Tensor] | None = None,
    allow_changes: bool = False,
    ranks: Ranks = ALONE,
) -> nn.Module:
    """Run (or go on with) a training.

    Args:
        settings: of the run; a checkpoint in ``out`` must come from the same ones.
        pool: folder of samples, listed again at every report, so that it may grow.
        out: receives ``checkpoint.pt``, ``log.csv`` and ``tensorboard/``, and with ``validation``
            ``best.pt`` and ``validation.csv``.
        validation: folder of samples to validate on.
        start: weights to begin with, as far as they fit; a checkpoint counts before them.
        allow_changes: go on although settings differ.
        ranks: the processes that train together, each on its own samples.

    Returns:
        The averaged network (exponential moving average of the weights), in eval mode.

    Raises:
        FileNotFoundError: a pool is empty.
        SettingsError: the settings are not those of the checkpoint, or do not fit the network.
    """
    out.mkdir(parents=True, exist_ok=True)
    compute = resolve(ranks.device or settings.device, settings.precision)
    settings = replace(settings, precision=compute.precision)  # what auto stands for
    parts = _fresh(settings, compute, ranks)
    state = _load(out / CHECKPOINT, settings, ranks, allow_changes)
    progress = _Progress()
    if state is not None:
        progress = _go_on(parts, state, ranks)
    elif start is not None:
        taken, there = take_over(parts.network, start)
        parts.average.module.load_state_dict(parts.network.state_dict())
        if ranks.rank == 0:
            print(f"{taken} of {there} tensors taken over from the start model", flush=True)
    held_out = sample_paths(validation) if validation is not None and ranks.rank == 0 else []
    if progress.step < settings.steps:
        _run(parts, progress, settings, compute, (pool, out, held_out), ranks)
    trained: nn.Module = parts.average.module
    return trained.eval()


def _fresh(settings: Settings, compute: Compute, ranks: Ranks) -> _Parts:
    """Network, average, optimiser and generator of a run at its beginning."""
    torch.manual_seed(settings.seed)
    network = build(architecture_of(settings)).to(compute.device)
    lay_out(network)
    multiple = int(cast(int, network.multiple))
    for name, side in (("patch", settings.patch), ("length", settings.length)):
        if side % multiple:
            raise SettingsError(f"{name} {side}: expected a multiple of {multiple}")
    thin = network.tissue.multiple if isinstance(network, TissueGuidedUNet) else multiple
    if settings.depth % thin:
        raise SettingsError(f"depth {settings.depth}: expected a multiple of {thin}")
    decay = functools.partial(_running, most=settings.average)
    average = torch.optim.swa_utils.AveragedModel(network, avg_fn=decay, use_buffers=True)
    if settings.kind == "enhance":
        freeze_unweighted(network, settings.tissue_weight, settings.enhance_weight)
    parameters, shares = groups(network, settings.enhance_share)
    given = [{"params": some} for some in parameters]
    first, decay_of = settings.momentum, settings.weight_decay
    optimiser: torch.optim.Optimizer
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(given, settings.rate, momentum=first, weight_decay=decay_of)
    else:
        betas = (first, settings.momentum_of_squares)
        optimiser = torch.optim.AdamW(given, settings.rate, betas=betas, weight_decay=decay_of)
    if ranks.rank:  # the same network, other patches
        torch.manual_seed(settings.seed + 7919 * ranks.rank)
    generator = torch.Generator().manual_seed(settings.seed + 1_000_003 * ranks.rank)
    return _Parts(network, average, optimiser, shares, generator)


def _running(average: Tensor, new: Tensor, count: Tensor | int, *, most: float) -> Tensor:
    """Exponential moving average whose memory grows with the run."""
    decay = min(most, (1 + float(count)) / (10 + float(count)))
    return average + (1 - decay) * (new - average)


def _run(
    parts: _Parts,
    progress: _Progress,
    settings: Settings,
    compute: Compute,
    places: tuple[Path, Path, list[Path]],
    ranks: Ranks,
) -> None:
    """Step until the end, with reports, validation and checkpoints in between."""
    pool, out, held_out = places
    network = shared(to_training(parts.network), ranks)
    started = time.monotonic() - progress.seconds
    records: list[Record] = []
    with ExitStack() as stack:
        first = ranks.rank == 0
        journal = stack.enter_context(opened(out, settings, progress.step)) if first else None
        reader = read_ahead(pool, settings, parts.generator, progress.step)
        reads = stack.enter_context(closing(reader))
        if journal and held_out and progress.step == 0:
            best = _validated(parts, progress, settings, compute, held_out)
            journal.validated(best)
        for read in reads:
            rate = _rate(settings, progress.step)
            records.append(_step(network, parts, read, settings, rate, progress.step))
            step = progress.step + 1
            progress = replace(progress, step=step, seconds=time.monotonic() - started)
            if journal:
                journal.bar.update()
            if step % settings.every and step != settings.steps:
                continue
            if journal:
                journal.trained(_means(progress, rate, read.pool, records), settings.steps)
                if held_out and (step % settings.validate_every == 0 or step == settings.steps):
                    row = _validated(parts, progress, settings, compute, held_out)
                    journal.validated(row)
                    if row["loss"] < progress.best:
                        progress = replace(progress, best=row["loss"])
                        _save_best(out / BEST, parts, progress, settings, row)
            records.clear()
            _save(out / CHECKPOINT, parts, progress, settings, read.generator, ranks)


def _rate(settings: Settings, step: int) -> float:
    """Learning rate of a step."""
    warm = min((step + 1) / max(settings.warmup, 1), 1.0)
    if settings.schedule == "cosine":
        return settings.rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    if settings.schedule == "tenth":
        return settings.rate * warm * 0.1 ** (5 * step // settings.steps)
    return settings.rate * warm


def _step(
    network: nn.Module, parts: _Parts, read: Read, settings: Settings, rate: float, step: int
) -> Record:
    """One step of the optimiser, and of the average."""
    for group, share in zip(parts.optimiser.param_groups, parts.shares, strict=True):
        group["lr"] = rate * share
    device = next(parts.network.parameters()).device
    batch = {key: value.to(device) for key, value in read.batch.items()}
    loss, record = forward(network, batch, settings, score=step % 10 == 0)
    parts.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    most = settings.clip or math.inf
    norms = [
        nn.utils.clip_grad_norm_(group["params"], most) for group in parts.optimiser.param_groups
    ]
    if not all(norm.isfinite() for norm in norms):
        warnings.warn(f"step {step + 1}: gradient is not finite, left out", stacklevel=2)
        return record
    parts.optimiser.step()
    parts.average.update_parameters(parts.network)
    return record


def _means(
    progress: _Progress, rate: float, pool: int, records: list[Record]
) -> dict[str, float]:
    """A row of the log: the means since the last one, of this process's batches."""
    row = {"step": float(progress.step), "seconds": round(progress.seconds, 1)}
    row |= {"rate": rate, "pool": float(pool)}
    for key in records[0]:
        row[key] = float(torch.stack([record[key].float() for record in records]).nanmean())
    return row


def _validated(
    parts: _Parts,
    progress: _Progress,
    settings: Settings,
    compute: Compute,
    held_out: list[Path],
) -> dict[str, float]:
    """A row of the validation table."""
    found = validate(parts.average.module.eval(), held_out, settings, compute)
    return {"step": float(progress.step), **found}


def _content(parts: _Parts, progress: _Progress, settings: Settings) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "architecture": architecture_of(settings),
        **asdict(progress),
        "average": parts.average.state_dict(),
    }


def _save_best(
    path: Path, parts: _Parts, progress: _Progress, settings: Settings, row: dict[str, float]
) -> None:
    with atomic_path(path) as temporary:
        torch.save(_content(parts, progress, settings) | {"validation": row}, temporary)


def _save(
    path: Path,
    parts: _Parts,
    progress: _Progress,
    settings: Settings,
    generator: Tensor,
    ranks: Ranks,
) -> None:
    """Write everything that the run needs to go on, whole or not at all."""
    random: dict[str, Tensor] = {"patches": generator, "cpu": torch.get_rng_state()}
    device = next(parts.network.parameters()).device
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    everyone = gathered(random, ranks)
    if ranks.rank:
        return
    state = _content(parts, progress, settings) | {
        "network": parts.network.state_dict(),
        "optimiser": parts.optimiser.state_dict(),
        "generator": generator,
        "random": everyone,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _load(
    path: Path, settings: Settings, ranks: Ranks, allow_changes: bool
) -> dict[str, Any] | None:
    """The checkpoint of a run, None where it has none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    told = changes(state["settings"] | {"architecture": state["architecture"]}, settings)
    if len(state["random"]) != ranks.world:
        told.append(f"{len(state['random'])} processes trained, now {ranks.world}")
    if told and not allow_changes:
        raise SettingsError(
            f"{path} comes from other settings: {'; '.join(told)}. Start with the same settings to "
            "go on, in another folder to start anew, or with --allow-changes to go on all the same"
        )
    return state


def _go_on(parts: _Parts, state: dict[str, Any], ranks: Ranks) -> _Progress:
    """Bring everything to where the checkpoint was written."""
    try:
        parts.network.load_state_dict(state["network"])
    except RuntimeError as error:
        raise SettingsError(f"the checkpoint is of another network: {error}") from error
    parts.average.load_state_dict(state["average"])
    parts.optimiser.load_state_dict(state["optimiser"])
    if ranks.rank < len(state["random"]):
        random = state["random"][ranks.rank]
        parts.generator.set_state(random["patches"])
        torch.set_rng_state(random["cpu"])
        device = next(parts.network.parameters()).device
        if "cuda" in random and device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], device)
    return _Progress(int(state["step"]), float(state["seconds"]), float(state["best"]))
