"""The nine steps with an untrained pair, which starts as the identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from bmex_bids import inference, intensity
from bmex_bids.bids import Job
from bmex_bids.commonscale import BY_MEDIAN, BY_TISSUES, map_to_reference
from bmex_bids.image import Image, ImageError
from bmex_bids.inference import Compute
from bmex_bids.pipeline import (
    BLEND_MM,
    BYTES_PER_VOXEL,
    SLAB,
    Settings,
    _beside,
    _fade,
    enhance_run,
)
from bmex_bids.training.export import export
from bmex_bids.training.train import build
from bmex_bids.weights import ModelRecord, WeightsError, list_models

SMALL = {"widths": [4, 6], "thin": 2, "norm": "none"}
ARCHITECTURE = {"name": "TissueGuidedUNet", "tissue": SMALL, "enhance": SMALL}
RECORD = ModelRecord(
    name="identity", kind="enhance", set="bundled", suffixes=("T1w",), stage="24",
    ages_months=(21.0, 1200.0), grid_mm=0.8, architecture={}, file="", sha256="",
    version="0", licence="Apache-2.0", source="test",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelRecord, ...]:
    """A models folder whose one pair changes almost nothing."""
    return identity(tmp_path_factory.mktemp("models"), ARCHITECTURE)


def identity(folder: Path, architecture: dict[str, object]) -> tuple[ModelRecord, ...]:
    torch.manual_seed(1)
    network = build(architecture)
    torch.nn.init.zeros_(network.enhance.head2.weight)  # type: ignore[union-attr, arg-type]
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save(
        {"average": state, "settings": {}, "step": 1, "seconds": 1.0}, folder / "checkpoint.pt"
    )
    (folder / "log.csv").write_text("step\n1\n")
    export(folder / "checkpoint.pt", replace(RECORD, architecture=architecture), folder)
    return tuple(list_models([folder]))


def head(zooms: tuple[float, float, float], flip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A head of three tissues in a field, as (data, affine); brain radius 32 mm."""
    shape = [int(96 / z) for z in zooms]
    places = [(np.arange(n) - (n - 1) / 2) * z for n, z in zip(shape, zooms, strict=True)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"), -1)
    radius = np.sqrt((grid**2).sum(-1))
    data = np.select([radius < 22, radius < 29, radius < 32, radius < 42], [100, 70, 25, 60], 2)
    data = data * np.exp(0.1 * grid[..., 0] / 48)
    data += np.random.default_rng(1).normal(0, 1.5, shape)
    affine = np.diag([*zooms, 1.0])
    if flip:
        affine[0, 0] *= -1
    affine[:3, 3] = 10, -20, 30
    return np.maximum(data, 0).astype(np.float32), affine


def job_of(folder: Path, zooms: tuple[float, float, float], flip: bool = False) -> Job:
    data, affine = head(zooms, flip)
    anat = folder / "sub-01" / "anat"
    anat.mkdir(parents=True)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(anat / "sub-01_T1w.nii.gz")
    places = [(np.arange(n) - (n - 1) / 2) * z for n, z in zip(data.shape, zooms, strict=True)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"), -1)
    mask = ((grid**2).sum(-1) < 32**2).astype(np.uint8)
    nib.Nifti1Image(mask, affine).to_filename(folder / "mask.nii.gz")
    return Job(
        path=anat / "sub-01_T1w.nii.gz", bids_root=folder, entities={"sub": "01"}, suffix="T1w",
        metadata={}, age_months=360.0, age_source="test", stage="24", weights="identity",
        mask=folder / "mask.nii.gz", action="enhance", reason="",
    )


@pytest.mark.parametrize(
    ("zooms", "flip"), [((2.0, 2.0, 2.0), False), ((1.5, 2.0, 1.5), True), ((2.0, 2.0, 4.0), False)]
)
def test_identity_gives_the_input_back(
    tmp_path: Path, models: tuple[ModelRecord, ...], zooms: tuple[float, float, float], flip: bool
) -> None:
    result = enhance_run(job_of(tmp_path, zooms, flip), Settings(Compute("cpu", "float32"), models))
    data = result.image.data
    assert result.preproc is not None and result.enhanced is not None
    assert result.preproc.dtype == result.enhanced.dtype == np.float32
    preproc, labels = result.whole(result.preproc, data), result.whole(result.labels)
    np.testing.assert_array_equal(preproc[~result.mask], data[~result.mask])
    np.testing.assert_allclose(preproc, data, rtol=1e-3, atol=0.05)
    assert not result.whole(result.enhanced)[~result.mask].any()
    assert set(np.unique(labels[result.mask])) <= {1, 2, 3}
    assert not labels[~result.mask].any()
    shares = result.whole(result.probabilities.sum(0))
    np.testing.assert_allclose(shares[result.mask], 1, atol=1e-4)
    assert result.high_res is not None  # coarser than the model grid
    np.testing.assert_allclose(
        np.sqrt((result.high_res[1][:3, :3] ** 2).sum(0)), 0.8, atol=1e-9
    )
    assert result.metrics["DataConsistency"] < 1e-3
    assert result.uncertainty is None
    volumes = sum(result.metrics[f"Volume{t}"] for t in ("CSF", "GM", "WM"))
    assert volumes == pytest.approx(result.metrics["VolumeBrainMask"])
    assert sum(result.histograms["Before"]) == pytest.approx(1)
    assert any("TCT" in flag for flag in result.flags) == (
        not result.metrics["TCTAfter"] > 0.98 * result.metrics["TCTBefore"]
    )


def test_measure_only_and_uncertainty(tmp_path: Path, models: tuple[ModelRecord, ...]) -> None:
    job = job_of(tmp_path, (2.0, 2.0, 2.0))
    compute = Compute("cpu", "float32")
    result = enhance_run(job, Settings(compute, models, measure_only=True))
    assert result.enhanced is None and result.preproc is None and result.high_res is None
    assert "TCTBefore" in result.metrics
    assert not any("After" in key for key in result.metrics)
    assert "After" not in result.histograms
    assert not any("fell" in flag for flag in result.flags)  # nothing was changed
    enhanced = enhance_run(job, Settings(compute, models))
    np.testing.assert_array_equal(enhanced.labels, result.labels)
    assert enhanced.metrics["TCTBefore"] == result.metrics["TCTBefore"]
    result = enhance_run(job, Settings(compute, models, uncertainty=True))
    assert result.uncertainty is not None
    assert float(result.uncertainty.max()) < 1e-2  # the identity is the same in every mirror


def test_lesions_are_white_matter_with_a_map_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    models = identity(tmp_path / "models", {**ARCHITECTURE, "classes": 5})
    job, compute = job_of(tmp_path, (2.0, 2.0, 2.0)), Compute("cpu", "float32")
    plain = enhance_run(job, Settings(compute, models))
    assert plain.lesions is None
    assert plain.probabilities.shape[0] == 3
    assert set(np.unique(plain.labels)) <= {0, 1, 2, 3}
    np.testing.assert_allclose(plain.probabilities.sum(0)[plain.mask[plain.box]], 1, atol=1e-5)
    mapped = enhance_run(job, Settings(compute, models, lesions=True))
    assert mapped.lesions is not None and float(mapped.lesions.max()) > 0
    assert bool((mapped.lesions <= mapped.probabilities[2] + 1e-6).all())


def test_lesions_need_a_network_that_knows_them(
    tmp_path: Path, models: tuple[ModelRecord, ...]
) -> None:
    settings = Settings(Compute("cpu", "float32"), models, lesions=True)
    with pytest.raises(WeightsError, match="no class for lesions"):
        enhance_run(job_of(tmp_path, (2.0, 2.0, 2.0)), settings)


def test_same_input_same_output(tmp_path: Path, models: tuple[ModelRecord, ...]) -> None:
    job, settings = job_of(tmp_path, (2.0, 2.0, 2.0)), Settings(Compute("cpu", "float32"), models)
    first, second = enhance_run(job, settings), enhance_run(job, settings)
    assert first.enhanced is not None and second.enhanced is not None
    np.testing.assert_array_equal(first.enhanced, second.enhanced)


def test_errors(tmp_path: Path, models: tuple[ModelRecord, ...]) -> None:
    job = job_of(tmp_path, (2.0, 2.0, 2.0))
    settings = Settings(Compute("cpu", "float32"), models)
    with pytest.raises(WeightsError, match="'other' is not among identity"):
        enhance_run(Job(**{**vars(job), "weights": "other"}), settings)
    with pytest.raises(WeightsError):  # no brain extraction among the models
        enhance_run(Job(**{**vars(job), "mask": None}), settings)
    far = np.diag([2.0, 2, 2, 1])
    far[:3, 3] = 500
    nib.Nifti1Image(np.ones((48, 48, 48), np.uint8), far).to_filename(tmp_path / "mask.nii.gz")
    with pytest.raises(ImageError, match="empty image|does not overlap"):
        enhance_run(job, settings)
    image = nib.load(job.path)
    nib.Nifti1Image(image.get_fdata() - 60, image.affine).to_filename(job.path)
    with pytest.raises(ImageError, match="below zero"):
        enhance_run(job, settings)


def test_the_blend_is_that_of_the_whole_mask_in_slabs() -> None:
    mask = np.random.default_rng(0).random((3 * SLAB + 5, 9, 11)) > 0.02
    zooms = np.array([0.5, 0.8, 1.0])
    whole = distance_transform_edt(np.pad(mask, 1), zooms)[1:-1, 1:-1, 1:-1] / BLEND_MM
    np.testing.assert_allclose(_fade(mask, zooms), np.clip(whole, 0, 1), atol=1e-6)


def test_what_the_image_takes_is_not_there_for_the_networks() -> None:
    settings = Settings(Compute("cpu", "float32", 10 * 2**30), ())
    huge = Image(np.empty((512, 512, 512), np.float32), np.eye(4), nib.Nifti1Header())
    usual = Image(np.empty((256, 256, 256), np.float32), np.eye(4), nib.Nifti1Header())
    left = _beside(huge, settings).compute.max_bytes
    assert left == 10 * 2**30 - BYTES_PER_VOXEL * (512**3 - 256**3)
    assert _beside(usual, settings) is settings
    unlimited = Settings(Compute("cpu", "float32"), ())
    assert _beside(huge, unlimited) is unlimited


def test_a_gpu_without_memory_leaves_a_note(
    models: tuple[ModelRecord, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = inference._fitted

    def refuse(network: object, forward: object, volume: object, compute: Compute, **rest: object):
        if compute.device == "cuda":
            raise MemoryError("CUDA out of memory")
        return fitted(network, forward, volume, compute, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "_fitted", refuse)
    settings = Settings(Compute("cuda", "float32"), models)
    result = enhance_run(job_of(tmp_path, (2.0, 2.0, 2.0)), settings)
    assert result.provenance["Device"] == "cpu"
    assert any("computed on the CPU" in flag for flag in result.flags)


@pytest.mark.parametrize("known", [True, False])
def test_another_share_of_fluid_is_no_reason_against_the_tissues(known: bool) -> None:
    """A third of the brain is fluid, of the reference a twentieth: only its tissues tell why."""
    rng = np.random.default_rng(1)
    tissue = np.repeat([0, 1, 2], 9000).reshape(30, 30, 30)
    given = (np.choose(tissue, [60, 80, 100]) * rng.normal(1, 0.02, tissue.shape)).astype("f4")
    mask = np.ones(tissue.shape, bool)
    own = [intensity.histogram(rng.normal(m, 2, mask.shape), mask) for m in (60, 210, 300)]
    reference = {
        "TissueMeans": {"CSF": 60.0, "GM": 210.0, "WM": 300.0},
        "Median": 210.0,
        "Density": np.average(own, axis=0, weights=[0.05, 0.5, 0.45]),
    }
    if known:
        reference["TissueDensity"] = dict(zip(("CSF", "GM", "WM"), own, strict=True))
    shares = np.stack([tissue == k for k in range(3)]).astype(np.float32)
    _, scaling = map_to_reference(given, mask, shares, replace(RECORD, reference=reference))
    assert (scaling is BY_TISSUES) == known


@pytest.mark.parametrize("right", [True, False])
def test_tissues_scale_only_where_they_bring_the_histogram_nearer(right: bool) -> None:
    """Three tissues of 60, 210 and 300 on the reference; wrong labels call GM and WM alike."""
    tissue = np.repeat([0, 1, 2], 9000).reshape(30, 30, 30)
    spread = np.random.default_rng(1).normal(1, 0.02, tissue.shape)
    restored = (np.choose(tissue, [20, 80, 100]) * spread).astype(np.float32)
    mask = np.ones(tissue.shape, bool)
    reference = {
        "TissueMeans": {"CSF": 60.0, "GM": 210.0, "WM": 300.0},
        "Median": 210.0,
        "Density": intensity.histogram(np.choose(tissue, [60.0, 210.0, 300.0]) * spread, mask),
    }
    labels = tissue if right else np.random.default_rng(2).integers(0, 3, tissue.shape)
    probabilities = np.stack([labels == k for k in range(3)]).astype(np.float32)
    record = replace(RECORD, reference=reference)
    anchors, scaling = map_to_reference(restored, mask, probabilities, record)
    mapped = intensity.apply_anchors(restored, anchors)
    assert np.median(mapped[tissue == 1]) == pytest.approx(210, abs=3)
    if right:
        assert scaling is BY_TISSUES
        assert np.median(mapped[tissue == 2]) == pytest.approx(300, abs=3)
    else:
        assert scaling.text == BY_MEDIAN.text
        assert len(anchors) == 2
        assert scaling.refusal and "farther" in scaling.refusal
