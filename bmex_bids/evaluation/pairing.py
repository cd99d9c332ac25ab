"""Which image of a result dataset belongs to which reference image, by the entities of its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bmex_bids.bids import parse_entities, read_text, session_dir
from bmex_bids.layout import InputError, suffix_of

__all__ = [
    "Found", "Pair", "Source", "find_dseg", "find_images", "pair_images", "parse_source", "tissues",
]

DERIVED = ("space", "res", "den", "label", "desc", "seg", "atlas")
NOTHING = "none"  # the condition of an image whose name adds nothing to the reference's
# Where no dseg.tsv says otherwise, as BIDS lists the classes of anatomical segmentations.
DEFAULT_TISSUES = {"GM": 1, "WM": 2, "CSF": 3}
NAMES = {"csf": "CSF", "cerebrospinal fluid": "CSF", "gm": "GM", "gray matter": "GM",
         "grey matter": "GM", "wm": "WM", "white matter": "WM"}


@dataclass(frozen=True)
class Source:
    """A dataset and which of its images are meant.

    Attributes:
        name: of the method, as tables and figures call it.
        root: of the dataset.
        filters: entity -> value that an image has to have; ``none`` for an absent entity.
    """

    name: str
    root: Path
    filters: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """One image: its path, all entities of its name, its suffix."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def own(self) -> dict[str, str]:
        """The entities that a raw image can have."""
        return {key: value for key, value in self.entities.items() if key not in DERIVED}


@dataclass(frozen=True)
class Pair:
    """A result, the reference it is compared with, and what its name says beyond that."""

    reference: Found
    result: Found
    method: str
    condition: str


def parse_source(text: str) -> Source:
    """Read ``NAME=DIR,entity=value,...``; without ``NAME=`` the folder's name is taken.

    Raises:
        InputError: no such folder, or a filter that is none.
    """
    head, *rest = text.split(",")
    name, equals, folder = head.partition("=")
    root = Path(folder if equals else head).expanduser().resolve()
    filters = {}
    for part in rest:
        key, separator, value = part.partition("=")
        if not separator or not key or not value:
            raise InputError(f"{text}: {part!r} is no filter; expected e.g. desc=enhanced")
        filters[key] = value
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the root of a BIDS dataset")
    return Source(name if equals else root.name, root, filters)


def find_images(source: Source, suffixes: Sequence[str]) -> list[Found]:
    """All images of a dataset with one of the suffixes that pass the filters, sorted by path."""
    paths = [*source.root.glob("sub-*/anat/*.nii*"), *source.root.glob("sub-*/ses-*/anat/*.nii*")]
    found = []
    for path in sorted(paths):
        entities, suffix = parse_entities(path.name), suffix_of(path)
        right = all(entities.get(k, "none") == v for k, v in source.filters.items())
        if right and suffix in suffixes and path.name.endswith((".nii", ".nii.gz")):
            found.append(Found(path, entities, suffix))
    return found


def pair_images(
    references: Sequence[Found], source: Source, results: Iterable[Found],
    varying: Sequence[str] = ("rec",),
) -> tuple[list[Pair], list[Found]]:
    """Pair the images of one method with the references.

    A reference fits when it has the same suffix, and every entity of its name (but those that vary,
    and derived ones such as ``desc``) is in the result's with the same value. Among several, the
    one with more of these wins, then the one whose varying entities begin the result's. A program
    that left an entity of the raw name out is understood where one reference only is left.

    Args:
        references: the clean images.
        source: the method's dataset.
        results: its images.
        varying: entities that name the condition.

    Returns:
        The pairs, and the images without a reference.

    Raises:
        InputError: an image fits several references, or several images fit one condition.
    """
    pairs: list[Pair] = []
    alone: list[Found] = []
    folders: dict[tuple[str | None, ...], list[Found]] = {}
    for reference in references:
        folders.setdefault(_place(reference), []).append(reference)
    for result in results:
        scores = [
            (score, reference)
            for reference in folders.get(_place(result), [])
            if (score := _score(reference.own, result.own, varying)) is not None
        ]
        if not scores:
            alone.append(result)
            continue
        best = max(score for score, _ in scores)
        chosen = [reference for score, reference in scores if score == best]
        if len(chosen) > 1:
            raise InputError(
                f"{result.path.name} ({source.name}) fits {chosen[0].path.name} and "
                f"{chosen[1].path.name}; choose references with a filter, e.g. DIR,run=1"
            )
        condition = _condition(chosen[0].own, result.own, varying)
        pairs.append(Pair(chosen[0], result, source.name, condition))
    seen: dict[tuple[Path, str], Path] = {}
    for pair in pairs:
        other = seen.setdefault((pair.reference.path, pair.condition), pair.result.path)
        if other != pair.result.path:
            raise InputError(
                f"{source.name}: {other.name} and {pair.result.path.name} both fit "
                f"{pair.reference.path.name}; choose one kind, e.g. "
                f"{source.name}={source.root},desc=enhanced or ...,res=none"
            )
    return pairs, alone


def find_dseg(root: Path, image: Found) -> Path | None:
    """The tissue labels of an image in a dataset; None when there are none, or several."""
    folder = session_dir(root, image.entities) / "anat"
    found = []
    for path in sorted(folder.glob("*_dseg.nii*")):
        entities = parse_entities(path.name)
        space = entities.get("space", image.suffix)
        own = {key: value for key, value in entities.items() if key not in DERIVED}
        if own == image.own and space == image.entities.get("space", image.suffix):
            found.append((len(entities), path))
    found.sort()
    return found[0][1] if found and [n for n, _ in found].count(found[0][0]) == 1 else None


def tissues(root: Path, dseg: Path) -> dict[str, int]:
    """Name -> value of CSF, GM and WM, from the dseg.tsv beside a label image or at the root."""
    own = dseg.with_name(dseg.name.split(".")[0] + ".tsv")
    for path in (own, root / "dseg.tsv", *sorted(root.glob("*_dseg.tsv"))):
        try:
            header, *rows = (line.split("\t") for line in read_text(path).splitlines() if line)
        except (OSError, ValueError):
            continue
        if "index" not in header or "name" not in header:
            continue
        found = {}
        for row in rows:
            cells = dict(zip(header, row, strict=False))
            for key in ("name", "abbreviation"):
                name = NAMES.get(cells.get(key, "").strip().lower().replace("_", " "))
                if name and cells["index"].strip().isdecimal():
                    found[name] = int(cells["index"])
        if len(found) == 3:
            return found
    return DEFAULT_TISSUES


def _place(image: Found) -> tuple[str | None, ...]:
    return image.entities.get("sub"), image.entities.get("ses"), image.suffix


def _score(
    reference: Mapping[str, str], result: Mapping[str, str], varying: Sequence[str]
) -> tuple[int, int, int] | None:
    """How well a reference fits: nothing missing, entities in common, letters in common."""
    fixed = {key: value for key, value in reference.items() if key not in varying}
    missing = [key for key in fixed if key not in result]
    if any(result[key] != value for key, value in fixed.items() if key in result):
        return None
    letters = 0
    for key in varying:
        begins = result.get(key, "").startswith(reference.get(key, ""))
        letters += len(reference.get(key, "")) if begins else -100
    return -len(missing), len(fixed) - len(missing), letters


def _condition(
    reference: Mapping[str, str], result: Mapping[str, str], varying: Sequence[str]
) -> str:
    parts = []
    for key, value in result.items():
        if key in varying:
            rest = value.removeprefix(reference.get(key, ""))
            parts += [rest] if rest else []
        elif key not in reference:
            parts.append(f"{key}-{value}")
    return " ".join(parts) or NOTHING
