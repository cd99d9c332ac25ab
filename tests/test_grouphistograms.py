import numpy as np
import pytest
from scipy import stats

from bmex_bids import grouphistograms as gh

EDGES = np.linspace(0, 100, 101).astype(np.float32)


def bell(centre: float, spread: float = 6.0) -> np.ndarray:
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    curve = np.exp(-0.5 * ((middles - centre) / spread) ** 2)
    return (curve / curve.sum()).astype(np.float32)


def run(brain: np.ndarray, **others: np.ndarray) -> dict[str, np.ndarray]:
    return {"Edges": EDGES, "Before": brain, **others}


def test_quantiles_of_a_box() -> None:
    box = ((EDGES[:-1] >= 20) & (EDGES[:-1] < 70)).astype(np.float32)
    found = gh.quantile_functions([run(box), {}], "Before")["Brain"]
    np.testing.assert_allclose(found[0], 20 + 50 * gh.LEVELS, atol=1e-3)
    assert np.isnan(found[1]).all()


def test_distance_is_scipys() -> None:
    runs = [run(bell(30)), run(bell(45, 9)), run(bell(60))]
    quantiles = gh.quantile_functions(runs, "Before")["Brain"]
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    pairs = np.array([[0, 1], [0, 2]])
    for (a, b), found in zip(pairs, gh.distances(quantiles, pairs), strict=True):
        expected = stats.wasserstein_distance(
            middles, middles, runs[a]["Before"], runs[b]["Before"]
        )
        assert found == pytest.approx(expected, rel=0.01)


def test_matching_gives_every_run_the_reference_and_keeps_the_order_of_tissues() -> None:
    reference = bell(50, 12)
    runs = [
        run(0.5 * bell(20) + 0.5 * bell(40), BeforeGM=bell(20), BeforeWM=bell(40),
            Reference=reference),
        run(0.5 * bell(45) + 0.5 * bell(80), BeforeGM=bell(45), BeforeWM=bell(80),
            Reference=reference),
    ]
    before = gh.quantile_functions(runs, "Before")
    found = gh.matched(runs, before, ["24", "24"])
    target = gh.quantile_functions([run(reference)], "Before")["Brain"][0]
    np.testing.assert_allclose(found["Brain"], np.stack([target, target]), atol=0.6)
    assert (found["GM"].mean(axis=1) < found["WM"].mean(axis=1)).all()
    pair = np.array([[0, 1]])
    assert gh.distances(found["GM"], pair) < 0.2 * gh.distances(before["GM"], pair)


def test_without_a_reference_the_mean_of_the_stage_is_the_target() -> None:
    runs = [run(bell(30)), run(bell(50)), run(bell(90))]
    before = gh.quantile_functions(runs, "Before")
    found = gh.matched(runs, before, ["0", "0", "24"])
    np.testing.assert_allclose(found["Brain"][0], before["Brain"][:2].mean(axis=0), atol=0.3)
    np.testing.assert_allclose(found["Brain"][2], before["Brain"][2], atol=0.3)


def test_kinds_of_pairs() -> None:
    sites = ["A", "A", "B", "B", "B"]
    stages = ["24", "24", "24", "24", "0"]
    people = ["1", "2", "1", "3", "4"]
    kinds, sampled = gh.choose_pairs(sites, stages, people)
    assert not sampled
    found = {kind: sorted(map(tuple, pairs.tolist())) for kind, pairs in kinds.items()}
    assert found == {
        "within": [(0, 1), (2, 3)],
        "between": [(0, 3), (1, 2), (1, 3)],
        "travelling": [(0, 2)],
    }


def test_large_groups_are_sampled_the_same_each_time() -> None:
    n = 4000
    sites = ["big"] * (n - 20) + ["small"] * 20
    people = [str(i // 2) for i in range(n)]
    kinds, sampled = gh.choose_pairs(sites, ["24"] * n, people)
    again, _ = gh.choose_pairs(sites, ["24"] * n, people)
    assert sampled
    assert all((kinds[kind] == again[kind]).all() for kind in kinds)
    assert len(kinds["within"]) == gh.MOST_PAIRS
    for kind, pairs in kinds.items():
        first, second = pairs[:, 0], pairs[:, 1]
        assert (first != second).all()
        assert len(np.unique(first * n + second)) == len(pairs)
        same = np.array(sites)[first] == np.array(sites)[second]
        assert same.all() if kind == "within" else not same.any()
        assert (first // 2 != second // 2).all()


def test_site_histograms_on_other_edges_keep_the_mass() -> None:
    other = {"Edges": np.array([0, 50, 100], np.float32), "Before": np.array([0.5, 0.5])}
    grid, (mean, missing) = gh.site_histograms([run(bell(30)), other], "Before", [[0, 1], []])
    assert missing is None and mean is not None
    assert float((mean * np.diff(grid)).sum()) == pytest.approx(1, abs=1e-6)


def test_empty_histograms_are_unknown() -> None:
    runs = [run(np.zeros(100, np.float32)), run(bell(50))]
    before = gh.quantile_functions(runs, "Before")
    assert np.isnan(before["Brain"][0]).all()
    found = gh.matched(runs, before, ["24", "24"])
    assert np.isfinite(found["Brain"][1]).all()
    assert gh.site_histograms(runs, "Before", [[1]])[1][0] is not None
