"""What lies in a BIDS dataset: images, their sidecars, and brain masks of derivative datasets."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bmex_bids.bids import parse_entities, read_json, session_dir

__all__ = [
    "InputError",
    "Selection",
    "check_dataset",
    "find_images",
    "find_mask",
    "read_filters",
    "sidecar_reader",
    "suffix_of",
]

EXTENSIONS = (".nii", ".nii.gz")
# Folders without anatomical images, and (for an index that is not kept) files that are no images.
OTHER_FOLDERS = re.compile(
    r"/(?:beh|dwi|eeg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet"
    r"|derivatives|sourcedata|code|stimuli)(?:/|$)|/\."
)
OTHER_FILES = re.compile(r"\.(?:json|tsv|bvals?|bvecs?|txt|md|html|tsv\.gz|png|jpe?g)$", re.I)


class InputError(ValueError):
    """The input or the command line cannot be used; found before any work starts."""


@dataclass(frozen=True)
class Selection:
    """Which images of a dataset are wanted; empty means all.

    Attributes:
        participants: labels without ``sub-``.
        sessions: labels without ``ses-``.
        suffixes: ``T1w``, ``T2w``.
        filters: ``t1w`` or ``t2w`` -> pybids entity -> value, list of values, None or ``"*"``.
        database_dir: where pybids keeps its index; None for an index in memory.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ("T1w", "T2w")
    filters: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    database_dir: Path | None = None


def check_dataset(root: Path) -> None:
    """Refuse what is no BIDS dataset at all.

    Raises:
        InputError: no folder, no dataset_description.json, or no subject.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the root of a BIDS dataset")
    try:
        read_json(root / "dataset_description.json")
    except FileNotFoundError:
        raise InputError(
            f"{root}: no dataset_description.json, so this is not the root of a BIDS dataset"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error
    if not _labels(root, "sub"):
        raise InputError(f"{root}: no sub-* folder; give the root of a BIDS dataset")


def find_images(root: Path, selection: Selection, *, ignore: Iterable[Path] = ()) -> list[Path]:
    """Return the T1w and T2w images (and defacing masks) that were asked for, sorted by path.

    Args:
        root: absolute root of the dataset.
        selection: what is wanted.
        ignore: folders inside the dataset that are not part of it, e.g. the output.

    Raises:
        InputError: a label or filter that fits nothing, or no image at all.
    """
    _check_labels(root, selection)
    layout = _index(root, selection, ignore)
    entities = set(layout.get_entities())
    found: set[str] = set()
    for suffix in selection.suffixes:
        wanted = _query(selection.filters.get(suffix.lower(), {}))
        if unknown := sorted(set(wanted) - entities):  # else pybids' own options could be set
            close = difflib.get_close_matches(unknown[0], sorted(entities), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(
                f"filter '{suffix.lower()}': '{unknown[0]}' is not a recognized entity{hint}"
            )
        fixed = {"suffix": suffix, "extension": list(EXTENSIONS), "return_type": "filename"}
        try:
            found.update(layout.get(**({"datatype": "anat"} | wanted | fixed)))
        except (TypeError, ValueError) as error:
            raise InputError(f"filter '{suffix.lower()}': {error}") from error
    masks = layout.get(suffix="defacemask", extension=list(EXTENSIONS), return_type="filename")
    images = [Path(name) for name in found]
    images += [Path(name) for name in masks if _concerns(Path(name), selection.suffixes)]
    if outside := [path for path in images if not path.is_relative_to(root)]:
        raise InputError(
            f"--bids-database-dir: {selection.database_dir} is the index of another dataset (with "
            f"{outside[0]}); name another folder"
        )
    if selection.participants:  # an index that is kept holds everybody
        images = [p for p in images if parse_entities(p.name).get("sub") in selection.participants]
    if selection.sessions:
        images = [p for p in images if parse_entities(p.name).get("ses") in selection.sessions]
    if not any(suffix_of(image) in selection.suffixes for image in images):
        raise InputError(
            f"no {' or '.join(selection.suffixes)} image found in {root}"
            f"{_said(selection)}; images are expected as sub-*/[ses-*/]anat/*_T1w.nii.gz"
        )
    return sorted(images, key=lambda path: path.relative_to(root).as_posix())


def read_filters(path: Path) -> dict[str, dict[str, object]]:
    """Read a filter file as fMRIPrep's: ``{"t1w": {"acquisition": "mprage", "run": null}}``.

    Raises:
        InputError: the file is missing or has another shape.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--bids-filter-file: {error}") from error
    filters: dict[str, dict[str, object]] = {}
    for name, entities in content.items():
        if not isinstance(entities, dict):
            raise InputError(f"--bids-filter-file: '{name}' has to be an object of entities")
        for entity, value in entities.items():
            if not all(map(_is_label, value if isinstance(value, list) else [value])):
                raise InputError(
                    f"--bids-filter-file: {name}: {entity} has to be a label, a number, null, "
                    '"*", or a list of these'
                )
        filters[name.lower()] = entities
    return filters


def _is_label(value: object) -> bool:
    """Whether a filter's value is one that an index can look up."""
    return value is None or isinstance(value, str) or (type(value) is int and abs(value) < 2**31)


def sidecar_reader(root: Path) -> Callable[[Path], tuple[dict[str, object], str]]:
    """Return a function that reads the sidecar of an image, with what it inherits.

    The function gives (metadata, problem); a file that is not valid JSON is left out and named in
    ``problem``. Each folder is listed once, however many images there are.
    """

    @functools.cache
    def listed(folder: Path) -> list[tuple[Path, str, set[tuple[str, str]]]]:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".json"))
        return [(folder / n, suffix_of(Path(n)), set(parse_entities(n).items())) for n in names]

    def read(image: Path) -> tuple[dict[str, object], str]:
        own = set(parse_entities(image.name).items())
        metadata: dict[str, object] = {}
        problem = ""
        inside = image.parent.relative_to(root).parts
        for depth in range(len(inside) + 1):
            # Of two files in one folder the one with more entities speaks last.
            for path, suffix, entities in sorted(
                listed(root.joinpath(*inside[:depth])), key=lambda item: len(item[2])
            ):
                if suffix == suffix_of(image) and entities <= own:
                    try:
                        metadata |= read_json(path)
                    except (OSError, ValueError) as error:
                        problem = str(error)
        return metadata, problem

    return read


def find_mask(datasets: Sequence[Path], image: Path, siblings: Sequence[Path]) -> Path | None:
    """Return the brain mask of an image in derivative datasets, None when there is none.

    A mask counts whose entities are those of the image, in the space of the image. Programs that
    merge the runs of a session leave entities out; such a mask counts where the session has one
    image of that contrast.

    Args:
        datasets: roots of derivative datasets, the first that has a mask wins.
        image: the raw image.
        siblings: all images of its session, itself included.
    """
    own, suffix = parse_entities(image.name), suffix_of(image)
    alone = sum(suffix_of(path) == suffix for path in siblings) == 1
    no_other_contrast = all(suffix_of(path) == suffix for path in siblings)
    for dataset in datasets:
        folder = session_dir(dataset, own) / "anat"
        for path in sorted(folder.glob("*_desc-brain_mask.nii*")):
            entities = parse_entities(path.name)
            space = entities.pop("space", None)
            del entities["desc"]
            # Without space- the mask is on the anatomical reference, which is the T1w if any.
            right_space = space == suffix or (
                space is None and (suffix == "T1w" or no_other_contrast)
            )
            if right_space and (entities == own or (alone and entities.items() <= own.items())):
                return path
    return None


def suffix_of(path: Path) -> str:
    """Return what follows the last underscore of a file name, e.g. ``T1w``."""
    return path.name.split(".")[0].rsplit("_", 1)[-1]


def _labels(folder: Path, entity: str) -> list[str]:
    """List the labels of sub-* or ses-* folders."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return sorted(n.removeprefix(f"{entity}-") for n in names if n.startswith(f"{entity}-"))


def _check_labels(root: Path, selection: Selection) -> None:
    """Raise InputError that names requested labels which do not exist."""
    subjects = _labels(root, "sub")
    if unknown := [label for label in selection.participants if label not in subjects]:
        raise InputError(f"--participant-label: {_unknown('sub', unknown, subjects)} in {root}")
    if selection.sessions:
        chosen = selection.participants or subjects
        sessions = sorted({s for label in chosen for s in _labels(root / f"sub-{label}", "ses")})
        if unknown := [label for label in selection.sessions if label not in sessions]:
            where = "of the chosen participants" if selection.participants else f"in {root}"
            raise InputError(f"--session-label: {_unknown('ses', unknown, sessions)} {where}")


def _unknown(entity: str, unknown: Sequence[str], known: Sequence[str]) -> str:
    some = ", ".join(f"{entity}-{label}" for label in known[:10]) or "none"
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    missing = ", ".join(f"{entity}-{label}" for label in unknown)
    return f"no {missing} (there is {some}{more})"


def _said(selection: Selection) -> str:
    """Name what restricts the search, for the message that nothing was found."""
    parts = [f"sub-{label}" for label in selection.participants[:5]]
    parts += [f"ses-{label}" for label in selection.sessions[:5]]
    parts += ["the filter file"] if selection.filters else []
    return f" with {', '.join(parts)}" if parts else ""


def _concerns(mask: Path, suffixes: Sequence[str]) -> bool:
    return parse_entities(mask.name).get("mod", suffixes[0]) in suffixes


def _query(filters: Mapping[str, object]) -> dict[str, object]:
    """Translate null (absent) and "*" (any value) into what pybids knows."""
    from bids.layout import Query

    special = {json.dumps(None): Query.NONE, json.dumps("*"): Query.ANY}
    return {key: special.get(json.dumps(value), value) for key, value in filters.items()}


def _index(root: Path, selection: Selection, ignore: Iterable[Path]):  # type: ignore[no-untyped-def]
    """Return a pybids layout of the raw dataset; no sidecar is read, no other folder entered."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from sqlalchemy.exc import SQLAlchemyError

    inside = [path.relative_to(root).as_posix() for path in ignore if path.is_relative_to(root)]
    patterns = [OTHER_FOLDERS, *(re.compile(rf"^/{re.escape(p)}(?:/|$)") for p in inside)]
    if selection.database_dir is None:
        patterns.append(OTHER_FILES)
        if selection.participants:
            chosen = "|".join(map(re.escape, selection.participants))
            patterns.append(re.compile(rf"^/sub-(?!(?:{chosen})(?:/|$))"))
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=patterns)
    database = selection.database_dir
    try:
        return BIDSLayout(root, validate=False, indexer=indexer, database_path=database)
    except (SQLAlchemyError, ValueError) as error:
        if database is None:
            raise
        raise InputError(
            f"--bids-database-dir: {database} holds no index of this dataset that can be used "
            f"({str(error).splitlines()[0]}); name another folder"
        ) from error
