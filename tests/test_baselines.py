"""Methods on slices: networks, losses, training, and what becomes of them in the app."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import make_models
from safetensors.torch import save_file

from bmex_bids import weights
from bmex_bids.duncan import Corrector, SlicePair
from bmex_bids.evaluation.baselines import train as training
from bmex_bids.evaluation.baselines.methods import METHODS, Duncan
from bmex_bids.evaluation.baselines.renew import renew
from bmex_bids.evaluation.baselines.slices import Slices, read_slices, steps_of
from bmex_bids.evaluation.baselines.train import Run, export, main, train
from bmex_bids.inference import Compute, enhance_volume
from bmex_bids.networks import TissueGuidedUNet
from bmex_bids.training.export import enter

TISSUE = {"widths": [4, 6], "thin": 0, "norm": "layer"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples whose input is their target and noise; every sample has a level of its own."""
    folder = tmp_path_factory.mktemp("slices")
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        brain = torch.zeros(24, 28, 26, dtype=torch.uint8)
        brain[4:20, 4:24, 4:22] = 1
        target = brain.float() * (1 + number)
        noise = 0.1 * torch.randn(target.shape, generator=generator) * brain
        sample = {"input": (target + noise).half(), "target": target.half(), "brain": brain}
        save_file(sample, folder / f"{number:05d}.safetensors")
    return folder


def random_slices() -> Slices:
    generator = torch.Generator().manual_seed(0)
    return Slices(*(torch.rand(2, 1, 32, 32, generator=generator) for _ in range(3)))


def test_corrector_begins_close_to_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 32, 24)
    assert (Corrector(4, 1)(x) - x).abs().max() < 0.05


def test_volume_is_the_mean_over_three_axes() -> None:
    torch.manual_seed(0)
    corrector = Corrector(4, 1)
    torch.nn.init.normal_(corrector.decode.head.weight, std=0.1)
    x = torch.rand(2, 1, 8, 16, 24)
    expected = torch.zeros_like(x)
    for i in range(8):
        expected[:, :, i] += corrector(x[:, :, i]) / 3
    for i in range(16):
        expected[:, :, :, i] += corrector(x[:, :, :, i]) / 3
    for i in range(24):
        expected[..., i] += corrector(x[..., i]) / 3
    torch.testing.assert_close(corrector.volume(x), expected)


def test_slice_pair_classifies_as_its_classifier() -> None:
    torch.manual_seed(0)
    pair = SlicePair(TISSUE, {"width": 4, "blocks": 1}, conditions=3, condition=2, classes=5).eval()
    x = torch.rand(1, 1, 16, 16, 16)
    scores, image = pair(x)
    torch.testing.assert_close(scores, pair.tissue(x, torch.tensor([2])))
    torch.testing.assert_close(image, pair.corrector.volume(x))


@pytest.mark.parametrize("method", METHODS)
def test_critics_and_makers_learn_from_their_own_loss(method: str) -> None:
    torch.manual_seed(0)
    network = METHODS[method](8, 1)
    critics = {id(p) for p in network.critics.parameters()}
    for part in ("generators", "critics"):
        network.zero_grad(set_to_none=True)
        getattr(network.losses(random_slices()), part).backward()
        moved = {id(p) for p in network.parameters() if p.grad is not None and p.grad.any()}
        assert moved
        assert moved <= critics if part == "critics" else not moved & critics


@pytest.mark.parametrize(("method", "unread"), [
    ("duncan", "paired"), ("cyclegan", "paired"), ("pix2pix", "clean"),
])
def test_what_a_method_does_not_look_at(method: str, unread: str) -> None:
    torch.manual_seed(0)
    network, given = METHODS[method](8, 1), random_slices()
    first = network.losses(given)
    values = {key: getattr(given, key) for key in ("artefact", "paired", "clean")}
    for key in values:
        other = network.losses(Slices(**(values | {key: torch.rand(2, 1, 32, 32)})))
        assert torch.equal(first.generators, other.generators) == (key == unread), key


def test_duncan_moves_the_artefact_from_one_image_to_another() -> None:
    """The decoder of the artefact domain sees the artefact code, the corrector does not."""
    torch.manual_seed(0)
    network, given = Duncan(8, 1), random_slices()
    torch.nn.init.normal_(network.soil.head.weight, std=0.1)
    content = network.content(given.clean)
    codes = [network.artefact(x) for x in (given.artefact, given.paired)]
    assert not torch.allclose(network.soil(content, codes[0]), network.soil(content, codes[1]))


def test_slices_of_a_pair_lie_together(pool: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    given, clean = read_slices(pool / "00001.safetensors", 8, 16, generator)
    assert given.shape == clean.shape == (8, 1, 16, 16)
    assert set(clean.unique().tolist()) == {0.0, 2.0}
    assert ((given > 0.5) == (clean > 0.5)).all()
    assert 0.05 < (given - clean).std() < 0.15


def test_clean_slices_come_from_another_sample(pool: Path) -> None:
    paths = sorted(pool.glob("*.safetensors"))
    reader = steps_of(paths, 2, 16, torch.Generator().manual_seed(0))
    for _ in range(6):
        step = next(reader)
        assert (step.paired.amax((1, 2, 3)) != step.clean.amax((1, 2, 3))).all()
    with pytest.raises(ValueError, match="at least two"):
        next(steps_of(paths[:1], 2, 16, torch.Generator()))


class Killed(Exception):
    pass


def test_a_training_goes_on_exactly(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("pix2pix", steps=4, batch=2, side=32, width=8, blocks=1, every=2, rate=1e-3)
    train(run, pool, tmp_path / "whole", pool)
    log = training._log

    def killing(path: Path, row: dict[str, float]) -> None:
        if row["step"] == 4:
            raise Killed
        log(path, row)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(training, "_log", killing)
        train(run, pool, tmp_path / "half", pool)
    train(run, pool, tmp_path / "half", pool)
    states = [torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in
              ("whole", "half")]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    with pytest.raises(ValueError, match=r"rate was 0\.001, now 0\.1"):
        train(Run("pix2pix", steps=4, batch=2, side=32, width=8, blocks=1, rate=0.1), pool,
              tmp_path / "half", pool)


@pytest.mark.parametrize("method", METHODS)
def test_trained_exported_and_used_by_the_app(pool: Path, tmp_path: Path, method: str) -> None:
    argv = [method, str(pool), str(tmp_path / "run"), "--validation", str(pool), "--steps", "2"]
    argv += ["--batch", "1", "--side", "32", "--width", "8", "--blocks", "1", "--every", "1"]
    assert main(argv) == 0
    with open(tmp_path / "run" / "log.csv", newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1", "2"]
    architecture = {"name": "TissueGuidedUNet", "tissue": TISSUE, "enhance": TISSUE,
                    "conditions": 16, "classes": 5, "condition": 7}
    folder = tmp_path / "models"
    make_models(folder, name="bmex-T1w-24", sha256="")
    bundled = tmp_path / "pair.safetensors"
    pair = TissueGuidedUNet(TISSUE, TISSUE, conditions=16, classes=5).half().float()
    save_file(pair.state_dict(), bundled)
    record = weights.ModelRecord(
        "bmex-T1w-24", "enhance", "bundled", ("T1w",), "24", (21.0, 1200.0), 0.8, architecture,
        bundled.name, weights.hashlib.sha256(bundled.read_bytes()).hexdigest(), "1", "", "",
        directory=tmp_path,
    )
    export(tmp_path / "run" / "best.pt", folder, models=[record], data="boxes")
    records = weights.list_models([folder])
    made = weights.find_model(records, suffix="T1w", stage="24", model_set=method)
    assert made.name == f"{method}-T1w-24" and made.training["Data"] == "boxes"
    volume = np.random.default_rng(0).random((16, 8, 24), np.float32)
    shares, image, _ = enhance_volume(weights.load_network(made), volume, Compute("cpu", "float32"))
    assert shares.shape == (5, 16, 8, 24) and image.shape == volume.shape
    same = enhance_volume(weights.load_network(record), volume, Compute("cpu", "float32"))[0]
    np.testing.assert_allclose(shares, same, atol=1e-5)  # the classifier
    with pytest.raises(ValueError, match="no bundled pair"):
        export(tmp_path / "run" / "best.pt", folder, models=[made], data="")
    another = TissueGuidedUNet(TISSUE, TISSUE, conditions=16, classes=5).half().float()
    save_file(another.half().state_dict(), folder / bundled.name)
    sha256 = weights.hashlib.sha256((folder / bundled.name).read_bytes()).hexdigest()
    reference = {"TissueMeans": {"GM": 300.0}}
    new = enter(replace(record, directory=folder, sha256=sha256, reference=reference))
    assert renew(folder) == [made.name]
    renewed = weights.find_model(weights.list_models([folder]), suffix="T1w", stage="24",
                                 model_set=method)
    assert renewed.reference == reference and renewed.sha256 != made.sha256
    given = weights.load_network(renewed)
    found, after, _ = enhance_volume(given, volume, Compute("cpu", "float32"))
    other = enhance_volume(weights.load_network(new), volume, Compute("cpu", "float32"))[0]
    np.testing.assert_allclose(found, other, atol=1e-5)
    np.testing.assert_allclose(after, image, atol=1e-5)  # the corrector is what it was
    (folder / "models.json").write_text(
        (folder / "models.json").read_text("utf-8").replace('"name": "bmex-', '"name": "other-'),
        "utf-8")
    with pytest.raises(ValueError, match="its classifier bmex-T1w-24 is not in"):
        renew(folder)
