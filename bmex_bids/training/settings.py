"""Settings of a training: what each is, its default, and the TOML file they are read from."""

from __future__ import annotations

import dataclasses
import difflib
import json
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "ARCHITECTURES",
    "Settings",
    "SettingsError",
    "architecture_of",
    "by_slices",
    "changes",
    "read_settings",
    "to_toml",
]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "enhance": {
        "name": "TissueGuidedUNet",
        "tissue": {"widths": [24, 48, 72, 96], "thin": 0, "norm": "layer"},
        "enhance": {"widths": [32, 64, 96, 128], "thin": 0, "norm": "none"},
        "conditions": 16,  # of stages.CONDITIONS, which takes long to import
        "classes": 5,
        "reach": 2,
        "similar": {"strongest": 0.16, "count": 6},
    },
    "brainmask": {
        "name": "UNet",
        "inputs": 1,
        "outputs": 1,
        "widths": [32, 64, 96, 128],
        "thin": 0,
        "norm": "batch",
    },
}
"""The networks that are trained when nothing else is said."""

NETWORK_HELP = """\
The network, as `architecture` in models.json says it. Left out: the network of --start-from, else
the one below, one pair for every stage and contrast. Its size is in `widths`; without `conditions`
it is a pair of its own for one stage. A fifth class is for lesions; `reach` bases the correction on
the differences to neighbours so far away, and `similar` on those to `count` non-local means, the
strongest first. With `slices` in `enhance` (5: the slice and four neighbours) the enhancer sees
whole slices instead of cubes. The published pair, at its published size:
name = "BMEXPair"
width = 64"""


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the setting and what is expected."""


def _setting(default: Any, section: str, text: str, choices: tuple[str, ...] = ()) -> Any:
    metadata = {"section": section, "help": text, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What a training is made of; :func:`to_toml` prints what every setting is.

    ``kind`` is ``enhance`` or ``brainmask``. ``architecture`` is an ``architecture`` entry of
    models.json, None for that of :data:`ARCHITECTURES`.

    Raises:
        SettingsError: a value that makes no sense.
    """

    kind: str
    steps: int = _setting(3000, "run", "optimiser steps in all")
    batch: int = _setting(2, "run", "patches per step, of each process")
    patch: int = _setting(96, "run", "side of a patch in voxels, a multiple of the network's own")
    depth: int = _setting(
        0, "run", "slices of a patch, a multiple of the classifier's own, for an enhancer of "
        "slices (`slices` in the network): patches are then so thin along one axis; 0 for cubes",
    )
    length: int = _setting(
        0, "run", "side of a patch of volumes along one axis, most often front to back as phase "
        "encoding is; 0 for cubes",
    )
    rate: float = _setting(1.5e-3, "optimiser", "greatest learning rate")
    seed: int = _setting(1, "run", "of the split, the samples, the patches, the initialisation")
    device: str = _setting("auto", "run", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    precision: str = _setting(
        "auto", "run", "of the convolutions; auto is bfloat16 where the hardware has it",
        ("auto", "float32", "bfloat16"),
    )
    every: int = _setting(50, "run", "steps between reports, each with a checkpoint")
    validate_every: int = _setting(500, "run", "steps between validations, a multiple of `every`")
    optimiser: str = _setting("adamw", "optimiser", "adamw or sgd", ("adamw", "sgd"))
    schedule: str = _setting(
        "cosine", "optimiser",
        "of the learning rate over the run: cosine (down to 0), constant, or tenth (a tenth of it "
        "after each fifth of the steps, as published)", ("cosine", "constant", "tenth"),
    )
    warmup: int = _setting(100, "optimiser", "steps over which the learning rate rises at first")
    momentum: float = _setting(0.9, "optimiser", "of the gradient")
    momentum_of_squares: float = _setting(0.99, "optimiser", "of its square (adamw)")
    weight_decay: float = _setting(0.01, "optimiser", "pull of the weights towards 0")
    clip: float = _setting(1.0, "optimiser", "greatest norm of each one's gradient; 0 for any")
    enhance_share: float = _setting(
        0.35, "optimiser", "the enhancer's learning rate over the classifier's; without "
        "normalisation it diverges above 1e-3 (2 patches a step)"
    )
    average: float = _setting(
        0.997, "optimiser",
        "decay of the running average of the weights, which is what is validated and exported",
    )
    tissue_weight: float = _setting(
        1.0, "loss", "of the cross-entropy of the tissue classes; 0 keeps the classifier as it is"
    )
    lesion_weight: float = _setting(
        1.0, "loss", "of a voxel of lesions in that cross-entropy over one of another class; they "
        "are so rare that with 1 they are hardly ever found"
    )
    dice_weight: float = _setting(
        0.0, "loss", "of the soft Dice loss of the tissue classes beside that cross-entropy"
    )
    enhance_weight: float = _setting(
        1.0, "loss", "of the enhanced image's error in the brain; 0 trains the classifier alone, "
        "several times faster. The error is the sum of:"
    )
    log_squared: float = _setting(
        1.0, "loss", "logarithm of each sample's mean squared error, by which a decibel counts the "
        "same wherever it is gained",
    )
    floor: float = _setting(
        5e-5, "loss", "squared error (the brain's median is 1) below which that logarithm hardly "
        "falls; above 0",
    )
    absolute: float = _setting(0.0, "loss", "mean absolute error (the brain's median is 1)")
    squared: float = _setting(0.0, "loss", "mean squared error")
    gradient: float = _setting(0.0, "loss", "mean absolute error of the gradients")
    balance: float = _setting(
        0.04, "loss",
        "for the last three: a sample whose input has the mean absolute error e counts "
        "2 b / (e + b) times, so that the worst ones do not drown the rest; 0 for all alike",
    )
    grid_mm: float = _setting(
        0.0, "data", "voxel side of the network's grid; 0 for that of --start-from, else 0.8 "
        "(0.75 fetal)",
    )
    samples: int = _setting(8, "data", "degraded samples of each training image")
    validation_samples: int = _setting(2, "data", "degraded samples of each validation image")
    validation: float = _setting(
        0.1, "data", "share of the subjects kept out for validation, at least one"
    )
    synthetic: int = _setting(100, "data", "samples synthesised from --label-maps")
    fresh_noise: float = _setting(
        0.3, "data", "share of an enhancer's patches that are the clean image with noise of the "
        "grid's own voxels, drawn anew each time, instead of the degraded one",
    )
    architecture: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ARCHITECTURES:
            raise SettingsError(f"kind {self.kind!r}: expected {' or '.join(ARCHITECTURES)}")
        for item in dataclasses.fields(self):
            if "section" in item.metadata:
                _check(item, getattr(self, item.name))
        if not self.tissue_weight and not self.enhance_weight:
            raise SettingsError("tissue_weight and enhance_weight are both 0: nothing to train")
        if not self.floor:
            raise SettingsError("floor = 0: expected more than 0")
        if self.depth and not by_slices(self):
            raise SettingsError(f"depth {self.depth}: only for an enhancer of slices")
        if self.length and by_slices(self):
            raise SettingsError(f"length {self.length}: not for an enhancer of slices")
        if self.validate_every % self.every:
            raise SettingsError(
                f"validate_every {self.validate_every}: expected a multiple of every ({self.every})"
            )


AT_LEAST_ONE = (
    "steps", "batch", "patch", "every", "validate_every", "samples", "validation_samples",
)
FREE = ("device", "every", "validate_every")  # may change while a run is under way
BELOW_ONE = ("momentum", "momentum_of_squares", "average", "validation", "fresh_noise")


def _check(item: dataclasses.Field[Any], value: Any) -> None:
    kind = type(item.default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {str: isinstance(value, str), float: number, int: number and isinstance(value, int)}
    if not fits[kind]:
        names = {str: "a text", float: "a number", int: "a whole number"}
        raise SettingsError(f"{item.name} = {value!r}: expected {names[kind]}")
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise SettingsError(f"{item.name} = {value!r}: expected {', '.join(choices)}")
    if number and not (value >= (1 if item.name in AT_LEAST_ONE else 0)):
        low = 1 if item.name in AT_LEAST_ONE else 0
        raise SettingsError(f"{item.name} = {value}: expected {low} or more")
    if item.name in BELOW_ONE and not value < 1:
        raise SettingsError(f"{item.name} = {value}: expected less than 1")


def architecture_of(settings: Settings) -> dict[str, Any]:
    """The ``architecture`` entry of the network that a training is for."""
    return dict(settings.architecture or ARCHITECTURES[settings.kind])


def by_slices(settings: Settings) -> bool:
    """Whether the enhancer sees slices (:class:`bmex_bids.networks.SliceUNet`)."""
    return "slices" in architecture_of(settings).get("enhance", {})


def changes(before: Mapping[str, Any], settings: Settings) -> list[str]:
    """What differs between the settings of a checkpoint and those of the run that goes on with it.

    The device and the times of reports may change. Settings that the checkpoint does not know had
    their default.
    """
    known = {item.name for item in dataclasses.fields(Settings)}
    old = Settings(**{key: value for key, value in before.items() if key in known})
    told = []
    for item in dataclasses.fields(Settings):
        was, now = getattr(old, item.name), getattr(settings, item.name)
        if item.name == "architecture":
            was, now = architecture_of(old), architecture_of(settings)
        if item.name not in FREE and was != now:
            told.append(f"{item.name} was {was!r}, now {now!r}")
    return told


def read_settings(path: Path | None, kind: str, given: Mapping[str, Any]) -> Settings:
    """Settings from a TOML file and from what was given beside it, which counts first.

    Args:
        path: as :func:`to_toml` prints it, in part or as a whole; None for defaults.
        kind: ``enhance`` or ``brainmask``.
        given: setting -> value.

    Raises:
        SettingsError: the file cannot be read, or a section, setting or value is not known.
    """
    values: dict[str, Any] = {}
    known = {f.name: f.metadata["section"] for f in dataclasses.fields(Settings) if f.metadata}
    for section, content in _tables(path).items():
        if section == "network":
            values["architecture"] = content
            continue
        for name, value in content.items():
            if known.get(name) != section:
                raise SettingsError(f"{path}: {_unknown(name, section, known)}")
            values[name] = float(value) if _widens(name, value) else value
    try:
        return Settings(kind, **(values | dict(given)))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}" if path else str(error)) from error


def _tables(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    loose = [name for name, value in content.items() if not isinstance(value, dict)]
    if loose:
        raise SettingsError(f"{path}: {', '.join(loose)}: settings belong to a [section]")
    return content


def _widens(name: str, value: object) -> bool:
    """Whether a whole number stands where any number may."""
    wanted = {item.name: type(item.default) for item in dataclasses.fields(Settings)}
    return wanted[name] is float and isinstance(value, int) and not isinstance(value, bool)


def _unknown(name: str, section: str, known: Mapping[str, str]) -> str:
    if name in known:
        return f"{name} belongs to [{known[name]}], not to [{section}]"
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"[{section}] {name}: no such setting{hint}"


def to_toml(settings: Settings) -> str:
    """The settings as a TOML file that :func:`read_settings` reads, with what each means."""
    lines = ["# Settings of bmex-train: use with --config; what is left out has its default."]
    for section in ("run", "optimiser", "loss", "data"):
        lines += ["", f"[{section}]"]
        for item in dataclasses.fields(settings):
            if item.metadata and item.metadata["section"] == section:
                lines += textwrap.wrap(item.metadata["help"], 96, initial_indent="# ",
                                       subsequent_indent="# ")
                lines.append(f"{item.name} = {json.dumps(getattr(settings, item.name))}")
    given = settings.architecture
    lines += ["", *(f"# {line}" for line in NETWORK_HELP.splitlines()), "#" * (not given)]
    mark = "" if given else "# "
    network = architecture_of(settings)
    lines.append(f"{mark}[network]")
    lines += [f"{mark}{k} = {_inline(v)}" for k, v in network.items()]
    return "\n".join(line for line in lines) + "\n"


def _inline(value: object) -> str:
    """One value of a network's entry in TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_inline(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)
