"""The training loop: exact resume, settings, optimisers, several processes, validation, journal."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmex_bids.inference import Compute
from bmex_bids.training import architectures, journal, loop, objective, samples, train, validate
from bmex_bids.training.settings import ARCHITECTURES, Settings, SettingsError
from bmex_bids.training.stages import CONDITIONS

UNET = {"widths": [4, 6], "thin": 2, "norm": "none"}
PAIR = {"name": "TissueGuidedUNet", "tissue": UNET, "enhance": UNET}
NETWORKS: dict[str, dict[str, Any]] = {
    "pair": PAIR,
    "conditional": PAIR | {"conditions": len(CONDITIONS)},
    "normed": PAIR | {part: UNET | {"norm": "batch"} for part in ("tissue", "enhance")},
    "slices": PAIR | {"enhance": {"slices": 3, "widths": [4, 6], "norm": "layer"}, "reach": 1},
    "published": {"name": "BMEXPair", "width": 4},
    "mask": {"name": "UNet", "inputs": 1, "outputs": 1, **UNET},
}


def settings(network: str = "pair", **given: Any) -> Settings:
    kind = "brainmask" if network == "mask" else "enhance"
    values = {"steps": 4, "batch": 1, "patch": 16, "device": "cpu", "every": 2}
    values |= {"validate_every": 2, "precision": "float32", "architecture": NETWORKS[network]}
    return Settings(kind, **(values | given))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three brains of two tissues, of which one is brighter, with noise in the input."""
    folder = tmp_path_factory.mktemp("pool")
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        brain = torch.zeros(24, 22, 26, dtype=torch.uint8)
        brain[4:20, 4:18, 4:22] = 1
        tissue = brain * 2
        tissue[8:16, 8:14, 8:18] = 3
        target = tissue / 2.5
        given = (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp_min(0) * brain
        sample = {"input": given.half(), "target": target.half(), "tissue": tissue, "brain": brain}
        if number:
            sample["condition"] = torch.tensor(number + 5, dtype=torch.uint8)
        save_file(sample, folder / f"{number}.safetensors")
    return folder


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, pool: Path) -> Path:
    """Two of the brains, the first of which does not say its condition."""
    folder = tmp_path_factory.mktemp("held")
    for name in ("0.safetensors", "1.safetensors"):
        (folder / name).write_bytes((pool / name).read_bytes())
    return folder


class Killed(Exception):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process, as it were, after the log was written and before the checkpoint."""
    save = loop._save

    def stop(path: Path, parts: Any, progress: Any, *rest: Any) -> None:
        if progress.step == step:
            raise Killed
        save(path, parts, progress, *rest)

    monkeypatch.setattr(loop, "_save", stop)


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_killed_run_goes_on_exactly(
    tmp_path: Path, pool: Path, held: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BMEXPair has dropout, so that the layers' own random numbers have to go on, too."""
    chosen = settings(network)
    watched = None if network == "published" else held  # which would take long
    whole = loop.train(chosen, pool, tmp_path / "a", validation=watched)
    with monkeypatch.context() as patched:
        killed_at(4, patched)
        with pytest.raises(Killed):
            loop.train(chosen, pool, tmp_path / "b", validation=watched)
    torch.rand(3)  # whatever happened in between
    resumed = loop.train(chosen, pool, tmp_path / "b", validation=watched)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    for table in ("log.csv", "validation.csv"):
        first, second = (journal.read_rows(tmp_path / f / table) for f in "ab")
        assert [r["step"] for r in second] == [r["step"] for r in first]
        for one, two in zip(first, second, strict=True):
            for key in set(one) - {"seconds"}:
                assert two[key] == pytest.approx(one[key], nan_ok=True, abs=0, rel=0), key
    if watched is None:
        return
    best = [torch.load(tmp_path / f / "best.pt", weights_only=True) for f in "ab"]
    assert best[0]["step"] == best[1]["step"]
    assert best[0]["validation"]["loss"] == best[1]["validation"]["loss"]


def test_a_finished_run_is_only_read(tmp_path: Path, pool: Path) -> None:
    first = weights(loop.train(settings(), pool, tmp_path))
    again = loop.train(settings(), tmp_path / "no such pool", tmp_path)
    for name, value in again.state_dict().items():
        assert torch.equal(value, first[name])


def test_other_settings_are_refused(tmp_path: Path, pool: Path) -> None:
    loop.train(settings(), pool, tmp_path)
    with pytest.raises(SettingsError, match=r"rate was 0\.0015, now 0\.1.*--allow-changes"):
        loop.train(settings(rate=0.1), pool, tmp_path)
    with pytest.raises(SettingsError, match="architecture was"):
        loop.train(settings("conditional"), pool, tmp_path)
    with pytest.raises(SettingsError, match="kind was 'enhance', now 'brainmask'"):
        loop.train(settings("mask"), pool, tmp_path)
    loop.train(settings(every=1, validate_every=1), pool, tmp_path)  # when it reports is free
    loop.train(settings(steps=6), pool, tmp_path, allow_changes=True)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6


@pytest.mark.parametrize("network", ["pair", "normed"])
@pytest.mark.parametrize("part", ["tissue", "enhance"])
def test_a_weight_of_zero_keeps_that_half_as_it_is(
    tmp_path: Path, pool: Path, part: str, network: str
) -> None:
    torch.manual_seed(settings().seed)
    fresh = architectures.build(NETWORKS[network]).state_dict()
    chosen = settings(network, rate=1e-2, **{f"{part}_weight": 0.0})
    trained = loop.train(chosen, pool, tmp_path / "run").state_dict()
    for name, value in trained.items():
        same = torch.allclose(value, fresh[name], atol=1e-6)
        if network == "normed" and "conv" in name and name.endswith("bias"):
            continue  # what a batch norm takes away again has no gradient
        assert same == name.startswith(f"{part}."), name


def test_patch_has_to_fit_the_network(tmp_path: Path, pool: Path) -> None:
    with pytest.raises(SettingsError, match="patch 18: expected a multiple of 4"):
        loop.train(settings(patch=18), pool, tmp_path)
    with pytest.raises(SettingsError, match="depth 6: expected a multiple of 4"):
        loop.train(settings("slices", depth=6), pool, tmp_path)
    with pytest.raises(SettingsError, match="depth 8: only for an enhancer of slices"):
        settings(depth=8)
    with pytest.raises(SettingsError, match="length 18: expected a multiple of 4"):
        loop.train(settings(length=18), pool, tmp_path)
    with pytest.raises(SettingsError, match="length 16: not for an enhancer of slices"):
        settings("slices", length=16)
    with pytest.raises(FileNotFoundError, match="no samples in"):
        loop.train(settings(), tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("depth", [0, 8])
def test_slices_are_drawn_along_every_axis(pool: Path, depth: int) -> None:
    chosen = settings("slices", steps=12, depth=depth, patch=24)
    lines = set()
    for read in samples.read_ahead(pool, chosen, torch.Generator().manual_seed(1), 0):
        brain = read.batch["brain"][0]
        assert brain.shape == (depth or 24, 24, 24)
        # the brain is 16, 14 and 18 voxels long
        lines.add(tuple(int(brain.amax(tuple({0, 1, 2} - {a})).sum()) for a in (1, 2)))
    assert len({tuple(sorted(both)) for both in lines}) == 3


def test_long_patches_lie_along_every_axis_most_often_the_second(pool: Path) -> None:
    chosen = settings(steps=40, batch=2, patch=8, length=24)
    reads = samples.read_ahead(pool, chosen, torch.Generator().manual_seed(1), 0)
    shapes = [tuple(read.batch["input"].shape) for read in reads]
    counts = [shapes.count((2, *(24 if a == axis else 8 for a in range(3)))) for axis in range(3)]
    assert sum(counts) == 40 and min(counts) > 0 and counts[1] == max(counts)


def test_slices_take_nothing_over_from_volumes() -> None:
    cubes, thin = (architectures.build(NETWORKS[name]) for name in ("pair", "slices"))
    before = weights(thin)
    taken, _ = architectures.take_over(thin, cubes.state_dict())
    assert taken == sum(name.startswith("tissue.") for name in before)
    for name, value in thin.state_dict().items():
        other = before[name] if name.startswith("enhance.") else cubes.state_dict()[name]
        assert torch.equal(value, other), name


@pytest.mark.parametrize(
    ("network", "steps", "given"),
    [
        ("pair", 16, {"rate": 1e-2}),
        ("pair", 16, {"optimiser": "sgd", "rate": 0.02, "schedule": "tenth", "weight_decay": 0.0}),
        ("conditional", 16, {"rate": 1e-2, "precision": "auto", "schedule": "constant"}),
        ("slices", 16, {"rate": 1e-2, "depth": 8, "patch": 20}),
        ("pair", 16, {"rate": 1e-2, "patch": 12, "length": 24}),
        ("published", 12, {"rate": 3e-3}),
        ("mask", 16, {"rate": 1e-2}),
    ],
)
def test_training_learns(
    tmp_path: Path, pool: Path, held: Path, network: str, steps: int, given: dict[str, Any]
) -> None:
    chosen = settings(network, steps=steps, every=steps, validate_every=steps, warmup=2,
                      average=0.8, **given)
    trained = loop.train(chosen, pool, tmp_path, validation=held)
    rows = journal.read_rows(tmp_path / "validation.csv")
    assert [row["step"] for row in rows] == [0, steps]
    assert rows[1]["loss"] < rows[0]["loss"] - 0.05
    assert not trained.training


def test_starting_from_another_network(tmp_path: Path, pool: Path) -> None:
    """Weights that fit are taken over: a rate of 0 leaves them as they are."""
    first = weights(loop.train(settings(rate=1e-2), pool, tmp_path / "a"))
    state = architectures.averaged_state(tmp_path / "a" / "checkpoint.pt")
    kept = loop.train(settings(rate=0.0), pool, tmp_path / "b", start=state)
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(value, first[name], msg=name)
    wider = PAIR | {"enhance": UNET | {"widths": [5, 6]}, "classes": 5}
    grown = loop.train(
        settings(rate=0.0, architecture=wider), pool, tmp_path / "c", start=state
    ).state_dict()
    name = "tissue.down.0.conv1.weight"
    torch.testing.assert_close(grown[name], first[name])
    name = "enhance.down.0.conv1.weight"  # image and four classes, then the fifth
    torch.testing.assert_close(grown[name][:4, :40], first[name])
    assert not grown[name][:, 40:].any()


def test_starting_from_shipped_weights(tmp_path: Path, pool: Path) -> None:
    """A model's own file, float16, is taken like a checkpoint."""
    torch.manual_seed(1)
    given = {key: value.half() for key, value in architectures.build(PAIR).state_dict().items()}
    save_file(given, tmp_path / "model.safetensors")
    state = architectures.averaged_state(tmp_path / "model.safetensors")
    kept = loop.train(settings(rate=0.0), pool, tmp_path / "out", start=state).state_dict()
    assert given.keys() == kept.keys()
    for name, value in kept.items():
        torch.testing.assert_close(value, given[name].float(), msg=name)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_without_a_finite_gradient_is_left_out(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    """The second of two gradients is infinite: the run is told so, and ends where the first led."""
    forward, steps = loop.forward, []

    def overflowing(*given: Any, **options: Any) -> tuple[torch.Tensor, Any]:
        loss, record = forward(*given, **options)
        steps.append(loss)
        return loss * (math.inf if len(steps) == 2 else 1.0), record

    monkeypatch.setattr(loop, "forward", overflowing)
    chosen = {"schedule": "constant", "rate": 1e-2, "every": 1, "clip": clip}
    one = weights(loop.train(settings(steps=1, **chosen), pool, tmp_path / "one"))
    steps.clear()
    with pytest.warns(UserWarning, match="step 2: gradient is not finite, left out"):
        two = weights(loop.train(settings(steps=2, **chosen), pool, tmp_path / "two"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 0, 0.5), ("cosine", 1, 0.5 * (1 + math.cos(math.pi / 10))), ("cosine", 5, 0.5),
        ("tenth", 1, 1.0), ("tenth", 2, 0.1), ("tenth", 9, 1e-4), ("constant", 9, 1.0),
    ],
)
def test_learning_rate(schedule: str, step: int, expected: float) -> None:
    chosen = settings(steps=10, rate=1.0, warmup=2, schedule=schedule)
    assert loop._rate(chosen, step) == pytest.approx(expected)


def test_the_enhancer_has_a_rate_of_its_own() -> None:
    for network in ("pair", "published"):
        built = architectures.build(NETWORKS[network])
        parameters, shares = architectures.groups(built, 0.7)
        assert shares == [1.0, 0.7]
        assert sum(len(some) for some in parameters) == len(list(built.parameters()))
    built = architectures.build(NETWORKS["published"])
    names = {id(p): n for n, p in built.named_parameters()}
    parameters, _ = architectures.groups(built, 0.7)
    assert "conv32.weight" in {names[id(p)] for p in parameters[0]}
    assert {"conv32_recon.weight", "conv1_con.bias"} <= {names[id(p)] for p in parameters[1]}


def test_an_untrained_pair_starts_as_the_identity() -> None:
    network = train.build(ARCHITECTURES["enhance"]).eval()
    volume = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scores, enhanced = network(volume)
    assert scores.shape == (1, 5, 32, 32, 32)  # with lesions
    assert float((enhanced - volume).abs().max()) < 0.05


def test_the_loss_by_hand() -> None:
    """A sample off by 0.06 everywhere counts 2 * 0.04 / (0.06 + 0.04) = 0.8 times."""
    one = torch.ones(1, 2, 2, 2)
    batch = {"input": one * 1.06, "target": one, "brain": one, "tissue": one * 255}
    scores, enhanced = torch.zeros(1, 4, 2, 2, 2), one[None] * 1.5
    plain = {"absolute": 1.0, "log_squared": 0.0, "enhance_weight": 3.0}
    weighed, record = objective.pair_objective(scores, enhanced, batch, settings(**plain))
    assert float(weighed) == pytest.approx(3 * 0.8 * 0.5)
    assert float(record["tissue"]) == 0  # no voxel's class is known
    alike, _ = objective.pair_objective(scores, enhanced, batch, settings(balance=0.0, **plain))
    assert float(alike) == pytest.approx(3 * 0.5)
    found, record = objective.pair_objective(scores, enhanced, batch, settings(enhance_weight=2.0))
    assert float(found) == pytest.approx(2 * math.log(0.25 + 5e-5))
    assert float(record["gain"]) == pytest.approx(
        10 * math.log10((0.06**2 + 5e-5) / (0.25 + 5e-5)), abs=1e-4
    )
    lesion = batch | {"tissue": one * 4}  # which four classes leave out, and five learn
    for classes, expected in ((4, 0.0), (5, math.log(5))):
        scores = torch.zeros(1, classes, 2, 2, 2)
        _, record = objective.pair_objective(scores, enhanced, lesion, settings())
        assert float(record["tissue"]) == pytest.approx(expected)


def test_validation_by_hand(pool: Path) -> None:
    """The identity gains nothing; a network that knows the truth has Dice 1."""
    truth = load_file(pool / "0.safetensors")

    class Oracle(torch.nn.Module):
        multiple, live_channels = 1, 1

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            classes = torch.nn.functional.one_hot(truth["tissue"].long(), 4).movedim(-1, 0)
            return 50.0 * classes[None], x

    row = validate.validate(
        Oracle(), [pool / "0.safetensors"], settings(), Compute("cpu", "float32")
    )
    assert row["psnr_gain"] == 0
    inside = truth["brain"] > 0
    error = (truth["input"].float() - truth["target"].float())[inside]
    assert row["psnr"] == pytest.approx(float(-10 * torch.log10((error**2).mean())), abs=1e-4)
    assert (row["dice_gm"], row["dice_wm"]) == (1, 1)
    assert math.isnan(row["dice_csf"])


def test_a_growing_pool_is_seen_at_the_next_report(tmp_path: Path, pool: Path) -> None:
    growing = tmp_path / "pool"
    growing.mkdir()
    save_file(load_file(pool / "0.safetensors"), growing / "0.safetensors")
    reader = samples.read_ahead(growing, settings(steps=6), torch.Generator(), 0)
    assert next(reader).pool == 1
    save_file(load_file(pool / "1.safetensors"), growing / "1.safetensors")
    assert [read.pool for read in reader][-1] == 2


def test_journal_keeps_the_columns_of_a_table_that_is_there(tmp_path: Path) -> None:
    """A run that another version began has other columns; its rows must stay readable."""
    table = tmp_path / "validation.csv"
    table.write_text("step,loss,gone\n1.0,0.5,2.0\n", encoding="utf-8")
    with journal.opened(tmp_path, settings(), 1) as notes:
        notes.validated({"step": 2.0, "loss": 0.25, "new": 7.0})
    with journal.opened(tmp_path, settings(), 2):
        rows = journal.read_rows(table)
    assert [(row["step"], row["loss"]) for row in rows] == [(1.0, 0.5), (2.0, 0.25)]
    assert math.isnan(rows[1]["gone"]) and "new" not in rows[1]


def test_journal_cuts_what_a_kill_left(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n2.0,1\n4.0,1\n6.0,1\n8.0")
    with journal.opened(tmp_path, settings(), 4) as notes:
        notes.trained({"step": 5.0, "loss": 2.0}, 8)
    with open(tmp_path / "log.csv", newline="", encoding="utf-8") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2.0", "4.0", "5.0"]


def test_tensorboard_gets_the_curves(tmp_path: Path, pool: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    loop.train(settings(), pool, tmp_path, validation=pool)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert {"train/tissue", "train/enhance", "validation/loss", "validation/psnr_gain"} <= set(
        found.Tags()["scalars"]
    )
    log = journal.read_rows(tmp_path / "log.csv")
    told = [(event.step, event.value) for event in found.Scalars("train/enhance")]
    assert told == [(int(r["step"]), pytest.approx(r["enhance"])) for r in log]


def test_two_processes_average_their_gradients(tmp_path: Path, pool: Path) -> None:
    """One plain step of gradient descent goes along the mean of both processes' gradients."""
    plain = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip": 0.0, "rate": 0.1,
             "steps": 1, "warmup": 1, "schedule": "constant", "enhance_share": 1.0}
    config = tmp_path / "train.toml"
    chosen = settings(**plain)
    from bmex_bids.training.settings import to_toml

    config.write_text(to_toml(chosen))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         "-m", "bmex_bids.training.train", "enhance", str(pool), str(tmp_path / "two"),
         "--steps", "1", "--config", str(config)],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    moved = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    compute = Compute("cpu", "float32")
    gradients = []
    for rank in range(2):
        parts = loop._fresh(chosen, compute, loop.Ranks(rank, 2, "cpu"))
        read = next(samples.read_ahead(pool, chosen, parts.generator, 0))
        loss, _ = objective.forward(parts.network.train(), read.batch, chosen)
        loss.backward()
        gradients.append({n: p.grad for n, p in parts.network.named_parameters()})
        begin = {n: p.detach() for n, p in parts.network.named_parameters()}
    for name, value in begin.items():
        one, two = gradients[0][name], gradients[1][name]
        assert one is not None and two is not None
        expected = value - 0.1 * (one + two) / 2
        torch.testing.assert_close(moved["network"][name], expected)
    assert len(moved["random"]) == 2
    with pytest.raises(SettingsError, match="2 processes trained, now 1"):
        loop.train(chosen, pool, tmp_path / "two")


def test_fresh_noise_replaces_the_degraded_patch(tmp_path: Path) -> None:
    clean = torch.full((32, 32, 32), 1.0)
    brain = torch.ones(32, 32, 32, dtype=torch.uint8)
    brain[:4] = 0
    sample = {"input": 3 * clean, "target": clean * brain, "tissue": brain.clone(), "brain": brain}
    save_file({k: v.half() if k in ("input", "target") else v for k, v in sample.items()},
              tmp_path / "0.safetensors")
    for share, close in ((0.0, 3.0), (0.999, 1.0)):
        given = settings(batch=4, patch=32, steps=2, fresh_noise=share)
        read = next(samples.read_ahead(tmp_path, given, torch.Generator().manual_seed(1), 0))
        inside = read.batch["brain"] > 0
        ratio = read.batch["input"][inside] / read.batch["target"][inside]
        assert float(ratio.mean()) == pytest.approx(close, abs=0.02)
        if share:
            assert not bool(read.batch["input"][~inside].any())
            spread = (read.batch["input"] - read.batch["target"]).flatten(1).std(1)
            assert 0 < float(spread.min()) < float(spread.max()) < 0.12  # each patch its own
