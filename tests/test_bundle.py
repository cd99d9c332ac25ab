"""One pair of networks becomes the model of every stage and contrast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bmex_bids.evaluation.baselines import renew
from bmex_bids.training import bundle, export, settings
from bmex_bids.training.architectures import build
from bmex_bids.training.stages import CONDITIONS
from bmex_bids.weights import find_model, list_models, load_network

PART = {"widths": [4, 6], "thin": 0, "norm": "layer"}
TINY = {
    "name": "TissueGuidedUNet", "tissue": PART, "enhance": PART,
    "conditions": len(CONDITIONS), "classes": 5, "reach": 1,
}  # fmt: skip


def test_every_age_has_one_model_per_contrast() -> None:
    made = bundle.records("words", ["image"])
    assert len(made) == 15 == len({r.name for r in made})
    for suffix in ("T1w", "T2w"):
        ages = sorted(r.ages_months for r in made if r.suffixes == (suffix,) and r.ages_months)
        born = [age for age in ages if age[0] >= 0]
        assert born[0][0] == 0 and born[-1][1] == 1200
        assert all(one[1] == two[0] for one, two in zip(born, born[1:], strict=False))
    assert [r.name for r in made if r.stage == "fetal"] == ["bmex-T2w-fetal"]
    assert all(CONDITIONS[r.architecture["condition"]] in r.name for r in made)


def test_an_entry_stays_where_it_stood(tmp_path: Path) -> None:
    first, second, *_ = (replace(r, directory=tmp_path) for r in bundle.records("", []))
    for record in (first, second, replace(first, version="2")):
        export.enter(record)
    found = [(r.name, r.version) for r in list_models([tmp_path])]
    assert found == [(first.name, "2"), (second.name, second.version)]


def test_all_models_share_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.ARCHITECTURES, "enhance", TINY)
    torch.manual_seed(1)
    network = build(TINY)
    torch.nn.init.normal_(network.tissue.down[0].shift.weight)  # type: ignore[union-attr, arg-type, index]
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    run = tmp_path / "run"
    run.mkdir()
    torch.save(
        {"average": state, "settings": {}, "step": 1, "seconds": 1.0, "architecture": TINY},
        run / "checkpoint.pt",
    )
    (run / "log.csv").write_text("step\n1\n")
    templates = tmp_path / "templates"
    templates.mkdir()
    brain = np.zeros((24, 24, 24), np.float32)
    brain[4:20, 4:20, 4:20] = np.random.default_rng(1).uniform(100, 500, (16, 16, 16))
    months = (f"Month{m}-{s}" for m in (0, 6, 9, 12, 24) for s in ("T1w", "T2w"))
    for stage in ("Fetal-T2w", *months):
        nib.save(
            nib.Nifti1Image(brain, np.diag([0.8, 0.8, 0.8, 1])),
            templates / f"Template-{stage}.nii.gz",
        )
    models = tmp_path / "models"
    arguments = [str(run / "checkpoint.pt"), str(models), "--templates", str(templates)]
    assert bundle.main([*arguments, "--held-out", "Template-Month0"]) == 0
    records = list_models([models])
    assert len(records) == 15
    assert {r.file for r in records} == {"bmex-pair.safetensors"}
    assert [p.name for p in models.glob("*.safetensors")] == ["bmex-pair.safetensors"]
    first = find_model(records, suffix="T1w", stage="0", model_set="bundled")
    other = find_model(records, suffix="T2w", stage="0", model_set="bundled")
    assert first.training["HeldOutImages"] == ["Template-Month0"]
    assert first.reference is not None and first.reference["Image"] == "Template-Month0-T1w.nii.gz"
    export.enter(replace(first, reference=first.reference | {"Median": 1.0}))
    assert renew.main([str(models), "--templates", str(templates)]) == 0
    assert list_models([models]) == records  # the references are what they were
    key = "tissue.down.0.conv1.weight"
    whole = load_network(first).state_dict()[key].clone()
    other_weights = {k.removeprefix("module."): torch.zeros_like(v) for k, v in state.items()}
    save_file(other_weights, tmp_path / "zero.safetensors")
    assert bundle.main([*arguments, "--mix", str(tmp_path / "zero.safetensors"), "0.25"]) == 0
    mixed = find_model(list_models([models]), suffix="T1w", stage="0", model_set="bundled")
    assert mixed.training["MixedWith"]["Share"] == 0.25
    found = load_network(mixed).state_dict()[key]
    torch.testing.assert_close(found, 0.75 * whole, atol=1e-3, rtol=0.01)
    assert bundle.main(arguments) == 0
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        one, two = load_network(first)(x)[0], load_network(other)(x)[0]
    assert not torch.allclose(one, two)
