"""Train DUNCAN, CycleGAN or Pix2Pix from a pool of samples (:mod:`bmex_bids.training.pool`).

    python -m bmex_bids.evaluation.baselines.train duncan POOL OUT --validation HELD_OUT

A second start goes on where the first stopped. The corrector of the running average with the lowest
squared error on the validation samples is kept in ``OUT/best.pt``, and, with ``--export FOLDER``,
written into a models folder, with which ``bmex --models-dir FOLDER --model-set METHOD`` runs.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmex_bids import __version__
from bmex_bids.bids import atomic_path
from bmex_bids.evaluation.baselines.methods import METHODS, CycleGAN, Duncan, Pix2Pix
from bmex_bids.evaluation.baselines.slices import Slices, read_slices, steps_of
from bmex_bids.inference import Compute, resolve
from bmex_bids.training.export import enter, save_weights
from bmex_bids.training.samples import sample_paths
from bmex_bids.weights import ModelRecord, list_models, load_network, models_dir

__all__ = ["Run", "export", "main", "train"]

CHECKPOINT, BEST, LOG = "checkpoint.pt", "best.pt", "log.csv"


@dataclass(frozen=True)
class Run:
    """Settings of a training.

    Attributes:
        method: of :data:`METHODS`.
        steps: in all.
        minutes: after which it ends, whatever the step; 0 for no limit.
        batch: slices of each kind per step.
        side: of a slice in voxels, a multiple of 32.
        width: channels of the finest content code.
        blocks: residual blocks.
        norm: layer normalisation in the encoders and decoders.
        rate: learning rate of Adam, falling to 0 over the second half of the steps.
        critics: the critics' learning rate over that of the networks that they judge; above 1 they
            keep ahead (doi:10.48550/arXiv.1706.08500).
        seed: of everything random.
        every: steps between reports, validations and checkpoints.
        device: ``cpu`` or ``cuda``.
        precision: of the convolutions, see :func:`bmex_bids.inference.resolve`.
    """

    method: str
    steps: int = 20_000
    minutes: float = 0.0
    batch: int = 4
    side: int = 128
    width: int = 16
    blocks: int = 4
    norm: bool = True
    rate: float = 3e-4
    critics: float = 4.0
    seed: int = 1
    every: int = 100
    device: str = "cpu"
    precision: str = "auto"


def train(run: Run, pool: Path, out: Path, validation: Path) -> nn.Module:
    """Run (or go on with) a training.

    Args:
        run: its settings; a checkpoint in ``out`` must have the same but for steps and minutes.
        pool: samples to train on.
        out: receives ``checkpoint.pt``, ``best.pt`` and ``log.csv``.
        validation: samples of people who were kept out.

    Returns:
        The best corrector so far, in eval mode.

    Raises:
        ValueError: other settings than the checkpoint's, or too few samples.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    compute = resolve(run.device, run.precision)
    network = METHODS[run.method](run.width, run.blocks, norm=run.norm).to(compute.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = torch.optim.swa_utils.AveragedModel(
        network.corrector, avg_fn=lambda old, new, n: old + (new - old) / min(float(n) + 2, 500.0)
    )
    critics = list(network.critics.parameters())
    ids = {id(parameter) for parameter in critics}
    makers = [p for p in network.parameters() if id(p) not in ids]
    betas = (0.5, 0.999)
    optimisers = [torch.optim.Adam(some, run.rate, betas=betas) for some in (makers, critics)]
    parts = {"network": network, "average": average, "makers": optimisers[0],
             "critics": optimisers[1]}
    generator = torch.Generator().manual_seed(run.seed)
    step, seconds, best = _go_on(out / CHECKPOINT, run, parts, generator)
    held_out = [_validation_slices(path, run.side) for path in sample_paths(validation)]
    reader = steps_of(sample_paths(pool), run.batch, run.side, generator)
    began = time.monotonic() - seconds
    while step < run.steps and not (run.minutes and time.monotonic() - began > 60 * run.minutes):
        step += 1
        rate = run.rate * min(1.0, 2 * (1 - step / (run.steps + 1)))
        rates = (rate, run.critics * rate)
        losses = _step(network, optimisers, next(reader), rates, compute)
        average.update_parameters(network.corrector)
        if step % run.every and step != run.steps:
            continue
        row = {"step": step, "seconds": round(time.monotonic() - began, 1), **losses}
        row |= _validated(average.module, held_out)
        _log(out / LOG, row)
        print(row, flush=True)
        if row["mse"] < best:
            best = row["mse"]
            _save(out / BEST, {"run": asdict(run), "row": row,
                               "corrector": average.module.state_dict()})
        _save(out / CHECKPOINT, {"run": asdict(run), "step": step, "best": best,
                                 "seconds": time.monotonic() - began,
                                 "generator": generator.get_state(),
                                 **{k: part.state_dict() for k, part in parts.items()}})
    kept = METHODS[run.method](run.width, run.blocks, norm=run.norm).corrector
    kept.load_state_dict(torch.load(out / BEST, weights_only=True)["corrector"])
    return kept.eval()


def _step(
    network: Duncan | CycleGAN | Pix2Pix,
    optimisers: Sequence[torch.optim.Optimizer],
    slices: Slices,
    rates: Sequence[float],
    compute: Compute,
) -> dict[str, float]:
    lower = compute.precision == "bfloat16"
    with torch.autocast(torch.device(compute.device).type, torch.bfloat16, enabled=lower):
        losses = network.losses(slices.to(compute.device))
    for optimiser, rate in zip(optimisers, rates, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
    (losses.generators + losses.critics).backward()  # neither reaches the other's parameters
    for optimiser in optimisers:
        nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
        optimiser.step()
    found = {"generators": float(losses.generators.detach()),
             "critics": float(losses.critics.detach())}
    if not all(math.isfinite(value) for value in found.values()):
        raise ValueError(f"the training diverged: {found}; give a lower --rate")
    return found


def _validation_slices(path: Path, side: int) -> tuple[Tensor, Tensor]:
    return read_slices(path, 6, side, torch.Generator().manual_seed(0))


def _validated(
    corrector: nn.Module, held_out: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Squared errors of slices kept out, where the clean one is not zero, and the gain in dB."""
    rows = []
    device = next(corrector.parameters()).device
    with torch.inference_mode():
        for given, clean in held_out:
            made = corrector(given.to(device)).cpu()
            inside = (clean > 0).float()
            one = [((v - clean) ** 2 * inside).sum() / inside.sum() for v in (given, made)]
            rows.append([float(v) for v in one])
    gains = [10 * math.log10((before + 1e-6) / (after + 1e-6)) for before, after in rows]
    return {"mse": sum(after for _, after in rows) / len(rows), "gain": sum(gains) / len(gains)}


def _go_on(
    path: Path, run: Run, parts: dict[str, Any], generator: torch.Generator
) -> tuple[int, float, float]:
    if not path.exists():
        return 0, 0.0, math.inf
    state = torch.load(path, weights_only=True)
    free = ("steps", "minutes", "every", "device", "precision")
    told = [f"{k} was {v!r}, now {getattr(run, k)!r}" for k, v in state["run"].items()
            if k not in free and getattr(run, k) != v]
    if told:
        raise ValueError(f"{path} comes from other settings: {'; '.join(told)}")
    for key, part in parts.items():
        part.load_state_dict(state[key])
    generator.set_state(state["generator"])
    return int(state["step"]), float(state["seconds"]), float(state["best"])


def _save(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _log(path: Path, row: dict[str, float]) -> None:
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def export(best: Path, folder: Path, *, models: Sequence[ModelRecord], data: str) -> None:
    """Write the best corrector into a models folder, for each bundled stage and contrast.

    The tissues come from the bundled classifier, whose weights are copied into the file. The pool
    is taken to be made as that of the bundled models, with the same images kept out.

    Args:
        best: ``best.pt`` of a training.
        folder: models folder.
        models: bundled ones.
        data: what was trained on, in words.

    Raises:
        ValueError: no bundled model has a classifier to take.
    """
    state = torch.load(best, weights_only=True)
    run, method = state["run"], str(state["run"]["method"])
    bundled = [r for r in models if r.kind == "enhance" and r.set == "bundled"
               and r.architecture["name"] == "TissueGuidedUNet"]
    if not bundled:
        raise ValueError("no bundled pair of networks, whose classifier would give the tissues")
    weights = {f"corrector.{k}": v for k, v in state["corrector"].items()}
    weights |= {k: v for k, v in load_network(bundled[0]).state_dict().items()
                if k.startswith("tissue.")}
    path = folder / f"bmex-{method}.safetensors"
    sha256 = save_weights(path, weights)
    for record in bundled:
        old = record.architecture
        kept_out = {k: v for k, v in record.training.items() if k.startswith("HeldOut")}
        architecture = {"name": "SlicePair", "tissue": old["tissue"],
                        "corrector": {k: run[k] for k in ("width", "blocks", "norm")}}
        architecture |= {k: old[k] for k in ("conditions", "condition", "classes") if k in old}
        enter(replace(
            record, name=record.name.replace("bmex-", f"{method}-"), set=method,
            architecture=architecture, file=path.name, directory=folder, version=__version__,
            sha256=sha256,
            source="trained by bmex_bids.evaluation.baselines",
            training={"Data": data, **kept_out, "Settings": run, "Validation": state["row"],
                      "Classifier": record.name},
        ))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.baselines.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=tuple(METHODS))
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--validation", type=Path, required=True, help="pool of held-out samples")
    for name, default in list(asdict(Run("")).items())[1:]:
        if isinstance(default, bool):
            parser.add_argument(
                f"--{name}", action=argparse.BooleanOptionalAction, default=default
            )
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--export", type=Path, help="models folder to write the best one into")
    parser.add_argument("--data", default="", help="what it was trained on, in words")
    args = vars(parser.parse_args(argv))
    folder, data, pool, out, validation = (
        args.pop(name) for name in ("export", "data", "pool", "out", "validation")
    )
    try:
        train(Run(**args), pool, out, validation)
        if folder is not None:
            export(out / BEST, folder, models=list_models(models_dir(None)), data=data)
    except (ValueError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
