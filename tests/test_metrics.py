"""Metrics against numbers worked out by hand, other libraries and plainly written formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    structural_similarity_index_measure,
    visual_information_fidelity,
)

from bmex_bids import metrics

Floats = npt.NDArray[np.float32]

LABELS = np.array([2, 2, 2, 2, 3, 3, 3, 3, 1, 0], np.uint8).reshape(10, 1, 1)
VOLUME = np.array([2, 4, 2, 4, 9, 11, 9, 11, 1, 0], np.float32).reshape(10, 1, 1)


def test_contrast() -> None:
    # means 3 and 10, variances 1 and 1
    assert metrics.tct(VOLUME, LABELS) == pytest.approx(7 / np.sqrt(2))
    assert metrics.cjv(VOLUME, LABELS) == pytest.approx(2 / 7)
    assert metrics.tct(VOLUME * 5 + 3, LABELS) == pytest.approx(7 / np.sqrt(2))
    assert np.isnan(metrics.tct(VOLUME, np.zeros_like(LABELS)))


def test_noise_and_cnr() -> None:
    rng = np.random.default_rng(1)
    labels = np.full((40, 40, 40), 3, np.uint8)
    labels[20:] = 2
    volume = np.where(labels == 3, 100, 70) + rng.normal(0, 4, labels.shape)
    volume = volume.astype(np.float32)
    assert metrics.noise_sd(volume, labels) == pytest.approx(4, rel=0.03)
    assert metrics.cnr(volume, labels) == pytest.approx(30 / 4, rel=0.04)


def test_quality_index_and_volumes() -> None:
    assert metrics.quality_index(1.5, 3.0) == 0.5
    assert metrics.volume_ml(LABELS, metrics.GM, 500.0) == 2.0
    assert metrics.dice(LABELS == 2, LABELS >= 2) == pytest.approx(8 / 12)
    assert np.isnan(metrics.dice(LABELS > 9, LABELS > 9))


def test_volume_difference() -> None:
    assert metrics.volume_difference(LABELS >= 2, LABELS == 2) == 100
    assert metrics.volume_difference(LABELS == 1, LABELS == 2) == -75
    assert np.isnan(metrics.volume_difference(LABELS == 1, LABELS > 9))


def test_mse_and_psnr() -> None:
    mask = np.ones_like(VOLUME, bool)
    assert metrics.mse(VOLUME + 3, VOLUME, mask) == 9
    mask[0] = False
    moved = VOLUME + 0.1
    moved[0] += 100  # outside the mask, so that it must not count
    assert metrics.psnr(moved, VOLUME, mask, 10.0) == pytest.approx(40, abs=1e-3)
    assert metrics.psnr(VOLUME, VOLUME, mask, 10.0) == float("inf")


def pair(shape: tuple[int, ...], margin: tuple[int, ...]) -> tuple[Floats, Floats]:
    """A textured reference with zeros around it, and a blurred, noisy copy; 0 to about 200."""
    rng = np.random.default_rng(5)
    inner = tuple(n - 2 * m for n, m in zip(shape, margin, strict=True))
    sigma = [0 if n < 5 else 1.2 for n in inner]
    texture = 100 + 150 * gaussian_filter(rng.standard_normal(inner), sigma)
    worse = gaussian_filter(texture, sigma) * 0.9 + rng.normal(0, 6, inner)
    padded = [np.pad(np.maximum(v, 1), [(m, m) for m in margin]) for v in (texture, worse)]
    return padded[0].astype(np.float32), padded[1].astype(np.float32)


def tensor(volume: Floats) -> torch.Tensor:
    return torch.from_numpy(volume).double()[None]


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_is_that_of_scikit_image(window: str) -> None:
    reference, volume = pair((30, 28, 26), (0, 0, 0))
    mask = np.zeros(reference.shape, bool)
    mask[4:25, 5:22, 6:20] = True
    options = (
        {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        if window == "gaussian"
        else {"win_size": 7}
    )
    inside = [np.where(mask, v, 0).astype(np.float64) for v in (reference, volume)]
    _, full = structural_similarity(*inside, data_range=250.0, full=True, **options)
    found = metrics.ssim(volume, reference, mask, 250.0, window=window)  # type: ignore[arg-type]
    assert found == pytest.approx(full[mask].mean(), abs=1e-9)


def test_ssim_is_that_of_torchmetrics() -> None:
    reference, volume = pair((28, 26, 24), (6, 6, 6))  # zeros, so that borders agree
    theirs = structural_similarity_index_measure(
        tensor(volume)[None], tensor(reference)[None], data_range=250.0
    )
    whole = np.ones(reference.shape, bool)
    found = metrics.ssim(volume, reference, whole, 250.0)
    assert found == pytest.approx(float(theirs), abs=1e-6)


def test_slice_wise_ssim_is_the_mean_over_slices() -> None:
    reference, volume = pair((20, 22, 3), (0, 0, 0))
    whole = np.ones(reference.shape, bool)
    scores = [
        metrics.ssim(volume[..., k : k + 1], reference[..., k : k + 1], whole[..., :1], 250.0,
                     axis=2)
        for k in range(3)
    ]
    found = metrics.ssim(volume, reference, whole, 250.0, axis=2)
    assert found == pytest.approx(np.mean(scores))
    assert abs(found - metrics.ssim(volume, reference, whole, 250.0)) > 1e-3


def halved(volume: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x, y, z = (n // 2 for n in volume.shape)
    return volume.reshape(x, 2, y, 2, z, 2).mean((1, 3, 5))


def test_ms_ssim_is_the_formula_in_3d() -> None:
    reference, volume = pair((64, 64, 48), (4, 4, 0))
    x, y = volume / 250.0, reference / 250.0
    score = 1.0

    def local(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(gaussian_filter(v, 1.5, mode="constant", radius=5))

    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mx, my = local(x), local(y)
        structure = (2 * (local(x * y) - mx * my) + 9e-4) / (
            local(x * x) - mx**2 + local(y * y) - my**2 + 9e-4
        )
        if scale == 4:
            structure *= (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        score *= structure.mean() ** weight
        if scale < 4:
            x, y = halved(x), halved(y)
    whole = np.ones(reference.shape, bool)
    assert 0.5 < score < 0.999
    assert metrics.ms_ssim(volume, reference, whole, 250.0) == pytest.approx(score, abs=1e-6)


def test_ms_ssim_is_that_of_torchmetrics_in_slices() -> None:
    """Their windows end at the border; zeros around the image make up for that at each scale."""
    reference, volume = pair((1, 640, 640), (0, 170, 170))
    x, y = tensor(volume), tensor(reference)
    score = 1.0
    for scale, weight in enumerate(metrics.SCALE_WEIGHTS):
        both, structure = structural_similarity_index_measure(
            x, y, data_range=250.0, return_contrast_sensitivity=True
        )
        # of contrast and structure they leave 5 voxels at every side out, where both are 1 here
        valid = (x.shape[-1] - 10) ** 2 / x.shape[-1] ** 2
        part = float(both) if scale == 4 else float(structure) * valid + 1 - valid
        score *= part**weight
        x, y = (torch.nn.functional.avg_pool2d(v, 2) for v in (x, y))
    whole = np.ones(reference.shape, bool)
    found = metrics.ms_ssim(volume, reference, whole, 250.0, axis=0)
    assert score < 0.999
    assert found == pytest.approx(score, abs=1e-6)


def test_ms_ssim_leaves_out_slices_too_small_for_it() -> None:
    reference, volume = pair((40, 40, 4), (0, 0, 0))
    mask = np.ones(reference.shape, bool)
    alone = metrics.ms_ssim(volume[..., 1:], reference[..., 1:], mask[..., 1:], 250.0, axis=2)
    mask[2:, 2:, 0] = False
    assert metrics.ms_ssim(volume, reference, mask, 250.0, axis=2) == pytest.approx(alone)
    speck = np.zeros(reference.shape, bool)
    speck[5, 5, 2] = True
    # its bounding box is one voxel, of which each coarser one has less than half
    with pytest.raises(ValueError, match="too small for five scales"):
        metrics.ms_ssim(volume, reference, speck, 250.0, axis=2)


def brute_uqi(x: Floats, y: Floats) -> float:
    """Over all windows of 8 voxels a side that lie around a voxel, 0 beyond the image."""
    pads = [(4, 3)] * x.ndim
    x, y = np.pad(x.astype(float), pads), np.pad(y.astype(float), pads)
    scores = []
    for place in np.ndindex(*(n - 7 for n in x.shape)):
        a, b = (v[tuple(slice(p, p + 8) for p in place)].ravel() for v in (x, y))
        shared = ((a - a.mean()) * (b - b.mean())).mean()
        scores.append(
            4 * shared * a.mean() * b.mean() / ((a.var() + b.var()) * (a.mean()**2 + b.mean()**2))
        )
    return float(np.mean(scores))


def test_uqi_is_the_formula() -> None:
    reference, volume = pair((11, 10, 9), (0, 0, 0))
    whole = np.ones(reference.shape, bool)
    assert metrics.uqi(volume, reference, whole) == pytest.approx(brute_uqi(volume, reference))
    flat = [brute_uqi(volume[..., k], reference[..., k]) for k in range(9)]
    assert metrics.uqi(volume, reference, whole, axis=2) == pytest.approx(np.mean(flat))
    assert metrics.uqi(volume * 7, reference * 7, whole) == pytest.approx(
        metrics.uqi(volume, reference, whole)
    )


def test_uqi_of_constant_windows_compares_means() -> None:
    one = np.full((20, 20, 20), 10, np.float32)
    mask = np.zeros(one.shape, bool)
    mask[8:12, 8:12, 8:12] = True
    assert metrics.uqi(one, one, mask) == pytest.approx(1)
    whole = np.ones(one.shape, bool)
    # windows inside are flat (2 * 10 * 20 / (100 + 400) = 0.8); at the border 0.8 * 0.8
    share = 13**3 / 20**3
    wanted = 0.8 * share + 0.64 * (1 - share)
    assert metrics.uqi(one, 2 * one, whole) == pytest.approx(wanted)


def test_vif_is_that_of_torchmetrics_in_slices() -> None:
    """Zeros around the image have no information, so the borders agree."""
    reference, volume = pair((3, 180, 170), (0, 44, 44))
    theirs = visual_information_fidelity(
        tensor(volume).movedim(1, 0), tensor(reference).movedim(1, 0)
    )
    whole = np.ones(reference.shape, bool)
    found = metrics.vif(volume, reference, whole, 255.0, axis=0)
    assert 0.05 < found < 0.9
    assert found == pytest.approx(float(theirs), abs=1e-9)


def test_vif_is_the_formula_in_3d() -> None:
    reference, volume = pair((40, 38, 36), (3, 3, 3))
    x, y = volume.astype(np.float64), reference.astype(np.float64)
    kept = there = 0.0
    for scale, size in enumerate((17, 9, 5, 3)):

        def local(v: npt.NDArray[np.float64], n: int = size) -> npt.NDArray[np.float64]:
            return np.asarray(gaussian_filter(v, n / 5, mode="constant", radius=n // 2))

        if scale:
            start = 1 if size == 3 else 0
            x, y = (local(v)[start::2, start::2, start::2] for v in (x, y))
        var_x, var_y = local(x * x) - local(x) ** 2, local(y * y) - local(y) ** 2
        shared = local(x * y) - local(x) * local(y)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = np.where(var_y > 1e-10, shared / var_y, 0)
        noise = np.where(gain > 0, var_x - gain * shared, var_x)
        gain = np.maximum(gain, 0)
        kept += np.log10(1 + gain**2 * var_y / (np.maximum(noise, 1e-10) + 2)).sum()
        there += np.log10(1 + np.maximum(var_y, 0) / 2).sum()
    whole = np.ones(reference.shape, bool)
    found = metrics.vif(volume, reference, whole, 255.0)
    assert found == pytest.approx(kept / there, abs=1e-6)
    assert metrics.vif(volume * 4, reference * 4, whole, 1020.0) == pytest.approx(found)


SIMILARITIES: list[Callable[..., float]] = [
    metrics.ssim,
    metrics.ms_ssim,
    lambda x, y, m, r, axis=None: metrics.uqi(x, y, m, axis=axis),
    metrics.vif,
]


@pytest.mark.parametrize("measure", SIMILARITIES)
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_similarity_is_1_for_equal_images_and_falls(
    measure: Callable[..., float], axis: int | None
) -> None:
    reference, _ = pair((36, 34, 32), (2, 2, 2))
    mask = reference > 0
    noise = np.random.default_rng(2).normal(0, 1, reference.shape).astype(np.float32)
    scores = [
        measure(reference + amount * noise, reference, mask, 200.0, axis=axis)
        for amount in (0, 5, 20, 60)
    ]
    assert scores[0] == pytest.approx(1)
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.92


@pytest.mark.parametrize("measure", SIMILARITIES)
def test_nothing_outside_the_mask_counts(measure: Callable[..., float]) -> None:
    reference, volume = pair((32, 34, 36), (2, 2, 2))
    mask = uniform_filter(reference, 5) > 90
    inside = measure(volume, reference, mask, 200.0)
    elsewhere = np.where(mask, volume, 777).astype(np.float32)
    larger = [np.pad(v, 3) for v in (elsewhere, reference, mask)]
    assert measure(*larger, 200.0) == pytest.approx(inside)


@pytest.mark.parametrize("measure", SIMILARITIES)
def test_wrong_arguments_are_named(measure: Callable[..., float]) -> None:
    reference, volume = pair((12, 12, 12), (0, 0, 0))
    mask = np.ones(reference.shape, bool)
    with pytest.raises(ValueError, match="differ in shape"):
        measure(volume[1:], reference, mask, 1.0)
    with pytest.raises(ValueError, match="mask is empty"):
        measure(volume, reference, ~mask, 1.0)


def test_a_data_range_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="data_range is 0"):
        metrics.ssim(VOLUME, VOLUME, VOLUME > 0, 0.0)


def test_data_consistency() -> None:
    mask = np.ones_like(VOLUME, bool)
    zooms = np.ones(3)
    assert metrics.data_consistency(VOLUME, VOLUME, mask, zooms) == (0, 0)
    assert np.isnan(metrics.data_consistency(VOLUME * 0, VOLUME, mask, zooms)).all()
    found, _ = metrics.data_consistency(VOLUME, VOLUME * 1.1, mask, zooms)
    assert found == pytest.approx(0.1, rel=1e-4)
    flat = np.ones((40, 40, 40), np.float32)
    erased = flat.copy()
    erased[18:22, 18:22, 18:22] -= 0.5
    found, worst = metrics.data_consistency(flat, erased, flat > 0, zooms)
    assert worst > 10 * found > 0


def test_data_consistency_looks_at_six_millimetres() -> None:
    """The filter leaves exp(-(2 pi sigma / wave)^2 / 2) of a wave, here of amplitude 0.1."""
    flat, mask = np.ones((96, 24, 24), np.float32), np.ones((96, 24, 24), bool)
    places = np.arange(96, dtype=np.float32) + 0.5
    for voxel, wave in ((1.0, 6.0), (0.5, 6.0), (1.0, 48.0)):
        change = 0.1 * np.cos(2 * np.pi * places * voxel / wave)  # goes on by reflection
        zooms = np.full(3, voxel)
        found, worst = metrics.data_consistency(flat, flat + change[:, None, None], mask, zooms)
        kept = np.exp(-0.5 * (2 * np.pi * 6.0 / 2.3548 / wave) ** 2)
        assert found == pytest.approx(0.1 * kept / np.sqrt(2), rel=0.03), (voxel, wave)
        assert worst == pytest.approx(0.1 * kept, rel=0.15), (voxel, wave)
