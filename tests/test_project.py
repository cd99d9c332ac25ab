"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import bmex_bids

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = dict(
    line.lower().split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("CITATION.cff", r"^version: (\S+)"),
        ("Dockerfile", r"ARG VERSION=(\S+)"),
        ("singularity.def", r"image\.version (\S+)"),
        ("CHANGELOG.md", r"^## (\S+)"),
    ],
)
def test_one_version_everywhere(file: str, pattern: str) -> None:
    found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert found is not None and found.group(1) == bmex_bids.__version__


@pytest.mark.parametrize("file", ["Dockerfile", "singularity.def"])
def test_containers_hold_the_pytorch_that_was_tested(file: str) -> None:
    assert f"TORCH=torch=={PINNED['torch']}\n" in (ROOT / file).read_text()


def test_every_dependency_has_a_tested_version() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["validator"]]
    names = {normal(re.split(r"[<>=~ \[]", text)[0]) for text in wanted}
    assert not names - {normal(name) for name in PINNED}


def test_containers_have_the_same_environment() -> None:
    docker = (ROOT / "Dockerfile").read_text()
    exported = re.findall(r"export (\S+)", (ROOT / "singularity.def").read_text())
    assert exported and all(assignment in docker for assignment in exported)


def test_what_the_singularity_recipe_copies_is_there_and_reaches_docker() -> None:
    section = (ROOT / "singularity.def").read_text().split("%files")[1].split("%post")[0]
    sources = [line.split()[0] for line in section.splitlines() if line.strip()]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert sources and all((ROOT / source).exists() for source in sources)
    assert {f"!{source}" for source in sources} <= set(allowed)


def test_wheel_carries_the_models() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"data/models": "bmex_bids/data/models"}
    assert (ROOT / "data" / "models" / "models.json").is_file()


def test_commands_point_to_functions() -> None:
    import importlib

    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
