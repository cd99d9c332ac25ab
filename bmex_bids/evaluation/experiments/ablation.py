"""What tissue classification is worth: enhancers trained alike, with and without it.

    python -m bmex_bids.evaluation.experiments.ablation POOL HELD_OUT WORK --steps 400

All learn from nothing, from the same samples in the same order (:mod:`bmex_bids.training.pool`).
One sees the probabilities of the bundled classifier, which learns no more; three do not: one of the
same width, one with as many parameters as classifier and enhancer have together, and one with 1.5
times as many. The six measures on the samples of HELD_OUT, which may come from label maps
(synthetic) and from images (real); those that hardly anything degraded stand apart, since a young
enhancer changes them too much. A second start goes on where the first ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from bmex_bids.evaluation.experiments.brains import scene_of
from bmex_bids.evaluation.experiments.drawing import boxes
from bmex_bids.evaluation.experiments.frame import (
    SIX,
    Row,
    fresh,
    record_of,
    rows_kept,
    six,
    table,
)
from bmex_bids.groupstats import paired_test
from bmex_bids.inference import Compute, enhance_volume
from bmex_bids.training.architectures import averaged_state
from bmex_bids.training.loop import train
from bmex_bids.training.losses import IGNORE
from bmex_bids.training.samples import condition_of, sample_paths
from bmex_bids.training.settings import Settings
from bmex_bids.training.stages import CONDITIONS
from bmex_bids.weights import new_network

__all__ = ["VARIANTS", "architecture_of", "main", "parameters"]

VARIANTS: dict[str, tuple[bool, float]] = {
    "sees the tissues": (True, 0.0),
    "same width": (False, 0.0),
    "as many parameters as the pair": (False, 1.0),
    "1.5 times as many": (False, 1.5),
}
"""Whether it sees the tissues, and how many parameters it has over the pair's; 0 for its width."""

CLEAN_DB = 40.0
"""PSNR above which an input is called nearly clean."""


def parameters(network: nn.Module) -> int:
    """Of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def architecture_of(pair: dict[str, Any], name: str) -> dict[str, Any]:
    """The network of a variant: an enhancer whose widths keep their proportions."""
    guided, share = VARIANTS[name]
    made = pair | {"guided": guided}
    if not share:
        return made
    wanted = share * parameters(new_network(pair, "the pair"))
    unit = int(pair["enhance"]["widths"][0])
    options = [
        made | {"enhance": pair["enhance"] | {
            "widths": [round(w * first / unit) for w in pair["enhance"]["widths"]]
        }}
        for first in range(unit, 4 * unit)
    ]  # fmt: skip
    return min(options, key=lambda one: abs(parameters(_enhancer(one)) - wanted))


def _enhancer(architecture: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        network = new_network(architecture, "a variant")
    part: nn.Module = network.enhance  # type: ignore[assignment]
    return part


def _measure(network: nn.Module, name: str, held_out: Path, path: Path, crop: int) -> None:
    """Rows of the samples that have none yet."""
    keys = [{"variant": name, "sample": sample.name} for sample in sample_paths(held_out)]
    for key, add in fresh(path, keys):
        sample = load_file(held_out / key["sample"])
        known = sample["tissue"] != IGNORE
        source = "synthetic" if bool((sample["tissue"][known] > 0).any()) else "real"
        condition = condition_of(sample.get("condition"))
        shown = scene_of(sample, CONDITIONS[condition], crop)
        network.condition = condition  # type: ignore[assignment]
        made = enhance_volume(network, shown.given, Compute("cpu", "float32"))[1]
        before, after = six(shown.given, shown), six(np.where(shown.mask, made, 0), shown)
        add([{
            "source": source, "condition": shown.condition, **after,
            "gain": after["PSNR"] - before["PSNR"],
        }])  # fmt: skip


def _images(row: Row) -> str:
    """What a row counts among."""
    clean = float(row["PSNR"]) - float(row["gain"]) > CLEAN_DB
    return f"{row['source']}, {'nearly clean' if clean else 'degraded'}"


def _told(rows: Sequence[Row], told: dict[str, str]) -> str:
    """The table, and paired tests of every variant against the first."""
    digits = {"gain": 2} | {name: 5 if name == "MSE" else 3 for name in SIX}
    text = table(rows, ("images", "variant"), digits)
    first, *others = VARIANTS
    lines = [f"* {name}: {words}" for name, words in told.items()]
    for name in others:
        for images in dict.fromkeys(row["images"] for row in rows):
            one, other = (
                np.array([float(r["gain"]) for r in rows
                          if (r["variant"], r["images"]) == (variant, images)])
                for variant in (first, name)
            )  # fmt: skip
            test = paired_test(one, other) if len(one) == len(other) else None
            if test is not None:
                lines.append(
                    f"* {name} - {first}, {images}: {test.mean_difference:+.2f} dB "
                    f"(95% {test.low:+.2f} to {test.high:+.2f}, p = {test.t_p:.2g}, n = {test.n})"
                )
    return "\n".join([text, "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not trained yet, measure, write the table and the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.experiments.ablation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pool", type=Path)
    add("held_out", type=Path)
    add("work", type=Path, help="checkpoints, ablation.tsv, ablation.md and ablation.png")
    add("--steps", type=int, default=400)
    add("--batch", type=int, default=2)
    add("--patch", type=int, default=64)
    add("--rate", type=float, default=5e-4)
    add("--crop", type=int, default=128, help="side of the central cube that is measured; 0: whole")
    add("--models-dir", type=Path, help="whose classifier it is")
    add("--quick", action="store_true", help="two steps on small patches")
    args = parser.parse_args(argv)
    steps, patch, crop = (2, 32, 32) if args.quick else (args.steps, args.patch, args.crop)
    record = record_of(args.models_dir, "T1w-24")
    pair = {k: v for k, v in record.architecture.items() if k != "condition"}
    whole = parameters(new_network(pair, "the pair"))
    start = {k: v for k, v in averaged_state(record.path).items() if k.startswith("tissue.")}
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "ablation.tsv"
    told = {}
    for name in VARIANTS:
        architecture = architecture_of(pair, name)
        settings = Settings(
            kind="enhance", steps=steps, batch=args.batch, patch=patch, rate=args.rate,
            tissue_weight=0.0, enhance_share=1.0, average=0.99, fresh_noise=0.25,
            architecture=architecture,
        )  # fmt: skip
        folder = args.work / name.replace(" ", "-")
        network = train(settings, args.pool, folder, start=start)
        _measure(network, name, args.held_out, path, crop)
        count = parameters(_enhancer(architecture))
        told[name] = (
            f"widths {', '.join(map(str, architecture['enhance']['widths']))}, {count:,} "
            f"parameters, {count / whole:.2f} of the pair's {whole:,}"
        )
    rows = [row | {"images": _images(row)} for row in rows_kept(path)]
    rows.sort(key=lambda row: (row["images"], list(VARIANTS).index(row["variant"])))
    degraded = [row for row in rows if row["images"].endswith("degraded")]
    boxes(degraded or rows, "variant", ("gain",), args.work / "ablation.png")
    text = _told(rows, told)
    (args.work / "ablation.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
