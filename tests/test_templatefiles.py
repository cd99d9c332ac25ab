"""A template's files in a private TemplateFlow folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from templateflow.client import TemplateFlowClient
from templates import make_template

from bmex_bids.spaces import Space, SpaceError
from bmex_bids.templatefiles import (
    NotCachedError,
    check_names,
    fetch_template,
    find_template,
    resolve_spaces,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "templateflow"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder))
    make_template(folder)
    make_template(folder, "TestInfant", cohort="2")
    return make_template(folder, "TestEmpty", cached=False)


def test_files(home: Path) -> None:
    found = find_template(Space("TestBrain"), "T1w", (None, "2"), age_months=300)
    folder = home / "tpl-TestBrain"
    assert found.image == found.grids[None] == folder / "tpl-TestBrain_res-01_T1w.nii.gz"
    assert found.grids["2"] == folder / "tpl-TestBrain_res-02_T1w.nii.gz"
    assert found.mask == folder / "tpl-TestBrain_res-01_desc-brain_mask.nii.gz"
    assert found.suffix == "T1w"


def test_other_contrast_is_used_where_the_template_has_no_other(home: Path) -> None:
    assert find_template(Space("TestBrain"), "T2w", age_months=None).suffix == "T1w"


def test_cohort_by_age(home: Path) -> None:
    space = Space("TestInfant", None, "1")
    assert resolve_spaces([space], 3.0) == ((Space("TestInfant", "2", "1"),), ())
    assert find_template(space, "T1w", age_months=3.0).space == Space("TestInfant", "2")
    # none for the age: left as it is, and the search says why
    assert resolve_spaces([space], 300.0) == ((space,), ())
    with pytest.raises(SpaceError, match="the image is of 300.0"):
        find_template(space, "T1w", age_months=300.0)


def test_not_cached_names_template_and_command(home: Path) -> None:
    with pytest.raises(NotCachedError) as caught:
        find_template(Space("TestEmpty"), "T1w", (None, "2"), age_months=1)
    said = str(caught.value)
    assert "TestEmpty: not cached" in said
    assert "templateflow get TestEmpty --res 1 --res 2 -s T1w -s mask" in said
    assert f"TEMPLATEFLOW_HOME={home}" in said
    with pytest.raises(NotCachedError, match="templateflow update && templateflow get PNC"):
        find_template(Space("PNC"), "T1w", age_months=1)
    with pytest.raises(NotCachedError, match="get TestInfant --cohort 1 -s T1w"):
        find_template(Space("TestInfant", "1"), "T1w", age_months=1)


def test_grid_that_is_not_there(home: Path) -> None:
    with pytest.raises(SpaceError, match="has no res-7; it has res-1, res-2"):
        find_template(Space("TestBrain"), "T1w", ("7",), age_months=1)


def test_template_without_a_mask(home: Path) -> None:
    (home / "tpl-TestBrain" / "tpl-TestBrain_res-01_desc-brain_mask.nii.gz").unlink()
    with pytest.raises(SpaceError, match="without a brain mask"):
        find_template(Space("TestBrain"), "T1w", age_months=1)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Space("TestBrian"), "no template 'TestBrian'; did you mean TestBrain?"),
        (Space("TestInfant", "7"), "has no cohort 7; it has 1, 2, 10"),
        (Space("TestBrain", "1"), "it has none"),
    ],
)
def test_names_that_are_not_there(home: Path, space: Space, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_names([space])


def test_names_that_are_there(home: Path) -> None:
    known = [Space("TestBrain", None, "2"), Space("TestInfant", "10"), Space("MNI152NLin6Asym")]
    assert check_names(known) == []  # the last one is TemplateFlow's, though not in this folder


def test_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "file" / "templateflow"))
    (said,) = check_names([Space("TestBrain")])
    assert "set TEMPLATEFLOW_HOME" in said
    assert resolve_spaces([Space("TestBrain")], 3.0) == ((Space("TestBrain"),), ())
    with pytest.raises(SpaceError, match="set TEMPLATEFLOW_HOME"):
        find_template(Space("TestBrain"), "T1w", age_months=1)


def test_fetch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(self: TemplateFlowClient, template: str, **query: object) -> list[Path]:
        asked.append((template, query))
        if template == "TestEmpty":
            raise ConnectionError("no network")
        make_template(home, template)
        return []

    monkeypatch.setattr(TemplateFlowClient, "get", get)
    assert fetch_template(Space("TestBrain"), "T1w") == ""
    assert asked == []
    said = fetch_template(Space("TestEmpty", None, "2"), "T1w")
    assert "not cached" in said
    assert "tried: ConnectionError" in said
    make_template(home, "TestLater", cached=False)
    assert fetch_template(Space("TestLater"), "T1w") == ""
    assert [name for name, _ in asked] == ["TestEmpty", "TestLater"]
