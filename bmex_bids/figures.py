"""Pictures of anatomy: slices in three orientations as PNG, all pictures of a run cut alike.

Neurological convention: the left of the picture is the patient's left. World space is RAS+ mm.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bmex_bids.bids import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CONVENTION",
    "TISSUE_COLOURS",
    "Montage",
    "anatomy_png",
    "contours_png",
    "montage_image",
    "plan_montage",
    "residual_limit",
    "residual_png",
    "shared_window",
    "uncertainty_png",
]

Array = npt.NDArray[np.float32]

CONVENTION = "Neurological convention: the patient's left is on the left"
# Told apart by their lightness too, so also without colour vision (Okabe and Ito's palette).
TISSUE_COLOURS = {"CSF": "#56B4E9", "GM": "#D55E00", "WM": "#F0E442"}
MASK_COLOUR = "#FFFFFF"
# Colours of a map: odd, so that no change is exactly the middle; with 56 greys they fit a palette.
LEVELS = 199
LIGHT, DARK = "#F2F2F2", "#111111"  # ink on black and on white pictures
WIDTH, GAP, HEADER, FOOTER = 1600, 4, 40, 40  # pixels
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
    crop: tuple[slice, slice, slice]
    shape: tuple[int, int]
    tiles: tuple[Tile, ...]


def plan_montage(mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64]) -> Montage:
    """Choose slices and layout from the brain mask.

    Args:
        mask: (x, y, z) bool; the whole volume is shown when it is empty.
        affine: (4, 4) voxel -> RAS+ mm. An oblique image is cut along its own axes.
    """
    orientation = nib.orientations.io_orientation(affine)
    ras = nib.orientations.apply_orientation(mask, orientation)
    ras_affine = affine @ nib.orientations.inv_ornt_aff(orientation, mask.shape)
    zooms = nib.affines.voxel_sizes(ras_affine)
    if not ras.any():
        ras = np.ones_like(ras)
    bounds = []
    for axis in range(3):
        inside = np.flatnonzero(ras.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append((int(inside[0]), int(inside[-1]) + 1))
    longest = max((high - low) * zoom for (low, high), zoom in zip(bounds, zooms, strict=True))
    margins = [int(round(MARGIN * longest / zoom)) for zoom in zooms]
    crop = tuple(
        slice(max(0, low - margin), min(size, high + margin))
        for (low, high), margin, size in zip(bounds, margins, ras.shape, strict=True)
    )
    extents = [(part.stop - part.start) * zoom for part, zoom in zip(crop, zooms, strict=True)]
    rows = [len(cuts) * extents[across] for _, _, across, _, cuts, _ in VIEWS]
    pixel_mm = max(rows) / (WIDTH - 4 * GAP)
    pixels = [max(1, int(extent / pixel_mm)) for extent in extents]
    tiles, top = [], 0
    for name, axis, across, up, cuts, ends in VIEWS:
        row_width = len(cuts) * (pixels[across] + GAP) - GAP
        left = (WIDTH - row_width) // 2
        for share in cuts:
            low, high = bounds[axis]
            index = min(high - 1, int(low + share * (high - low)))
            centre = np.array([(low + high - 1) / 2 for low, high in bounds])
            centre[axis] = index
            mm = float(nib.affines.apply_affine(ras_affine, centre)[axis])
            title = f"{name} = {mm:.0f} mm".replace("-", "\N{MINUS SIGN}")
            tiles.append(Tile(axis, index, top, left, pixels[up], pixels[across], title, ends))
            left += pixels[across] + GAP
        top += pixels[up] + GAP
    return Montage(orientation, (crop[0], crop[1], crop[2]), (top - GAP, WIDTH), tuple(tiles))


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


def shared_window(mask: npt.NDArray[np.bool_], volumes: Sequence[Array]) -> tuple[float, float]:
    """Return one intensity window (low, high) for several pictures of the same brain.

    Low is the darkest 0.5 % of the first volume, high the brightest 0.2 % of any brain, plus 5 %.
    """
    low = float(np.percentile(volumes[0], 0.5))
    inside = mask if mask.any() else np.ones_like(mask)
    high = max(float(np.percentile(volume[inside], 99.8)) for volume in volumes)
    if high <= low:
        high = low + 1.0
    return low, high + 0.05 * (high - low)


def anatomy_png(
    path: Path,
    volume: Array,
    montage: Montage,
    window: tuple[float, float],
    *,
    title: str,
    note: str,
) -> None:
    """Write the plain slices of one volume in grey, with the window stated on the picture."""
    figure, _ = _canvas(montage, title, LIGHT)
    _footer(figure, montage, f"Window {window[0]:.4g} to {window[1]:.4g}, {note}", LIGHT)
    picture = _coloured(montage_image(volume, montage, fill=window[0]), "gray", window)
    _save(path, figure, picture, "gray")


def contours_png(
    path: Path,
    volume: Array,
    labels: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_],
    montage: Montage,
    window: tuple[float, float],
    *,
    title: str,
) -> None:
    """Write slices with the outlines of the tissues (1 CSF, 2 GM, 3 WM) and of the brain mask."""
    figure, axes = _canvas(montage, title, LIGHT)
    for value, colour in enumerate(TISSUE_COLOURS.values(), 1):
        _outline(axes, labels == value, montage, colour, 0.8)
    _outline(axes, mask, montage, MASK_COLOUR, 1.2)
    _footer(figure, montage, f"Window {window[0]:.4g} to {window[1]:.4g}", LIGHT)
    height, right = _height(montage), 0.995
    for name, colour in [("brain mask", MASK_COLOUR), *reversed(TISSUE_COLOURS.items())]:
        label = f"\N{BLACK SQUARE} {name}"
        y = 1 - HEADER / 2 / height
        style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 14}
        figure.text(right, y, label, color=colour, fontweight="bold", **style)
        right -= (len(label) * 12 + 22) / WIDTH
    picture = _coloured(montage_image(volume, montage, fill=window[0]), "gray", window)
    _save(path, figure, picture)


def residual_limit(residual: Array, mask: npt.NDArray[np.bool_]) -> float:
    """Return a round limit, in the residual's unit, that 99 % of it inside the mask keep to."""
    inside = np.abs(residual[mask]) if mask.any() else np.abs(residual)
    reached = float(np.percentile(inside, 99))
    return next((float(x) for x in (1, 2, 5, 10, 20, 30, 50) if x >= reached), 100.0)


def residual_png(
    path: Path,
    residual: Array,
    mask: npt.NDArray[np.bool_],
    montage: Montage,
    *,
    title: str,
    unit: str,
) -> None:
    """Write a signed difference in percent with a symmetric colour bar; white is no change."""
    limit = residual_limit(residual, mask)
    figure, axes = _canvas(montage, title, DARK)
    _outline(axes, mask, montage, "#444444", 0.7)
    _footer(figure, montage, "", DARK)
    ticks = [-limit, -limit / 2, 0, limit / 2, limit]
    _colour_bar(figure, montage, "RdBu_r", ticks, unit, DARK)
    picture = _coloured(montage_image(residual, montage), "RdBu_r", (-limit, limit), LEVELS)
    _save(path, figure, picture, "RdBu_r")


def uncertainty_png(
    path: Path, uncertainty: Array, mask: npt.NDArray[np.bool_], montage: Montage, *, title: str
) -> None:
    """Write the voxelwise standard deviation with a sequential colour bar from 0."""
    inside = uncertainty[mask] if mask.any() else uncertainty
    limit = float(np.percentile(inside, 99.5)) or 1.0
    figure, _ = _canvas(montage, title, LIGHT)
    _footer(figure, montage, "", LIGHT)
    ticks = [0, limit / 2, limit]
    _colour_bar(figure, montage, "inferno", ticks, "standard deviation, common scale", LIGHT)
    picture = _coloured(montage_image(uncertainty, montage), "inferno", (0, limit), LEVELS)
    _save(path, figure, picture, "inferno")


def _height(montage: Montage) -> int:
    return montage.shape[0] + HEADER + FOOTER


def _canvas(montage: Montage, title: str, ink: str) -> tuple[Figure, Axes]:
    """Return a transparent figure, one of its pixels per montage pixel, with title and sides.

    It is laid over the picture: only lines and text are drawn by matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    height = _height(montage)
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100)
    figure.set_facecolor("none")
    y = 1 - HEADER / 2 / height
    style: dict[str, Any] = {"color": ink, "va": "center", "parse_math": False}
    figure.text(0.005, y, title, fontsize=16, fontweight="bold", **style)
    axes = figure.add_axes((0, FOOTER / height, 1, montage.shape[0] / height))
    axes.set_axis_off()
    axes.set_xlim(-0.5, WIDTH - 0.5)
    axes.set_ylim(montage.shape[0] - 0.5, -0.5)
    side = "#B8D8FF" if ink == LIGHT else DARK
    halo = withStroke(linewidth=3, foreground="#000000" if ink == LIGHT else "#FFFFFF")
    for tile in montage.tiles:
        middle, right = tile.top + tile.height / 2, tile.left + tile.width
        style = {"color": side, "fontsize": 12, "va": "center", "path_effects": [halo]}
        axes.text(tile.left + 4, middle, tile.ends[0], ha="left", fontweight="bold", **style)
        axes.text(right - 4, middle, tile.ends[1], ha="right", fontweight="bold", **style)
        axes.text(tile.left + 6, tile.top + tile.height - 12, tile.title, ha="left", **style)
    return figure, axes


def _footer(figure: Figure, montage: Montage, text: str, ink: str) -> None:
    """Write the convention, and what is to be said about the window."""
    y = FOOTER / 2 / _height(montage)
    style: dict[str, Any] = {"color": ink, "va": "center", "fontsize": 13, "parse_math": False}
    figure.text(0.005, y, text, **style)
    figure.text(0.995, y, CONVENTION, ha="right", **style)


def _colour_bar(
    figure: Figure, montage: Montage, colours: str, ticks: Sequence[float], unit: str, ink: str
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    height = _height(montage)
    axes = figure.add_axes((0.02, 22 / height, 0.28, 12 / height))
    scale = ScalarMappable(Normalize(ticks[0], ticks[-1]), colours)
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=list(ticks))
    signed = ticks[0] < 0
    bar.ax.set_xticklabels([f"{t:+.3g}" if signed and t else f"{t:.3g}" for t in ticks])
    bar.ax.tick_params(colors=ink, labelsize=11, pad=1, length=2)
    bar.outline.set_edgecolor(ink)
    y = FOOTER / 2 / height
    figure.text(0.315, y, unit, color=ink, va="center", fontsize=13, parse_math=False)


def _outline(
    axes: Axes, region: npt.NDArray[np.bool_], montage: Montage, colour: str, width: float
) -> None:
    picture = montage_image(region, montage)
    if picture.max() > 0.5:
        axes.contour(picture, levels=[0.5], colors=[colour], linewidths=width)


def _coloured(
    picture: Array, colours: str, window: tuple[float, float], levels: int = 256
) -> npt.NDArray[np.uint8]:
    """Return (height, width, 4) uint8 colours of a picture in its intensity window."""
    from matplotlib import colormaps

    table = colormaps[colours](np.linspace(0, 1, levels), bytes=True)
    span = (picture - window[0]) / (window[1] - window[0])
    return np.asarray(table[(np.clip(span, 0, 1) * (levels - 1)).round().astype(np.uint8)])


def _save(path: Path, figure: Figure, picture: npt.NDArray[np.uint8], colours: str = "") -> None:
    """Lay the figure over the picture and write both as one PNG.

    ``colours`` "gray" or another map of the picture makes the file small; "" keeps every colour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image as Pillow

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    lines = Pillow.fromarray(np.asarray(canvas.buffer_rgba()))
    page = Pillow.new("RGBA", lines.size, tuple(int(v) for v in picture[0, 0]))
    page.paste(Pillow.fromarray(picture), (0, HEADER))
    whole = Pillow.alpha_composite(page, lines).convert("L" if colours == "gray" else "RGB")
    if colours not in ("", "gray"):
        palette = Pillow.new("P", (1, 1))
        palette.putpalette(_palette(colours))
        whole = whole.quantize(palette=palette, dither=Pillow.Dither.NONE)
    stream = io.BytesIO()
    whole.save(stream, "PNG", compress_level=6)
    with atomic_path(path) as temporary:
        temporary.write_bytes(stream.getvalue())


def _palette(colours: str) -> list[int]:
    """Return 256 colours, three numbers each: those of a map, and greys for text and lines."""
    from matplotlib import colormaps

    table = colormaps[colours](np.linspace(0, 1, LEVELS), bytes=True)[:, :3]
    greys = np.linspace(0, 255, 256 - LEVELS).round().astype(np.uint8)
    return [int(v) for v in np.vstack([table, np.repeat(greys[:, None], 3, axis=1)]).ravel()]
