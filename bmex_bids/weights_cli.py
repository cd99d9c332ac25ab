"""The command ``bmex-weights``: list, verify and import weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bmex_bids.published import import_published
from bmex_bids.weights import ModelRecord, WeightsError, list_models, load_network, models_dir

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """``bmex-weights list|verify|import``; 0 where all went well, else 1."""
    parser = argparse.ArgumentParser(
        prog="bmex-weights", description="List, verify and import the weights that bmex uses."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in [
        ("list", "the models there are"),
        ("verify", "check every file's checksum and load it"),
        ("import", "convert the authors' weight files"),
    ]:
        command = commands.add_parser(name, help=text, description=text)
        if name == "import":
            command.add_argument("folder", type=Path, help="folder with the authors' .pt files")
        command.add_argument(
            "--models-dir",
            type=Path,
            metavar="DIR",
            default=Path("bmex-models") if name == "import" else None,
            help="folder with models.json"
            + (" to write or add to (default: ./bmex-models)" * (name == "import")),
        )
    options = parser.parse_args(argv)
    try:
        if options.command == "import":
            return _import(options.folder, options.models_dir)
        records = list_models(models_dir(options.models_dir))
        return _list(records) if options.command == "list" else _verify(records)
    except (WeightsError, OSError) as error:
        print(f"bmex-weights: {error}", file=sys.stderr)
        return 1


def _list(records: Sequence[ModelRecord]) -> int:
    print("name\tset\tkind\tsuffixes\tstage\tmonths\tgrid_mm\tversion\tsha256")
    for r in records:
        months = "all" if r.ages_months is None else f"{r.ages_months[0]:g} to {r.ages_months[1]:g}"
        columns = (r.name, r.set, r.kind, " ".join(r.suffixes), r.stage or "all", months)
        print("\t".join((*columns, f"{r.grid_mm:g}", r.version, r.sha256[:12])))
    return 0


def _verify(records: Sequence[ModelRecord]) -> int:
    failed = 0
    for record in records:
        try:
            load_network(record)
            print(f"{record.name}: ok")
        except WeightsError as error:
            failed += 1
            print(f"{record.name}: {error}", file=sys.stderr)
    return 1 if failed or not records else 0


def _import(folder: Path, target: Path) -> int:
    for record in import_published(folder, target):
        print(f"{record.training['File']} -> {record.path}")
    print(f"Use them with: bmex ... --models-dir {target} --model-set published")
    return 0
