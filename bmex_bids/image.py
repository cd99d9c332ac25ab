"""NIfTI images: load with a check of everything that later steps rely on, save whole or not at all.

Voxel arrays keep the file's own order; world space is RAS+ in mm, as the affine says.
"""

from __future__ import annotations

import gzip
import os
import shlex
import stat
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bmex_bids.claims import TEMPORARY

__all__ = ["Image", "ImageError", "load_image", "save_image"]

SMALLEST_VOXEL, LARGEST_VOXEL = 0.1, 12.0  # mm, of any brain image in use
SMALLEST_SIDE = 8  # voxels
PIECE = 1 << 14  # bytes of a compressed file that are unpacked at once, to at most 17 MB
LARGEST_EXPANSION = 1100  # deflate cannot expand further than about 1032:1


class ImageError(ValueError):
    """The image cannot be used; the message says what was found and what to do."""


@dataclass(frozen=True)
class Image:
    """A 3-D image with the facts of its header that must survive.

    Attributes:
        data: (x, y, z) float32 in the file's voxel order, after the file's intensity scaling.
        affine: (4, 4) voxel indices -> RAS+ mm.
        header: the file's header (sform and qform codes, units, zooms).
        notes: what was repaired on loading, in plain words.
    """

    data: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    header: nib.Nifti1Header
    notes: tuple[str, ...] = ()

    @property
    def zooms(self) -> npt.NDArray[np.float64]:
        """Voxel size in mm along the three array axes, from the affine."""
        zooms: npt.NDArray[np.float64] = np.sqrt((self.affine[:3, :3] ** 2).sum(0))
        return zooms


def load_image(path: Path, *, most_bytes: int | None = None) -> Image:
    """Load a NIfTI image, repairing what can be repaired and refusing the rest.

    No more is read into memory than the file holds, whatever its header claims.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        most_bytes: what reading it may take; None for no limit.

    Returns:
        The image; ``notes`` names every repair.

    Raises:
        FileNotFoundError: the file, or what a symbolic link points to, does not exist.
        ImageError: the file is damaged, or is no usable 3-D image.
        OSError: the file cannot be read (no permission, a fault of the disk or the network).
        MemoryError: there is no memory for it.
    """
    try:
        _check_file(path)
        file = nib.load(path, mmap=False)  # a mapped file that shrinks would end the process
        if not isinstance(file, nib.Nifti1Image):
            raise ImageError(f"{path.name}: not a NIfTI image")
        shape = _check_shape(path, file, most_bytes)
        affine, notes = _check_affine(path, file)
        data = _voxels(path, file, shape)
    except (ImageError, MemoryError, FileNotFoundError):
        raise
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not the file's
            raise _named(error, path) from error
        raise ImageError(
            f"{path.name}: damaged or truncated file ({error}); copy or convert it again"
        ) from error
    except Exception as error:  # nibabel raises many kinds for a broken header
        text = str(error).replace(str(path), path.name)
        raise ImageError(f"{path.name}: not a readable NIfTI image ({text})") from error
    data, more = _check_values(path, data)
    return Image(data, affine, file.header.copy(), (*notes, *more))


def _check_file(path: Path) -> None:
    """Refuse what is no image file before it is opened: a pipe would wait for ever."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path.name}: a link whose content is missing; {_get(path)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ImageError(f"{path.name}: not a regular file")
    if facts.st_size == 0:
        raise ImageError(f"{path.name}: empty file (0 bytes); copy or convert it again")
    with open(path, "rb") as file:
        start = file.read(200)
    if start.startswith(b"version https://git-lfs"):
        raise FileNotFoundError(f"{path.name}: a pointer of Git LFS, no image; run 'git lfs pull'")
    if b"/annex/objects/" in start:
        raise FileNotFoundError(f"{path.name}: a pointer whose content is missing; {_get(path)}")
    if path.suffix == ".gz" and not start.startswith(b"\x1f\x8b"):
        raise ImageError(
            f"{path.name}: named .nii.gz but is not compressed; is it an image? Then rename it to "
            ".nii, or compress it with gzip"
        )


def _get(path: Path) -> str:
    command = f"datalad get {shlex.quote(str(path))}"
    return f"if the dataset is managed by DataLad, run {command}"


def _named(error: OSError, path: Path) -> OSError:
    """Return the error with the name of the file, which reading an open file leaves out."""
    if error.filename is not None or len(error.args) < 2:
        return error
    return type(error)(error.args[0], error.args[1], str(path))


def _voxels(
    path: Path, file: nib.Nifti1Image, shape: tuple[int, int, int]
) -> npt.NDArray[np.float32]:
    """Read the voxels as float32 after the file's intensity scaling."""
    kind = file.header.get_data_dtype()
    if kind.kind not in "iufb":
        raise ImageError(f"{path.name}: voxels of type {kind}; expected real numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        # Asked for float32, nibabel scales in float32 where that is exact enough.
        data = np.asarray(file.dataobj, np.float32)
        return np.require(data.reshape(shape), np.float32, "W")


def _check_shape(
    path: Path, file: nib.Nifti1Image, most_bytes: int | None
) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in file.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ImageError(
            f"{path.name}: {len(shape)}-D image of shape {shape}; expected one 3-D volume. "
            "Split or average the volumes first"
        )
    if min(shape) < SMALLEST_SIDE:
        raise ImageError(f"{path.name}: shape {shape}: at least {SMALLEST_SIDE} voxels a side")
    needed = int(np.prod(shape, dtype=np.int64)) * file.header.get_data_dtype().itemsize
    room = path.stat().st_size * (LARGEST_EXPANSION if path.suffix == ".gz" else 1)
    if needed > room:
        raise ImageError(
            f"{path.name}: damaged or truncated file (the header claims {needed:,} bytes of "
            f"voxels, the file has {path.stat().st_size:,}); copy or convert it again"
        )
    taken = needed + 4 * int(np.prod(shape, dtype=np.int64))
    if most_bytes is not None and taken > most_bytes:
        raise MemoryError(
            f"{path.name}: {' x '.join(map(str, shape))} voxels take {taken / 2**30:.1f} GiB to "
            f"read, {most_bytes / 2**30:.1f} GiB are there for it"
        )
    if path.suffix == ".gz":
        _check_sum(path, needed + int(file.header["vox_offset"]))
    return shape[0], shape[1], shape[2]


def _check_sum(path: Path, expected: int) -> None:
    """Read a gzip file to its end, where its checksum is; a reader of voxels would stop before.

    Nothing is kept, so that neither a bomb nor a header that claims too much takes memory. Zeros
    after the end are padding.
    """
    read, unpacker = 0, zlib.decompressobj(wbits=31)
    with open(path, "rb") as file:
        while block := file.read(PIECE):
            while block and (not unpacker.eof or (block := block.lstrip(b"\0"))):
                if unpacker.eof:  # one more part
                    unpacker = zlib.decompressobj(wbits=31)
                read += len(unpacker.decompress(block))
                block = unpacker.unused_data
            if read > expected + (64 << 20):
                raise ImageError(
                    f"{path.name}: holds far more than the {expected:,} bytes its header claims"
                )
    if not unpacker.eof or read < expected:
        raise ImageError(
            f"{path.name}: damaged or truncated file (the header claims {expected:,} bytes, there "
            f"are {read:,}); copy or convert it again"
        )


def _check_affine(
    path: Path, file: nib.Nifti1Image
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    affine = np.asarray(file.affine, np.float64)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ImageError(f"{path.name}: the affine is singular; the header needs repair")
    if zooms.min() < SMALLEST_VOXEL or zooms.max() > LARGEST_VOXEL:
        raise ImageError(
            f"{path.name}: voxel size {' x '.join(f'{z:.3g}' for z in zooms)} mm; expected "
            f"{SMALLEST_VOXEL} to {LARGEST_VOXEL} mm. Are the units in the header right?"
        )
    sform, scode = file.header.get_sform(coded=True)
    qform, qcode = file.header.get_qform(coded=True)
    notes: tuple[str, ...] = ()
    if scode and qcode and not np.allclose(sform, qform, atol=0.1):
        codes = nib.aff2axcodes(sform), nib.aff2axcodes(qform)
        if codes[0] != codes[1]:
            raise ImageError(
                f"{path.name}: sform ({''.join(codes[0])}) and qform ({''.join(codes[1])}) "
                "disagree about the orientation, so left and right are not certain; repair the "
                "header first"
            )
        shift = float(np.abs(sform - qform).max())
        notes += (f"sform and qform differ by up to {shift:.2f}; the sform was used",)
    if not scode and not qcode:
        notes += ("the header states no orientation (sform and qform codes are 0)",)
    return affine, notes


def _check_values(
    path: Path, data: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    bad = ~np.isfinite(data)
    if bad.any():
        share = float(bad.mean())
        if share > 0.95:
            raise ImageError(f"{path.name}: {share:.0%} of the voxels are NaN or infinite")
        data[bad] = 0
        notes += (f"{int(bad.sum()):,} voxels were NaN or infinite and were set to 0",)
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise ImageError(f"{path.name}: empty image, every voxel is {low:g}")
    if high > 1e30 or low < -1e30:
        raise ImageError(
            f"{path.name}: intensities up to {max(high, -low):.3g}; the scale factors in the "
            "header are damaged"
        )
    return data, notes


def save_image(
    path: Path,
    data: npt.NDArray[np.generic],
    like: Image,
    *,
    affine: npt.NDArray[np.float64] | None = None,
) -> None:
    """Write a NIfTI image beside ``like``: same codes and units, no intensity scaling.

    The file appears complete or not at all. With ``affine`` (another grid) sform and qform are
    both set to it, with the codes of ``like``.

    Args:
        path: where to write, ``.nii.gz``.
        data: (x, y, z); bool becomes uint8, other types are written as they are.
        like: the image whose header facts are kept.
        affine: (4, 4) of ``data`` where it is not on the grid of ``like``.

    Raises:
        OSError: no space left, or the folder cannot be written.
    """
    array = data.astype(np.uint8) if data.dtype == np.bool_ else data
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_xyzt_units(*like.header.get_xyzt_units())
    file = nib.Nifti1Image(array, like.affine if affine is None else affine, header)
    sform, scode = like.header.get_sform(coded=True)
    qform, qcode = like.header.get_qform(coded=True)
    if affine is None:
        file.set_sform(sform if scode else None, int(scode))
        file.set_qform(qform if qcode else None, int(qcode))
        if not scode and not qcode:
            file.header["pixdim"][1:4] = like.header["pixdim"][1:4]
    else:
        file.set_sform(affine, int(scode) or int(qcode) or 1)
        file.set_qform(affine, int(qcode) or int(scode) or 1)
    _write(path, file)


def _write(path: Path, file: nib.Nifti1Image) -> None:
    prefix = f"{TEMPORARY}{path.name.split('.')[0]}-"
    handle, name = tempfile.mkstemp(prefix=prefix, dir=path.parent)
    os.close(handle)
    temporary = Path(name + ".nii.gz")
    os.replace(name, temporary)
    try:
        # mtime=0: the same voxels give the same bytes
        with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as stream:
            file.to_stream(stream)  # in pieces, unlike to_bytes
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
