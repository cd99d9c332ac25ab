"""Give the other methods of a models folder the tissues and the references of its bundled models.

    python -m bmex_bids.evaluation.baselines.renew MODELS_FOLDER

Their files hold a copy of the bundled classifier, so that reports of every method have the same
labels and the same common scale. After the bundled models were trained further, the copies are old.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from bmex_bids.bids import atomic_path
from bmex_bids.training.export import enter
from bmex_bids.weights import ModelRecord, list_models

__all__ = ["main", "renew"]


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
    for record in correctors:
        classifier = str(record.training.get("Classifier"))
        if classifier not in models:
            raise ValueError(f"{record.name}: its classifier {classifier} is not in {folder}")
        sha256 = _with_tissue_of(record, models[classifier])
        own = {**record.architecture, "tissue": models[classifier].architecture["tissue"]}
        reference = models[classifier].reference
        enter(replace(record, architecture=own, reference=reference, sha256=sha256))
    return [record.name for record in correctors]


def _with_tissue_of(record: ModelRecord, classifier: ModelRecord) -> str:
    """Write the classifier's tensors into a corrector's file; its new checksum."""
    state = {k: v for k, v in load_file(record.path).items() if not k.startswith("tissue.")}
    state |= {k: v for k, v in load_file(classifier.path).items() if k.startswith("tissue.")}
    with atomic_path(record.path) as temporary:
        save_file({k: v.contiguous() for k, v in sorted(state.items())}, temporary)
        temporary.chmod(0o644)
    return hashlib.sha256(record.path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.baselines.renew", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    print(*renew(parser.parse_args(argv).folder), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
