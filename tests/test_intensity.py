"""Intensities: gains, anchors, histograms, bias field."""

from __future__ import annotations

import numpy as np
import pytest

from bmex_bids import intensity, metrics


def test_brain_gain_takes_the_median_to_one() -> None:
    volume = np.array([[[0, 2, 4, 6, 100]]], np.float32)
    mask = volume > 0
    assert intensity.brain_gain(volume, mask) == pytest.approx(1 / 5)
    with pytest.raises(ValueError, match="empty"):
        intensity.brain_gain(volume, volume > 1000)
    with pytest.raises(ValueError, match="magnitude"):
        intensity.brain_gain(-volume, mask)


REFERENCE = {"CSF": 100.0, "GM": 300.0, "WM": 400.0}


@pytest.mark.parametrize(
    ("found", "anchors"),
    [
        # the line through GM and WM, 4 per unit, goes on to half-way between GM and CSF
        (
            {"CSF": 20.0, "GM": 60.0, "WM": 85.0},
            [(0, 0), (20, 100), (40, 220), (60, 300), (85, 400)],
        ),
        # to four fifths of the way to zero, where no tissue lies
        ({"GM": 60.0, "WM": 85.0}, [(0, 0), (12, 108), (60, 300), (85, 400)]),
        # where that would leave the neighbours' range, it bends before
        ({"CSF": 50.0, "GM": 60.0, "WM": 62.0}, [(0, 0), (50, 100), (62, 400)]),
        (
            {"CSF": 20.0, "GM": 70.0, "WM": 75.0},
            [(0, 0), (20, 100), (45, 120), (70, 300), (75, 400)],
        ),
        # isointense tissues: merged into the brighter one
        ({"CSF": 20.0, "GM": 79.0, "WM": 80.0}, [(0, 0), (20, 100), (80, 400)]),
        # the other order than the reference: only the brightest stays
        ({"GM": 80.0, "WM": 60.0}, [(0, 0), (80, 300)]),
    ],
)
def test_anchors(found: dict[str, float], anchors: list[tuple[float, float]]) -> None:
    made = intensity.anchors_to_reference(found, REFERENCE)
    np.testing.assert_allclose(made, anchors)
    given, wanted = zip(*made, strict=True)
    assert all(b > a for a, b in zip(given, given[1:], strict=False))
    assert all(b > a for a, b in zip(wanted, wanted[1:], strict=False))


def test_anchors_of_t2w_reach_to_both_sides() -> None:
    reference = {"WM": 200.0, "GM": 300.0, "CSF": 600.0}
    made = intensity.anchors_to_reference({"WM": 40.0, "GM": 80.0, "CSF": 160.0}, reference)
    wanted = [(0, 0), (8, 120), (40, 200), (80, 300), (120, 400), (160, 600)]
    np.testing.assert_allclose(made, wanted)


def test_the_map_keeps_the_tissue_contrast_of_the_image() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([1, 2, 3], 4000).astype(np.uint8)
    volume = np.choose(labels, [0, 25, 70, 100]) + generator.normal(0, 5, labels.size)
    volume = volume.astype(np.float32)
    anchors = intensity.anchors_to_reference({"CSF": 25, "GM": 70, "WM": 100}, REFERENCE)
    mapped = intensity.apply_anchors(volume, anchors)
    for tissue, wanted in ((1, 100), (2, 300), (3, 400)):
        assert np.median(mapped[labels == tissue]) == pytest.approx(wanted, abs=2)
    assert metrics.tct(mapped, labels) == pytest.approx(metrics.tct(volume, labels), rel=0.01)


def test_anchors_without_a_tissue() -> None:
    with pytest.raises(ValueError, match="no tissue"):
        intensity.anchors_to_reference({}, REFERENCE)


def test_apply_anchors_goes_on_with_the_last_slope() -> None:
    volume = np.array([0, 10, 60, 80, 100], np.float32)
    mapped = intensity.apply_anchors(volume, [(0, 0), (60, 300), (80, 400)])
    np.testing.assert_allclose(mapped, [0, 50, 300, 400, 500], rtol=1e-5)


def test_histogram_and_distance() -> None:
    volume = np.array([[[5, 15, 15, 2000]]], np.float32)
    shares = intensity.histogram(volume, volume > 0)
    assert shares[0] == 0.25
    assert shares[1] == 0.5
    assert shares[-1] == 0.25
    first, second = np.zeros(100), np.zeros(100)
    first[10] = second[30] = 1
    assert intensity.histogram_distance(first, second) == pytest.approx(200)  # 20 bins of 10
    assert intensity.histogram_distance(first, first) == 0


def test_tissue_medians() -> None:
    volume = np.concatenate([np.full(60, v, np.float32) for v in (0, 20, 60, 80)])
    shares = np.kron(np.eye(4), np.ones(60)).astype(np.float32)[1:]
    found = intensity.tissue_medians(volume, shares)
    assert found == {"CSF": 20, "GM": 60, "WM": 80}
    assert set(intensity.tissue_medians(volume, shares * 0.5)) == set()


def test_bias_field_is_found() -> None:
    shape = (48, 48, 48)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.8
    tissue = np.where(np.sin(9 * x) * np.sin(9 * y) * np.sin(9 * z) > 0, 100, 60) * mask
    field = np.exp(0.4 * x - 0.2 * y).astype(np.float32)
    field /= np.exp(np.log(field[mask]).mean())
    found = intensity.bias_field((tissue * field).astype(np.float32), mask, np.full(3, 2.0))
    assert found.shape == shape
    assert np.log(found[mask]).mean() == pytest.approx(0, abs=1e-3)
    before = np.log(field[mask]).std()
    assert np.log(found[mask] / field[mask]).std() < 0.35 * before


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_an_image_without_a_field_is_left_as_it_is(noise: float) -> None:
    """Fluid lies in the middle of the brain, which looks like shading to a fine enough spline."""
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    away = np.sqrt((places**2).sum(0))
    mask = away < 0.9
    tissue = np.where(np.sin(9 * places).prod(0) > 0, 100.0, 60.0)
    tissue = np.where(away < 0.25, 30.0, tissue)
    tissue += np.random.default_rng(1).normal(0, noise, tissue.shape)
    volume = (np.maximum(tissue, 0) * mask).astype(np.float32)
    assert (intensity.bias_field(volume, mask, np.full(3, 2.0)) == 1).all()


def test_distance_after_a_map() -> None:
    values = np.full(1_000_000, 50, np.float32)
    reference = np.zeros(100)
    reference[30] = 1  # the bin of 300 to 310
    assert intensity.distance_after(values, [(0, 0), (50, 305)], [reference]) == 0
    assert intensity.distance_after(values, [(0, 0), (50, 205)], [reference]) == pytest.approx(100)


def test_tissues_count_in_the_proportion_that_comes_nearest() -> None:
    tissues = np.zeros((3, 100))
    tissues[[0, 1, 2], [10, 30, 60]] = 1
    given = 0.1 * tissues[0] + 0.9 * tissues[2]
    np.testing.assert_allclose(intensity.nearest_mixture(given, tissues), [0.1, 0, 0.9], atol=1e-6)
    values = np.repeat(np.array([105, 305, 605], np.float32), [50, 20, 30])
    assert intensity.distance_after(values, [(0, 0), (1, 1)], tissues) < 0.01
    assert intensity.distance_after(values, [(0, 0), (1, 0.9)], tissues) > 10
