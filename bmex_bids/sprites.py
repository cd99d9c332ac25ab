"""All slices of a volume in one picture, from which the page's viewer cuts every plane.

A sheet holds the axial slices as tiles, from the lowest to the highest, row by row. In a tile
anterior is up and the patient's left is on the left. The viewer puts coronal and sagittal slices
together from rows and columns of the tiles, so that one picture per layer is enough.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from bmex_bids.figures import Crop, Mask, brain_crop, colour_table

__all__ = [
    "Sheet",
    "colour_sheet",
    "grey_sheet",
    "jpegs",
    "masks_sheet",
    "plan_sheet",
    "residual_colours",
    "sheet_facts",
    "uncertainty_colours",
]

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

MOST_VOXELS = 8_000_000  # of a sheet; a finer image is shown on a coarser grid
BLOCK = 16  # pixels; tiles start at multiples, so that compression mixes no two of them
QUALITIES = (90, 85, 80, 75, 70, 60)  # of JPEG, the first that is small enough
BRIGHTER, DARKER = (255, 86, 48), (64, 160, 255)
RESIDUAL_LEVELS, UNCERTAINTY_LEVELS = 15, 12  # few, since every level costs bytes


@dataclass(frozen=True)
class Sheet:
    """Which part of a volume is shown, on which grid, and how its slices are laid out.

    Attributes:
        orientation: (3, 2) nibabel orientation from the array's axes to RAS+.
        crop: the part shown, along R, A and S, in voxels.
        shape: size along R, A and S in voxels of the sheet.
        affine: (4, 4) voxels of the sheet -> RAS+ mm.
        pitch: width and height of a tile in pixels.
        columns: tiles in a row.
    """

    orientation: npt.NDArray[np.float64]
    crop: Crop
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    pitch: tuple[int, int]
    columns: int

    @property
    def is_coarser(self) -> bool:
        """Whether the sheet has fewer voxels than the part of the image that it shows."""
        return self.shape != tuple(part.stop - part.start for part in self.crop)


def plan_sheet(mask: Mask, affine: npt.NDArray[np.float64]) -> Sheet:
    """Choose the part shown (the brain and a margin), its grid and the layout.

    Args:
        mask: (x, y, z) bool; the whole volume is shown when it is empty.
        affine: (4, 4) voxel -> RAS+ mm. An oblique image is cut along its own axes.
    """
    orientation, crop, _ = brain_crop(mask, affine)
    ras_affine = affine @ nib.orientations.inv_ornt_aff(orientation, mask.shape)
    zooms = nib.affines.voxel_sizes(ras_affine)
    given = np.array([part.stop - part.start for part in crop])
    size, spacing = given, float(zooms.min())
    while size.prod() > MOST_VOXELS:
        spacing *= 1.02
        size = np.ceil(given * np.minimum(zooms / spacing, 1)).astype(int)
    step = given / size
    grid = np.diag([*step, 1.0])
    # Centres: the sheet's first voxel covers the first `step` voxels of the part shown.
    grid[:3, 3] = [part.start for part in crop] + (step - 1) / 2
    width, height, count = (int(n) for n in size)
    pitch = BLOCK * math.ceil(width / BLOCK), BLOCK * math.ceil(height / BLOCK)
    columns = max(1, round(math.sqrt(count * pitch[1] / pitch[0])))
    return Sheet(orientation, crop, (width, height, count), ras_affine @ grid, pitch, columns)


def sheet_facts(sheet: Sheet) -> dict[str, object]:
    """Return what the viewer has to know about the layout, ready for JSON."""
    zooms = nib.affines.voxel_sizes(sheet.affine)
    return {
        "shape": list(sheet.shape),
        "zooms": [round(float(zoom), 4) for zoom in zooms],
        "affine": [[round(float(v), 5) for v in row] for row in sheet.affine[:3]],
        "pitch": list(sheet.pitch),
        "columns": sheet.columns,
        "height": sheet.pitch[1] * math.ceil(sheet.shape[2] / sheet.columns),
        "coarser": sheet.is_coarser,
    }


def grey_sheet(volume: Array, sheet: Sheet, window: tuple[float, float]) -> Bytes:
    """Lay out a volume in grey: (height, width) uint8, 0 and 255 at the ends of the window."""
    return _laid_out(_levels(_shown(volume, sheet), window, 256), sheet)


def jpegs(pages: Sequence[Bytes], most: int) -> list[bytes]:
    """Compress grey pages with one quality for all, so that they can be compared.

    Args:
        pages: (height, width) uint8 each.
        most: bytes they may take together; the lowest quality may take more.
    """
    quality = QUALITIES[0]
    for quality in QUALITIES:
        if sum(len(_jpeg(page, quality)) for page in pages) <= most:
            break
    return [_jpeg(page, quality, progressive=True) for page in pages]


def colour_sheet(
    volume: Array, sheet: Sheet, window: tuple[float, float], colours: Bytes
) -> bytes:
    """Return a map as a PNG with a palette.

    Args:
        volume: (x, y, z).
        sheet: the layout.
        window: values of the first and the last colour.
        colours: (k, 4) red, green, blue and opacity.
    """
    levels = _levels(_shown(volume, sheet), window, len(colours))
    return _png(_laid_out(levels, sheet), colours)


def masks_sheet(masks: Mapping[str, Mask], sheet: Sheet) -> bytes:
    """Return the masks as sheets one below the other, transparent outside: a PNG of 1 bit."""
    parts = [_shown(mask, sheet, order=0).astype(np.uint8) for mask in masks.values()]
    pages = np.concatenate([_laid_out(part, sheet) for part in parts])
    return _png(pages, np.array([[0, 0, 0, 0], [255, 255, 255, 255]], np.uint8))


def residual_colours() -> Bytes:
    """Return colours from much darker over no change, which is transparent, to much brighter."""
    share = np.linspace(-1, 1, RESIDUAL_LEVELS)
    colours = np.where(share[:, None] < 0, DARKER, BRIGHTER)
    alpha = 255 * np.abs(share)
    return np.column_stack([colours, alpha]).round().astype(np.uint8)


def uncertainty_colours() -> Bytes:
    """Return colours from none, which is transparent, to the greatest spread."""
    share = np.linspace(0, 1, UNCERTAINTY_LEVELS)
    alpha = 255 * np.minimum(1, 1.5 * share)
    return np.column_stack([colour_table("inferno", len(share)), alpha]).round().astype(np.uint8)


def _shown(volume: npt.NDArray[np.generic], sheet: Sheet, order: int = 1) -> Array:
    """Return the part shown, along R, A and S, on the sheet's grid."""
    from scipy import ndimage

    part = nib.orientations.apply_orientation(volume, sheet.orientation)[sheet.crop]
    part = part.astype(np.float32)
    if not sheet.is_coarser:
        return np.asarray(part)
    factors = np.array(sheet.shape) / part.shape
    if order:  # what the coarser grid cannot show would alias
        part = ndimage.gaussian_filter(part, 0.5 * np.sqrt(factors**-2 - 1))
    drawn = ndimage.zoom(part, factors, order=order, mode="nearest", grid_mode=True)
    return np.asarray(drawn, np.float32)


def _levels(part: Array, window: tuple[float, float], count: int) -> Bytes:
    """Number the levels of a window: 0 at its lower end, count - 1 at its upper end."""
    share = (part - window[0]) * ((count - 1) / (window[1] - window[0]))
    return np.asarray(np.clip(share, 0, count - 1).round().astype(np.uint8))


def _laid_out(part: Bytes, sheet: Sheet) -> Bytes:
    """Put axial slices (R, A, S) beside each other; edges are repeated to fill the tiles."""
    slices = part.transpose(2, 1, 0)[:, ::-1]
    (width, height), rows = sheet.pitch, math.ceil(len(slices) / sheet.columns)
    missing = rows * sheet.columns - len(slices)
    below, beside = height - slices.shape[1], width - slices.shape[2]
    tiles = np.pad(slices, ((0, missing), (0, below), (0, beside)), mode="edge")
    tiles = tiles.reshape(rows, sheet.columns, height, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(tiles.reshape(rows * height, sheet.columns * width))


def _jpeg(page: Bytes, quality: int, *, progressive: bool = False) -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(page).save(stream, "JPEG", quality=quality, progressive=progressive)
    return stream.getvalue()


def _png(indices: Bytes, colours: Bytes) -> bytes:
    image = Pillow.fromarray(indices)
    image.putpalette(colours[:, :3].tobytes())
    bits = next(bits for bits in (1, 2, 4, 8) if len(colours) <= 2**bits)
    stream = io.BytesIO()
    image.save(stream, "PNG", bits=bits, transparency=colours[:, 3].tobytes(), compress_level=4)
    return stream.getvalue()
