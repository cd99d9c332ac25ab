"""The experiments in small, and the methods without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bmex_bids import metrics
from bmex_bids.evaluation.baselines.filters import interpolated
from bmex_bids.evaluation.baselines.nlup import consistent, non_local, upsampled
from bmex_bids.evaluation.experiments import (
    ablation,
    bmes,
    frame,
    grid,
    harmonise,
    lesions,
    safeguards,
)
from bmex_bids.evaluation.experiments.brains import Brain, Scene
from bmex_bids.evaluation.experiments.registration import registered, warped
from bmex_bids.evaluation.experiments.segmenting import labels_of
from bmex_bids.spatial import axis_matrix
from bmex_bids.training.degrade import Recipe, conformed, measured
from bmex_bids.training.settings import ARCHITECTURES
from bmex_bids.weights import new_network


def ball() -> Scene:
    """White matter in grey matter in fluid."""
    places = np.indices((32, 32, 32)) - 15.5
    away = np.sqrt((places**2).sum(0))
    tissue = np.select([away < 9, away < 12, away < 15], [3, 2, 1], 0).astype(np.uint8)
    clean = np.array([0, 0.3, 0.7, 1.0], np.float32)[tissue]
    return Scene(clean, clean, tissue, tissue > 0, "T1w-24")


def test_non_local_average_keeps_edges_and_removes_noise():
    step = torch.zeros(16, 16, 16)
    step[8:] = 1
    noisy = step + 0.05 * torch.randn(step.shape, generator=torch.Generator().manual_seed(1))
    made = non_local(noisy, 0.12)
    before, after = (float(((v - step)[4:12] ** 2).mean()) for v in (noisy, made))
    assert after < 0.2 * before


def test_consistency_is_exact_and_changes_nothing_twice():
    down = torch.from_numpy(axis_matrix(24, 1.0, 3.0, 8)).float()
    volume = torch.rand(4, 5, 24, generator=torch.Generator().manual_seed(2))
    measured = torch.rand(4, 5, 8, generator=torch.Generator().manual_seed(3))
    once = consistent(volume, measured, down, 2)
    assert torch.allclose(torch.tensordot(once, down, dims=([2], [1])), measured, atol=1e-4)
    assert torch.allclose(consistent(once, measured, down, 2), once, atol=1e-4)


def test_upsampling_comes_closer_to_the_truth_than_what_it_is_given():
    shown = ball()
    factors = (1.0, 1.0, 3.0)
    coarse = measured(torch.from_numpy(shown.clean), factors)
    thick = conformed(coarse, factors, shown.clean.shape).numpy()
    made = upsampled(3.0)(thick, shown.mask, "T1w-24")
    before, after = (((v - shown.clean)[shown.mask] ** 2).mean() for v in (thick, made))
    assert after < before


@pytest.mark.parametrize("order", [1, 3])
def test_interpolation_leaves_a_ramp_alone(order):
    ramp = np.broadcast_to(np.arange(30, dtype=np.float32), (6, 6, 30)).copy()
    made = interpolated(3, order=order)(ramp, np.ones(ramp.shape, bool), "T1w-24")
    assert np.allclose(made[..., 9:21], ramp[..., 9:21], atol=0.05)


def test_a_lesion_is_there_and_an_erased_one_is_not():
    image, found = lesions.inserted(ball(), 0, each=1)
    for _, mask in found:
        white = ball().tissue == 3
        assert lesions.contrast(image, mask, white) > 0.1
        assert lesions.contrast(ball().clean, mask, white) == pytest.approx(0, abs=1e-6)


def test_labels_of_both_contrasts_and_matching():
    shown = ball()
    noise = np.random.default_rng(0).normal(0, 0.02, shown.clean.shape).astype(np.float32)
    dark = np.where(shown.mask, 1.4 - shown.clean, 0).astype(np.float32)
    for image, condition in ((shown.clean, "T1w-24"), (dark, "T2w-24")):
        found = labels_of((image + noise) * shown.mask, shown.mask, condition, None)
        assert (found == shown.tissue).mean() > 0.98
    bent = np.where(shown.mask, shown.clean**2, 0).astype(np.float32)
    same = harmonise.matched(bent, shown.mask, shown.clean, shown.mask)
    assert np.abs(same - shown.clean)[shown.mask].mean() < 0.02


def test_common_scale_takes_a_gain_away():
    shown = ball()
    (one, trusted), (twice, again) = (
        harmonise.on_common_scale(k * shown.clean, shown.mask, "T1w-24", None)
        for k in (np.float32(1), np.float32(2))
    )
    assert trusted == again
    np.testing.assert_allclose(one, twice, rtol=1e-3, atol=1e-3)
    assert 0.5 < np.median(one[shown.mask]) < 2 and not one[~shown.mask].any()


def test_demons_undo_a_part_of_a_warp():
    shown = ball()
    target, labels = warped(shown.clean, shown.tissue, 1)
    found = registered(target, shown.clean, shown.tissue, 20)
    assert (found == labels).mean() > (shown.tissue == labels).mean()


def test_consistency_is_zero_for_the_same_and_not_for_another():
    shown = ball()
    same = safeguards.consistency(shown.clean, shown.clean, shown.mask)
    other = safeguards.consistency(shown.clean, np.roll(shown.clean, 8, 0), shown.mask)
    assert same == (0, 0) and not metrics.is_contradiction(*same)
    assert min(other) > 0.05 and metrics.is_contradiction(*other)


def test_rows_that_are_there_are_not_made_again(tmp_path):
    path, keys = tmp_path / "rows.tsv", [{"image": "a"}, {"image": "b"}]
    for _, add in frame.fresh(path, keys[:1]):
        add([{"method": "m", "x": 0.5}, {"method": "n", "x": float("nan")}])
    assert [key for key, _ in frame.fresh(path, keys)] == [keys[1]]
    text = frame.table(frame.rows_kept(path), ["method"], {"x": 2})
    assert text.splitlines()[2:] == ["| m | 1 | 0.50 |", "| n | 1 |  |"]


def test_a_method_that_is_added_is_measured_alone_and_its_rows_join_the_others(tmp_path):
    path, keys = tmp_path / "rows.tsv", [{"image": "a"}, {"image": "b"}]
    for names in (["m"], ["m", "n"]):
        wanted = [(key, Recipe()) for key in keys]
        made = []
        for key, _, methods, add in frame.unmeasured(
            path, wanted, lambda recipe, names=names: dict.fromkeys(names, abs)
        ):
            made.append((key["image"], list(methods)))
            add({"method": name, "x": 1.0} for name in methods)
        assert made == [("a", names[-1:]), ("b", names[-1:])]
    lines = frame.table(frame.rows_kept(path), ["image", "method"], {"x": 0}).splitlines()[2:]
    assert [line[:9] for line in lines] == ["| a | m |", "| a | n |", "| b | m |", "| b | n |"]


@pytest.mark.parametrize(("given", "said"), [
    (["--methods", "nonsense"], "nonsense: neither one of bmex, "),
    (["--methods", "ants"], "needs --ants PYTHON"),
    (["--methods", "ants", "--ants", "/no/python"], "--ants /no/python: no such program"),
    (["--conditions", "T9w"], "invalid choice: 'T9w'"),
    (["--conditions", "T2w-9"], "no held-out brain for T2w-9: give --data"),
    (["--data", "/no/data"], "/no/data/label_maps"),
    (["--severities", "terrible"], "invalid choice: 'terrible'"),
])  # fmt: skip
def test_what_cannot_be_used_is_said_in_a_line(given, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        grid.main([*given, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def tiny_experiment(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its quick version on the ball, by the identity."""
    shown = ball()

    def make(recipe: Recipe, seed: int) -> dict[str, torch.Tensor]:
        return {"input": torch.from_numpy(shown.given), "target": torch.from_numpy(shown.clean),
                "tissue": torch.from_numpy(shown.tissue), "brain": torch.from_numpy(shown.mask)}

    monkeypatch.setattr(frame, "held_out", lambda *a, **k: [Brain("ball", "", "T1w-24", make)])
    argv = ["--quick", "--out", str(tmp_path), "--methods", "nlm"]
    assert module.main(argv) == 0
    (folder,) = tmp_path.iterdir()  # of the weights
    assert len(folder.name.removesuffix("-crop64")) == 12
    name = module.__name__.split(".")[-1]
    assert (folder / f"{name}.png").stat().st_size > 1000
    return (folder / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["volumes", "registration", "harmonise"])
def test_experiments_run_and_draw(name, tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module(f"bmex_bids.evaluation.experiments.{name}")
    text = tiny_experiment(module, tmp_path, monkeypatch)
    assert "| input |" in text and "sha256" in text and "ball" in text


def test_labels_of_the_mixture_are_better_than_the_networks(tmp_path, monkeypatch):
    from bmex_bids.evaluation.experiments import labels

    text = tiny_experiment(labels, tmp_path, monkeypatch)
    assert "sha256" in text and "ball" in text and "| clean | known | 1 | 1.000 | 1.000 |" in text
    (folder,) = tmp_path.iterdir()
    rows = {(r["case"], r["labels"]): r for r in frame.rows_kept(folder / "labels.tsv")}
    for tissue in ("CSF", "GM", "WM"):
        plain, mixed = (float(rows["3% noise", n][f"Dice {tissue}"])
                        for n in ("network", "mixture"))
        assert plain < 0.95 < mixed


def sample_of(shown: Scene) -> dict[str, torch.Tensor]:
    """As a pool has it."""
    return {"input": torch.from_numpy(shown.given).half(),
            "target": torch.from_numpy(shown.clean).half(),
            "tissue": torch.from_numpy(shown.tissue),
            "brain": torch.from_numpy(shown.mask.astype(np.uint8)),
            "condition": torch.tensor(1, dtype=torch.uint8)}


def test_the_ablation_has_the_parameters_that_it_says():
    pair = dict(ARCHITECTURES["enhance"])
    whole = ablation.parameters(new_network(pair, "test"))
    for name, (guided, share) in ablation.VARIANTS.items():
        made = new_network(ablation.architecture_of(pair, name), "test")
        assert made.guided is guided
        if share:
            assert abs(ablation.parameters(made.enhance) / whole - share) < 0.03
        else:
            assert made.enhance.down[0].conv1.out_channels == pair["enhance"]["widths"][0]


def test_the_ablation_trains_measures_and_goes_on(tmp_path, monkeypatch, capsys):
    tiny = {"widths": [4, 6], "thin": 0}
    pair = ARCHITECTURES["enhance"] | {"tissue": tiny | {"norm": "layer"}, "enhance": tiny}
    torch.manual_seed(1)
    file = tmp_path / "tiny.safetensors"
    save_file(new_network(pair, "test").state_dict(), file)
    record = replace(frame.record_of(None, "T1w-24"), architecture=pair, file=file.name,
                     directory=tmp_path)
    monkeypatch.setattr(ablation, "record_of", lambda *a: record)
    pool = tmp_path / "pool"
    pool.mkdir()
    real = sample_of(ball())
    real["tissue"].fill_(255)
    for number, sample in enumerate((sample_of(ball()), real)):
        noisy = sample["input"] + 0.1 * torch.rand(32, 32, 32).half()
        sample["input"] = noisy * sample["brain"]
        save_file(sample, pool / f"{number:05}.safetensors")
    argv = [str(pool), str(pool), str(tmp_path / "work"), "--quick"]
    assert ablation.main(argv) == 0
    rows = frame.rows_kept(tmp_path / "work" / "ablation.tsv")
    assert [r["source"] for r in rows] == ["synthetic", "real"] * len(ablation.VARIANTS)
    text = (tmp_path / "work" / "ablation.md").read_text("utf-8")
    assert all(f"| real, degraded | {name} | 1 |" in text for name in ablation.VARIANTS)
    assert (tmp_path / "work" / "ablation.png").stat().st_size > 1000
    assert ablation.main(argv) == 0  # nothing is trained or measured again
    assert frame.rows_kept(tmp_path / "work" / "ablation.tsv") == rows


def test_bmes_learns_through_an_enhancer(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, condition):
            return x, x * self.factor

    save_file(sample_of(ball()), tmp_path / "00000.safetensors")
    unlabelled = sample_of(ball())
    unlabelled["tissue"].fill_(255)
    save_file(unlabelled, tmp_path / "00001.safetensors")
    settings = bmes.Settings(kind="enhance", steps=6, batch=1, patch=16, rate=1e-3)
    network = bmes.Segmenter(4, Scaled())
    losses = bmes.train(network, tmp_path, settings)
    assert np.isfinite(losses).all() and 0 < len(losses) < 6  # not of the image without labels
    assert float(network.enhancer.factor.detach()) != 1  # the gradient reached it
    dice = bmes.dice_of(network, tmp_path, settings)
    assert json.dumps(dice) and all(0 <= value <= 1 for value in dice.values())
