import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

from bmex_bids import sprites

SHAPE = (20, 24, 16)


def brain() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[3:-3, 4:-4, 3:-3] = True
    return mask


def tile(page: np.ndarray, sheet: sprites.Sheet, index: int) -> np.ndarray:
    """Cut one axial slice (anterior up, left on the left) out of a sheet, as the viewer does."""
    left = index % sheet.columns * sheet.pitch[0]
    top = index // sheet.columns * sheet.pitch[1]
    return page[top : top + sheet.shape[1], left : left + sheet.shape[0]]


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "PIR", "ASL"])
def test_every_slice_is_where_the_viewer_looks(axcodes: str) -> None:
    volume = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.float32)
    start = nib.orientations.axcodes2ornt("RAS")
    to = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axcodes))
    ras_affine = nib.affines.from_matvec(np.diag([1.0, 1.0, 1.0]), [-10, -12, -8])
    affine = ras_affine @ nib.orientations.inv_ornt_aff(to, SHAPE)
    turned, mask = (nib.orientations.apply_orientation(a, to) for a in (volume, brain()))
    sheet = sprites.plan_sheet(mask, affine)
    assert sheet.shape == tuple(part.stop - part.start for part in sheet.crop)
    page = sprites.grey_sheet(turned, sheet, (0.0, 255.0))
    shown = volume[sheet.crop]
    for index in range(sheet.shape[2]):
        expected = shown[:, :, index].T[::-1]
        np.testing.assert_array_equal(tile(page, sheet, index), expected)
    first = [part.start for part in sheet.crop]
    np.testing.assert_allclose(sheet.affine[:3, 3], np.array(first) + [-10, -12, -8])


def test_tiles_start_at_blocks_and_repeat_their_edges() -> None:
    sheet = sprites.plan_sheet(brain(), np.eye(4))
    page = sprites.grey_sheet(np.full(SHAPE, 7, np.float32), sheet, (0.0, 255.0))
    assert all(length % sprites.BLOCK == 0 for length in (*sheet.pitch, *page.shape))
    assert (page == 7).all()
    assert page.shape[0] == sprites.sheet_facts(sheet)["height"]


def test_a_finer_image_is_shown_coarser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MOST_VOXELS", 500)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    sheet = sprites.plan_sheet(brain(), affine)
    assert sheet.is_coarser and np.prod(sheet.shape) <= 500
    # The thick side is kept until the others are as coarse, and the extent stays the same.
    zooms = nib.affines.voxel_sizes(sheet.affine)
    crop = [part.stop - part.start for part in sheet.crop]
    np.testing.assert_allclose(zooms * sheet.shape, np.array(crop) * [1, 1, 2])
    assert zooms.max() / zooms.min() < 1.5
    # The middle of the part shown is at the same place on both grids.
    middle = [(part.start + part.stop - 1) / 2 for part in sheet.crop]
    there = nib.affines.apply_affine(sheet.affine, (np.array(sheet.shape) - 1) / 2)
    np.testing.assert_allclose(there, nib.affines.apply_affine(affine, middle))
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    shown = sprites.grey_sheet(ramp * 10, sheet, (0.0, 255.0))
    row = tile(shown, sheet, 2)[2].astype(int)
    expected = 10 * nib.affines.apply_affine(sheet.affine, [[i, 2, 2] for i in range(len(row))])
    np.testing.assert_allclose(row[1:-1], expected[1:-1, 0], atol=4)


def test_one_quality_for_all_pages() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    flat = np.zeros((256, 256), np.uint8)
    generous, tight = (sprites.jpegs([noise, flat], most) for most in (10**9, 45_000))
    assert sum(map(len, tight)) <= 45_000 < sum(map(len, generous))
    tables = [Pillow.open(io.BytesIO(data)).quantization for data in tight]
    assert tables[0] == tables[1]


def test_colours_of_a_map() -> None:
    sheet = sprites.plan_sheet(brain(), np.eye(4))
    colours = sprites.residual_colours()
    for value, channel in ((-5.0, 2), (5.0, 0), (0.0, None)):
        data = sprites.colour_sheet(np.full(SHAPE, value, np.float32), sheet, (-5.0, 5.0), colours)
        with Pillow.open(io.BytesIO(data)) as picture:
            pixel = picture.convert("RGBA").getpixel((0, 0))
        assert pixel[3] == (0 if channel is None else 255)
        assert channel is None or pixel[channel] == max(pixel[:3])
    assert sprites.uncertainty_colours()[0, 3] == 0


def test_masks_lie_below_each_other() -> None:
    sheet = sprites.plan_sheet(brain(), np.eye(4))
    inner = np.zeros(SHAPE, bool)
    inner[8:12, 8:12, 6:10] = True
    data = sprites.masks_sheet({"outer": brain(), "inner": inner}, sheet)
    with Pillow.open(io.BytesIO(data)) as picture:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    height = sprites.sheet_facts(sheet)["height"]
    assert alpha.shape[0] == 2 * height
    for block, mask in enumerate((brain(), inner)):
        page = alpha[block * height : (block + 1) * height]
        for index in range(sheet.shape[2]):
            expected = mask[sheet.crop][:, :, index].T[::-1]
            np.testing.assert_array_equal(tile(page, sheet, index) == 255, expected)
