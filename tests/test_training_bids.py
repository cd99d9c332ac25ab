"""From a BIDS dataset to a model: scans, labels, preparation, samples, the whole command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import ages, make_dataset
from safetensors.torch import load_file

from bmex_bids import pipeline
from bmex_bids.inference import Compute, enhance_volume
from bmex_bids.layout import InputError, Selection
from bmex_bids.pipeline import enhance_run
from bmex_bids.plan import Request, plan_jobs
from bmex_bids.training import bidspool, cli, dseg, prepare, scans
from bmex_bids.training.architectures import at_scale_one, build
from bmex_bids.training.losses import IGNORE
from bmex_bids.training.scans import Wanted
from bmex_bids.training.settings import Settings
from bmex_bids.weights import ModelRecord, find_mask_model, list_models, load_network, models_dir

ZOOM = 4.0
CONFIG = """\
[run]
steps = 4
batch = 1
patch = 16
device = "cpu"
precision = "float32"
every = 2
validate_every = 2
[optimiser]
rate = 1e-3
warmup = 2
[data]
grid_mm = 4.0
samples = 2
validation_samples = 1
[network]
name = "TissueGuidedUNet"
tissue = {widths = [4, 6], thin = 0, norm = "layer"}
enhance = {widths = [4, 6], thin = 0, norm = "layer"}
"""


def head(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A head of 40 mm with a brain of 32 mm radius: the image and its tissue labels."""
    places = (np.arange(26) - 12.5) * ZOOM
    grid = np.stack(np.meshgrid(places, places, places, indexing="ij"), -1)
    radius = np.sqrt((grid**2).sum(-1)) * (1 + 0.02 * seed)
    labels = np.select([radius < 20, radius < 28, radius < 32], [3, 2, 1], 0)
    data = np.select([radius < 20, radius < 28, radius < 32, radius < 42], [100, 70, 25, 60], 2)
    noise = np.random.default_rng(seed).normal(0, 1.0, data.shape)
    return np.maximum(data + noise, 0).astype(np.float32), labels.astype(np.uint8)


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-ZOOM, ZOOM, ZOOM, 1.0])  # not RAS+, as many scanners write it
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adults and a baby; masks and labels in a derivative dataset, CSF is 3 there."""
    root = tmp_path_factory.mktemp("data")
    names = ("01", "02", "03", "baby")
    images = [f"sub-{name}_T1w.nii.gz" for name in names]
    bids = make_dataset(root / "bids", images, ages(**{"01": 300, "02": 400, "03": 500, "baby": 1}))
    derived = root / "derived"
    derived.mkdir()
    (derived / "dseg.tsv").write_text("index\tname\n1\tGray Matter\n2\tWM\n3\tCSF\n")
    for seed, name in enumerate(names):
        data, labels = head(seed)
        save(bids / f"sub-{name}/anat/sub-{name}_T1w.nii.gz", data)
        anat = derived / f"sub-{name}" / "anat"
        save(anat / f"sub-{name}_desc-brain_mask.nii.gz", (labels > 0).astype(np.uint8))
        save(anat / f"sub-{name}_dseg.nii.gz", np.array([0, 3, 1, 2], np.uint8)[labels])
    return root


@pytest.fixture(scope="module")
def found(dataset: Path) -> list[scans.Scan]:
    derived = (dataset / "derived",)
    wanted = Wanted(dataset / "bids", Selection(suffixes=("T1w",)), ("24",), derived, derived)
    return scans.find_scans(wanted)[0]


def how(around: float = prepare.AROUND, label_model: ModelRecord | None = None) -> Any:
    mask_model = find_mask_model(list_models(models_dir(None)), model_set="bundled")
    compute = Compute("cpu", "float32")
    return prepare.Preparation(ZOOM, mask_model, label_model, compute, around)


def test_scans_are_found_by_stage(dataset: Path, found: list[scans.Scan]) -> None:
    assert [scan.stem for scan in found] == ["sub-01_T1w", "sub-02_T1w", "sub-03_T1w"]
    assert all(scan.condition == "T1w-24" and scan.job.mask for scan in found)
    assert found[0].classes == {0: 0, 1: 2, 2: 3, 3: 1}
    wanted = Wanted(dataset / "bids", Selection(suffixes=("T1w",)), ("0",))
    babies, notes = scans.find_scans(wanted)
    assert [scan.condition for scan in babies] == ["T1w-0"]
    assert "sub-01_T1w.nii.gz: left out, its age belongs to stage 24" in notes
    with pytest.raises(InputError, match="no image of stage 6"):
        scans.find_scans(Wanted(dataset / "bids", Selection(suffixes=("T1w",)), ("6",)))


def test_an_unknown_age_is_of_the_one_stage_asked_for(dataset: Path, tmp_path: Path) -> None:
    bids = shutil.copytree(dataset / "bids", tmp_path / "bids")
    (bids / "participants.tsv").unlink()
    chosen = Selection(suffixes=("T1w",))
    here, notes = scans.find_scans(Wanted(bids, chosen, ("12",)))
    assert {scan.condition for scan in here} == {"T1w-12"}
    assert any("age not known" in note for note in notes)
    with pytest.raises(InputError, match="no age"):
        scans.find_scans(Wanted(bids, chosen, ("12", "18")))


def test_the_split_is_by_person_and_seeded(found: list[scans.Scan]) -> None:
    splits = [scans.split_subjects(found, 0.1, seed) for seed in range(8)]
    for training, held in splits:
        assert len(held) == 1 and sorted(training + held) == ["01", "02", "03"]
    assert len(set(splits)) > 1
    assert scans.split_subjects(found, 0.1, 3) == splits[3]
    assert len(scans.split_subjects(found, 0.9, 1)[0]) == 1
    with pytest.raises(InputError, match="only sub-01 is there"):
        scans.split_subjects(found[:1], 0.1, 1)


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("CSF", 1), ("Left-Lateral-Ventricle", 1), ("GM", 2), ("gray_matter", 2), ("SCGM", 2),
        ("ctx-lh-insula", 2), ("Left-Thalamus", 2), ("WM", 3), ("Left-Cerebral-White-Matter", 3),
        ("white matter", 3), ("BG", 0), ("Brain-Stem", None), ("vessel", None), ("GMlike", None),
    ],
)
def test_names_of_labels(name: str, tissue: int | None) -> None:
    assert dseg.tissue_of(name) == tissue


def test_labels_and_their_table(tmp_path: Path) -> None:
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    raw = Path("/bids/sub-01/anat/sub-01_T1w.nii.gz")
    for name in ("sub-01_space-MNI152_dseg", "sub-01_desc-aseg_dseg", "sub-01_label-GM_dseg"):
        (anat / f"{name}.nii.gz").touch()
    assert dseg.find_dseg([tmp_path], raw) == anat / "sub-01_desc-aseg_dseg.nii.gz"
    (anat / "sub-01_space-T1w_dseg.nii.gz").touch()
    plain = dseg.find_dseg([tmp_path], raw)
    assert plain == anat / "sub-01_space-T1w_dseg.nii.gz"
    assert dseg.find_dseg([tmp_path], raw.with_name("sub-01_T2w.nii.gz")) is None
    with pytest.raises(InputError, match="nobody knows what its numbers mean"):
        dseg.read_classes(plain, tmp_path)
    (tmp_path / "dseg.tsv").write_text("index\tname\tabbreviation\n1\tx\tGM\n2\ty\tWM\n9\tstem\t\n")
    assert dseg.read_classes(plain, tmp_path) == {0: 0, 1: 2, 2: 3, 9: IGNORE}
    (tmp_path / "desc-aseg_dseg.tsv").write_text("index\tname\n3\tLeft-Cerebral-Cortex\n")
    with pytest.raises(InputError, match="expected names of grey and white matter"):
        dseg.read_classes(anat / "sub-01_desc-aseg_dseg.nii.gz", tmp_path)
    (anat / "sub-01_space-T1w_dseg.tsv").write_text("index\tname\none\tGM\n")
    with pytest.raises(InputError, match="whole number in the column index"):
        dseg.read_classes(plain, tmp_path)


def test_a_scan_is_prepared_as_the_app_prepares_it(
    found: list[scans.Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[np.ndarray] = []

    class Taken(Exception):
        pass

    def take(network: object, volume: np.ndarray, *rest: object, **more: object) -> None:
        given.append(volume)
        raise Taken

    monkeypatch.setattr(pipeline, "enhance_volume", take)
    monkeypatch.setattr(pipeline, "kept_network", lambda record: None)
    record = ModelRecord(
        "m", "enhance", "test", ("T1w",), "24", None, ZOOM, {"name": "UNet"}, "", "", "1", "", ""
    )
    job = replace(found[0].job, weights="m")
    with pytest.raises(Taken):
        enhance_run(job, pipeline.Settings(Compute("cpu", "float32"), (record,)))
    made = prepare.prepare(found[0], how(around=5.0))
    np.testing.assert_allclose(
        (made["head"].float() * made["brain"]).numpy(), given[0], rtol=1e-3, atol=1e-3
    )


def test_prepared_labels_are_those_of_the_dataset(found: list[scans.Scan]) -> None:
    made = prepare.prepare(found[0], how())
    brain, tissue, image = made["brain"].numpy() > 0, made["tissue"].numpy(), made["head"].numpy()
    assert (tissue[~brain] == 0).all()
    assert set(np.unique(tissue[brain])) <= {1, 2, 3, IGNORE}
    medians = [float(np.median(image[tissue == t])) for t in (1, 2, 3)]
    assert medians == sorted(medians)
    assert float(np.median(image[brain])) == pytest.approx(1, abs=2e-3)
    # what surrounds the brain is kept, so that it can ghost into it
    assert float(image[~brain].max()) > 0.3


def test_samples_depend_on_their_names_alone(found: list[scans.Scan]) -> None:
    made = prepare.prepare(found[0], how())
    first, again, other = (
        prepare.degraded_sample(made, ZOOM, prepare.generator_of(1, "sub-01_T1w", n), states=4)
        for n in (0, 0, 1)
    )
    for key, value in first.items():
        assert torch.equal(value, again[key])
    assert not torch.equal(first["input"], other["input"])
    brain = first["brain"] > 0
    assert float(first["input"][brain].float().median()) == pytest.approx(1, abs=2e-3)
    assert float(first["input"][~brain].abs().max()) == 0
    assert float((first["target"] - first["input"]).abs().max()) > 0.05
    assert int(first["condition"]) == prepare.CONDITIONS.index("T1w-24")


def test_a_damaged_scan_is_named_and_left_out(
    tmp_path: Path, found: list[scans.Scan], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = Settings("enhance", samples=1, validation_samples=1)
    training, held = scans.split_subjects(found, 0.1, chosen.seed)
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(found[0].job.path.read_bytes()[:900])

    spoilt = [
        replace(s, job=replace(s.job, path=bad, bids_root=tmp_path))
        if s.job.entities["sub"] == training[0] else s
        for s in found
    ]
    source = bidspool.Source(tuple(spoilt), how())
    data = bidspool.make_pools(source, chosen, tmp_path / "w", processes=1)
    assert list(data["failed"]) == [f"sub-{training[0]}_T1w"]
    assert "damaged or truncated" in capsys.readouterr().err
    names = {p.name for p in (tmp_path / "w" / "training").iterdir()}
    assert names == {f"sub-{training[1]}_T1w-000.safetensors"}
    assert [p.name for p in (tmp_path / "w" / "validation").iterdir()] == [
        f"sub-{held[0]}_T1w-000.safetensors"
    ]


def test_published_weights_start_at_scale_one() -> None:
    """The pair rescaled for an input of median 1 gives the published pair's output, rescaled."""
    torch.manual_seed(1)
    architecture = {"name": "BMEXPair", "width": 4}
    published = build(architecture).eval()
    record = ModelRecord(
        "p", "enhance", "published", ("T1w",), "24", None, 0.8, architecture, "", "", "1", "", "",
        scale=341.0,
    )
    mine = build(architecture).eval()
    mine.load_state_dict(at_scale_one(published.state_dict(), record))
    volume = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        scores, enhanced = published(volume * 341)
        own_scores, own = mine(volume)
    torch.testing.assert_close(own_scores, scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own * 341, enhanced, rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match="scale 341"):
        at_scale_one({}, replace(record, architecture={"name": "TissueGuidedUNet"}))


def train(dataset: Path, out: Path, *more: str) -> int:
    config = dataset / "train.toml"
    config.write_text(CONFIG)
    derived = f"derived={dataset / 'derived'}"
    return cli.main(
        [str(dataset / "bids"), str(out), "--suffix", "T1w", "--stage", "24", "--config",
         str(config), "--derivatives", derived, "--labels", derived, *more]
    )


@pytest.fixture(scope="module")
def models(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    assert train(dataset, out, "--licence", "CC0") == 0
    return out


def test_the_model_serves_the_app(dataset: Path, models: Path, tmp_path: Path) -> None:
    jobs = plan_jobs(
        Request(
            dataset / "bids", tmp_path / "out", Selection(participants=("01",), suffixes=("T1w",)),
            derivatives=(dataset / "derived",), models_dir=models, model_set="trained",
        )
    )
    assert [(job.action, job.weights) for job in jobs] == [("enhance", "trained-T1w-24")]
    available = tuple(list_models(models_dir(models)))
    done = enhance_run(jobs[0], pipeline.Settings(Compute("cpu", "float32"), available))
    assert done.enhanced is not None and np.isfinite(done.enhanced).all()
    assert (done.enhanced[done.mask[done.box]] > 0).mean() > 0.9


def test_the_record_of_a_run(dataset: Path, models: Path) -> None:
    record = list_models([models])[0]
    run = record.training
    assert (record.set, record.licence, record.grid_mm) == ("trained", "CC0", ZOOM)
    assert sorted(run["Split"]["training"] + run["Split"]["validation"]) == ["01", "02", "03"]
    assert len(run["Split"]["validation"]) == 1
    assert {image["labels"] for image in run["Images"]} == {
        f"sub-{name}_dseg.nii.gz" for name in ("01", "02", "03")
    }
    assert run["Seed"] == 1 and run["Settings"]["rate"] == 1e-3
    assert run["Commit"] and run["Versions"]["torch"]
    curves = run["Curves"]
    assert [row["step"] for row in curves["Validation"]] == [0, 2, 4]
    assert [row["step"] for row in curves["Training"]] == [2, 4]
    assert run["Validation"]["loss"] == pytest.approx(
        min(row["loss"] for row in curves["Validation"][1:]), rel=0.02
    )
    assert set(run["Validation"]) >= {"psnr", "psnr_gain", "dice_csf", "dice_gm", "dice_wm"}
    assert record.reference is not None  # that of the bundled model for the same scans
    json.dumps(run, allow_nan=False)


def test_the_model_card(models: Path) -> None:
    card = (models / "trained-T1w-24_MODEL_CARD.md").read_text(encoding="utf-8")
    record = list_models([models])[0]
    assert record.sha256 in card and "CC0" in card
    assert "2 images of 2 subjects for training, 1 images of 1 subjects for validation" in card
    assert "300 to 500 months" in card and "Tissue classes were not trained" not in card
    assert f"{sum(p.numel() for p in load_network(record).parameters()):,} parameters" in card
    assert (models / "trained-T1w-24_curves.png").stat().st_size > 5000


def test_a_second_start_does_nothing_anew(dataset: Path, models: Path) -> None:
    work = models / "training-trained"
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")}
    sha256 = list_models([models])[0].sha256
    assert len(before) == 3 + 2 * 2 + 1
    assert train(dataset, models) == 0
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")} == before
    assert list_models([models])[0].sha256 == sha256


def test_other_data_are_refused(
    dataset: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(dataset, models, "--participant-label", "01", "02") == 2
    assert "holds the samples of another training (subjects, images differ)" in (
        capsys.readouterr().err
    )
    assert train(dataset, models, "--seed", "2") == 2
    assert train(dataset, models, "--rate", "0.5") == 2
    assert "rate was 0.001, now 0.5" in capsys.readouterr().err


def test_fine_tuning_labels_with_the_start_model(
    dataset: Path, models: Path, tmp_path: Path
) -> None:
    """From a model of this command: its network, its grid, its labels where it is sure."""
    config = tmp_path / "train.toml"
    config.write_text(CONFIG[: CONFIG.index("[network]")].replace("grid_mm = 4.0\n", ""))
    argv = [str(dataset / "bids"), str(tmp_path / "out"), "--stage", "24", "--start-from",
            f"{models}/trained-T1w-24", "--config", str(config), "--derivatives",
            f"derived={dataset / 'derived'}", "--model-set", "tuned", "--rate", "0",
            "--nprocs", "2"]
    assert cli.main(argv) == 0
    record = next(r for r in list_models([tmp_path / "out"]) if r.name == "tuned-T1w-24")
    start = next(r for r in list_models([models]) if r.name == "trained-T1w-24")
    assert record.training["StartedFrom"] == {"Name": start.name, "SHA256": start.sha256}
    assert (record.grid_mm, record.architecture) == (start.grid_mm, start.architecture)
    for name, value in load_network(record).state_dict().items():  # a rate of 0 changes nothing
        torch.testing.assert_close(value, load_network(start).state_dict()[name])
    made = load_file(tmp_path / "out" / "training-tuned" / "prepared" / "sub-01_T1w.safetensors")
    given = (made["head"].float() * made["brain"]).numpy()
    shares, _, _ = enhance_volume(load_network(start), given, Compute("cpu", "float32"))
    sure = (shares.max(0) > prepare.SURE + 0.01) & (made["brain"].numpy() > 0)
    sure &= shares.argmax(0) > 0
    np.testing.assert_array_equal(made["tissue"].numpy()[sure], shares.argmax(0)[sure])
    unsure = (shares.max(0) < prepare.SURE - 0.01) & (made["brain"].numpy() > 0)
    assert unsure.any() and (made["tissue"].numpy()[unsure] == IGNORE).all()
