"""Still pictures of anatomy: slices in three orientations, all pictures of a run cut alike.

They are what is printed, and what a browser without JavaScript shows. Neurological convention: the
left of the picture is the patient's left. World space is RAS+ mm.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from bmex_bids.bids import atomic_path

__all__ = [
    "CONVENTION",
    "MASK_COLOURS",
    "Montage",
    "brain_crop",
    "colour_table",
    "draw_anatomy",
    "draw_contours",
    "draw_residual",
    "draw_uncertainty",
    "montage_image",
    "plan_montage",
    "residual_limit",
    "shared_window",
    "uncertainty_limit",
]

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Crop = tuple[slice, slice, slice]

CONVENTION = "Neurological convention: the patient's left is on the left"
# Outlines, the outer one first. Told apart by their lightness too, so also without colour vision
# (Okabe and Ito's palette).
MASK_COLOURS = {"brain mask": "#56B4E9", "grey matter": "#D55E00", "white matter": "#F0E442"}
LEVELS = 201  # of a map: odd, so that no change is exactly the middle
LIGHT, DARK = "#F2F2F2", "#111111"  # ink on black and on white pictures
WIDTH, GAP, HEADER, FOOTER = 1600, 4, 40, 44  # pixels
QUALITY = 80  # of the JPEG files
MARGIN = 0.07  # of the brain's longest side: head shown around it
# Axis cut, axes across and up, where to cut (share of the brain's extent), ends of the axis across.
VIEWS = (
    ("z", 2, 0, 1, (0.22, 0.36, 0.5, 0.64, 0.8), ("L", "R")),
    ("y", 1, 0, 2, (0.18, 0.34, 0.5, 0.66, 0.82), ("L", "R")),
    ("x", 0, 1, 2, (0.22, 0.37, 0.5, 0.74), ("P", "A")),
)


@dataclass(frozen=True)
class Tile:
    """One slice in the picture: what is cut and where it lies, in pixels from the top left."""

    axis: int
    index: int
    top: int
    left: int
    height: int
    width: int
    title: str
    ends: tuple[str, str]


@dataclass(frozen=True)
class Montage:
    """Where a volume is cut and how the slices are laid out.

    Attributes:
        orientation: (3, 2) nibabel orientation from the array's axes to RAS+.
        crop: the part shown, along R, A and S.
        shape: height and width of the picture in pixels.
        tiles: the slices.
    """

    orientation: npt.NDArray[np.float64]
    crop: Crop
    shape: tuple[int, int]
    tiles: tuple[Tile, ...]


def brain_crop(
    mask: Mask, affine: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], Crop, Crop]:
    """Find what to show: the brain and a margin around it.

    Args:
        mask: (x, y, z) bool; everything counts as brain when it is empty.
        affine: (4, 4) voxel -> RAS+ mm.

    Returns:
        The (3, 2) nibabel orientation from the array's axes to RAS+, and along R, A and S the part
        shown and the brain's own extent.
    """
    orientation = nib.orientations.io_orientation(affine)
    ras = nib.orientations.apply_orientation(mask, orientation)
    zooms = nib.affines.voxel_sizes(affine @ nib.orientations.inv_ornt_aff(orientation, mask.shape))
    if not ras.any():
        ras = np.ones_like(ras)
    bounds = []
    for axis in range(3):
        inside = np.flatnonzero(ras.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append(slice(int(inside[0]), int(inside[-1]) + 1))
    longest = max((b.stop - b.start) * zoom for b, zoom in zip(bounds, zooms, strict=True))
    margins = [int(round(MARGIN * longest / zoom)) for zoom in zooms]
    crop = [
        slice(max(0, b.start - margin), min(size, b.stop + margin))
        for b, margin, size in zip(bounds, margins, ras.shape, strict=True)
    ]
    return orientation, (crop[0], crop[1], crop[2]), (bounds[0], bounds[1], bounds[2])


def plan_montage(mask: Mask, affine: npt.NDArray[np.float64]) -> Montage:
    """Choose slices and layout from the brain mask.

    Args:
        mask: (x, y, z) bool; the whole volume is shown when it is empty.
        affine: (4, 4) voxel -> RAS+ mm. An oblique image is cut along its own axes.
    """
    orientation, crop, brain = brain_crop(mask, affine)
    ras_affine = affine @ nib.orientations.inv_ornt_aff(orientation, mask.shape)
    zooms = nib.affines.voxel_sizes(ras_affine)
    extents = [(part.stop - part.start) * zoom for part, zoom in zip(crop, zooms, strict=True)]
    rows = [len(cuts) * extents[across] for _, _, across, _, cuts, _ in VIEWS]
    pixel_mm = max(rows) / (WIDTH - 4 * GAP)
    pixels = [max(1, int(extent / pixel_mm)) for extent in extents]
    tiles, top = [], 0
    for name, axis, across, up, cuts, ends in VIEWS:
        row_width = len(cuts) * (pixels[across] + GAP) - GAP
        left = (WIDTH - row_width) // 2
        low, high = brain[axis].start, brain[axis].stop
        for share in cuts:
            index = min(high - 1, int(low + share * (high - low)))
            centre = np.array([(part.start + part.stop - 1) / 2 for part in brain])
            centre[axis] = index
            mm = float(nib.affines.apply_affine(ras_affine, centre)[axis])
            title = f"{name} = {mm:.0f} mm".replace("-", "\N{MINUS SIGN}")
            tiles.append(Tile(axis, index, top, left, pixels[up], pixels[across], title, ends))
            left += pixels[across] + GAP
        top += pixels[up] + GAP
    return Montage(orientation, crop, (top - GAP, WIDTH), tuple(tiles))


def montage_image(volume: npt.NDArray[Any], montage: Montage, *, fill: float = 0.0) -> Array:
    """Cut and lay out one volume: (height, width) float32, first row on top.

    Args:
        volume: (x, y, z), on the grid that the montage was planned for.
        montage: the plan.
        fill: value between the slices.
    """
    from scipy import ndimage

    ras = nib.orientations.apply_orientation(volume, montage.orientation)
    canvas = np.full(montage.shape, fill, np.float32)
    for tile in montage.tiles:
        where: list[slice | int] = list(montage.crop)
        where[tile.axis] = tile.index
        plane = ras[tuple(where)].astype(np.float32).T[::-1]  # up on the page is A or S
        factors = (tile.height / plane.shape[0], tile.width / plane.shape[1])
        drawn = ndimage.zoom(plane, factors, order=1, mode="nearest", grid_mode=True)
        rows = slice(tile.top, tile.top + tile.height)
        canvas[rows, tile.left : tile.left + tile.width] = drawn[: tile.height, : tile.width]
    return canvas


def shared_window(mask: Mask, volumes: Sequence[Array]) -> tuple[float, float]:
    """Return one intensity window (low, high) for several pictures of the same brain.

    Low is the darkest 0.5 % of the first volume, high the brightest 0.2 % of any brain, plus 5 %.
    """
    low = float(np.percentile(volumes[0], 0.5))
    inside = mask if mask.any() else np.ones_like(mask)
    high = max(float(np.percentile(volume[inside], 99.8)) for volume in volumes)
    if high <= low:
        high = low + 1.0
    return low, high + 0.05 * (high - low)


def residual_limit(residual: Array, mask: Mask) -> float:
    """Return a round limit, in the residual's unit, that 99 % of it inside the mask keep to."""
    inside = np.abs(residual[mask]) if mask.any() else np.abs(residual)
    reached = float(np.percentile(inside, 99))
    return next((float(x) for x in (1, 2, 5, 10, 20, 30, 50) if x >= reached), 100.0)


def uncertainty_limit(uncertainty: Array, mask: Mask) -> float:
    """Return the limit that 99.5 % of a map inside the mask keep to; 1 where it is 0."""
    inside = uncertainty[mask] if mask.any() else uncertainty
    return float(np.percentile(inside, 99.5)) or 1.0


def colour_table(colours: str, levels: int) -> npt.NDArray[np.uint8]:
    """Return (levels, 3) colours of one of matplotlib's maps."""
    from matplotlib import colormaps

    return np.asarray(colormaps[colours](np.linspace(0, 1, levels), bytes=True)[:, :3])


def draw_anatomy(
    path: Path,
    volume: Array,
    montage: Montage,
    window: tuple[float, float],
    *,
    title: str,
    note: str,
) -> None:
    """Write the plain slices of one volume in grey, with the window stated on the picture."""
    page = _page(montage, _grey(volume, montage, window), LIGHT, title)
    _footer(page, f"Window {window[0]:.4g} to {window[1]:.4g}, {note}", LIGHT)
    _save(path, page.convert("L"))


def draw_contours(
    path: Path,
    volume: Array,
    masks: Mapping[str, Mask],
    montage: Montage,
    window: tuple[float, float],
    *,
    title: str,
) -> None:
    """Write slices with the outlines of nested regions, named as in ``MASK_COLOURS``."""
    picture = _grey(volume, montage, window)
    for name, region in masks.items():
        picture[_outline(region, montage)] = _rgb(MASK_COLOURS[name])
    page = _page(montage, picture, LIGHT, title)
    _footer(page, f"Window {window[0]:.4g} to {window[1]:.4g}", LIGHT)
    right = float(WIDTH - 8)
    for name in reversed(list(masks)):
        label, font = f"\N{BLACK SQUARE} {name}", _font(20, bold=True)
        style: dict[str, Any] = {"font": font, "fill": MASK_COLOURS[name], "anchor": "rm"}
        ImageDraw.Draw(page).text((right, HEADER / 2), label, **style)
        right -= font.getlength(label) + 22
    _save(path, page)


def draw_residual(
    path: Path, residual: Array, mask: Mask, montage: Montage, *, title: str, unit: str
) -> None:
    """Write a signed difference in percent with a symmetric colour bar; white is no change."""
    limit = residual_limit(residual, mask)
    table = colour_table("RdBu_r", LEVELS)
    table[LEVELS // 2] = 255
    picture = _coloured(montage_image(residual, montage), (-limit, limit), table)
    picture[_outline(mask, montage)] = _rgb("#444444")
    page = _page(montage, picture, DARK, title)
    _footer(page, "", DARK)
    _colour_bar(page, table, [-limit, -limit / 2, 0, limit / 2, limit], unit, DARK)
    _save(path, page)


def draw_uncertainty(
    path: Path, uncertainty: Array, mask: Mask, montage: Montage, *, title: str, unit: str
) -> None:
    """Write a map of spread with a sequential colour bar from 0."""
    limit = uncertainty_limit(uncertainty, mask)
    table = colour_table("inferno", LEVELS)
    picture = _coloured(montage_image(uncertainty, montage), (0, limit), table)
    page = _page(montage, picture, LIGHT, title)
    _footer(page, "", LIGHT)
    _colour_bar(page, table, [0, limit / 2, limit], unit, LIGHT)
    _save(path, page)


@functools.cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib brings along, so that every machine draws the same."""
    import matplotlib

    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _page(montage: Montage, picture: npt.NDArray[np.uint8], ink: str, title: str) -> Pillow.Image:
    """Return the (height, width, 3) picture with a title above it, its sides and positions."""
    ground = tuple(int(v) for v in picture[0, 0])
    page = Pillow.new("RGB", (WIDTH, montage.shape[0] + HEADER + FOOTER), ground)
    page.paste(Pillow.fromarray(picture), (0, HEADER))
    draw = ImageDraw.Draw(page)
    draw.text((8, HEADER / 2), title, font=_font(22, bold=True), fill=ink, anchor="lm")
    side = "#B8D8FF" if ink == LIGHT else DARK
    halo = "#000000" if ink == LIGHT else "#FFFFFF"
    style: dict[str, Any] = {"fill": side, "stroke_width": 2, "stroke_fill": halo}
    for tile in montage.tiles:
        top, right = tile.top + HEADER, tile.left + tile.width
        middle, bold = top + tile.height / 2, _font(18, bold=True)
        draw.text((tile.left + 4, middle), tile.ends[0], font=bold, anchor="lm", **style)
        draw.text((right - 4, middle), tile.ends[1], font=bold, anchor="rm", **style)
        place = (tile.left + 6, top + tile.height - 12)
        draw.text(place, tile.title, font=_font(16), anchor="lm", **style)
    return page


def _footer(page: Pillow.Image, text: str, ink: str) -> None:
    """Write the convention, and what is to be said about the window."""
    draw, y = ImageDraw.Draw(page), page.height - FOOTER / 2
    draw.text((8, y), text, font=_font(18), fill=ink, anchor="lm")
    draw.text((WIDTH - 8, y), CONVENTION, font=_font(18), fill=ink, anchor="rm")


def _colour_bar(
    page: Pillow.Image, table: npt.NDArray[np.uint8], ticks: Sequence[float], unit: str, ink: str
) -> None:
    """Draw the colours with their values at the lower left."""
    left, width, height, top = 40, 440, 14, page.height - FOOTER + 4
    line = table[np.linspace(0, len(table) - 1, width).astype(int)]
    page.paste(Pillow.fromarray(np.repeat(line[None], height, axis=0)), (left, top))
    draw = ImageDraw.Draw(page)
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=ink)
    for tick in ticks:
        x = left + (tick - ticks[0]) / (ticks[-1] - ticks[0]) * (width - 1)
        text = f"{tick:+.3g}" if ticks[0] < 0 and tick else f"{tick:.3g}"
        draw.line((x, top + height, x, top + height + 4), fill=ink)
        draw.text((x, top + height + 13), text, font=_font(15), fill=ink, anchor="mm")
    place = (left + width + 22, page.height - FOOTER / 2)
    draw.text(place, unit, font=_font(18), fill=ink, anchor="lm")


def _outline(region: Mask, montage: Montage) -> Mask:
    """Return the border of a region in the picture, one pixel wide and inside it."""
    inside = montage_image(region, montage) > 0.5
    core = inside.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            core &= np.roll(inside, step, axis)
    return inside & ~core


def _grey(volume: Array, montage: Montage, window: tuple[float, float]) -> npt.NDArray[np.uint8]:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return _coloured(montage_image(volume, montage, fill=window[0]), window, ramp)


def _coloured(
    picture: Array, window: tuple[float, float], table: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Return (height, width, 3) uint8 colours of a picture in its intensity window."""
    span = np.clip((picture - window[0]) / (window[1] - window[0]), 0, 1)
    return np.asarray(table[(span * (len(table) - 1)).round().astype(np.uint8)])


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _save(path: Path, page: Pillow.Image) -> None:
    """Write a JPEG with full colour resolution, for thin coloured lines."""
    stream = io.BytesIO()
    page.save(stream, "JPEG", quality=QUALITY, subsampling=0, progressive=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(stream.getvalue())
