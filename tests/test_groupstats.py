import numpy as np
import pytest
from scipy import stats

from bmex_bids import groupstats as gs


def column(values: object) -> np.ndarray:
    return np.asarray(values, float)[:, None]


def test_eta_squared_by_hand() -> None:
    # means 1 and 3 around 2: between 4 * 1 = 4, within 4 * 0.25 = 1
    values = np.array([0.5, 1.5, 2.5, 3.5])
    assert gs.eta_squared(values, list("aabb")) == pytest.approx(4 / 5)
    # a second feature without any effect adds 4 to the total only
    both = np.column_stack([values, [1, -1, 1, -1]])
    assert gs.eta_squared(both, list("aabb")) == pytest.approx(4 / 9)


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


def test_explained_is_the_r_squared_of_a_regression() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=30), rng.normal(size=30)
    expected = stats.pearsonr(x, y).statistic ** 2
    assert gs.explained(column(y), column(x)) == pytest.approx(expected)
    sites = list("abc" * 10)
    assert gs.explained(column(y), gs.dummies(sites)) == pytest.approx(gs.eta_squared(y, sites))


def test_permutation_p_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    sites = ["a"] * 9 + ["b"] * 12
    values = np.column_stack([rng.normal(size=21), rng.normal(size=21)])
    values[:9, 0] += 0.8
    values[:9, 1] += 50
    slices = {"weak": slice(0, 1), "strong": slice(1, 2)}
    found = gs.permutation_p(values, slices, sites, [str(i) for i in range(21)])
    expected = stats.f_oneway(values[:9, 0], values[9:, 0]).pvalue
    assert found["weak"] == pytest.approx(expected, abs=0.03)
    assert found["strong"] == 0.001  # the least that 999 permutations can give


def test_repeated_runs_of_a_participant_are_no_evidence() -> None:
    # two participants per site, ten runs each: a difference that single runs would prove
    sites, blocks = ["a"] * 20 + ["b"] * 20, [str(i // 10) for i in range(40)]
    values = column([0.0] * 10 + [1.0] * 10 + [3.0] * 10 + [4.0] * 10)
    slices = {"x": slice(0, 1)}
    single = gs.permutation_p(values, slices, sites, [str(i) for i in range(40)])["x"]
    assert single == 0.001
    assert gs.permutation_p(values, slices, sites, blocks)["x"] > 0.2


def test_shares_of_a_site_effect_and_an_age_effect() -> None:
    months = np.tile(np.array([1.0, 10, 100, 400]), 10)
    sites = ["a"] * 20 + ["b"] * 20
    ages = {"age": column(gs.log_age(months))}
    pure_age = gs.variance_shares(gs.log_age(months), sites, ages)
    assert pure_age is not None
    assert pure_age.site == pytest.approx(0, abs=1e-9)
    assert pure_age.alone["age"] == pytest.approx(1)
    assert pure_age.beyond_site["age"] == pytest.approx(1)
    assert pure_age.chance == pytest.approx(1 / 39)
    pure_site = gs.variance_shares(np.array([0.0] * 20 + [1.0] * 20), sites, ages)
    assert pure_site is not None and pure_site.site == pytest.approx(1)
    assert pure_site.site_beyond == pytest.approx(1)
    assert pure_site.beyond_site["age"] == pytest.approx(0, abs=1e-9)


def test_confounded_site_and_age_explain_nothing_beyond_each_other() -> None:
    ages = {"age": column([10.0] * 6 + [100.0] * 6)}
    values = np.array([0.0, 1] * 3 + [5.0, 6] * 3)
    shares = gs.variance_shares(values, ["a"] * 6 + ["b"] * 6, ages)
    assert shares is not None
    assert shares.alone["age"] == pytest.approx(shares.site)
    assert shares.site_beyond == pytest.approx(0, abs=1e-9)


def test_runs_of_unknown_age_count_for_site_alone() -> None:
    values = np.array([0.0, 1, 4, 5])
    shares = gs.variance_shares(values, list("aabb"), {"age": column([np.nan] * 4)})
    assert shares is not None and shares.alone == {} and shares.site == pytest.approx(16 / 17)
    assert shares.site_beyond is None


def test_age_before_birth_and_impossible_ages() -> None:
    found = gs.log_age(np.array([-2.0, 0, -20, np.nan]))
    np.testing.assert_allclose(found[:2], np.log([7.2, 9.2]))
    assert np.isnan(found[2:]).all()


def test_site_spread_by_hand() -> None:
    between, total = gs.site_spread(np.array([0.0, 2, 4, 6]), list("aabb"))
    assert between == pytest.approx(np.std([1, 5], ddof=1))
    assert total == pytest.approx(np.std([0, 2, 4, 6], ddof=1))


def test_robust_z() -> None:
    z = gs.robust_z(np.array([1.0, 2, 3, 4, 100, np.nan]))
    assert z[2] == 0 and z[4] == pytest.approx(0.6745 * 97) and np.isnan(z[5])
    assert np.isnan(gs.robust_z(np.array([1.0, 1, 1, 5]))).all()
    assert np.isnan(gs.robust_z(np.array([np.nan]))).all()
