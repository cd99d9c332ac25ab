"""Train the brain extraction or an enhancement pair from a pool of samples.

One command for CPU and GPU: patches are read from the pool (:mod:`bmex_bids.training.pool`), which
may still be growing. A second start goes on where the first stopped. ``bmex-train`` does all steps
from a BIDS dataset to a model; this is its training step alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bmex_bids.training.architectures import averaged_state, build
from bmex_bids.training.loop import train
from bmex_bids.training.ranks import joined
from bmex_bids.training.settings import ARCHITECTURES, Settings, SettingsError, read_settings

__all__ = ["ARCHITECTURES", "Settings", "build", "main", "train"]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="python -m bmex_bids.training.train", description=__doc__)
    parser.add_argument("kind", choices=tuple(ARCHITECTURES))
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--patch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device")
    parser.add_argument("--config", type=Path, help="settings, see bmex-train --print-config")
    parser.add_argument("--validation", type=Path, help="pool of samples to validate on")
    parser.add_argument(
        "--start", type=Path, help="checkpoint of another training, or *.safetensors, to begin with"
    )
    parser.add_argument("--allow-changes", action="store_true", help="go on with other settings")
    args = parser.parse_args(argv)
    names = ("steps", "batch", "patch", "rate", "seed", "device")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        settings = read_settings(args.config, args.kind, given)
        with joined(settings.device) as ranks:
            train(
                settings, args.pool, args.out, validation=args.validation,
                start=averaged_state(args.start) if args.start else None,
                allow_changes=args.allow_changes, ranks=ranks,
            )
    except (SettingsError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
