"""BIDS names, sidecars and the files at the root of the output dataset.

Every file is written beside its place and moved there when it is complete, so a reader, or a
second process that writes into the same directory, sees a whole file or none.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.claims import TEMPORARY

__all__ = [
    "Job",
    "atomic_path",
    "derivative_path",
    "output_stem",
    "parse_entities",
    "read_json",
    "read_text",
    "session_dir",
    "source_uri",
    "write_dataset_files",
    "write_json",
    "write_text",
]

# The order in which BIDS wants the entities of a file name.
ENTITY_ORDER = (
    *("sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain"),
    *("rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space"),
    *("split", "recording", "chunk", "atlas", "seg", "scale", "res", "den", "label", "desc"),
)

DESCRIPTIONS = {
    "desc-enhanced": "Brain, enhanced by the network of its age stage, on the common intensity "
    "scale that is stated in the sidecar; 0 outside the brain mask",
    "desc-preproc": "Whole head on the intensity scale of the input, with the enhanced brain "
    "blended in; equal to the input outside the margin of the blend",
    "desc-brain": "Brain mask on the grid of the input",
    "desc-input": "Brain of the input, not enhanced, in a standard space, brought near the common "
    "scale by one factor; 0 outside the brain mask",
    "desc-T2wbrain": "Brain mask of the T2w image in a standard space",
    "desc-T2w": "Tissue labels of the T2w image in a standard space",
    "desc-uncertainty": "Standard deviation of the enhanced image over an ensemble of flips, on "
    "the common intensity scale",
}
TISSUES = {0: "background", 1: "CSF", 2: "GM", 3: "WM"}
# Written when a container is built, e.g. {"Type": "docker", "Tag": "bmex:0.1.0"}.
CONTAINER_FILE = Path("/etc/bmex-container.json")
# Transforms (xfm) are not in BIDS yet.
BIDSIGNORE = "*.html\nlogs\nfigures\ngroup_*\n*_metrics.*\n*_xfm.*\n"
README = """\
Enhanced structural brain MRI, written by bmex {version}

sub-*/[ses-*/]anat/
  *_desc-enhanced_T1w.nii.gz    brain, enhanced and harmonised, on the grid of the input
  *_desc-preproc_T1w.nii.gz     whole head on the input's intensity scale, enhanced brain blended in
  *_desc-brain_mask.nii.gz      brain mask
  *_dseg.nii.gz                 tissue labels, see dseg.tsv
  *_label-*_probseg.nii.gz      tissue probabilities
  *_space-<template>_*          the same in a standard space, with --output-spaces
  *_from-*_to-*_xfm.h5          transforms between the image and that space, as ITK reads them
sub-*.html, group_*.html        reports
logs/                           settings, log and crash files of every start

The JSON beside each image states where it comes from, how it was made and what was measured.
Intensities of the enhanced images are estimates of a network. Not for diagnosis.
"""
CITATION = """\
Please cite, beside bmex {version}:

Sun Y, Wang L, Li G, Lin W, Wang L. A foundation model for enhancing magnetic resonance images and
downstream segmentation, registration and diagnostic tasks. Nature Biomedical Engineering 9, 521-538
(2025). doi:10.1038/s41551-024-01283-7

Tustison NJ, et al. N4ITK: improved N3 bias correction. IEEE Transactions on Medical Imaging 29,
1310-1320 (2010). doi:10.1109/TMI.2010.2046908

The reports of the participants have a methods text with the versions and models that were used.
"""


@dataclass(frozen=True)
class Job:
    """One image to enhance, with every decision made before a voxel is read.

    Attributes:
        path: absolute path of the raw image.
        bids_root: absolute path of the raw dataset.
        entities: short key -> value in the file name's order, e.g. ``{"sub": "01", "run": "1"}``.
        suffix: ``T1w`` or ``T2w``.
        metadata: the image's sidecar, inherited fields included.
        age_months: age after birth in months, negative before birth; None when not known.
        age_source: the table and column (or option) that gave the age, "" when none did.
        stage: age stage of the model, e.g. ``"24"`` or ``"fetal"``; None when not known.
        weights: name of the model in models.json; None when there is none.
        mask: brain mask found in a derivative dataset; None when there is none.
        action: ``enhance``, ``done`` or ``skip``.
        reason: why the image is skipped, "" otherwise.
        notes: what was odd about the age or the name, in plain words.
        wanted: False for a file that is left out on purpose, so that skipping it is no failure.
    """

    path: Path
    bids_root: Path
    entities: dict[str, str]
    suffix: str
    metadata: dict[str, object]
    age_months: float | None
    age_source: str
    stage: str | None
    weights: str | None
    mask: Path | None
    action: str
    reason: str
    notes: tuple[str, ...] = ()
    wanted: bool = True


def parse_entities(name: str) -> dict[str, str]:
    """Return the entities of a BIDS file name, e.g. ``{"sub": "01", "run": "1"}``, in its order."""
    return dict(re.findall(r"(?:^|_)([a-zA-Z]+)-([a-zA-Z0-9+]+)(?=[_.])", name))


def session_dir(root: Path, entities: Mapping[str, str]) -> Path:
    """Return ``root/sub-<label>[/ses-<label>]``."""
    directory = root / f"sub-{entities['sub']}"
    return directory / f"ses-{entities['ses']}" if "ses" in entities else directory


def output_stem(job: Job) -> str:
    """Return what names a run among all runs, e.g. ``sub-01_ses-2_run-1_T1w``."""
    return "_".join([*(f"{key}-{value}" for key, value in job.entities.items()), job.suffix])


def derivative_path(
    out: Path,
    job: Job,
    *,
    suffix: str | None = None,
    desc: str | None = None,
    space: str | None = None,
    res: str | None = None,
    label: str | None = None,
    ext: str = ".nii.gz",
) -> Path:
    """Return the path of one output of a run; entities stand in the order that BIDS wants.

    Args:
        out: root of the output dataset.
        job: the run; its own entities are kept.
        suffix: ``T1w``, ``mask``, ``dseg``, ...; the run's own suffix when None.
        desc: value of ``desc-``; None leaves the entity out, here and below.
        space: value of ``space-``.
        res: value of ``res-``.
        label: value of ``label-``.
        ext: file extension with its dot.

    Raises:
        ValueError: the name would be that of the raw image.
    """
    added = {"space": space, "res": res, "label": label, "desc": desc}
    entities = job.entities | {key: value for key, value in added.items() if value is not None}
    suffix = suffix or job.suffix
    if entities == job.entities and suffix == job.suffix:
        raise ValueError(f"{output_stem(job)}: an output needs a name of its own, e.g. with desc-")
    known = sorted((key for key in entities if key in ENTITY_ORDER), key=ENTITY_ORDER.index)
    keys = known + [key for key in entities if key not in ENTITY_ORDER]
    name = "_".join([*(f"{key}-{entities[key]}" for key in keys), suffix]) + ext
    return session_dir(out, entities) / "anat" / name


def source_uri(job: Job) -> str:
    """Return the BIDS URI of the raw image, e.g. ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``."""
    return f"bids:raw:{job.path.relative_to(job.bids_root).as_posix()}"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there on success, remove it on failure.

    The temporary name is hidden, ends as ``path`` does, and is unlike that of any other process.
    The directory is made when it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        OSError: there is no such file, it cannot be read, or it is a pipe or a device, which would
            never end.
        UnicodeDecodeError: the file is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_text(encoding="utf-8-sig")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        # Names of files can hold bytes that are no text; they are escaped.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, obj: object) -> None:
    """Write a JSON file, whole or not at all; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not valid JSON, or no object; the message names it.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); repair the file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def write_dataset_files(out: Path, raw: Path) -> None:
    """Write the files at the root of the output dataset, those that are missing or out of date.

    Args:
        out: root of the output dataset, made when missing.
        raw: root of the raw dataset, linked as ``raw`` in dataset_description.json.
    """
    descriptions = "".join(f"{key}\t{text}\n" for key, text in DESCRIPTIONS.items())
    tissues = "".join(f"{index}\t{name}\n" for index, name in TISSUES.items())
    files = {
        ".bidsignore": BIDSIGNORE,
        "README": README.format(version=__version__),
        "logs/CITATION.md": CITATION.format(version=__version__),
        "descriptions.tsv": "desc_id\tdescription\n" + descriptions,
        "dseg.tsv": "index\tname\n" + tissues,
        "dataset_description.json": json.dumps(_description(raw), indent=2, ensure_ascii=False)
        + "\n",
    }
    for name, text in files.items():
        path = out / name
        kept = name in (".bidsignore", "README")  # which people may have edited
        if not path.exists() or (not kept and path.read_text(encoding="utf-8") != text):
            write_text(path, text)
    _carry_participants(out, raw)


def _carry_participants(out: Path, raw: Path) -> None:
    """Copy participants.tsv and its JSON: the group level needs sex, group and site from them."""
    for name in ("participants.tsv", "participants.json"):
        try:
            text = (raw / name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            continue  # there is none, or the validator has said what is wrong with it
        path = out / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def _description(raw: Path) -> dict[str, object]:
    """Return the content of the output's dataset_description.json."""
    try:
        source = read_json(raw / "dataset_description.json")
    except (OSError, ValueError):
        source = {}
    uri = raw.resolve().as_uri()
    dataset: dict[str, object] = {"URL": uri}
    if source.get("DatasetDOI"):
        dataset["DOI"] = source["DatasetDOI"]
    description: dict[str, object] = {
        "Name": f"{source.get('Name') or raw.resolve().name}: enhanced by bmex",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [_generator()],
        "SourceDatasets": [dataset],
        "DatasetLinks": {"raw": uri},
    }
    if source.get("License"):
        description["License"] = source["License"]
    return description


def _generator() -> dict[str, object]:
    """Return who made the dataset: program, version, where its code is, and the container."""
    from importlib import metadata as package_metadata  # takes a while, and --help does not need it

    generator: dict[str, object] = {"Name": "bmex", "Version": __version__}
    try:
        urls = package_metadata.metadata("bmex-bids").get_all("Project-URL") or []
    except package_metadata.PackageNotFoundError:
        urls = []
    for entry in urls:
        label, _, url = entry.partition(", ")
        if label.lower() in ("source", "repository", "homepage"):
            generator["CodeURL"] = url
    try:
        generator["Container"] = read_json(CONTAINER_FILE)
    except (OSError, ValueError):
        pass  # not in a container of ours
    return generator
