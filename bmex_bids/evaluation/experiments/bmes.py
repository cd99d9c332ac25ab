"""BME-S: a segmentation DU-Net behind the enhancement network, trained end to end, and without it.

    python -m bmex_bids.evaluation.experiments.bmes POOL HELD_OUT --steps 800 --out work/bmes.md

Both learn from the same patches of the same pool (:mod:`bmex_bids.training.pool`) for the same
number of steps; the enhancer starts from the bundled weights and learns along, at a tenth of the
rate, since it has no normalisation. Dice of the tissues on the same hundred patches of the
corrupted samples of HELD_OUT, made with ``pool --held-out``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids import metrics
from bmex_bids.evaluation.experiments.frame import record_of
from bmex_bids.inference import resolve
from bmex_bids.networks import TISSUES, DUNet
from bmex_bids.training.losses import IGNORE
from bmex_bids.training.samples import read_ahead
from bmex_bids.training.settings import Settings
from bmex_bids.weights import load_network

__all__ = ["Segmenter", "dice_of", "main", "train"]


class Segmenter(nn.Module):
    """A DU-Net on the image, or on what the enhancer makes of it."""

    def __init__(self, width: int, enhancer: nn.Module | None = None):
        super().__init__()
        self.enhancer = enhancer
        self.segment = DUNet(width, 1, len(TISSUES))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(b, 1, x, y, z)``, conditions (b,) -> tissue scores (b, 4, x, y, z)."""
        if self.enhancer is not None:
            x = self.enhancer(x, condition)[1]
        return cast(Tensor, self.segment(x))


def _known(batch: dict[str, Tensor]) -> Tensor:
    """Tissue (b, x, y, z) of four classes: lesions lie in white matter."""
    tissue = batch["tissue"].long()
    return torch.where(tissue == 4, 3, tissue)


def _scores(network: Segmenter, batch: dict[str, Tensor], *, lower: bool) -> Tensor:
    """Of a batch; lower: in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        scores: Tensor = network(batch["input"][:, None], batch["condition"])
    return scores.float()


def _lower(settings: Settings) -> bool:
    return resolve("cpu", settings.precision).precision == "bfloat16"


def train(network: Segmenter, pool: Path, settings: Settings) -> list[float]:
    """Cross-entropy on patches of the pool, by Adam; the loss of every step."""
    parts = [{"params": list(network.segment.parameters()), "lr": settings.rate}]
    if network.enhancer is not None:
        learning = [p for p in network.enhancer.parameters() if p.requires_grad]
        parts.append({"params": learning, "lr": settings.enhance_share * settings.rate})
    optimiser = torch.optim.Adam(parts)
    generator = torch.Generator().manual_seed(settings.seed)
    network.train()
    losses: list[float] = []
    lower = _lower(settings)
    with closing(read_ahead(pool, settings, generator, 0)) as reads:
        for read in reads:
            truth = _known(read.batch)
            if not bool((truth != IGNORE).any()):
                continue  # an image without labels
            loss = F.cross_entropy(
                _scores(network, read.batch, lower=lower), truth, ignore_index=IGNORE
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            if len(losses) % settings.every == 0:
                print(f"step {len(losses)}: {_late(losses):.3f}", flush=True)
    return losses


def _late(losses: Sequence[float]) -> float:
    """Mean of the last hundred."""
    return sum(losses[-100:]) / len(losses[-100:])


@torch.inference_mode()
def dice_of(network: Segmenter, pool: Path, settings: Settings) -> dict[str, float]:
    """Mean Dice of CSF, GM and WM over patches of held-out samples."""
    network.eval()
    found: dict[str, list[float]] = {name: [] for name in TISSUES[1:]}
    generator = torch.Generator().manual_seed(settings.seed + 1)
    lower = _lower(settings)
    with closing(read_ahead(pool, settings, generator, 0)) as reads:
        for read in reads:
            scores = _scores(network, read.batch, lower=lower)
            truth, labels = _known(read.batch), scores.argmax(1)
            known = truth != IGNORE
            for value, name in enumerate(TISSUES[1:], 1):
                one, other = ((v == value) & known for v in (labels, truth))
                dice = metrics.dice(one.numpy(), other.numpy())
                if dice == dice:
                    found[name].append(dice)
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def main(argv: Sequence[str] | None = None) -> int:
    """Train both, print their Dice."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.experiments.bmes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pool", type=Path)
    add("held_out", type=Path)
    add("--steps", type=int, default=800)
    add("--batch", type=int, default=1)
    add("--patch", type=int, default=48)
    add("--width", type=int, default=8, help="of the DU-Net; 64 is the published one")
    add("--rate", type=float, default=1e-3)
    add("--out", type=Path, help="file for the table")
    add("--models-dir", type=Path)
    add("--quick", action="store_true", help="two steps on small patches")
    args = parser.parse_args(argv)
    steps, patch, width = (2, 32, 4) if args.quick else (args.steps, args.patch, args.width)
    common = {"kind": "enhance", "batch": args.batch, "patch": patch, "fresh_noise": 0.0}
    settings = Settings(**common, steps=steps, rate=args.rate, enhance_share=0.1)
    test = Settings(**common, steps=2 if args.quick else 100)
    lines = ["| network | loss | " + " | ".join(f"Dice {name}" for name in TISSUES[1:]) + " |",
             "|---|---|" + "---|" * len(TISSUES[1:])]
    for name in ("DU-Net alone", "BME-S"):
        torch.manual_seed(1)
        enhancer = load_network(record_of(args.models_dir, "T1w-24")) if name == "BME-S" else None
        if enhancer is not None:
            enhancer.requires_grad_(True)
        network = Segmenter(width, enhancer)
        loss = _late(train(network, args.pool, settings))
        dice = dice_of(network, args.held_out, test)
        cells = [f"{dice[t]:.3f}" if t in dice else "" for t in TISSUES[1:]]
        lines.append("| " + " | ".join([name, f"{loss:.3f}", *cells]) + " |")
    print("\n".join(lines))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
