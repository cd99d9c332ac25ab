"""The files of a template: found in TemplateFlow's folder, or downloaded, or what would fetch them.

TemplateFlow is imported only when a space was asked for, since its import makes a folder and fails
where that cannot be made. Nothing here reads a voxel.
"""

from __future__ import annotations

import difflib
import functools
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.bids import parse_entities, read_json
from bmex_bids.spaces import (
    Space,
    SpaceError,
    choose_cohort,
    cohorts_of,
    index_order,
    plain_index,
)

if TYPE_CHECKING:
    from templateflow.client import TemplateFlowClient

__all__ = [
    "NotCachedError",
    "Template",
    "check_names",
    "fetch_template",
    "find_template",
    "resolve_spaces",
]

MASKS = (("desc", "brain"), ("label", "brain"))  # how templates name the mask of the whole brain


class NotCachedError(SpaceError):
    """The template's files are not on this computer."""


@dataclass(frozen=True)
class Template:
    """The files of one template (and cohort).

    Attributes:
        space: the space, with its cohort.
        image: the template's image, of the run's contrast where there is one.
        mask: brain mask on the grid of ``image``.
        suffix: contrast of ``image``.
        grids: grid index (None: that of ``image``) -> image on that grid.
    """

    space: Space
    image: Path
    mask: Path
    suffix: str
    grids: dict[str | None, Path]


def check_names(spaces: Sequence[Space]) -> list[str]:
    """Check names and cohorts against TemplateFlow, before any work.

    Returns:
        Warnings: what cannot be checked because TemplateFlow's folder cannot be used.

    Raises:
        ValueError: there is no such template or cohort.
    """
    try:
        home = _client().cache.config.root
    except SpaceError as error:
        return [str(error)]
    here = {path.name.removeprefix("tpl-") for path in home.glob("tpl-*")}
    known = here | _shipped_templates()
    for space in spaces:
        if space.template not in known:
            close = difflib.get_close_matches(space.template, sorted(known), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"--output-spaces: TemplateFlow ({home}) has no template '{space.template}'{hint} "
                f"It has {', '.join(sorted(here))}"
            )
        cohorts = cohorts_of(_description(home, space.template))
        if space.template in here and space.cohort is not None and space.cohort not in cohorts:
            has = f"it has {', '.join(cohorts)}" if cohorts else "it has none"
            raise ValueError(f"--output-spaces: {space} has no cohort {space.cohort}; {has}")
    return []


def resolve_spaces(
    spaces: Iterable[Space], age_months: float | None
) -> tuple[tuple[Space, ...], tuple[str, ...]]:
    """Give every space the cohort that fits the age.

    A space that has no cohort for the age stays without one; :func:`find_template` then says why.

    Returns:
        The spaces, each once, and notes about the choice.
    """
    chosen: dict[Space, None] = {}
    notes: dict[str, None] = {}
    for space in spaces:
        try:
            description = _description(_client().cache.config.root, space.template)
            cohort, note = choose_cohort(space, description, age_months)
        except SpaceError:
            cohort, note = None, ""
        chosen[replace(space, cohort=cohort or space.cohort)] = None
        if note:
            notes[note] = None
    return tuple(chosen), tuple(notes)


def find_template(
    space: Space, suffix: str, grids: Sequence[str | None] = (None,), *, age_months: float | None
) -> Template:
    """Return the cached files of a template.

    Args:
        space: the space; its ``res`` does not matter.
        suffix: contrast of the run; a template without it is used with the contrast it has.
        grids: the grids that are wanted, None for the template's first.
        age_months: of the run, for a space without its cohort.

    Raises:
        NotCachedError: the template's files are not on this computer.
        SpaceError: the template cannot be used for this run.
    """
    home = _client().cache.config.root
    folder = home / f"tpl-{space.template}"
    if not folder.is_dir():
        raise NotCachedError(f"{space}: not in {home}; {_advice(home, space, suffix, ())}")
    cohort, _ = choose_cohort(space, _description(home, space.template), age_months)
    space = Space(space.template, cohort)
    files = _files(folder, space)
    if not files and any(folder.rglob("*.gii")):
        raise SpaceError(f"{space}: a template of surfaces; choose one of volumes")
    if not files:
        raise NotCachedError(f"{space}: not in {home}; {_advice(home, space, suffix, ())}")
    for contrast in dict.fromkeys((suffix, "T1w", "T2w")):
        images = {e.get("res"): path for path, e in files if _is_image(path, e, contrast)}
        if images:
            break
    else:
        raise SpaceError(f"{space}: a template without a T1w or T2w image; choose another one")
    first = min(images, key=index_order)
    missing = [str(res) for res in grids if res is not None and res not in images]
    if missing:
        has = ", ".join(f"res-{res}" for res in images if res) or "one grid only; drop :res-"
        raise SpaceError(f"{space}: has no res-{missing[0]}; it has {has}")
    masks = [
        path
        for key, value in MASKS
        for path, entities in files
        if path.name.endswith("_mask.nii.gz") and entities.get(key) == value
        and entities.get("res") == first
    ]
    if not masks:
        raise SpaceError(f"{space}: a template without a brain mask; choose another one")
    wanted = {res: images[first if res is None else res] for res in grids}
    absent = [p for p in (images[first], masks[0], *wanted.values()) if p.stat().st_size == 0]
    if absent:
        res = [first, *(r for r in grids if r)] if first else []
        raise NotCachedError(f"{space}: not cached; {_advice(home, space, contrast, res)}")
    return Template(space, images[first], masks[0], contrast, wanted)


def fetch_template(space: Space, suffix: str) -> str:
    """Download what is not cached of a template.

    Args:
        space: with its cohort; one that has none for the age is left as it is.
        suffix: contrast of the run.

    Returns:
        Why it is not cached now, "" when it is, or when nothing can be fetched.
    """
    from requests.exceptions import RequestException

    def problem() -> str:
        try:
            find_template(space, suffix, (space.res,), age_months=None)
        except NotCachedError as error:
            return str(error)
        except SpaceError:
            return ""  # of the run, which says it itself
        return ""

    if not problem():
        return ""
    query = {"cohort": space.cohort} if space.cohort else {}
    try:
        _client().get(space.template, suffix=[suffix, "T1w", "mask"], **query)
    except (RequestException, RuntimeError, OSError) as error:
        return f"{problem()} (tried: {type(error).__name__})"
    return problem()


def _client() -> TemplateFlowClient:
    """Return TemplateFlow's client for the folder that the environment names now."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of a folder that is made new
            from templateflow.client import TemplateFlowClient
            from templateflow.conf.env import get_templateflow_home

            client = TemplateFlowClient(root=get_templateflow_home())
            client.cache.ensure()
    except OSError as error:
        raise SpaceError(
            f"TemplateFlow's folder cannot be made or read ({error}); set TEMPLATEFLOW_HOME to a "
            "folder that holds the templates, or that can be written"
        ) from error
    return client


@functools.cache
def _shipped_templates() -> frozenset[str]:
    """Return the templates that TemplateFlow knew when it was packaged, cached or not."""
    from importlib.resources import files

    try:
        with (files("templateflow.conf") / "templateflow-skel.zip").open("rb") as stream:
            names = zipfile.ZipFile(stream).namelist()
    except (OSError, zipfile.BadZipFile):
        return frozenset()
    return frozenset(n.split("/")[0].removeprefix("tpl-") for n in names if n.startswith("tpl-"))


def _description(home: Path, template: str) -> dict[str, object]:
    try:
        return read_json(home / f"tpl-{template}" / "template_description.json")
    except (OSError, ValueError):
        return {}


def _files(folder: Path, space: Space) -> list[tuple[Path, dict[str, str]]]:
    """Return the NIfTI files of a template or cohort, sorted, with their entities."""
    where = folder / f"cohort-{space.cohort}" if space.cohort else folder
    found = []
    for path in sorted(where.glob("tpl-*.nii.gz")):
        entities = parse_entities(path.name)
        if "res" in entities:
            entities["res"] = plain_index(entities["res"])
        found.append((path, entities))
    return found


def _is_image(path: Path, entities: Mapping[str, str], suffix: str) -> bool:
    plain = set(entities) <= {"tpl", "cohort", "res"}
    return plain and path.name.endswith(f"_{suffix}.nii.gz")


def _advice(home: Path, space: Space, suffix: str, res: Sequence[str]) -> str:
    """Return what caches a template, to be run where there is a network."""
    words = ["templateflow get", space.template]
    words += [f"--cohort {space.cohort}"] if space.cohort else []
    words += [f"--res {index}" for index in dict.fromkeys(res)]
    words += [f"-s {suffix} -s mask"]
    first = "" if (home / f"tpl-{space.template}").is_dir() else "templateflow update && "
    return (
        f"run '{first}{' '.join(words)}' with a network and TEMPLATEFLOW_HOME={home}, "
        "then start again: only this is missing"
    )
