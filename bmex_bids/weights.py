"""Weights: what models.json lists, verified and loaded.

A models folder holds ``models.json`` (``{"schema": 1, "models": [...]}``, one entry per
:class:`ModelRecord`) beside safetensors files. Models are chosen from this data alone.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # planning reads records only, and PyTorch takes seconds to import
    from torch import Tensor, nn

__all__ = [
    "ModelRecord",
    "UnknownSetError",
    "WeightsError",
    "find_mask_model",
    "find_model",
    "kept_network",
    "list_models",
    "load_network",
    "build_network",
    "models_dir",
    "new_network",
    "write_models",
]

SCHEMA = 1
LIST = "models.json"
ARCHITECTURES = {
    "BMEXPair": "networks", "DUNet": "networks", "SlicePair": "duncan",
    "TissueGuidedUNet": "networks", "UNet": "networks",
}
HOW_TO_ADD = (
    "Weights of the authors can be added with 'bmex-weights import FOLDER --models-dir DIR', then "
    "'bmex --models-dir DIR --model-set published'"
)


class WeightsError(ValueError):
    """Weights are missing, changed or do not fit; the message says what to do."""


class UnknownSetError(WeightsError):
    """No model belongs to the set that was asked for; the message names the sets there are."""


@dataclass(frozen=True)
class ModelRecord:
    """One entry of models.json.

    Attributes:
        name: unique name, such as ``bmex-T1w-24``.
        kind: ``"enhance"`` or ``"brainmask"``.
        set: ``"bundled"``, ``"published"`` or a set of one's own.
        suffixes: contrasts it serves, ``T1w`` and ``T2w``.
        stage: age stage, None where it serves every age.
        ages_months: (from, to) in months after birth, None where it serves every age.
        grid_mm: side of the cubic voxels it works on, mm.
        architecture: ``{"name": a class of networks.py, ...its keyword arguments}``.
        file: safetensors file, relative to ``directory``.
        sha256: of that file, hexadecimal.
        version: of the weights.
        licence: of the weights.
        source: where they come from, with a DOI where there is one.
        training: what they were trained on, and what was kept out.
        reference: ``{"TissueMeans": ..., "Edges": ..., "Density": ..., "TissueDensity": ...}`` on
            the common scale.
        scale: of the network's input. To enhance: the value that the brain's median gets. Brain
            mask: what the image is multiplied by, 1 for the network's own normalisation.
        directory: folder that models.json lay in.
    """

    name: str
    kind: str
    set: str
    suffixes: tuple[str, ...]
    stage: str | None
    ages_months: tuple[float, float] | None
    grid_mm: float
    architecture: dict[str, Any] = field(hash=False)
    file: str
    sha256: str
    version: str
    licence: str
    source: str
    training: dict[str, Any] = field(default_factory=dict, hash=False)
    reference: dict[str, Any] | None = field(default=None, hash=False)
    scale: float = 1.0
    directory: Path = Path()

    @property
    def path(self) -> Path:
        """The weights file."""
        return self.directory / self.file

    @property
    def head_scale(self) -> float | None:
        """``scale`` of :func:`bmex_bids.brainmask.brain_mask`: None where the head says it."""
        return None if self.scale == 1.0 else self.scale


def models_dir(explicit: Path | None) -> list[Path]:
    """Folders to look for models in: the one asked for, then the bundled one.

    Raises:
        WeightsError: ``explicit`` holds no models.json.
    """
    package = Path(__file__).parent
    bundled = package / "data" / "models"
    if not bundled.is_dir():  # not installed from a wheel: a checkout
        bundled = package.parent / "data" / "models"
    if explicit is None:
        return [bundled]
    if not (explicit / LIST).is_file():
        raise WeightsError(f"{explicit}: no {LIST} there. {HOW_TO_ADD}")
    return [explicit, bundled]


def list_models(dirs: Sequence[Path]) -> list[ModelRecord]:
    """All models of the folders, in order; of two with one name the first counts.

    Raises:
        WeightsError: a models.json that cannot be understood, with the reason.
    """
    records: dict[str, ModelRecord] = {}
    for directory in dirs:
        for record in _read(directory):
            records.setdefault(record.name, record)
    return list(records.values())


def _read(directory: Path) -> list[ModelRecord]:
    path = directory / LIST
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); restore the file") from error
    models = content.get("models", []) if isinstance(content, dict) else None
    if not isinstance(models, list) or content.get("schema") != SCHEMA:
        raise WeightsError(f'{path}: expected {{"schema": {SCHEMA}, "models": [...]}}')
    if not all(isinstance(entry, dict) for entry in models):
        raise WeightsError(f"{path}: every entry of models has to be an object")
    return [_record(entry, path) for entry in models]


def _record(entry: dict[str, Any], path: Path) -> ModelRecord:
    known = {f.name: f for f in fields(ModelRecord) if f.name != "directory"}
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    missing, unknown = sorted(needed - set(entry)), sorted(set(entry) - set(known))
    where = f"{path}: model {entry.get('name', '?')!r}"
    if missing or unknown:
        told = f"missing {missing or 'nothing'}, unknown {unknown or 'nothing'}"
        raise WeightsError(f"{where}: {told}")
    ages = entry["ages_months"]
    try:
        record = ModelRecord(
            **entry
            | {
                "suffixes": tuple(map(str, entry["suffixes"])),
                "ages_months": None if ages is None else (float(ages[0]), float(ages[1])),
                "grid_mm": float(entry["grid_mm"]),
                "architecture": dict(entry["architecture"]),
                "directory": path.parent,
            }
        )
        parts = Path(record.file).parts
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where}: a value of the wrong kind ({error})") from error
    if Path(record.file).is_absolute() or ".." in parts:
        raise WeightsError(f"{where}: its file {record.file!r} lies outside {path.parent}")
    return record


def write_models(directory: Path, records: Sequence[ModelRecord]) -> Path:
    """Write models.json into ``directory``, whole or not at all."""
    models = [asdict(record) for record in records]
    for model in models:
        del model["directory"]
    path = directory / LIST
    text = json.dumps({"schema": SCHEMA, "models": models}, indent=2, ensure_ascii=False)
    temporary = directory / f".{LIST}-{os.getpid()}"
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def find_model(
    records: Sequence[ModelRecord], *, suffix: str, stage: str | None, model_set: str
) -> ModelRecord:
    """The enhancement model of a contrast and an age stage.

    Raises:
        UnknownSetError: no model is of that set.
        WeightsError: there is none; the message lists those there are, and how to add more.
    """
    networks = [r for r in records if r.kind == "enhance"]
    there = [r for r in networks if r.set == model_set]
    if networks and not there:
        sets = ", ".join(dict.fromkeys(r.set for r in networks))
        raise UnknownSetError(f"no set of models is called '{model_set}'. There are: {sets}")
    for record in there:
        if suffix in record.suffixes and record.stage in (None, stage):
            return record
    listed = ", ".join(f"{'/'.join(r.suffixes)} {_stage(r)}" for r in there) or "none"
    raise WeightsError(
        f"no weights for {suffix} at stage {stage} in the set '{model_set}'. "
        f"There are: {listed}. {HOW_TO_ADD}"
    )


def _stage(record: ModelRecord) -> str:
    if record.ages_months is None:
        return f"stage {record.stage}"
    low, high = record.ages_months
    if high <= 0:
        return f"stage {record.stage} (before birth)"
    return f"stage {record.stage} ({low:g} to {high:g} months)"


def find_mask_model(records: Sequence[ModelRecord], *, model_set: str) -> ModelRecord:
    """The brain extraction model of a set, else the bundled one.

    Raises:
        WeightsError: there is none.
    """
    there = [r for r in records if r.kind == "brainmask" and r.set in (model_set, "bundled")]
    for record in sorted(there, key=lambda r: r.set != model_set):
        return record
    raise WeightsError(
        "no weights for brain extraction: reinstall bmex, or give brain masks with --derivatives"
    )


@functools.lru_cache(maxsize=2)  # the brain mask and the pair that all runs of a start need
def kept_network(record: ModelRecord) -> nn.Module:
    """:func:`load_network`, once per process: the same network again for the same record."""
    return load_network(record)


def load_network(record: ModelRecord) -> nn.Module:
    """The network of a model: checksum verified first, loaded strictly, float32, eval mode.

    Raises:
        WeightsError: the file is missing, was changed, or does not fit the architecture.
    """
    from safetensors.torch import load

    content = _verified(record)
    try:
        state = load(content)
    except Exception as error:  # safetensors raises its own kinds for a damaged header
        raise WeightsError(f"{record.path}: not a safetensors file ({error})") from error
    return build_network(record.architecture, state, where=str(record.path))


def _verified(record: ModelRecord) -> bytes:
    try:
        content = record.path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{record.path}: weights of {record.name} cannot be read ({error.strerror}); "
            "reinstall bmex, or import the weights again"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != record.sha256:
        raise WeightsError(
            f"{record.path}: the weights of {record.name} were changed or damaged (SHA-256 "
            f"{found[:12]}..., expected {record.sha256[:12]}...); reinstall or import them again"
        )
    return content


def new_network(architecture: Mapping[str, Any], where: str) -> nn.Module:
    """The network of an architecture entry, in train mode, as PyTorch initialises it.

    Args:
        architecture: see :class:`ModelRecord`.
        where: what the error messages begin with, such as the file's path.

    Raises:
        WeightsError: no such class of networks, or arguments that it does not take.
    """
    name = architecture.get("name")
    if name not in ARCHITECTURES:
        raise WeightsError(f"{where}: unknown architecture {name!r}: {', '.join(ARCHITECTURES)}")
    arguments = {key: value for key, value in architecture.items() if key != "name"}
    try:
        module = importlib.import_module(f"bmex_bids.{ARCHITECTURES[name]}")
        network: nn.Module = getattr(module, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{where}: {name} cannot be built ({error})") from error
    return network


def build_network(
    architecture: Mapping[str, Any], state: Mapping[str, Tensor], where: str
) -> nn.Module:
    """A network with the given state, strictly, float32, in eval mode.

    Args:
        architecture: see :class:`ModelRecord`.
        state: every parameter and buffer by name; float16 is widened.
        where: what the error messages begin with, such as the file's path.

    Raises:
        WeightsError: unknown architecture, or missing, unexpected or misshapen keys (named).
    """
    import torch

    with torch.device("meta"):  # neither time nor random numbers for values that are replaced
        network = new_network(architecture, where)
    _compare(network.state_dict(), state, where)
    full = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    network.load_state_dict(full, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in sorted(set(expected) & set(state))
        if state[key].shape != expected[key].shape
    ]
    problems = [("missing keys", missing), ("unexpected keys", unexpected), ("shapes", shapes)]
    told = "; ".join(f"{what}: {_shorten(items)}" for what, items in problems if items)
    if told:
        raise WeightsError(f"{where}: does not fit the network. {told}")


def _shorten(items: Sequence[str], most: int = 12) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
