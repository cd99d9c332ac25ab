import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bmex_bids.groupclassifier import Folds, _auc, classify, make_folds
from bmex_bids.groupcombat import combat

SITES = [f"site {i % 3}" for i in range(60)]
PEOPLE = [f"sub-{i:02d}" for i in range(60)]
ALL = np.ones(60, bool)


def folds_of(sites: list[str] = SITES, people: list[str] = PEOPLE) -> Folds:
    folds = make_folds(sites, people, np.ones(len(sites), bool), seed=0)
    assert isinstance(folds, Folds)
    return folds


def test_clear_sites_are_told_apart_and_equal_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 8))
    shift = np.array([int(site[-1]) for site in SITES])[:, None] * 5.0
    clear, none = classify(noise + shift, folds_of()), classify(noise, folds_of())
    assert clear is not None and clear.auc > 0.99 and clear.n == 60 and clear.sites == 3
    assert none is not None and none.low < 0.5 < none.high + 0.1
    assert 0.3 < none.auc < 0.7


def test_auc_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    site = rng.integers(0, 3, 50)
    scores = rng.dirichlet([1, 1, 1], 50)
    assert _auc(scores, site) == pytest.approx(
        roc_auc_score(site, scores, multi_class="ovr", average="macro")
    )


def test_a_participant_is_never_in_training_and_test() -> None:
    people = [f"sub-{i // 4}" for i in range(60)]
    folds = folds_of(["a" if i < 32 else "b" for i in range(60)], people)
    for person in np.unique(folds.people):
        assert len(np.unique(folds.fold[folds.people == person])) == 1


def test_a_site_that_is_only_one_person_cannot_be_learnt_from_that_person() -> None:
    """Runs of one person are alike; a classifier that saw them in training would seem to work."""
    rng = np.random.default_rng(2)
    people = [f"sub-{i // 4:02d}" for i in range(80)]
    own = {person: rng.normal(size=6) for person in sorted(set(people))}
    features = np.array([own[p] for p in people]) + rng.normal(0, 0.01, (80, 6))
    sites = ["a" if int(p[-2:]) % 2 else "b" for p in people]
    found = classify(features, folds_of(sites, people))
    assert found is not None and found.auc < 0.75


@pytest.mark.parametrize(
    ("sites", "words"), [(["a"] * 60, "is one"), ([str(i) for i in range(60)], "is none")]
)
def test_too_few_sites_are_said(sites: list[str], words: str) -> None:
    found = make_folds(sites, PEOPLE, ALL, seed=0)
    assert isinstance(found, str) and words in found


def test_small_sites_are_left_out() -> None:
    folds = folds_of([*SITES[:58], "tiny", "tiny"])
    assert folds.left_out == ("tiny",) and len(folds.rows) == 58


def test_constant_features_cannot_be_classified() -> None:
    assert classify(np.ones((60, 3)), folds_of()) is None


def quantiles(shift: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    site = np.array([int(name[-1]) for name in SITES])[:, None]
    base = np.linspace(0, 60, 50)[None] + rng.normal(0, 4, (60, 1)) + rng.normal(0, 0.3, (60, 50))
    moved = base + shift * site
    return {"GM": moved.astype(np.float32), "WM": (moved + 100).astype(np.float32)}


def test_combat_removes_site_and_keeps_age() -> None:
    age = np.random.default_rng(4).normal(size=(60, 1))
    given = {part: values + (10 * age).astype(np.float32) for part, values in quantiles(25).items()}
    found = combat(given, SITES, {"age": age})
    assert found.words[0] == "ComBat preserved age."
    means = found.quantiles["GM"].mean(axis=1)
    per_site = [means[np.array(SITES) == site].mean() for site in sorted(set(SITES))]
    assert np.ptp(per_site) < 6  # 50 before
    assert np.corrcoef(means, age[:, 0])[0, 1] > 0.85
    assert found.adjust is not None
    known, asked = found.adjust(np.arange(48), np.arange(48, 60))
    assert known.shape == (48, 100) and asked.shape == (12, 100)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([[np.nan]] + [[1.0]] * 59, "not known for every run"),
        ([[2.0]] * 60, "the same in every run"),
        ([[float(s[-1])] for s in SITES], "cannot be told apart from site"),
    ],
)
def test_combat_says_what_it_cannot_preserve(values: list[list[float]], why: str) -> None:
    found = combat(quantiles(5), SITES, {"age": np.array(values)})
    assert any(why in text for text in found.words) and found.quantiles


def test_combat_needs_sites_and_tissues() -> None:
    assert "two sites" in combat(quantiles(5), ["a"] * 60, {}).words[0]
    assert "no sidecar" in combat({}, SITES, {}).words[0]
    left = combat(quantiles(5), [*SITES[:58], "tiny", "tiny"], {})
    assert "leaves out" in left.words[0] and np.isnan(left.quantiles["GM"][58:]).all()


def test_combat_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "combatlearn", None)
    assert "pip install" in combat(quantiles(5), SITES, {}).words[0]
