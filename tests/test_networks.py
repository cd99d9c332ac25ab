"""Networks: names, shapes and values of the published architecture, layer by layer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.duncan import SlicePair
from bmex_bids.networks import (
    BMEXPair,
    Convolution,
    DUNet,
    SliceUNet,
    TissueGuidedUNet,
    UNet,
    depth_to_space,
    local_differences,
    space_to_depth,
)
from bmex_bids.similar import noise_level, nonlocal_means, without_noise
from bmex_bids.training.architectures import take_over

State = dict[str, Tensor]

# The published table at width 64, written out: name, in, out. Deconvolutions last.
CONVOLUTIONS = [
    ("1", 1, 64), ("2", 64, 64), ("3", 64, 16), ("4", 80, 16), ("4_1", 96, 16), ("5", 112, 64),
    ("6", 64, 64), ("7", 64, 32), ("8", 96, 32), ("9", 128, 32), ("10", 160, 128),
    ("11", 128, 128), ("12", 256, 256), ("13", 256, 32), ("14", 288, 32), ("15", 320, 32),
    ("16", 256, 256), ("17", 256, 32), ("18", 288, 32), ("19", 320, 32), ("20", 352, 256),
    ("21", 256, 32), ("22", 288, 32), ("23", 320, 32), ("24", 128, 128), ("25", 128, 16),
    ("26", 144, 16), ("27", 160, 16), ("28", 176, 64), ("29", 64, 16), ("30", 80, 16),
    ("31", 96, 16), ("32", 112, 4),
]  # fmt: skip
NORMS = {
    "1": 64, "2": 64, "3": 80, "4": 96, "4_1": 112, "5": 64, "6": 64, "7": 96, "8": 128, "9": 160,
    "10": 128, "11": 128, "12": 256, "13": 288, "14": 320, "15": 352, "16": 256, "17": 288,
    "18": 320, "19": 352, "20": 256, "21": 288, "22": 320, "23": 352, "24": 128, "25": 144,
    "26": 160, "27": 176, "28": 64, "29": 80, "30": 96, "31": 112, "32": 4,
}  # fmt: skip
DECONVOLUTIONS = [("11", 128, 128), ("15", 352, 128), ("23", 352, 64)]


def random_state(width: int, inputs: int, outputs: int, suffix: str = "", seed: int = 0) -> State:
    """A DU-Net's state, key by key from the table; every width there is a multiple of 64 / 4."""
    rng = np.random.default_rng(seed)

    def scaled(channels: int) -> int:
        return channels * width // 64

    state: State = {}

    def put(key: str, *shape: int, low: float = -1.0, high: float = 1.0) -> None:
        state[key] = torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))

    def convolution(name: str, shape: tuple[int, int], kernel: int, out: int) -> None:
        bound = (3 / (shape[1] * 27)) ** 0.5
        put(f"{name}.weight", *shape, kernel, kernel, kernel, low=-bound, high=bound)
        put(f"{name}.bias", out, low=-0.1, high=0.1)

    for n, i, o in CONVOLUTIONS:
        i = inputs if n == "1" else scaled(i)
        o = outputs if n == "32" else scaled(o)
        convolution(f"conv{n}{suffix}", (o, i), 3, o)
    for n, i, o in DECONVOLUTIONS:
        convolution(f"deconv{n}{suffix}", (scaled(i), scaled(o)), 4, scaled(o))
    for n, channels in NORMS.items():
        channels = outputs if n == "32" else scaled(channels)
        put_norm(state, f"bn{n}{suffix}", channels, rng)
    return state


def put_norm(state: State, name: str, channels: int, rng: np.random.Generator) -> None:
    for key, low, high in [
        ("weight", 0.5, 1.5), ("bias", -0.2, 0.5), ("running_mean", -0.2, 0.2),
        ("running_var", 0.5, 1.5),
    ]:  # fmt: skip
        values = rng.uniform(low, high, channels).astype(np.float32)
        state[f"{name}.{key}"] = torch.from_numpy(values)
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def random_pair_state(width: int) -> State:
    rng = np.random.default_rng(3)
    half = width // 2
    state = random_state(width, 1, 4, seed=1)
    for name, inputs in [("1", 4), ("2", 1)]:
        weight = rng.uniform(-0.2, 0.2, (half, inputs, 3, 3, 3)).astype(np.float32)
        state[f"conv{name}_con.weight"] = torch.from_numpy(weight)
        state[f"conv{name}_con.bias"] = torch.zeros(half)
        put_norm(state, f"bn{name}_con", half, rng)
    return state | random_state(width, width, 1, "_recon", seed=2)


def reference_dunet(s: State, x: Tensor, sfx: str = "", *, quirks: str = "ab") -> Tensor:
    """The published table, line by line and nothing else; ``quirks`` leaves one of them out."""

    def c(n: str, t: Tensor) -> Tensor:
        return F.conv3d(t, s[f"conv{n}{sfx}.weight"], s[f"conv{n}{sfx}.bias"], padding=1)

    def br(n: str, t: Tensor) -> Tensor:
        mean, var = s[f"bn{n}{sfx}.running_mean"], s[f"bn{n}{sfx}.running_var"]
        scale = s[f"bn{n}{sfx}.weight"] / torch.sqrt(var + 1e-5)
        shift = s[f"bn{n}{sfx}.bias"] - mean * scale
        return (t * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)).clamp_min(0)

    def d(n: str, t: Tensor) -> Tensor:
        weight, bias = s[f"deconv{n}{sfx}.weight"], s[f"deconv{n}{sfx}.bias"]
        return F.conv_transpose3d(t, weight, bias, stride=2, padding=1)

    def pool(t: Tensor) -> Tensor:
        return F.max_pool3d(t, kernel_size=3, stride=2, padding=1)

    def cat(*t: Tensor) -> Tensor:
        return torch.cat(t, dim=1)

    raw1 = c("1", x)
    raw2 = c("2", br("1", raw1))
    x1 = cat(raw2, c("3", br("2", raw2)))
    x2 = cat(x1, c("4", br("3", x1)))
    x3 = cat(x2, c("4_1", br("4", x2)))
    raw5 = c("5", br("4_1", x3))
    raw6 = c("6", pool(br("5", raw5)))
    new = c("7", br("6", raw6))
    y1 = cat(new, raw6) if "a" in quirks else cat(raw6, new)
    y2 = cat(y1, c("8", br("7", y1)))
    y3 = cat(y2, c("9", br("8", y2)))
    raw10 = c("10", br("9", y3))
    raw11 = c("11", pool(br("10", raw10)))
    up11 = d("11", pool(br("11", raw11)))
    raw12 = c("12", cat(raw11, up11))
    z1 = cat(raw12, c("13", br("12", raw12)))
    z2 = cat(z1, c("14", br("13", z1)))
    z3 = cat(z2, c("15", br("14", z2)))
    up15 = d("15", br("15", z3))
    raw16 = c("16", cat(raw10, up15))
    u1 = cat(raw16, c("17", br("16", raw16)))
    u2 = cat(u1, c("18", br("17", u1)))
    u3 = cat(br("18", u2) if "b" in quirks else u2, c("19", br("18", u2)))
    raw20 = c("20", br("19", u3))
    v1 = cat(raw20, c("21", br("20", raw20)))
    v2 = cat(v1, c("22", br("21", v1)))
    v3 = cat(v2, c("23", br("22", v2)))
    up23 = d("23", br("23", v3))
    raw24 = c("24", cat(raw5, up23))
    w1 = cat(raw24, c("25", br("24", raw24)))
    w2 = cat(w1, c("26", br("25", w1)))
    w3 = cat(w2, c("27", br("26", w2)))
    raw28 = c("28", br("27", w3))
    q1 = cat(raw28, c("29", br("28", raw28)))
    q2 = cat(q1, c("30", br("29", q1)))
    q3 = cat(q2, c("31", br("30", q2)))
    return br("32", c("32", br("31", q3)))


def reference_pair(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    def features(n: str, t: Tensor) -> Tensor:
        t = F.conv3d(t, s[f"conv{n}_con.weight"], s[f"conv{n}_con.bias"], padding=1)
        norm = [s[f"bn{n}_con.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(t, norm[0], norm[1], norm[2], norm[3]))

    scores = reference_dunet(s, x)
    both = torch.cat((features("1", scores.softmax(1)), features("2", x)), 1)
    return scores, reference_dunet(s, both, "_recon")


def shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("width", [8, 64])
def test_pair_has_the_published_names_and_shapes(width: int) -> None:
    with torch.device("meta"):
        network = BMEXPair(width)
    assert shapes(network.state_dict()) == shapes(random_pair_state(width))


def test_pair_has_32_93_million_parameters() -> None:
    with torch.device("meta"):
        network = BMEXPair()
    assert sum(p.numel() for p in network.parameters()) == 32_929_311
    state = random_pair_state(64)
    learned = [v for k, v in state.items() if "running" not in k and "tracked" not in k]
    assert sum(v.numel() for v in learned) == 32_929_311


def test_brain_mask_network_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        network = DUNet(32, 1, 4)
    assert shapes(network.state_dict()) == shapes(random_state(32, 1, 4))


def test_dunet_equals_the_table() -> None:
    state = random_state(8, 2, 3)
    network = DUNet(8, 2, 3).eval()
    network.load_state_dict(state, strict=True)
    x = torch.randn(2, 2, 16, 24, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = network(x)
        expected = reference_dunet(state, x)
    assert out.shape == (2, 3, 16, 24, 8)
    assert 0.05 < (out > 0).float().mean() < 1  # the comparison is not one of zeros
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_pair_equals_the_table() -> None:
    state = random_pair_state(8)
    network = BMEXPair(8).eval()
    network.load_state_dict(state, strict=True)
    x = torch.rand(1, 1, 16, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores, enhanced = network(x)
        expected = reference_pair(state, x)
    assert scores.shape == (1, 4, 16, 16, 24) and enhanced.shape == (1, 1, 16, 16, 24)
    assert enhanced.std() > 0 and scores.std() > 0
    torch.testing.assert_close(scores, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(enhanced, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quirks", ["a", "b", ""])
def test_both_quirks_of_the_released_weights_are_there(quirks: str) -> None:
    state = random_state(8, 1, 4)
    network = DUNet(8, 1, 4).eval()
    network.load_state_dict(state)
    x = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = network(x) - reference_dunet(state, x, quirks=quirks)
    assert difference.abs().max() > 1e-2


def test_dunet_trains() -> None:
    network = DUNet(8, 1, 4).train()
    network(torch.rand(2, 1, 16, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_width_must_be_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        DUNet(10)


def test_last_layer_stays_float32_under_autocast() -> None:
    network = BMEXPair(4).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, enhanced = network(torch.rand(1, 1, 8, 8, 8))
    assert scores.dtype == torch.float32 and enhanced.dtype == torch.float32


def test_depth_to_space_undoes_space_to_depth() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    folded = space_to_depth(x)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(depth_to_space(folded), x)


def test_tissue_guided_unet_shapes_and_residual() -> None:
    small = {"widths": (4, 6), "thin": 2}
    network = TissueGuidedUNet(small, small).eval()
    assert network.multiple == 4
    torch.nn.init.zeros_(network.enhance.head2.weight)
    torch.nn.init.zeros_(network.enhance.head2.bias)  # type: ignore[arg-type]
    x = torch.rand(1, 1, 8, 12, 4)
    with torch.no_grad():
        scores, enhanced = network(x)
    assert scores.shape == (1, 4, 8, 12, 4)
    assert torch.equal(enhanced, x)  # it predicts the difference


@pytest.mark.parametrize("network", [
    BMEXPair(4),
    TissueGuidedUNet({"widths": [4, 6], "thin": 2, "norm": "none"},
                     {"widths": [4, 6], "thin": 2, "norm": "none"}),
    SlicePair({"widths": [4, 6], "thin": 2, "norm": "none"}, {"width": 4, "blocks": 1}),
])
def test_tissues_alone_are_those_of_the_pair(network: torch.nn.Module) -> None:
    volume = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        scores, image = network.eval()(volume, enhance=False)
        torch.testing.assert_close(scores, network(volume)[0])
    assert torch.equal(image, volume)


@pytest.mark.parametrize(("size", "training", "expected"), [
    (2, True, torch.float32), (2, False, torch.bfloat16), (4, True, torch.bfloat16),
])
def test_few_voxels_are_trained_in_float32(
    size: int, training: bool, expected: torch.dtype
) -> None:
    convolution = Convolution(3, 4, 3, padding=1).train(training)
    volume = torch.rand(1, 3, size, size, size, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = convolution(volume.bfloat16())
    assert found.dtype == expected
    torch.testing.assert_close(
        found.float(), torch.nn.Conv3d.forward(convolution, volume), rtol=0.02, atol=0.02
    )


def test_unknown_normalisation() -> None:
    with pytest.raises(ValueError, match="'spectral': expected 'batch', 'instance'"):
        UNet(1, 1, (4, 6), norm="spectral")


def test_local_differences_by_hand() -> None:
    x = torch.zeros(1, 1, 5, 5, 5)
    x[0, 0, 2, 2, 2] = 1.0
    found = local_differences(x, 2)
    assert found.shape == (1, 6, 5, 5, 5)
    assert found[0, :, 2, 2, 2].tolist() == [-1.0] * 6
    assert found[0, :3, 1, 2, 2].tolist() == [0.5, 0.0, 0.0]
    assert found[0, 3:, 2, 2, 0].tolist() == [0.0, 0.0, 0.5]
    ramp = torch.arange(6.0).expand(1, 1, 6, 6, 6)  # straight inside, repeated at the border
    assert not bool(local_differences(ramp, 1)[..., 1:-1].any())


def test_a_pair_with_conditions_tells_them_apart() -> None:
    part = {"widths": [4, 6], "thin": 0, "norm": "layer"}
    torch.manual_seed(1)
    pair = TissueGuidedUNet(part, part, conditions=3, condition=2, classes=5, reach=1).eval()
    x = torch.rand(2, 1, 16, 16, 16)
    with torch.inference_mode():
        plain, enhanced = pair(x)
        assert plain.shape == (2, 5, 16, 16, 16) and enhanced.shape == x.shape
        both, _ = pair(x, torch.tensor([2, 0]))
        torch.testing.assert_close(both, plain)  # untrained shifts are zero
        pair.tissue.down[0].shift.weight[2] += 1  # type: ignore[index, union-attr, operator]
        own, _ = pair(x)
        torch.testing.assert_close(pair(x, torch.tensor([2, 0]))[0][0], own[0])
        torch.testing.assert_close(pair(x, torch.tensor([2, 0]))[0][1], plain[1])
        assert not torch.allclose(own, plain)


def test_without_residual_the_image_itself_is_predicted() -> None:
    part = {"widths": [4, 6], "thin": 0, "norm": "layer"}
    x = torch.rand(1, 1, 16, 16, 16)
    found = []
    for residual in (True, False):
        torch.manual_seed(1)
        pair = TissueGuidedUNet(part, part, reach=1, residual=residual).eval()
        with torch.inference_mode():
            found.append(pair(x)[1])
    torch.testing.assert_close(found[0], x + found[1])


def test_without_guidance_the_enhancer_sees_the_image_alone() -> None:
    part = {"widths": [4, 6], "thin": 0, "norm": "layer"}
    x = torch.rand(1, 1, 16, 16, 16)
    for guided in (True, False):
        torch.manual_seed(1)
        pair = TissueGuidedUNet(part, part, reach=1, guided=guided).eval()
        with torch.inference_mode():
            before = pair(x)[1]
            torch.nn.init.normal_(pair.tissue.unfold.weight, std=5.0)
            assert torch.equal(pair(x)[1], before) is not guided


def test_slices_see_their_neighbours_and_no_more() -> None:
    torch.manual_seed(0)
    network = SliceUNet(2, 1, slices=3, widths=(4, 6)).eval()
    x = torch.randn(1, 2, 20, 8, 12)  # more slices than are computed at once
    out = network(x)
    assert out.shape == (1, 1, 20, 8, 12)
    assert torch.allclose(network.train()(x), out, atol=1e-6)
    for channel, touched in ((0, {9, 10, 11}), (1, {10})):
        other = x.clone()
        other[0, channel, 10] += 1
        change = (network(other) - out).abs().amax((0, 1, 3, 4))
        assert set(torch.nonzero(change > 1e-7)[:, 0].tolist()) == touched
    with pytest.raises(ValueError, match="odd"):
        SliceUNet(1, 1, slices=4)


def test_a_pair_of_slices_gives_the_mean_over_the_three_axes() -> None:
    torch.manual_seed(0)
    enhance = {"slices": 3, "widths": [4, 6], "norm": "layer"}
    tissue = {"widths": [4, 6], "thin": 0, "norm": "layer"}
    pair = TissueGuidedUNet(tissue, enhance, conditions=2, reach=2, guided=False)
    x = torch.rand(1, 1, 8, 12, 16)
    along = [pair.train()(x.movedim(axis, 2))[1].movedim(2, axis) for axis in (2, 3, 4)]
    _, image = pair.eval()(x)
    assert torch.allclose(image, sum(along) / 3, atol=1e-5)
    assert not torch.allclose(along[0], along[1], atol=1e-3)


def test_non_local_means_by_hand() -> None:
    torch.manual_seed(2)
    x = torch.rand(2, 1, 9, 8, 7)
    found = nonlocal_means(x, 0.5, 3)
    assert found.shape == (2, 3, 9, 8, 7)
    wide = torch.nn.functional.pad(x[1], (3,) * 6, mode="replicate")[0]

    def around(place: tuple[int, ...]) -> torch.Tensor:
        return wide[tuple(slice(p + 2, p + 5) for p in place)]

    for place in ((4, 4, 3), (0, 7, 2)):
        for k, strength in enumerate((0.5, 0.5 / 2**0.5, 0.25)):
            total = weight = 0.0
            for step in itertools.product(range(-2, 3), repeat=3):
                if sum(n * n for n in step) > 5:
                    continue
                there = tuple(p + n for p, n in zip(place, step, strict=True))
                distance = (around(place) - around(there)).square().mean()
                w = float(torch.exp(-distance / strength**2))
                total += w * float(around(there)[1, 1, 1])
                weight += w
            assert float(found[1, k][place]) == pytest.approx(total / weight, rel=1e-4)


def test_non_local_means_keep_edges_and_mirror_with_the_image() -> None:
    torch.manual_seed(3)
    clean = torch.zeros(1, 1, 24, 24, 24)
    clean[:, :, 12:] = 1.0
    noisy = clean + 0.05 * torch.randn(clean.shape)
    made = nonlocal_means(noisy, 0.12, 2)
    error = (made - clean).square().mean((0, 2, 3, 4)) / (noisy - clean).square().mean()
    assert bool((error < 0.2).all())
    torch.testing.assert_close(nonlocal_means(noisy.flip(3), 0.12, 2), made.flip(3))


def test_a_pair_mixes_non_local_means_and_begins_as_the_one_without() -> None:
    part = {"widths": [4, 6], "thin": 0, "norm": "layer"}
    torch.manual_seed(4)
    without = TissueGuidedUNet(part, part, reach=1).eval()
    pair = TissueGuidedUNet(part, part, reach=1, similar={"strongest": 0.1, "count": 2}).eval()
    take_over(pair, without.state_dict())
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        for last in (pair.enhance.last.weight, pair.enhance.last.bias):
            last[-16:] = 0  # type: ignore[index, operator]
        torch.testing.assert_close(pair(x)[1], without(x)[1])
        pair.enhance.last.bias[-16:-8] = 0.5  # type: ignore[index, operator]
        means = nonlocal_means(x, 0.1, 2)
        torch.testing.assert_close(pair(x)[1], without(x)[1] + 0.5 * (means[:, :1] - x))


def test_noise_is_measured_and_taken_out_of_references() -> None:
    rng = np.random.default_rng(5)
    x, y, _ = np.indices((40, 41, 42))
    clean = (1 + 0.3 * np.sin(x / 5) + 0.3 * (y > 20)).astype(np.float32)
    mask = np.zeros(clean.shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    for sigma in (0.03, 0.08):
        noisy = (clean + sigma * rng.standard_normal(clean.shape)).astype(np.float32)
        assert noise_level(noisy, mask) == pytest.approx(sigma, rel=0.1)
        made = without_noise(noisy, mask)
        assert np.mean((made - clean)[mask] ** 2) < 0.25 * np.mean((noisy - clean)[mask] ** 2)
    faint = (clean + 0.003 * rng.standard_normal(clean.shape)).astype(np.float32)
    assert without_noise(faint, mask) is faint
    assert noise_level(noisy, np.zeros_like(mask)) == 0
