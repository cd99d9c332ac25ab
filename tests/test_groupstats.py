import numpy as np
import pytest
from scipy import stats

from bmex_bids import groupstats as gs


def test_eta_squared_by_hand() -> None:
    # means 1 and 3 around 2: between 4 * 1 = 4, within 4 * 0.25 = 1
    values = np.array([0.5, 1.5, 2.5, 3.5])
    assert gs.eta_squared(values, list("aabb")) == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("values", "groups"), [([1, 2, 3], "aaa"), ([1, 2], "ab"), ([1, 1, 1, 1], "aabb")]
)
def test_eta_squared_is_none_where_it_means_nothing(values: list[float], groups: str) -> None:
    assert gs.eta_squared(np.array(values, float), list(groups)) is None


def test_paired_test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=12)
    after = before + rng.normal(0.5, 1, 12)
    before[3] = np.nan
    test = gs.paired_test(before, after)
    assert test is not None and test.n == 11
    kept = np.isfinite(before)
    expected = stats.ttest_rel(after[kept], before[kept])
    assert test.t_p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    difference = (after - before)[kept]
    assert test.effect == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert test.wilcoxon_p == pytest.approx(stats.wilcoxon(difference).pvalue)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_pairs(n: int) -> None:
    assert gs.paired_test(np.zeros(n), np.arange(n, dtype=float)) is None


def test_equal_differences_have_no_test() -> None:
    assert gs.paired_test(np.arange(8.0), np.arange(8.0) + 1) is None


def test_shares_of_a_site_effect_and_an_age_effect() -> None:
    ages = np.tile(np.array([1.0, 10, 100, 400]), 10)
    sites = ["a"] * 20 + ["b"] * 20
    growth = np.log(ages + gs.MONTHS_TO_BIRTH)
    pure_age = gs.variance_shares(growth, sites, ages)
    assert pure_age is not None and pure_age.age is not None
    assert pure_age.site == pytest.approx(0, abs=1e-9) and pure_age.age == pytest.approx(1)
    assert pure_age.chance == pytest.approx(1 / 39)
    shift = np.array([0.0] * 20 + [1.0] * 20)
    pure_site = gs.variance_shares(shift, sites, ages)
    assert pure_site is not None and pure_site.age_beyond_site is not None
    assert pure_site.site == pytest.approx(1)
    assert pure_site.age_beyond_site == pytest.approx(0, abs=1e-9)


def test_confounded_site_and_age_explain_nothing_beyond_each_other() -> None:
    ages = np.array([10.0] * 6 + [100.0] * 6)
    sites = ["a"] * 6 + ["b"] * 6
    values = np.array([0.0, 1] * 3 + [5.0, 6] * 3)
    shares = gs.variance_shares(values, sites, ages)
    assert shares is not None
    assert shares.age == pytest.approx(shares.site)
    assert shares.site_beyond_age == pytest.approx(0, abs=1e-9)


def test_shares_without_ages() -> None:
    shares = gs.variance_shares(np.array([0.0, 1, 4, 5]), list("aabb"), np.full(4, np.nan))
    assert shares is not None and shares.age is None and shares.site == pytest.approx(16 / 17)


def test_robust_z() -> None:
    z = gs.robust_z(np.array([1.0, 2, 3, 4, 100, np.nan]))
    assert z[2] == 0 and z[4] == pytest.approx(0.6745 * 97) and np.isnan(z[5])
    assert np.isnan(gs.robust_z(np.array([1.0, 1, 1, 5]))).all()
    assert np.isnan(gs.robust_z(np.array([np.nan]))).all()


def test_distance_is_the_shift_and_agrees_with_scipy() -> None:
    grid = np.linspace(0, 10, 101)
    box = ((grid[:-1] >= 2) & (grid[:-1] < 3)).astype(float)
    rows = np.stack([box, np.roll(box, 20), np.roll(box, 50)])
    distances = gs.pairwise_distances(grid, rows)
    np.testing.assert_allclose(distances, [2, 5, 3], rtol=1e-6)
    centres = (grid[1:] + grid[:-1]) / 2
    assert distances[0] == pytest.approx(
        stats.wasserstein_distance(centres, centres, rows[0], rows[1])
    )


def test_other_edges_keep_the_mass() -> None:
    edges = np.array([0.0, 1, 2])
    moved = gs.densities_on(np.array([0.0, 0.5, 1, 4]), edges, np.array([0.25, 0.75]))
    np.testing.assert_allclose(moved, [0.25, 0.25, 0.25])


@pytest.mark.parametrize(("share", "expected"), [(0.25, 1), (0.5, 1.5), (0.875, 2.5)])
def test_quantile(share: float, expected: float) -> None:
    grid = np.array([0.0, 1, 2, 3])
    rows = np.array([[0.25, 0.5, 0.25]])
    np.testing.assert_allclose(gs.quantile(grid, rows, share), [expected])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([300, 300.1, np.nan], True), ([300, 303], False), ([np.nan], False), ([0, 0], True)],
)
def test_is_constant(values: list[float], expected: bool) -> None:
    assert gs.is_constant(np.array(values)) is expected
