"""Give the other methods of a models folder the tissues and the references of its bundled models.

    python -m bmex_bids.evaluation.baselines.renew MODELS_FOLDER [--templates FOLDER]

Their files hold a copy of the bundled classifier, so that reports of every method have the same
labels and the same common scale. After the bundled models were trained further, the copies are old.
With ``--templates`` the references of the bundled models are measured anew before, as they must be
when tissues are labelled in another way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from bmex_bids.training.bundle import measure_references
from bmex_bids.training.export import enter, save_weights
from bmex_bids.weights import list_models

__all__ = ["main", "renew"]

TISSUE = "tissue."  # what the names of a classifier's tensors begin with


def renew(folder: Path) -> list[str]:
    """Replace the classifiers of the correctors of slices, and the references of their entries.

    Args:
        folder: models folder, with the models that the entries name as their ``Classifier``.

    Returns:
        The names of the entries that were renewed.

    Raises:
        ValueError: an entry names a model that is not there.
    """
    models = {record.name: record for record in list_models([folder])}
    correctors = [r for r in models.values() if r.architecture["name"] == "SlicePair"]
    renewed: dict[Path, str] = {}
    for record in correctors:
        name = str(record.training.get("Classifier"))
        if name not in models:
            raise ValueError(f"{record.name}: its classifier {name} is not in {folder}")
        classifier = models[name]
        if record.path not in renewed:  # entries of one method share their file
            own = {k: v for k, v in load_file(record.path).items() if not k.startswith(TISSUE)}
            new = {k: v for k, v in load_file(classifier.path).items() if k.startswith(TISSUE)}
            renewed[record.path] = save_weights(record.path, own | new)
        architecture = {**record.architecture, "tissue": classifier.architecture["tissue"]}
        enter(replace(record, architecture=architecture, reference=classifier.reference,
                      sha256=renewed[record.path]))
    return [record.name for record in correctors]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.baselines.renew", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--templates", type=Path, help="images of the references")
    args = parser.parse_args(argv)
    if args.templates:
        print(*measure_references(args.folder, args.templates), sep="\n")
    print(*renew(args.folder), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
