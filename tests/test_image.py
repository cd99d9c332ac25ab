"""Images: what is repaired, what is refused, what survives a round trip."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.image import ImageError, load_image, save_image

SHAPE = (10, 11, 12)


def make(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    if data is None:
        data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    nib.Nifti1Image(data, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def test_data_and_affine(tmp_path: Path) -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    image = load_image(make(tmp_path / "a.nii.gz", affine=affine))
    assert image.data.dtype == np.float32
    assert image.data[1, 2, 3] == 1 * 132 + 2 * 12 + 3
    np.testing.assert_allclose(image.zooms, [2, 3, 4])


def test_single_volume_of_four_dimensions(tmp_path: Path) -> None:
    data = np.random.default_rng(1).random((*SHAPE, 1)).astype(np.float32)
    assert load_image(make(tmp_path / "a.nii.gz", data)).data.shape == SHAPE


def _truncated(path: Path) -> None:
    make(path)
    path.write_bytes(path.read_bytes()[:-200])


def _corrupt_middle(path: Path) -> None:
    make(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(raw))


def _not_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(b"not an image" * 100))


def _terabytes(path: Path) -> None:
    make(path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[42:48] = np.array([30000, 30000, 3000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


def _flipped_qform(path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(1).random(SHAPE).astype(np.float32), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.diag([-1.0, 1, 1, 1]), 1)
    image.to_filename(path)


def _huge_scale(path: Path) -> None:
    make(path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:116] = np.array([3e36], "<f4").tobytes()  # scl_slope
    path.write_bytes(gzip.compress(bytes(raw)))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_truncated, "damaged or truncated"),
        (_corrupt_middle, "damaged or truncated"),
        (_not_nifti, "not a readable NIfTI|damaged"),
        (_terabytes, "damaged or truncated"),
        (_flipped_qform, "left and right are not certain"),
        (_huge_scale, "scale factors"),
        (lambda p: p.write_bytes(b""), "empty file"),
        (lambda p: make(p, np.ones((10, 11, 12, 3), np.float32)), "expected one 3-D volume"),
        (lambda p: make(p, np.ones((40, 40), np.float32)), "expected one 3-D volume"),
        (lambda p: make(p, np.ones((40, 40, 2), np.float32)), "at least 8 voxels"),
        (lambda p: make(p, np.full(SHAPE, 7, np.int16)), "empty image"),
        (lambda p: make(p, np.full(SHAPE, np.nan, np.float32)), "NaN or infinite"),
        (lambda p: make(p, np.ones(SHAPE, np.complex64)), "expected real numbers"),
        (lambda p: make(p, affine=np.diag([50.0, 1, 1, 1])), "voxel size"),
        (lambda p: make(p, affine=np.diag([1e-3, 1, 1, 1])), "voxel size"),
    ],
)
def test_refused(tmp_path: Path, write: object, message: str) -> None:
    path = tmp_path / "sub-01_T1w.nii.gz"
    write(path)  # type: ignore[operator]
    with pytest.raises(ImageError, match=message):
        load_image(path)


def test_singular_affine(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(1).random(SHAPE).astype(np.float32), np.eye(4))
    image.header["srow_x"] = image.header["srow_y"]
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    raw = image.header.binaryblock + bytes(4) + image.get_fdata(dtype=np.float32).tobytes("F")
    path = tmp_path / "a.nii"
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="singular"):
        load_image(path)


def test_missing_file_and_missing_content(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_image(tmp_path / "a.nii.gz")
    link = tmp_path / "b.nii.gz"
    link.symlink_to(tmp_path / ".git" / "annex" / "key")
    with pytest.raises(FileNotFoundError, match="datalad get"):
        load_image(link)


def test_few_nans_are_set_to_zero_and_said(tmp_path: Path) -> None:
    data = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    image = load_image(make(tmp_path / "a.nii.gz", data))
    assert not image.data[0, 0, :3].any()
    assert "3 voxels were NaN" in image.notes[0]


@pytest.mark.parametrize(("sform", "qform"), [(4, 1), (2, 0), (0, 1), (0, 0)])
def test_codes_and_units_survive(tmp_path: Path, sform: int, qform: int) -> None:
    affine = np.array([[-0.9, 0.1, 0, 9], [0.1, 0.9, 0, -5], [0, 0, 1.2, 3], [0, 0, 0, 1]])
    file = nib.Nifti1Image(np.random.default_rng(1).random(SHAPE).astype(np.float32), affine)
    file.header.set_xyzt_units("mm", "sec")
    file.set_sform(affine if sform else None, sform)
    file.set_qform(affine if qform else None, qform, strip_shears=True)
    file.to_filename(tmp_path / "a.nii.gz")
    image = load_image(tmp_path / "a.nii.gz")
    save_image(tmp_path / "b.nii.gz", image.data, image)
    copy = load_image(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(copy.data, image.data)
    np.testing.assert_allclose(copy.affine, image.affine, atol=1e-6)
    assert int(copy.header["sform_code"]) == sform
    assert int(copy.header["qform_code"]) == qform
    assert copy.header.get_xyzt_units() == ("mm", "sec")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_same_voxels_same_bytes(tmp_path: Path) -> None:
    image = load_image(make(tmp_path / "a.nii.gz"))
    save_image(tmp_path / "b.nii.gz", image.data, image)
    save_image(tmp_path / "c.nii.gz", image.data, image)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_another_grid(tmp_path: Path) -> None:
    image = load_image(make(tmp_path / "a.nii.gz"))
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    save_image(tmp_path / "b.nii.gz", image.data > 5, image, affine=affine)
    copy = load_image(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(copy.affine, affine)
    assert copy.header.get_data_dtype() == np.uint8


def test_an_image_too_large_for_the_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.nii.gz")
    size = int(np.prod(SHAPE)) * (2 + 4)
    assert load_image(path, most_bytes=size).data.shape == SHAPE
    with pytest.raises(MemoryError, match="10 x 11 x 12 voxels take 0.0 GiB to read"):
        load_image(path, most_bytes=size - 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_voxels_of_any_kind_become_float32(
    tmp_path: Path, order: str, kind: str, slope: float
) -> None:
    head = nib.Nifti1Header(endianness=order)
    head.set_data_shape(SHAPE)
    head.set_data_dtype(kind)
    head.set_sform(np.eye(4), 1)
    head["scl_slope"], head["scl_inter"], head["vox_offset"] = slope, 3, 352
    data = (np.arange(np.prod(SHAPE)) % 200).astype(order + kind).reshape(SHAPE)
    content = head.binaryblock + bytes(4) + data.tobytes("F")
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    for name in ("a.nii", "a.nii.gz"):
        image = load_image(tmp_path / name)
        assert image.data.dtype == np.dtype(np.float32) and image.data.dtype.isnative
        np.testing.assert_allclose(image.data, data * slope + 3 if slope else data, rtol=1e-6)
        image.data[0, 0, 0] = 1  # may be changed


def test_a_mapped_file_is_not_kept_open(tmp_path: Path) -> None:
    path = make(tmp_path / "a.nii")
    image = load_image(path)
    path.write_bytes(b"")  # of a mapped file, the next look at a voxel would end the process
    assert image.data.sum() > 0
