"""Training: motion and degradations keep what they must, labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bmex_bids.training import degrade, labels, losses, motion, pool

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ZOOMS = torch.tensor([1.0, 1.5, 2.0])


def phantom(shape: tuple[int, int, int] = (40, 36, 28)) -> torch.Tensor:
    """A block that is not symmetric, away from the borders."""
    volume = torch.zeros(shape)
    volume[10:26, 9:25, 8:19] = 1.0
    volume[14:18, 12:20, 10:16] = 0.5
    return degrade.gaussian_smooth(volume, (1.0, 1.0, 1.0))


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", motion.KINDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_amplitude_is_the_identity(kind: str, axis: int) -> None:
    volume = phantom()
    moved = degrade.move(volume, ZOOMS, kind, 0.0, 0.4, generator(), axis=axis)
    torch.testing.assert_close(moved, volume)


@pytest.mark.parametrize("kind", motion.KINDS)
def test_energy_is_kept(kind: str) -> None:
    volume = phantom()
    moved = degrade.move(volume, ZOOMS, kind, 2.0, 0.4, generator())
    assert float((moved**2).sum() / (volume**2).sum()) == pytest.approx(1, abs=0.05)
    assert not torch.allclose(moved, volume, atol=1e-3)


def test_a_pose_that_never_changes_leaves_the_image_where_it_is() -> None:
    volume = phantom()
    position = torch.full((36,), 0.7)
    moved = motion.corrupt(volume, ZOOMS, position, torch.tensor([3.0, 2, 1, 5, 4, 3]))
    torch.testing.assert_close(moved, volume)


@pytest.mark.parametrize("world", [0, 1, 2])
def test_translation_is_in_millimetres(world: int) -> None:
    """All lines but the centre's move: the image moves by the displacement over the voxel size."""
    volume = phantom()
    position = torch.ones(36)
    position[18] = 0.0
    direction = torch.zeros(6)
    direction[world] = 2 * float(ZOOMS[world])  # two voxels
    moved = motion.corrupt(volume, ZOOMS, position, direction)
    shifted = volume.roll(2, world)
    detail = moved - degrade.gaussian_smooth(moved, (4, 4, 4))
    here, there = (
        float((detail * (v - degrade.gaussian_smooth(v, (4, 4, 4)))).sum())
        for v in (volume, shifted)
    )
    assert there > here


def test_rotation_is_rigid_with_anisotropic_voxels() -> None:
    """90 degrees about z takes x to y in mm: 10 mm are 10 voxels along x, 5 along a 2 mm axis."""
    zooms = torch.tensor([1.0, 2.0, 1.0])
    volume = torch.zeros(41, 21, 9)
    volume[30, 10, 4] = 1.0  # 10 mm from the centre along x
    fine = motion._twice_as_fine(volume)
    turned = motion._rotated(fine, zooms, torch.tensor([0.0, 0.0, 90.0]))
    assert tuple(int(i) for i in np.unravel_index(int(turned.argmax()), (41, 21, 9))) in (
        (20, 15, 4),
        (20, 5, 4),
    )
    assert float(turned.max()) == pytest.approx(1, abs=1e-4)


def test_finer_voxels_lie_between_those_that_stay() -> None:
    volume = phantom()
    fine = motion._twice_as_fine(volume)
    assert fine.shape == tuple(2 * side - 1 for side in volume.shape)
    torch.testing.assert_close(fine[::2, ::2, ::2], volume, atol=1e-5, rtol=0)
    between = 0.5 * (volume[:-1] + volume[1:])
    assert float((fine[1::2, ::2, ::2] - between).abs().max()) < 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_head_that_goes_to_and_fro_lies_at_its_mean_position(axis: int) -> None:
    """Between two places that are two voxels apart, wherever the k-space centre was acquired."""
    volume = phantom()
    position = torch.ones(volume.shape[axis])
    position[::2] = -1.0
    direction = torch.zeros(6)
    direction[axis] = float(ZOOMS[axis])
    mean = motion.mean_position(volume, ZOOMS, position, direction, axis=axis)
    assert mean == pytest.approx(0, abs=0.15)
    sides = []
    for origin in (None, mean):
        moved = motion.corrupt(volume, ZOOMS, position, direction, axis=axis, origin=origin)
        back, ahead = (float(((moved - volume.roll(k, axis)) ** 2).mean()) for k in (-1, 1))
        sides.append(max(back, ahead) / min(back, ahead))
    assert sides[0] > 2 and sides[1] < sides[0] / 2


def test_what_is_still_for_most_of_the_energy_stays_where_it_is() -> None:
    """A jump at the very end of the acquisition moves the mean position by little."""
    volume = phantom()
    position = torch.zeros(36)
    position[-4:] = 1.0
    direction = torch.tensor([0.0, 3, 0, 0, 0, 0])
    assert motion.mean_position(volume, ZOOMS, position, direction) < 0.05


@pytest.mark.parametrize("kind", motion.KINDS)
def test_error_grows_with_the_amplitude(kind: str) -> None:
    volume = phantom()
    errors = [
        float(((degrade.move(volume, ZOOMS, kind, a, 0.3, generator(2)) - volume) ** 2).mean())
        for a in (0.0, 0.5, 1.0, 2.0, 4.0)
    ]
    assert errors == sorted(errors)
    assert errors[1] < errors[-1]


def test_unknown_motion_and_wrong_lines() -> None:
    with pytest.raises(ValueError, match="unknown motion"):
        motion.trajectory("nod", 10, 1, 1, generator())
    with pytest.raises(ValueError, match="phase-encoding lines"):
        motion.corrupt(phantom(), ZOOMS, torch.zeros(7), torch.ones(6))


def test_gaussian_noise_has_no_bias_and_is_never_negative() -> None:
    bright = degrade.gaussian(torch.full((40, 40, 40), 10.0), 0.5, generator())
    assert float(bright.mean()) == pytest.approx(10, abs=0.01)
    assert float(bright.std()) == pytest.approx(0.5, rel=0.02)
    assert float(degrade.gaussian(torch.zeros(9, 9, 9), 0.5, generator()).min()) == 0


def test_rician_noise_has_its_known_moments() -> None:
    bright = degrade.rician(torch.full((40, 40, 40), 10.0), 0.5, generator())
    dark = degrade.rician(torch.zeros(40, 40, 40), 0.5, generator())
    assert float(bright.std()) == pytest.approx(0.5, rel=0.03)
    assert float(dark.mean()) == pytest.approx(0.5 * np.sqrt(np.pi / 2), rel=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_keep_constants_and_blur_one_axis(axis: int) -> None:
    flat = torch.full((24, 20, 22), 3.0)
    recipe = degrade.Recipe(slice_axis=axis, slice_factor=3.0)
    torch.testing.assert_close(degrade.degrade(flat, ZOOMS, recipe, generator()), flat)
    line = torch.zeros(24, 20, 22)
    index = [slice(None)] * 3
    index[axis] = slice(10, 11)
    line[tuple(index)] = 1.0
    thick = degrade.degrade(line, ZOOMS, recipe, generator())
    others = tuple(a for a in range(3) if a != axis)
    assert float(thick.std(others).max()) < 1e-5
    assert float(thick.max()) < 0.6


@pytest.mark.parametrize("factors", [(1.25, 1.25, 1.25), (0.8, 1.0, 1.5)])
def test_measured_voxels_keep_constants_and_what_is_smooth(
    factors: tuple[float, float, float],
) -> None:
    flat = torch.full((24, 20, 22), 3.0)
    there = degrade.measured(flat, factors)
    for size, coarse, factor in zip(flat.shape, there.shape, factors, strict=True):
        assert size / factor - 1 < coarse <= size / factor
    torch.testing.assert_close(degrade.conformed(there, factors, flat.shape), flat)
    x, y, z = torch.meshgrid(*(torch.arange(40.0) for _ in range(3)), indexing="ij")
    smooth = torch.sin(x / 8) + torch.cos(y / 9) + torch.sin(z / 10)
    back = degrade.conformed(degrade.measured(smooth, factors), factors, smooth.shape)
    torch.testing.assert_close(back[4:-4, 4:-4, 4:-4], smooth[4:-4, 4:-4, 4:-4], atol=0.03, rtol=0)


def test_noise_comes_in_at_the_measured_voxels() -> None:
    """So that neighbours on a finer grid have some in common, as in scans that the app gets."""
    flat = torch.full((48, 48, 48), 10.0)

    def noise(voxel: float) -> torch.Tensor:
        recipe = degrade.Recipe(noise=0.5, voxel=(voxel, voxel, voxel))
        made = degrade.degrade(flat, torch.full((3,), 0.8), recipe, generator())
        return made[4:-4, 4:-4, 4:-4] - made.mean()

    def alike(volume: torch.Tensor) -> float:
        return float((volume[1:] * volume[:-1]).mean() / volume.var())

    white, coarse = noise(1.0), noise(1.25)
    assert float(white.std()) == pytest.approx(0.5, rel=0.03)
    assert abs(alike(white)) < 0.03 < 0.2 < alike(coarse)
    assert 0.3 < float(coarse.std()) < 0.5


def test_gibbs_keeps_the_mean_and_rings() -> None:
    volume = torch.zeros(32, 32, 32)
    volume[8:24, 8:24, 8:24] = 1.0
    ringing = degrade.gibbs(volume, 0.5)
    assert float(ringing[8:24, 8:24, 8:24].max()) > 1.05
    torch.testing.assert_close(degrade.gibbs(volume, 1.0), volume, atol=1e-5, rtol=0)


def test_readout_blur_of_nothing() -> None:
    torch.testing.assert_close(motion.readout_blur(phantom(), 0.0, generator()), phantom())
    blurred = motion.readout_blur(phantom(), 1.0, generator())
    assert float((blurred - phantom()).abs().max()) > 0.05


def test_recipes_come_in_the_shares_that_are_asked_for() -> None:
    draw = generator()
    drawn = [degrade.random_recipe(draw, moving=0.9, noisy=0.1, thick=0.7) for _ in range(300)]
    found = [np.mean(part) for part in zip(
        *((one.kind is not None, one.noise > 0, one.slice_factor > 1) for one in drawn),
        strict=True,
    )]
    assert found == pytest.approx([0.9, 0.1, 0.7], abs=0.07)


def test_a_seed_gives_the_same_image() -> None:
    recipe = degrade.random_recipe(generator(5))
    first, second = (
        degrade.degrade(phantom(), ZOOMS, recipe, generator(3), states=4) for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.skipif(not SHARED.exists(), reason="the label maps lie beside the repository")
def test_real_label_table() -> None:
    table = labels.load_table(SHARED / "label_maps" / "dseg.tsv")
    assert len(table.names) == 54
    assert int(table.tissue[table.names.index("left cerebral cortex")]) == 2
    training, held = labels.split(SHARED / "label_maps")
    assert len(training) == 15
    assert len(held) == 3


def test_shading_takes_smooth_factors_and_leaves_detail() -> None:
    clean = torch.rand(48, 48, 48, generator=generator()) + 1
    slope = torch.linspace(0.9, 1.1, 48)[:, None, None]
    inside = torch.ones_like(clean)
    found = pool.shading(clean * slope, clean, inside)
    torch.testing.assert_close(found, slope.expand_as(found), atol=0.03, rtol=0)
    noise = 0.2 * torch.randn(48, 48, 48, generator=generator())
    torch.testing.assert_close(
        pool.shading(clean + noise, clean, inside), inside, atol=0.01, rtol=0
    )
    assert float(pool.shading(clean * 0, clean * 0, inside * 0).mean()) == 1


def test_losses_by_hand() -> None:
    scores = torch.zeros(1, 4, 1, 1, 2)
    tissue = torch.tensor([[[[1, losses.IGNORE]]]], dtype=torch.uint8)
    assert float(losses.tissue_loss(scores, tissue)) == pytest.approx(np.log(4))
    brain = torch.ones(1, 1, 1, 1, 2)
    output, target = torch.tensor([[[[[1.0, 2.0]]]]]), torch.tensor([[[[[1.0, 1.0]]]]])
    # |e| + 2 e^2 over two voxels, plus half the gradient's error
    found = losses.enhancement_loss(output, target, brain, torch.ones(1))
    assert float(found) == pytest.approx((1 + 2) / 2 + 0.5 * 1 / 2)
    assert float(losses.mask_loss(torch.full((1, 1, 2, 2, 2), 20.0), torch.ones(1, 1, 2, 2, 2))) < (
        1e-3
    )


def test_a_voxel_of_lesions_counts_as_often_as_wanted():
    scores = torch.zeros(1, 5, 2, 1, 1)
    scores[0, 4, 0] = 2.0  # the lesion is found, the grey matter beside it is not told apart
    tissue = torch.tensor([losses.LESION, 2], dtype=torch.uint8).reshape(1, 2, 1, 1)
    found, missed = -2 + np.log(4 + np.exp(2)), np.log(5)
    for weight in (1.0, 3.0):
        expected = (weight * found + missed) / (weight + 1)
        assert float(losses.tissue_loss(scores, tissue, weight)) == pytest.approx(expected)


def test_dice_loss_of_the_tissues_by_hand() -> None:
    scores = torch.zeros(1, 4, 4, 1, 1)  # every class has a quarter
    tissue = torch.tensor([1, 1, 2, losses.IGNORE], dtype=torch.uint8).reshape(1, 4, 1, 1)
    # overlap 2/4 of 3/4 + 2, and 1/4 of 3/4 + 1; the third class and the background are not there
    expected = np.log(4) + 0.5 * (1 - (2 * 0.5 / 2.75 + 2 * 0.25 / 1.75) / 2)
    found = losses.tissue_loss(scores, tissue, dice_weight=0.5)
    assert float(found) == pytest.approx(expected)
    empty = losses.tissue_loss(scores, torch.zeros_like(tissue), dice_weight=0.5)
    assert float(empty) == pytest.approx(np.log(4))
