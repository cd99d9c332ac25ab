from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

from bmex_bids import figures

SHAPE = (20, 24, 16)


def marked() -> tuple[np.ndarray, np.ndarray]:
    """A brain mask and a volume that grows to the right: voxel value = R index."""
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    volume = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    return mask, volume.copy()


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "PIR", "ASL"])
def test_left_of_the_picture_is_left_whatever_the_voxel_order(axcodes: str) -> None:
    mask, volume = marked()
    start = nib.orientations.axcodes2ornt("RAS")
    to = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axcodes))
    ras_affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine = ras_affine @ nib.orientations.inv_ornt_aff(to, SHAPE)
    turned = [nib.orientations.apply_orientation(a, to) for a in (mask, volume)]
    montage = figures.plan_montage(turned[0], affine)
    picture = figures.montage_image(turned[1], montage)
    axial = montage.tiles[0]
    row = picture[axial.top + axial.height // 2, axial.left : axial.left + axial.width]
    assert row[0] < row[-1] and np.all(np.diff(row) >= 0)
    expected = figures.montage_image(volume, figures.plan_montage(mask, ras_affine))
    np.testing.assert_allclose(picture, expected)


def test_up_is_superior_and_anterior() -> None:
    mask, _ = marked()
    montage = figures.plan_montage(mask, np.diag([4.0, 4.0, 4.0, 1.0]))
    for axis, tiles in ((1, montage.tiles[:5]), (2, montage.tiles[5:])):
        shape = [1, 1, 1]
        shape[axis] = SHAPE[axis]
        ramp = np.arange(SHAPE[axis], dtype=np.float32).reshape(shape)
        picture = figures.montage_image(np.broadcast_to(ramp, SHAPE), montage)
        for tile in tiles:
            column = picture[tile.top : tile.top + tile.height, tile.left + tile.width // 2]
            assert column[0] > column[-1]


def test_slices_are_named_by_world_position() -> None:
    mask, _ = marked()
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -100, 0, 0
    tiles = figures.plan_montage(mask, affine).tiles
    assert [tile.title[0] for tile in tiles] == list("zzzzzyyyyyxxxx")
    middle = tiles[12]  # x at half the mask: voxel 2 + 16 / 2 = 10 -> -100 + 40 mm
    assert (middle.index, middle.title) == (10, "x = \N{MINUS SIGN}60 mm")
    assert {tile.ends for tile in tiles} == {("L", "R"), ("P", "A")}


def test_tiles_do_not_overlap_and_fit_the_page() -> None:
    mask, _ = marked()
    montage = figures.plan_montage(mask, np.diag([1.0, 1.0, 6.0, 1.0]))
    used = np.zeros(montage.shape, int)
    for tile in montage.tiles:
        used[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert used.max() == 1
    assert used.sum() == sum(tile.height * tile.width for tile in montage.tiles)


def test_empty_mask_shows_the_whole_volume() -> None:
    montage = figures.plan_montage(np.zeros(SHAPE, bool), np.eye(4))
    assert [part.stop - part.start for part in montage.crop] == list(SHAPE)


def test_one_window_covers_both_images() -> None:
    mask, volume = marked()
    low, high = figures.shared_window(mask, [volume, 2 * volume])
    assert low == 0 and high == pytest.approx(1.05 * 2 * 17, rel=0.02)
    flat = figures.shared_window(mask, [np.zeros(SHAPE, np.float32)])
    assert flat[1] > flat[0]


@pytest.mark.parametrize(("reached", "limit"), [(0.4, 1), (3, 5), (24, 30), (70, 100)])
def test_residual_limit_is_round(reached: float, limit: float) -> None:
    residual = np.full(SHAPE, -reached, np.float32)
    assert figures.residual_limit(residual, np.ones(SHAPE, bool)) == limit


def test_crop_is_the_brain_and_a_margin() -> None:
    mask, _ = marked()
    _, crop, brain = figures.brain_crop(mask, np.diag([1.0, 1.0, 3.0, 1.0]))
    assert [(part.start, part.stop) for part in brain] == [(2, 18), (2, 22), (2, 14)]
    # 7 % of the longest side, 36 mm along z: 2.5 mm, so 2 or 3 voxels in the plane and 1 across.
    assert [(part.start, part.stop) for part in crop] == [(0, 20), (0, 24), (1, 15)]


def test_pictures_are_written_whole(tmp_path: Path) -> None:
    mask, volume = marked()
    montage = figures.plan_montage(mask, np.diag([4.0, 4.0, 4.0, 1.0]))
    masks = {"brain mask": mask, "grey matter": volume > 7, "white matter": volume > 13}
    window = (0.0, 20.0)
    paths = [tmp_path / name for name in ("a.jpg", "c.jpg", "r.jpg", "u.jpg")]
    figures.draw_anatomy(paths[0], volume, montage, window, title="Before <&$", note="units")
    figures.draw_contours(paths[1], volume, masks, montage, window, title="T")
    figures.draw_residual(paths[2], volume - 10, mask, montage, title="R", unit="%")
    figures.draw_uncertainty(paths[3], volume, mask, montage, title="U", unit="x")
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    modes, height = [], montage.shape[0] + figures.HEADER + figures.FOOTER
    for path in paths:
        with Pillow.open(path) as picture:
            assert picture.size == (figures.WIDTH, height)
            modes.append(picture.mode)
    assert modes == ["L", "RGB", "RGB", "RGB"]


def drawn(path: Path) -> np.ndarray:
    with Pillow.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_picture_shows_the_window(tmp_path: Path) -> None:
    mask, volume = marked()
    montage = figures.plan_montage(mask, np.diag([4.0, 4.0, 4.0, 1.0]))
    path = tmp_path / "a.jpg"
    figures.draw_anatomy(path, volume, montage, (0.0, 38.0), title="", note="")
    tile = montage.tiles[0]
    row = figures.HEADER + tile.top + tile.height // 4  # away from the text
    pixel = drawn(path)[row, tile.left + tile.width // 2]
    assert pixel[0] == pytest.approx(255 * 9.5 / 38, abs=4)


def test_outlines_stand_at_the_borders(tmp_path: Path) -> None:
    mask, volume = marked()
    montage = figures.plan_montage(mask, np.diag([4.0, 4.0, 4.0, 1.0]))
    path = tmp_path / "c.jpg"
    masks = {"white matter": volume >= 10}
    figures.draw_contours(path, 0 * volume, masks, montage, (0, 1), title="")
    tile = montage.tiles[0]
    row = drawn(path)[figures.HEADER + tile.top + tile.height // 4]
    bright = np.flatnonzero(row[tile.left + 20 : tile.left + tile.width - 20, :2].min(axis=1) > 120)
    share = (bright + 20).mean() / tile.width  # voxels 10 to 19 of 20 are inside
    assert share == pytest.approx(0.5, abs=0.02)


def test_residual_is_red_where_brighter_and_blue_where_darker(tmp_path: Path) -> None:
    mask, volume = marked()
    montage = figures.plan_montage(mask, np.diag([4.0, 4.0, 4.0, 1.0]))
    path = tmp_path / "r.jpg"
    figures.draw_residual(path, 5 * (volume - 9.5), mask, montage, title="", unit="%")
    pixels, tile = drawn(path), montage.tiles[0]
    row = figures.HEADER + tile.top + tile.height // 4
    left = pixels[row, tile.left + tile.width // 4]
    right = pixels[row, tile.left + 3 * tile.width // 4]
    assert left[2] > left[0] + 50 and right[0] > right[2] + 50
