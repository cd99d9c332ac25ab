"""Weights: models.json, checksums, strict loading, choice of a model."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmex_bids.networks import DUNet
from bmex_bids.weights import (
    ModelRecord,
    WeightsError,
    find_mask_model,
    find_model,
    kept_network,
    list_models,
    load_network,
    models_dir,
    write_models,
)

RECORD = ModelRecord(
    name="bmex-T1w-24",
    kind="enhance",
    set="bundled",
    suffixes=("T1w",),
    stage="24",
    ages_months=(21.0, 1200.0),
    grid_mm=0.8,
    architecture={"name": "DUNet", "width": 4, "inputs": 1, "outputs": 4},
    file="bmex-T1w-24.safetensors",
    sha256="",
    version="1",
    licence="Apache-2.0",
    source="trained here",
    training={"Steps": 10, "KeptOut": ["head-01"]},
    reference={"TissueMeans": {"GM": 0.8}},
)


def bundle(folder: Path, record: ModelRecord = RECORD, dtype: torch.dtype = torch.float16):
    """A models folder with one small model; returns its record and network."""
    torch.manual_seed(0)
    network = DUNet(4, 1, 4).eval()
    state = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()
    }
    save_file(state, folder / record.file)
    digest = hashlib.sha256((folder / record.file).read_bytes()).hexdigest()
    record = replace(record, sha256=digest, directory=folder)
    write_models(folder, [record])
    return record, network


def test_models_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record, _ = bundle(tmp_path)
    assert list_models([tmp_path]) == [record]
    assert json.loads((tmp_path / "models.json").read_text())["schema"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bmex-T1w-24.safetensors", "models.json"]


def test_float16_on_disk_becomes_float32(tmp_path: Path) -> None:
    record, network = bundle(tmp_path)
    loaded = load_network(record)
    assert not loaded.training
    for key, value in network.state_dict().items():
        there = loaded.state_dict()[key]
        assert there.dtype == value.dtype
        assert torch.equal(there, value.half().float() if value.is_floating_point() else value)
    x = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(loaded(x), network(x), atol=1e-2, rtol=1e-2)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    record, _ = bundle(tmp_path)
    torch.manual_seed(5)
    load_network(record)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_changed_weights_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    record, _ = bundle(tmp_path)
    record.path.write_bytes(b"not even safetensors")
    with pytest.raises(WeightsError, match="changed or damaged.*reinstall"):
        load_network(record)


def test_missing_file(tmp_path: Path) -> None:
    record, _ = bundle(tmp_path)
    record.path.unlink()
    with pytest.raises(WeightsError, match=r"No such file.*reinstall"):
        load_network(record)


def test_a_file_of_another_format_with_the_right_checksum(tmp_path: Path) -> None:
    record, _ = bundle(tmp_path)
    record.path.write_bytes(b"x" * 100)
    record = replace(record, sha256=hashlib.sha256(b"x" * 100).hexdigest())
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_network(record)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "DUNet", "width": 8, "inputs": 1, "outputs": 4}, r"shapes: bn1\.bias \(4,\)"),
        ({"name": "BMEXPair", "width": 4}, r"missing keys: bn10_recon\.bias.*and \d+ more"),
        ({"name": "ResNet"}, "unknown architecture 'ResNet': BMEXPair, DUNet"),
        ({"name": "DUNet", "depth": 4}, "cannot be built"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, architecture: dict[str, object], message: str
) -> None:
    record, _ = bundle(tmp_path)
    with pytest.raises(WeightsError, match=message):
        load_network(replace(record, architecture=architecture))


def test_unexpected_keys_are_named(tmp_path: Path) -> None:
    record, _ = bundle(tmp_path)
    state = load_file(record.path) | {"conv99.weight": torch.zeros(1)}
    save_file(state, record.path)
    record = replace(record, sha256=hashlib.sha256(record.path.read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match=r"unexpected keys: conv99\.weight"):
        load_network(record)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"schema": 2, "models": []}', 'expected {"schema": 1'),
        ("[]", 'expected {"schema": 1'),
        ('{"schema": 1, "models": [{"name": "a", "colour": 1}]}', r"'a': missing .*unknown"),
    ],
)
def test_broken_models_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "models.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        list_models([tmp_path])


def test_first_folder_wins(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("own", "bundled")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        bundle(folder, replace(RECORD, version=str(number)))
    assert [r.version for r in list_models(folders)] == ["0"]


def test_models_dir(tmp_path: Path) -> None:
    (bundled,) = models_dir(None)
    assert (bundled / "models.json").is_file()
    with pytest.raises(WeightsError, match="bmex-weights import"):
        models_dir(tmp_path)
    bundle(tmp_path)
    assert models_dir(tmp_path) == [tmp_path, bundled]


def test_find_model() -> None:
    records = [
        RECORD,
        replace(RECORD, name="b", stage="fetal", suffixes=("T2w",), ages_months=(-9.2, 0.0)),
        replace(RECORD, name="c", set="published", stage="6"),
        replace(RECORD, name="d", kind="brainmask", stage=None),
    ]
    assert find_model(records, suffix="T1w", stage="24", model_set="bundled").name == "bmex-T1w-24"
    assert find_model(records, suffix="T2w", stage="fetal", model_set="bundled").name == "b"
    assert find_model(records, suffix="T1w", stage="6", model_set="published").name == "c"
    with pytest.raises(WeightsError) as error:
        find_model(records, suffix="T1w", stage="6", model_set="bundled")
    told = str(error.value)
    assert "no weights for T1w at stage 6 in the set 'bundled'" in told
    assert "T1w stage 24 (21 to 1200 months), T2w stage fetal (before birth)" in told
    assert "bmex-weights import FOLDER" in told and "--model-set published" in told


def test_an_unknown_set_is_told_with_the_sets_there_are():
    records = [RECORD, replace(RECORD, set="duncan")]
    with pytest.raises(WeightsError, match="called 'nonsense'. There are: bundled, duncan"):
        find_model(records, suffix="T1w", stage="24", model_set="nonsense")


def test_find_mask_model_falls_back_to_the_bundled_one() -> None:
    mask = replace(RECORD, name="mask", kind="brainmask", stage=None)
    own = replace(mask, name="own", set="published")
    assert find_mask_model([RECORD, mask], model_set="published").name == "mask"
    assert find_mask_model([mask, own], model_set="published").name == "own"
    with pytest.raises(WeightsError, match="--derivatives"):
        find_mask_model([RECORD, own], model_set="bundled")


def test_bundled_models_load() -> None:
    for record in list_models(models_dir(None)):
        load_network(record)


def test_reading_records_does_not_import_pytorch() -> None:
    code = (
        "import sys; from bmex_bids.weights import *; list_models(models_dir(None)); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_network_is_loaded_once_per_process(tmp_path: Path) -> None:
    record, _ = bundle(tmp_path)
    first = kept_network(record)
    record.path.write_bytes(b"changed since, but verified when it was read")
    (again,) = list_models([tmp_path])
    assert kept_network(again) is first
    with pytest.raises(WeightsError, match="changed or damaged"):
        kept_network(replace(record, sha256="0" * 64))
