"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bmex_bids import metrics

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


def test_psnr() -> None:
    mask = np.ones_like(VOLUME, bool)
    assert metrics.psnr(VOLUME + 0.1, VOLUME, mask, 10.0) == pytest.approx(40, abs=1e-3)
    assert metrics.psnr(VOLUME, VOLUME, mask, 10.0) == float("inf")


def test_ssim_of_the_image_with_itself_and_with_noise() -> None:
    rng = np.random.default_rng(1)
    volume = rng.random((20, 20, 20)).astype(np.float32)
    mask = np.ones_like(volume, bool)
    assert metrics.ssim(volume, volume, mask, 1.0) == pytest.approx(1)
    worse = volume + rng.normal(0, 0.3, volume.shape).astype(np.float32)
    bad = volume + rng.normal(0, 0.9, volume.shape).astype(np.float32)
    assert 1 > metrics.ssim(worse, volume, mask, 1.0) > metrics.ssim(bad, volume, mask, 1.0)


def test_data_consistency() -> None:
    mask = np.ones_like(VOLUME, bool)
    assert metrics.data_consistency(VOLUME, VOLUME, mask) == 0
    assert metrics.data_consistency(VOLUME, VOLUME * 1.1, mask) == pytest.approx(0.1, rel=1e-4)
