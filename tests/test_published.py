"""Import of the published weight files, as the authors would have written them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_networks import random_pair_state, random_state

from bmex_bids.published import SCALES, import_published, published_records
from bmex_bids.weights import (
    WeightsError,
    find_mask_model,
    find_model,
    list_models,
    load_network,
    models_dir,
)

MASK = "T1T2w-model.pt"
MASK_STATE = random_state(32, 1, 4)


def test_every_published_file_has_its_stage_grid_and_ages() -> None:
    records = published_records()
    assert len(records) == 16
    for month in (0, 3, 6, 9, 12, 18, 24):
        for contrast in ("T1", "T2"):
            record = records[f"BMEX-Month{month}-{contrast}-model.pt"]
            assert record.stage == str(month) and record.suffixes == (f"{contrast}w",)
            assert record.grid_mm == 0.8 and 200 < record.scale < 600
    fetal = records["BMEX-Fetal-T2-model.pt"]
    assert (fetal.stage, fetal.suffixes, fetal.grid_mm) == ("fetal", ("T2w",), 0.75)
    assert records["BMEX-Month3-T1-model.pt"].ages_months == (2, 5)
    assert records["BMEX-Month24-T2-model.pt"].ages_months == (21, 1200)
    assert records[MASK].architecture["width"] == 32 and records[MASK].grid_mm == 1.6
    assert records[MASK].scale == 1 / 10_000
    assert "BMEX-Fetal-T1-model.pt" not in records


def test_stages_cover_every_age_once() -> None:
    ages = sorted(r.ages_months for r in published_records().values() if "T2w" in r.suffixes[:1])
    assert len(ages) == len(SCALES)
    assert all(a[1] == b[0] for a, b in zip(ages, ages[1:], strict=False))


def test_import_and_use_as_model_set_published(tmp_path: Path) -> None:
    """Both wrappings: a plain state of a DataParallel network, and one under ``state_dict``."""
    source, target = tmp_path / "authors", tmp_path / "models"
    source.mkdir()
    state = random_pair_state(64)
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch.save(prefixed, source / "BMEX-Month24-T1-model.pt")
    torch.save({"epoch": 3, "state_dict": MASK_STATE}, source / MASK)
    assert {r.name for r in import_published(source, target)} == {
        "published-T1w-24",
        "published-brainmask",
    }
    records = list_models(models_dir(target))
    pair = find_model(records, suffix="T1w", stage="24", model_set="published")
    mask = find_mask_model(records, model_set="published")
    for record, expected in [(pair, state), (mask, MASK_STATE)]:
        loaded = load_network(record).state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)
        assert len(record.training["FileSHA256"]) == 64
    with pytest.raises(WeightsError, match=r"There are: T1w stage 24 \(21 to 1200 months\)"):
        find_model(records, suffix="T1w", stage="6", model_set="published")


def test_second_import_keeps_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    mask = published_records()[MASK]
    other = replace(mask, name="other", file="other.safetensors")
    monkeypatch.setattr(
        "bmex_bids.published.published_records", lambda: {MASK: mask, "other.pt": other}
    )
    torch.save(MASK_STATE, tmp_path / "one" / MASK)
    torch.save(MASK_STATE, tmp_path / "two" / "other.pt")
    for name in ("one", "two", "one"):
        import_published(tmp_path / name, tmp_path / "models")
    names = sorted(r.name for r in list_models([tmp_path / "models"]))
    assert names == ["other", "published-brainmask"]


def test_files_of_early_pytorch_lack_the_batch_counter(tmp_path: Path) -> None:
    early = {k: v for k, v in MASK_STATE.items() if not k.endswith("num_batches_tracked")}
    torch.save(early, tmp_path / MASK)
    (record,) = import_published(tmp_path, tmp_path / "models")
    assert load_network(record).state_dict().keys() == MASK_STATE.keys()


def broken(kind: str) -> object:
    state = dict(MASK_STATE)
    if kind == "missing":
        del state["conv4_1.weight"]
    elif kind == "unexpected":
        state["conv33.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["bn3.weight"] = torch.zeros(7)
    elif kind == "a list":
        return [1, 2]
    elif kind == "code":
        return print  # needs an import on loading: never done
    elif kind == "twice":
        state["module.bn3.weight"] = state["bn3.weight"]
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing keys: conv4_1\.weight"),
        ("unexpected", r"unexpected keys: conv33\.weight"),
        ("shape", r"shapes: bn3\.weight \(7,\), expected \(40,\)"),
        ("a list", "expected a state_dict"),
        ("code", "not a PyTorch file of plain weights"),
        ("twice", "with and without 'module.'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    torch.save(broken(kind), tmp_path / MASK)
    with pytest.raises(WeightsError, match=message):
        import_published(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models" / "models.json").exists()


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / MASK).write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(WeightsError, match="not a PyTorch file of plain weights"):
        import_published(tmp_path, tmp_path / "models")


def test_folder_without_published_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected any of T1T2w-model\.pt, BMEX-Fetal-T2"):
        import_published(tmp_path, tmp_path / "models")
