"""Inference: devices, padding, tiles whose weights sum to one, flips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmex_bids import inference
from bmex_bids.inference import Compute, enhance_volume, mask_volume, resolve
from bmex_bids.networks import BMEXPair, DUNet, TissueGuidedUNet
from bmex_bids.tiles import ramps, tile_shape

CPU = Compute("cpu", "float32")


class Pointwise(nn.Module):
    """Scores 0, x, 2x, 3x; enhanced 2x + 1: known in every voxel."""

    multiple = 8
    live_channels = 10

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([k * x for k in range(4)], 1), 2 * x + 1


class Blur(nn.Module):
    """Mean over 5x5x5 voxels: sees two voxels far."""

    multiple = 4
    live_channels = 10

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.nn.functional.avg_pool3d(x, 5, stride=1, padding=2)
        return torch.cat((y, x, -y, 2 * y), 1), y


class Position(nn.Module):
    """Enhanced is the position along x, so that each mirror image answers otherwise."""

    multiple = 1
    live_channels = 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ramp = torch.arange(float(x.shape[2])).view(1, 1, -1, 1, 1) + 0 * x
        return torch.cat([x] * 4, 1), ramp


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_enhance_returns_softmax_and_image_in_the_input_shape() -> None:
    x = volume(9, 16, 11)
    probabilities, enhanced, deviation = enhance_volume(Pointwise(), x, CPU)
    powers = np.exp(np.arange(4)[:, None, None, None] * x)
    np.testing.assert_allclose(probabilities, powers / powers.sum(0), rtol=1e-5)
    np.testing.assert_allclose(enhanced, 2 * x + 1, rtol=1e-6)
    assert deviation is None
    assert probabilities.dtype == enhanced.dtype == np.float32


@pytest.mark.parametrize("shape", [(7, 9, 13), (8, 8, 8), (1, 17, 30)])
@pytest.mark.parametrize("network", [DUNet(4, 1, 4), BMEXPair(4)], ids=["DUNet", "BMEXPair"])
def test_odd_sizes_are_padded(network: nn.Module, shape: tuple[int, ...]) -> None:
    network.eval()
    x = volume(*shape)
    if isinstance(network, BMEXPair):
        probabilities, enhanced, _ = enhance_volume(network, x, CPU)
        assert probabilities.shape == (4, *shape) and enhanced.shape == shape
        np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    else:
        probability = mask_volume(network, x, CPU)
        assert probability.shape == shape
        assert 0 <= probability.min() and probability.max() <= 1


def test_input_is_not_modified() -> None:
    x = volume(8, 8, 8)
    before = x.copy()
    enhance_volume(Pointwise(), x, CPU, flips=True)
    assert np.array_equal(x, before)


@pytest.mark.parametrize(
    ("n", "tile", "overlap", "multiple"),
    [(96, 96, 32, 8), (96, 64, 32, 8), (192, 80, 32, 16), (104, 56, 16, 8), (40, 12, 4, 4)],
)
def test_weights_sum_to_one(n: int, tile: int, overlap: int, multiple: int) -> None:
    total = np.zeros(n)
    for start, weight in ramps(n, tile, overlap, multiple):
        assert start % multiple == 0 and 0 <= start <= n - min(n, tile)
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_ramp_of_two_tiles_by_hand() -> None:
    (_, first), (start, second) = ramps(12, 8, 4, 4)
    assert start == 4
    # overlap of 4: a quarter (1 voxel) at zero, 2 voxels of ramp at 1/4 and 3/4, then one
    np.testing.assert_allclose(second, [0, 0.25, 0.75, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(first, [1, 1, 1, 1, 1, 0.75, 0.25, 0])


def test_tiles_leave_a_constant_image_constant() -> None:
    x = np.full((40, 24, 31), 3, np.float32)
    _, enhanced, _ = enhance_volume(Pointwise(), x, CPU, tile=16, overlap=8)
    np.testing.assert_allclose(enhanced, 7, rtol=1e-6)


@pytest.mark.parametrize("tile", [12, 16, 24])
def test_tiles_equal_the_whole_where_the_network_sees_less_than_a_quarter_overlap(
    tile: int,
) -> None:
    x = volume(41, 30, 26)
    whole = enhance_volume(Blur(), x, CPU)
    tiled = enhance_volume(Blur(), x, CPU, tile=tile, overlap=8)
    for a, b in zip(whole[:2], tiled[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_tiles_of_a_real_network_come_close_to_the_whole() -> None:
    torch.manual_seed(0)
    small = {"widths": (4, 6), "thin": 2}
    network = TissueGuidedUNet(small, small).eval()
    x = volume(48, 40, 32)
    whole, tiled = (enhance_volume(network, x, CPU, tile=t, overlap=16)[1] for t in (None, 32))
    np.testing.assert_allclose(whole, tiled, atol=1e-2)


@pytest.mark.parametrize("most", [30**3, 64**3, 10**6])
def test_tiles_cover_with_the_least_computation(most: int) -> None:
    shape = (96, 128, 96)
    tile = tile_shape(shape, most, None, multiple=8, overlap=16)
    assert math.prod(tile) <= most
    assert all(t % 8 == 0 and (t == n or t >= 24) for t, n in zip(tile, shape, strict=True))


def test_whole_volume_is_one_tile_when_it_fits() -> None:
    shape = (96, 128, 96)
    assert tile_shape(shape, 10**7, None, multiple=8, overlap=16) == shape
    half = tile_shape(shape, math.prod(shape) - 1, None, multiple=8, overlap=16)
    assert half == (96, 72, 96)  # two tiles along the longest axis cost least


def test_memory_limit_makes_tiles_and_too_little_is_an_error() -> None:
    x = volume(64, 64, 64)
    whole: list[tuple[int, int]] = []
    tiled: list[tuple[int, int]] = []
    enhance_volume(Pointwise(), x, CPU, progress=lambda *s: whole.append(s))
    limit = Compute("cpu", "float32", 4 * 10 * 32**3 + 4 * 12 * 64**3)
    _, enhanced, _ = enhance_volume(
        Pointwise(), x, limit, overlap=8, progress=lambda *s: tiled.append(s)
    )
    assert whole == [(1, 1)]
    assert len(tiled) >= 8 and tiled[-1] == (len(tiled), len(tiled))
    np.testing.assert_allclose(enhanced, 2 * x + 1, rtol=1e-6)
    with pytest.raises(MemoryError, match="--mem"):
        enhance_volume(Pointwise(), x, Compute("cpu", "float32", 1000))


def test_out_of_memory_falls_back_to_smaller_tiles() -> None:
    sizes = []

    class Greedy(Pointwise):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(x.numel())
            if x.numel() > 24**3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    x = volume(48, 48, 48)
    _, enhanced, _ = enhance_volume(Greedy(), x, CPU, overlap=8)
    np.testing.assert_allclose(enhanced, 2 * x + 1, rtol=1e-6)
    assert sizes[0] == 48**3 and sizes[-1] <= 24**3


class Elsewhere(Pointwise):
    """A network that seems to move to a GPU."""

    def to(self, *args: object, **options: object) -> Elsewhere:
        return self


def no_gpu_memory(monkeypatch: pytest.MonkeyPatch, free: int = 2**40) -> list[tuple[str, int]]:
    """Refuse every tile on a GPU; return (device, voxels) of the tiles that were tried."""
    tried: list[tuple[str, int]] = []
    on_cpu = inference._tiles

    def tiles(forward: object, x: Tensor, tile: tuple[int, ...], compute: Compute, **rest: object):
        tried.append((compute.device, math.prod(tile)))
        if compute.device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return on_cpu(forward, x, tile, compute, **rest)

    monkeypatch.setattr(inference, "_tiles", tiles)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**40))
    return tried


def test_cuda_without_memory_gets_smaller_tiles_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = no_gpu_memory(monkeypatch)
    told: list[str] = []
    x = volume(48, 48, 48)
    _, enhanced, _ = enhance_volume(
        Elsewhere(), x, Compute("cuda:1", "float32"), overlap=8, flips=True, warn=told.append
    )
    np.testing.assert_allclose(enhanced, 2 * x + 1, rtol=1e-6)
    on_gpu = [voxels for device, voxels in tried if device == "cuda:1"]
    assert on_gpu[0] == 48**3 and on_gpu == sorted(on_gpu, reverse=True) and len(on_gpu) > 3
    assert [device for device, _ in tried[len(on_gpu) :]] == ["cpu"] * 8  # for good, once is enough
    assert len(told) == 1 and told[0].startswith("cuda:1 has too little free memory")


def test_the_fallback_to_the_cpu_is_a_warning_and_keeps_its_own_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = no_gpu_memory(monkeypatch, free=4 * 10 * 50**3)
    limit = 4 * 10 * 50**3 + 4 * 2 * 6 * 64**3
    x = volume(64, 64, 64)
    with pytest.warns(RuntimeWarning, match="computed on the CPU in float32"):
        mask_volume(Scores(), x, Compute("cuda", "float32", limit))
    assert 40**3 <= tried[0][1] <= 0.9 * 50**3  # a GPU's limit is its free memory
    assert tried[-1][0] == "cpu" and 40**3 <= tried[-1][1] <= 50**3


class Scores(Elsewhere):
    """One channel, the input itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_a_cpu_without_memory_gets_smaller_tiles_then_an_error(error: Exception) -> None:
    sizes = []

    class Greedy(Pointwise):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(x.numel())
            raise error

    with pytest.raises(MemoryError, match="not even a tile of .*--mem"):
        enhance_volume(Greedy(), volume(48, 48, 48), CPU, overlap=8)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 3


def test_other_errors_of_the_network_are_not_hidden() -> None:
    class Broken(Pointwise):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        enhance_volume(Broken(), volume(8, 8, 8), CPU)


def test_flips_average_and_give_the_deviation() -> None:
    x = volume(5, 3, 2)
    _, enhanced, deviation = enhance_volume(Position(), x, CPU, flips=True)
    assert deviation is not None
    # position p and its mirror 4 - p, four times each: mean 2, deviation |p - 2|
    for p in range(5):
        np.testing.assert_allclose(enhanced[p], 2, atol=1e-6)
        np.testing.assert_allclose(deviation[p], abs(p - 2), atol=1e-6)


def test_flips_of_a_symmetric_network_change_nothing() -> None:
    x = volume(8, 16, 12)
    plain, flipped = (enhance_volume(Blur(), x, CPU, flips=f) for f in (False, True))
    np.testing.assert_allclose(plain[1], flipped[1], atol=1e-6)
    np.testing.assert_allclose(flipped[2], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("noise", "strength"), [(0.0, 0.4), (0.002, 0.4), (0.0045, 0.7), (0.008, 1.0)]
)
def test_an_image_without_noise_gets_a_part_of_the_change(noise: float, strength: float) -> None:
    clean = np.full((40, 40, 40), 2.0, np.float32)
    clean[:4] = 0
    draw = np.random.default_rng(1).normal(0, 2 * noise, clean.shape)
    given = np.where(clean > 0, clean + draw, 0).astype(np.float32)
    restrained = Pointwise()
    restrained.restrained = True
    said = enhance_volume(Pointwise(), given, CPU)[1]
    made = enhance_volume(restrained, given, CPU, flips=True)
    share = inference.enhancement_strength(restrained, given)
    assert share == pytest.approx(strength, abs=0.06)
    np.testing.assert_allclose(made[1], given + share * (said - given), rtol=1e-4, atol=1e-5)
    assert inference.enhancement_strength(Pointwise(), given) == 1
    assert inference.enhancement_strength(restrained, np.zeros_like(given)) == 1


def test_the_uncertainty_shrinks_with_the_change() -> None:
    plain, restrained = Position(), Position()
    restrained.restrained = True
    x = np.ones((6, 4, 4), np.float32)
    full, part = (enhance_volume(n, x, CPU, flips=True)[2] for n in (plain, restrained))
    assert full is not None and part is not None
    np.testing.assert_allclose(part, inference.GENTLE * full, rtol=1e-6)


def test_progress_counts_flips_and_tiles() -> None:
    told: list[tuple[int, int]] = []
    x = volume(8, 8, 24)
    enhance_volume(
        Pointwise(), x, CPU, tile=16, overlap=8, flips=True, progress=lambda *s: told.append(s)
    )
    assert told == [(k + 1, 16) for k in range(16)]


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (1, 1 / (1 + math.exp(-2))),
        (2, 1 / (1 + math.exp(-2))),
        (4, (math.exp(4) + math.exp(6)) / (1 + math.exp(2) + math.exp(4) + math.exp(6))),
    ],
)
def test_mask_probability(channels: int, expected: float) -> None:
    class Scores(nn.Module):
        multiple, live_channels = 4, 1

        def forward(self, x: Tensor) -> Tensor:
            steps = [1] if channels == 1 else range(channels)
            return torch.cat([k * x for k in steps], 1)

    probability = mask_volume(Scores(), np.full((5, 6, 7), 2, np.float32), CPU)
    np.testing.assert_allclose(probability, expected, rtol=1e-5)


def test_same_result_every_time() -> None:
    torch.manual_seed(1)
    network = BMEXPair(4).eval()
    x = volume(24, 16, 16)
    first, second = (enhance_volume(network, x, CPU, tile=16, overlap=8)[1] for _ in range(2))
    assert np.array_equal(first, second)


def test_bfloat16_comes_close_to_float32() -> None:
    torch.manual_seed(1)
    small = {"widths": (4, 6), "thin": 2}
    network = TissueGuidedUNet(small, small).eval()
    x = volume(16, 16, 16)
    exact, rough = (enhance_volume(network, x, Compute("cpu", p)) for p in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact[1], rough[1], atol=0.02)
    np.testing.assert_allclose(exact[0], rough[0], atol=0.02)


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("tpu", "auto", "expected auto, cpu, cuda"),
        ("cpu:1", "auto", "expected auto, cpu, cuda"),
        ("cuda:x", "auto", "expected auto, cpu, cuda"),
        ("cuda", "auto", "--gpus all"),
        ("cuda:0", "auto", "--device cpu"),
        ("cpu", "float16", "expected auto, float32 or bfloat16"),
    ],
)
def test_resolve_refuses(
    device: str, precision: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        resolve(device, precision)


@pytest.mark.parametrize(("able", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_follows_the_processor(
    able: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": able})
    assert resolve("auto", "auto", 5) == Compute("cpu", precision, 5)
    if not able:
        with pytest.raises(ValueError, match="float32"):
            resolve("cpu", "bfloat16")


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve("auto", "auto") == Compute("cuda", "bfloat16")
    assert resolve("cuda:1", "float32") == Compute("cuda:1", "float32")
    with pytest.raises(ValueError, match="cuda:0 to cuda:1"):
        resolve("cuda:2", "auto")
