"""Train the brain extraction or an enhancement pair from a pool of samples.

One script for CPU and GPU: patches are read from the pool (:mod:`bmex_bids.training.pool`), which
may still be growing. A checkpoint holds everything that the run needs to go on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from bmex_bids.brainmask import head_gain
from bmex_bids.networks import TissueGuidedUNet, UNet
from bmex_bids.training.losses import IGNORE, enhancement_loss, mask_loss, tissue_loss
from bmex_bids.training.stages import CONDITIONS

__all__ = ["ARCHITECTURES", "Settings", "build", "main", "train"]

ARCHITECTURES: dict[str, dict[str, object]] = {
    "enhance": {
        "name": "TissueGuidedUNet",
        "tissue": {"widths": [24, 48, 72, 96], "thin": 0, "norm": "layer"},
        "enhance": {"widths": [32, 64, 128, 192, 256], "thin": 0, "norm": "layer"},
        "conditions": len(CONDITIONS),
    },
    "brainmask": {
        "name": "UNet",
        "inputs": 1,
        "outputs": 1,
        "widths": [24, 48, 72, 96],
        "thin": 0,
        "norm": "batch",
    },
}


@dataclass(frozen=True)
class Settings:
    """What a training run is made of.

    Attributes:
        kind: ``enhance`` or ``brainmask``.
        steps: optimiser steps; the learning rate falls to zero over them.
        batch: patches per step.
        patch: side of a patch in voxels.
        rate: peak learning rate of AdamW.
        seed: of patch choice, augmentation and initialisation.
        device: torch device.
    """

    kind: str
    steps: int
    batch: int = 2
    patch: int = 96
    rate: float = 1.5e-3
    seed: int = 1
    device: str = "cpu"


def build(architecture: dict[str, object]) -> nn.Module:
    """The network of an architecture entry, freshly initialised.

    Leaky-ReLU Kaiming weights; the enhancer's last layer starts near zero, so that the pair starts
    as the identity.
    """
    options = {key: value for key, value in architecture.items() if key != "name"}
    network: nn.Module
    if architecture["name"] == "TissueGuidedUNet":
        network = TissueGuidedUNet(**options)  # type: ignore[arg-type]
    else:
        network = UNet(**options)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if isinstance(network, TissueGuidedUNet):
        enhance = network.enhance
        nn.init.normal_((enhance.head2 if enhance.thin else enhance.unfold).weight, std=1e-3)
    return network


def _patch(path: Path, kind: str, side: int, generator: torch.Generator) -> dict[str, Tensor]:
    """One random patch of a sample, flipped and scaled at random, zero-padded where needed."""
    with safe_open(path, framework="pt") as sample:
        keys = [key for key in sample.keys() if key != "condition"]
        condition = sample.get_tensor("condition") if len(keys) < len(sample.keys()) else None
        shape = sample.get_slice("input").get_shape()
        cut: list[slice] = []
        pads: list[int] = []
        for size in shape:
            room = size - side
            low = int(torch.randint(0, max(room, 0) + 1, (1,), generator=generator))
            cut.append(slice(low, min(low + side, size)))
            pads = [0, max(-room, 0), *pads]
        out = {key: sample.get_slice(key)[cut[0], cut[1], cut[2]].float() for key in keys}
        gain = head_gain(sample.get_tensor("input").float().numpy()) if kind == "brainmask" else 1.0
    flips = [a for a in range(3) if float(torch.rand(1, generator=generator)) < (0.5, 0.2, 0.2)[a]]
    for key, value in out.items():
        value = torch.nn.functional.pad(value, pads, value=0)
        out[key] = value.flip(flips) if flips else value
    spread = 0.2 if kind == "brainmask" else 0.1
    gain *= math.exp(spread * float(torch.randn(1, generator=generator)))
    out["input"] = (out["input"] * gain).clamp(0, 4)
    if "target" in out:
        out["target"] = out["target"] * gain
        known = CONDITIONS.index("T1w-24") if condition is None else int(condition)
        out["condition"] = torch.tensor(known)
    return out


def _batch(
    pool: list[Path], settings: Settings, generator: torch.Generator
) -> dict[str, Tensor]:
    rows = [
        _patch(
            pool[int(torch.randint(0, len(pool), (1,), generator=generator))],
            settings.kind, settings.patch, generator,
        )
        for _ in range(settings.batch)
    ]
    stacked = {key: torch.stack([r[key] for r in rows]) for key in rows[0]}
    return {key: value.to(settings.device) for key, value in stacked.items()}


def _loss(
    network: nn.Module, batch: dict[str, Tensor], settings: Settings, *, score: bool = True
) -> tuple[Tensor, dict[str, float]]:
    given = batch["input"][:, None].contiguous(memory_format=torch.channels_last_3d)
    brain = (batch["brain"] > 0).float()
    with torch.autocast(torch.device(settings.device).type, torch.bfloat16):
        if settings.kind == "brainmask":
            output = network(given)
        else:
            output = network(given, batch["condition"])
    if settings.kind == "brainmask":
        loss = mask_loss(output.float(), brain[:, None])
        return loss, {"mask": float(loss.detach())}
    scores, enhanced = output[0].float(), output[1].float()
    target = batch["target"][:, None]
    classes = tissue_loss(scores, batch["tissue"].to(torch.uint8))
    # a sample's weight falls with its corruption, so that easy ones are not drowned
    wrong = ((given - target).abs() * brain[:, None]).sum((1, 2, 3, 4))
    wrong = wrong / brain.sum((1, 2, 3)).clamp_min(1)
    weight = 0.08 / (wrong + 0.04)
    error = enhancement_loss(enhanced, target, brain[:, None], weight)
    with torch.no_grad():
        inside = brain[:, None]
        before = ((given - target).abs() * inside).sum()
        ratio = float(((enhanced - target).abs() * inside).sum() / before.clamp_min(1e-6))
    accuracy = _accuracy(scores, batch["tissue"], brain) if score else float("nan")
    record = {
        "tissue": float(classes.detach()),
        "enhance": float(error.detach()),
        "ratio": ratio,
        "hit": accuracy,
    }
    return classes + 10 * error, record


def _groups(network: nn.Module) -> list[dict[str, object]]:
    """Parameters with their share of the learning rate.

    The enhancer's last layers have no normalisation and want a lower rate than the classifier.
    """
    if not isinstance(network, TissueGuidedUNet):
        return [{"params": list(network.parameters()), "share": 1.0}]
    return [
        {"params": list(network.tissue.parameters()), "share": 1.0},
        {"params": list(network.enhance.parameters()), "share": 0.7},
    ]


def _running(average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Exponential moving average whose memory grows with the run, up to about 330 steps."""
    decay = min(0.997, (1 + float(count)) / (10 + float(count)))
    return average + (1 - decay) * (new - average)


def _accuracy(scores: Tensor, tissue: Tensor, brain: Tensor) -> float:
    """Share of the brain's voxels of known class that are classified right; NaN without any."""
    known = (tissue != IGNORE) & (brain > 0)
    count = int(known.sum())
    return float(((scores.argmax(1) == tissue) & known).sum()) / count if count else float("nan")


def _begin_with(network: nn.Module, checkpoint: Path) -> None:
    """Take over what fits from another training's averaged network."""
    given = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    given = {key.removeprefix("module."): value for key, value in given.items()}
    own = network.state_dict()
    fits = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    network.load_state_dict(own | fits)
    print(json.dumps({"taken over": len(fits), "of": len(own)}), flush=True)


def train(
    settings: Settings, pool_folder: Path, out: Path, *, every: int = 50, start: Path | None = None
) -> nn.Module:
    """Run (or go on with) a training.

    Args:
        settings: of the run; a checkpoint in ``out`` must come from the same ones.
        pool_folder: samples, read again at every report, so that it may grow.
        out: receives ``checkpoint.pt`` and ``log.csv``.
        every: steps between reports and checkpoints.
        start: checkpoint of another training to begin with, as far as its layers fit.

    Returns:
        The averaged network (exponential moving average of the weights).

    Raises:
        FileNotFoundError: the pool is empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    network = build(ARCHITECTURES[settings.kind]).to(settings.device)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = torch.optim.swa_utils.AveragedModel(network, avg_fn=_running, use_buffers=True)
    optimiser = torch.optim.AdamW(_groups(network), lr=settings.rate, betas=(0.9, 0.99))
    step, seconds = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=settings.device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"].cpu())
        step, seconds = int(state["step"]), float(state["seconds"])
    elif start is not None:
        _begin_with(network, start)
        average.module.load_state_dict(network.state_dict())
    started = time.monotonic() - seconds
    records: list[dict[str, float]] = []
    pool: list[Path] = []
    while step < settings.steps:
        if not pool or step % every == 0:
            pool = sorted(pool_folder.glob("*.safetensors"))
            if not pool:
                raise FileNotFoundError(f"no samples in {pool_folder}")
        warm = min((step + 1) / 200, 1.0)
        rate = settings.rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        batch = _batch(pool, settings, generator)
        loss, record = _loss(network, batch, settings, score=step % 10 == 0)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(network)
        records.append(record)
        step += 1
        if step % every == 0 or step == settings.steps:
            seconds = time.monotonic() - started
            _report(out / "log.csv", step, seconds, rate, len(pool), records)
            records.clear()
            state = {
                "settings": asdict(settings), "step": step, "seconds": seconds,
                "network": network.state_dict(), "average": average.state_dict(),
                "optimiser": optimiser.state_dict(), "generator": generator.get_state(),
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    trained: nn.Module = average.module
    return trained.eval()


def _report(
    path: Path, step: int, seconds: float, rate: float, pool: int, records: list[dict[str, float]]
) -> None:
    """Append the means since the last report to the log, and print them."""
    row = {"step": float(step), "seconds": round(seconds, 1), "rate": rate, "pool": float(pool)}
    for key in records[0]:
        values = [r[key] for r in records if not math.isnan(r[key])]
        row[key] = sum(values) / max(len(values), 1)
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(json.dumps({key: round(value, 5) for key, value in row.items()}), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="python -m bmex_bids.training.train", description=__doc__)
    parser.add_argument("kind", choices=tuple(ARCHITECTURES))
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="checkpoint of another training to begin with")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    settings = Settings(
        args.kind, args.steps, args.batch, args.patch, args.rate, args.seed, args.device
    )
    train(settings, args.pool, args.out, start=args.start)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
