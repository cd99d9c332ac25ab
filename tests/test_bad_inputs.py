"""What is wrong with an input is said in one line, with the right exit code and no traceback.

Two tables: images (all of them in one dataset, one start of the program) and starts of the program
(dataset, tables, options, weights).
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import ages, make_dataset, make_models
from patience import no_longer_than
from safetensors.torch import save_file

import bmex_bids
from bmex_bids.cli import main
from bmex_bids.image import load_image

SHAPE = (10, 11, 12)
PATIENCE = 10  # seconds of computing for one start on a tiny dataset


@dataclass(frozen=True)
class Ended:
    """How one start of the program ended."""

    code: int
    out: str
    err: str


def bmex(*argv: object) -> Ended:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


# --- images ------------------------------------------------------------------------------------


def voxels() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def write(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
    nib.Nifti1Image(voxels() if data is None else data, affine).to_filename(path)


def image(data: np.ndarray) -> Callable[[Path], None]:
    return lambda path: write(path, data)


def grid(*diagonal: float) -> Callable[[Path], None]:
    return lambda path: write(path, affine=np.diag([*diagonal, 1.0]))


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content))


def void(_: object) -> None:
    """Turn an expression into a statement."""


def header(at: int, form: str, *values: float) -> Callable[[Path], None]:
    """Write a good image, then other values at a place of its header."""

    def spoil(path: Path) -> None:
        write(path, affine=np.eye(4))
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(form, content, at, *values)
        path.write_bytes(gzip.compress(bytes(content)))

    return spoil


def packed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Write a good image, then change the bytes of the compressed file."""

    def spoil(path: Path) -> None:
        write(path)
        path.write_bytes(change(path.read_bytes()))

    return spoil


def link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


def coded(sform: np.ndarray, qform: np.ndarray) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = nib.Nifti1Image(voxels(), np.eye(4))
        file.set_sform(sform, 1)
        file.set_qform(qform, 1)
        file.to_filename(path)

    return spoil


def bomb(path: Path) -> None:
    """A header of a small image, then a thousand times what the file has on the disk."""
    write(path)
    head = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(head + bytes(100 << 20), 1))


def honest_bomb(path: Path) -> None:
    """A header that claims 800 GB, with as many bytes as such a header needs to be believed."""
    head = nib.Nifti1Header()
    head.set_data_shape((10000, 10000, 1000))
    head.set_data_dtype(np.float64)
    head["vox_offset"] = 352
    path.write_bytes(gzip.compress(head.binaryblock + bytes(4)))
    grow(path)


def grow(path: Path) -> None:
    """Append zeros that take no room on the disk."""
    with open(path, "ab") as file:
        file.truncate(900_000_000)


def padded(path: Path) -> None:
    """An image that ends early in a long file: gzip looks at its padding byte by byte."""
    write(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-9]))
    grow(path)


NOISE = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
NAN = np.full(SHAPE, np.nan, np.float32)
RGB = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
ANNEX = "../../.git/annex/objects/xx/yy/MD5E-s9--00.nii.gz/MD5E-s9--00.nii.gz"

IMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    # the file
    "empty": (raw(b""), "empty file"),
    "short": (packed(lambda b: b[:-200]), "damaged or truncated"),
    "header": (packed(lambda b: b[:60]), "not a readable NIfTI"),
    "middle": (packed(lambda b: b[:300] + bytes(40) + b[340:]), "damaged or truncated"),
    "checksum": (packed(lambda b: b[:-8] + bytes(4) + b[-4:]), "damaged or truncated"),
    "unpacked": (packed(gzip.decompress), "named .nii.gz but is not compressed"),
    "text": (raw(gzip.compress(b"not an image" * 100)), "not a readable NIfTI image"),
    "page": (raw(b"<!DOCTYPE html><html>Sign in</html>" * 9), "named .nii.gz but is not comp"),
    "lfs": (raw(POINTER), "pointer of Git LFS.*git lfs pull"),
    "annexlink": (link(ANNEX), "content is missing.*datalad get"),
    "annexpointer": (raw(b"/annex/objects/MD5E-s9--00.nii.gz\n"), "datalad get"),
    "loop": (lambda path: path.symlink_to(path.name), "link.*datalad get|points to itself"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "device": (link("/dev/zero"), "not a regular file"),
    "bomb": (bomb, "holds far more than"),
    # the header
    "terabytes": (header(42, "<3h", 30000, 30000, 3000), "damaged or truncated.*claims"),
    "honestbomb": (honest_bomb, "damaged or truncated|memory"),
    "negative": (header(42, "<3h", -10, 11, 12), "not a readable NIfTI|shape"),
    "zeroside": (header(42, "<3h", 0, 11, 12), "at least 8 voxels"),
    "nodims": (header(40, "<h", 0), "not a readable NIfTI|expected one 3-D volume"),
    "ninedims": (header(40, "<h", 9), "not a readable NIfTI"),
    "datatype": (header(70, "<h", 9999), "not a readable NIfTI"),
    "magic": (header(344, "<4s", b"abc\0"), "not a readable NIfTI"),
    "offset": (header(108, "<f", 4e9), "damaged or truncated"),
    "offsetnan": (header(108, "<f", np.nan), "not a readable NIfTI"),
    "offsetback": (header(108, "<f", -400.0), "not a readable NIfTI"),
    "slope": (header(112, "<f", 3e36), "scale factors"),
    "volumes": (image(np.ones((*SHAPE, 3), np.float32)), "expected one 3-D volume"),
    "fiveD": (image(np.ones((*SHAPE, 1, 3), np.float32)), "expected one 3-D volume"),
    "flat": (image(np.ones((40, 40), np.float32)), "expected one 3-D volume"),
    "thin": (image(np.ones((40, 40, 2), np.float32)), "at least 8 voxels"),
    "complex": (image(np.ones(SHAPE, np.complex64)), "expected real numbers"),
    "rgb": (image(RGB), "expected real numbers"),
    # the grid
    "bigvoxels": (grid(50, 1, 1), "voxel size 50 x 1 x 1 mm.*units"),
    "tinyvoxels": (grid(1e-3, 1e-3, 1e-3), "voxel size 0.001.*units"),
    "nanaffine": (header(280, "<f", np.nan), "affine"),
    "singular": (header(280, "<8f", 1, 0, 0, 0, 1, 0, 0, 0), "affine is singular"),
    "flipped": (coded(np.eye(4), np.diag([-1.0, 1, 1, 1])), "left and right are not certain"),
    # the voxels
    "constant": (image(np.full(SHAPE, 7, np.int16)), "empty image, every voxel is 7"),
    "zeros": (image(np.zeros(SHAPE, np.uint8)), "empty image"),
    "allnan": (image(NAN), "100% of the voxels are NaN"),
    "overflow": (image(np.where(voxels() > 9, 1e300, 0)), "NaN or infinite"),
    "zscored": (image(NOISE), "below zero.*expected a magnitude image"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """Start the program once on a dataset of all bad images."""
    folder = tmp_path_factory.mktemp("bad")
    names = {name: f"sub-{name}_T1w.nii.gz" for name in IMAGES}
    root = make_dataset(folder / "bids", names.values(), ages(**dict.fromkeys(names, 300)))
    for name, (spoil, _) in IMAGES.items():
        path = root / f"sub-{name}" / "anat" / names[name]
        path.unlink()
        spoil(path)
    with no_longer_than(10 * len(IMAGES)):
        ended = bmex(root, folder / "out", "participant", "--skip-bids-validation")
    return ended, folder / "out"


@pytest.mark.parametrize("name", IMAGES)
def test_image(refused: tuple[Ended, Path], name: str) -> None:
    ended, out = refused
    (line,) = [x for x in ended.out.splitlines() if x.startswith(f"failed: sub-{name}_T1w: ")]
    message = line.removeprefix(f"failed: sub-{name}_T1w: ")
    assert re.search(IMAGES[name][1], message), message
    crash = out / "logs" / f"crash-sub-{name}_T1w.txt"
    assert crash.read_text().splitlines()[0] == message
    assert not list((out / f"sub-{name}").glob("**/*.nii.gz"))
    page = (out / f"sub-{name}.html").read_text()
    assert f"sub-{name}_T1w" in page


def test_every_bad_image_is_one_failure(refused: tuple[Ended, Path]) -> None:
    ended, _ = refused
    assert ended.code == 1
    assert f"{len(IMAGES)} failed" in ended.out
    assert "Traceback" not in ended.out + ended.err


# --- starts of the program -----------------------------------------------------------------------

Prepare = Callable[[Path], "list[object]"]


@dataclass(frozen=True)
class Start:
    """One start: what is done to a good dataset of one image, and what has to come of it.

    ``prepare`` gets a folder with ``bids`` and returns arguments after ``bids out participant``.
    """

    prepare: Prepare
    message: str
    code: int = 2


def options(*argv: object) -> Prepare:
    return lambda folder: list(argv)


def put(name: str, content: str | bytes, *argv: object) -> Prepare:
    """Write a file (below the folder of the test), then start with these arguments."""

    def prepare(folder: Path) -> list[object]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [folder / a[1:] if isinstance(a, str) and a.startswith("@") else a for a in argv]

    return prepare


def filters(content: object) -> Prepare:
    text = content if isinstance(content, str) else json.dumps(content)
    return put("filter.json", text, "--bids-filter-file", "@filter.json")


def config(text: str | bytes) -> Prepare:
    return put("bmex.toml", text, "--config-file", "@bmex.toml")


def models(change: Callable[[dict[str, object], Path], object]) -> Prepare:
    """Bundle one model whose entry in models.json, or whose file, is spoilt."""

    def prepare(folder: Path) -> list[object]:
        place = make_models(folder / "models")
        content = json.loads((place / "models.json").read_text())
        weights = place / "first.safetensors"
        weights.write_bytes(b"weights")
        content["models"][0]["sha256"] = hashlib.sha256(b"weights").hexdigest()
        content = change(content, weights) or content
        (place / "models.json").write_text(json.dumps(content))
        head = nib.load(image_of(folder / "bids"))
        anat = folder / "masks" / "sub-01" / "anat"
        anat.mkdir(parents=True)
        brain = (head.get_fdata() > 0).astype(np.uint8)
        write(anat / "sub-01_space-T1w_desc-brain_mask.nii.gz", brain, head.affine)
        return ["--models-dir", place, "--model-set", "test", "-d", folder / "masks"]

    return prepare


def image_of(root: Path) -> Path:
    """Give the subject an image that can be loaded, with a box of brain."""
    data = np.zeros((20, 22, 24), np.float32)
    data[4:16, 4:16, 4:16] = 100 + np.arange(12)
    path = root / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    write(path, data, np.diag([8.0, 8.0, 8.0, 1.0]))
    return path


def mask(change: Callable[[Path], None]) -> Prepare:
    """Give a brain mask in a derivative dataset, spoilt."""

    def prepare(folder: Path) -> list[object]:
        image_of(folder / "bids")
        anat = folder / "masks" / "sub-01" / "anat"
        anat.mkdir(parents=True)
        change(anat / "sub-01_space-T1w_desc-brain_mask.nii.gz")
        return ["-d", f"masks={folder / 'masks'}"]

    return prepare


def entry(**values: object) -> Callable[[dict[str, object], Path], object]:
    def change(content: dict[str, object], weights: Path) -> None:
        content["models"][0].update(values)  # type: ignore[index]

    return change


def pickled(content: dict[str, object], weights: Path) -> None:
    weights.write_bytes(pickle.dumps({"a": 1}))
    entry(sha256=hashlib.sha256(weights.read_bytes()).hexdigest())(content, weights)


def no_such_network(content: dict[str, object], weights: Path) -> None:
    save_file({"x": torch.zeros(1)}, weights)
    entry(
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        architecture={"name": "__loader__"},
    )(content, weights)


def changed_byte(content: dict[str, object], weights: Path) -> None:
    weights.write_bytes(b"weighty")


def without(name: str) -> Prepare:
    def prepare(folder: Path) -> list[object]:
        path = folder / "bids" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return []

    return prepare


def table(cells: str, name: str = "participants.tsv") -> Prepare:
    return put(f"bids/{name}", cells)


def folder_named(name: str, *argv: object) -> Prepare:
    def prepare(folder: Path) -> list[object]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)
        return list(argv)

    return prepare


def other_index(folder: Path) -> list[object]:
    """An index that was made of another dataset."""
    other = make_dataset(folder / "other", ["sub-01_T1w.nii.gz"], ages(**{"01": 300}))
    database = folder / "index"
    ended = bmex(other, folder / "o", "participant", "--dry-run", "--bids-database-dir", database)
    assert ended.code == 0
    return ["--bids-database-dir", database]


DEEP = "[" * 100_000
BRAIN = (voxels() > 9).astype(np.uint8)
FAR_AWAY = np.array([[8, 0, 0, 5000], [0, 8, 0, 0], [0, 0, 8, 0], [0, 0, 0, 1.0]])
PEOPLE = "participant_id\tage\n"
SHELL = "01;touch PWNED"
STARTS: dict[str, Start] = {
    # the dataset
    "no-description": Start(without("dataset_description.json"), "no dataset_description.json"),
    "description-broken": Start(put("bids/dataset_description.json", "{"), "not valid JSON"),
    "description-list": Start(put("bids/dataset_description.json", "[]"), "expected a JSON object"),
    "description-deep": Start(put("bids/dataset_description.json", DEEP), "not valid JSON"),
    "description-utf16": Start(
        put("bids/dataset_description.json", "{}".encode("utf-16")), "not valid JSON"
    ),
    "description-folder": Start(folder_named("bids/dataset_description.json"), "not a regular"),
    "no-subject": Start(without("sub-01"), "no sub-* folder"),
    "no-image": Start(without("sub-01/anat/sub-01_T1w.nii.gz"), "no T1w or T2w image found"),
    "no-anat": Start(without("sub-01/anat"), "no T1w or T2w image found"),
    # ages
    "no-table": Start(without("participants.tsv"), "no age: there is no scans.tsv", 1),
    "table-empty": Start(table(""), "participants.tsv is empty", 1),
    "table-header": Start(table(PEOPLE), "participants.tsv has no rows", 1),
    "table-commas": Start(table("participant_id,age\nsub-01,25"), "separated by commas", 1),
    "table-utf16": Start(
        put("bids/participants.tsv", (PEOPLE + "sub-01\t25").encode("utf-16")), "not UTF-8", 1
    ),
    "table-folder": Start(folder_named("bids/participants.tsv"), "cannot be read", 1),
    "table-binary": Start(put("bids/participants.tsv", bytes(range(256)) * 9), "not UTF-8", 1),
    "table-nul": Start(table("\0" * 999), "no age: ", 1),
    "age-word": Start(table(PEOPLE + "sub-01\told\n"), "'old' is no age", 1),
    "age-negative": Start(table(PEOPLE + "sub-01\t-400\n"), "age -400 months", 1),
    "age-huge": Start(table(PEOPLE + "sub-01\t1" + "0" * 400 + "\n"), "no age|beyond every", 1),
    "age-digits": Start(table(PEOPLE + "sub-01\t" + "9" * 100_000 + "\n"), "no age|beyond", 1),
    "age-missing": Start(table(PEOPLE + "sub-01\tn/a\n"), "without an age", 1),
    "age-of-others": Start(table(PEOPLE + "sub-02\t25\n"), "only row.*is for sub-02", 1),
    "age-twice": Start(table(PEOPLE + "sub-01\t25\nsub-01\t300\n"), "different ages", 1),
    "unit-unknown": Start(
        put("bids/participants.json", '{"age": {"Units": "moons"}}'), "unit 'moons' is not known", 1
    ),
    "unit-broken": Start(put("bids/participants.json", "{"), "participants.json cannot be read", 1),
    "unit-deep": Start(put("bids/participants.json", DEEP), "participants.json cannot be read", 1),
    # labels and filters
    "label-unknown": Start(options("--participant-label", "9"), "no sub-9 (there is sub-01)"),
    "label-outside": Start(options("--participant-label", "../../etc"), "is no label"),
    "label-shell": Start(options("--participant-label", SHELL), "is no label"),
    "label-empty": Start(options("--participant-label", ""), "is no label"),
    "session-unknown": Start(options("--session-label", "2"), "no ses-2 (there is none)"),
    "filter-missing": Start(options("--bids-filter-file", "/nowhere.json"), "No such file"),
    "filter-broken": Start(filters("{"), "not valid JSON"),
    "filter-deep": Start(filters(DEEP), "not valid JSON"),
    "filter-list": Start(filters([]), "expected a JSON object"),
    "filter-shape": Start(filters({"t1w": "x"}), "'t1w' has to be an object"),
    "filter-entity": Start(filters({"t1w": {"flavour": "x"}}), "'flavour' is not a recognized"),
    "filter-object": Start(filters({"t1w": {"run": {"x": 1}}}), "t1w: run"),
    "filter-nested": Start(filters({"t1w": {"run": [[1]]}}), "t1w: run"),
    "filter-regex": Start(filters({"t1w": {"regex_search": 1}}), "'regex_search'"),
    "filter-scope": Start(filters({"t1w": {"scope": "derivatives"}}), "'scope'"),
    "filter-target": Start(filters({"t1w": {"target": "subject"}}), "'target'"),
    "filter-lenient": Start(filters({"t1w": {"invalid_filters": "allow"}}), "'invalid_filters'"),
    "filter-self": Start(filters({"t1w": {"self": 1}}), "'self'"),
    "filter-filters": Start(filters({"t1w": {"filters": "x"}}), "'filters'"),
    "filter-outside": Start(filters({"t1w": {"subject": "../../x"}}), "no T1w or T2w image"),
    "filter-huge": Start(filters('{"t1w": {"run": ' + "9" * 400 + "}}"), "no T1w|t1w: run"),
    "filter-binary": Start(put("filter.json", b"\xff\xfe\0", "--bids-filter-file", "@filter.json"),
                           "not valid JSON"),
    "index-broken": Start(put("index/layout_index.sqlite", "?" * 99, "--bids-database-dir",
                              "@index"), "--bids-database-dir"),
    "index-other": Start(other_index, "--bids-database-dir"),
    # options and configuration files
    "config-broken": Start(config("a = "), "--config-file"),
    "config-deep": Start(config("a = " + DEEP), "--config-file"),
    "config-binary": Start(config(b"\xff\xfe"), "--config-file"),
    "config-unknown": Start(config("devise = 'cpu'"), "did you mean device"),
    "config-type": Start(config("overwrite = 'yes'"), "overwrite has to be true or false"),
    "config-table": Start(config("[seed]\nx = 1"), "seed"),
    "config-digits": Start(config("seed = " + "9" * 5000), "--config-file|seed"),
    "config-level": Start(config("analysis_level = 'all'"), "participant or group"),
    "config-verbose": Start(config("verbose = 1000000000000"), "verbose"),
    "config-folder": Start(folder_named("bmex.toml", "--config-file", "."), "--config-file"),
    "no-number": Start(options("--mem", "much"), "expected a number with its unit"),
    "little-memory": Start(options("--mem", "100M", "--device", "cpu"), "raise --mem"),
    "huge-memory": Start(options("--mem", "9" * 400 + "G"), "--mem"),
    "no-processes": Start(options("--nprocs", "0"), "a whole number from 1"),
    "no-device": Start(options("--device", "tpu"), "expected auto, cpu, cuda"),
    "age-nan": Start(options("--age-months", "nan"), "expected months"),
    "age-option": Start(options("--age-months", "99999"), "beyond every stage", 1),
    "output-file": Start(put("out", "text"), "out"),
    "output-loop": Start(lambda f: (f / "out").symlink_to("out") or [], "out"),
    "work-inside": Start(lambda f: ["-w", f / "bids" / "work"], "inside bids_dir"),
    "work-file": Start(put("work", "text", "-w", "@work"), "work"),
    "mask-folder": Start(options("-d", "x=/nowhere"), "no such folder"),
    # masks
    "mask-broken": Start(mask(raw(b"?")), "brain_mask.nii.gz", 1),
    "mask-empty": Start(mask(image(np.zeros(SHAPE, np.uint8))), "brain_mask.*empty image", 1),
    "mask-elsewhere": Start(mask(lambda p: write(p, BRAIN, FAR_AWAY)), "does not overlap", 1),
    # weights
    "models-broken": Start(put("m/models.json", "{", "--models-dir", "@m"), "cannot be read"),
    "models-deep": Start(put("m/models.json", DEEP, "--models-dir", "@m"), "cannot be read"),
    "models-schema": Start(put("m/models.json", "{}", "--models-dir", "@m"), '"schema": 1'),
    "models-entry": Start(models(lambda c, w: c | {"models": ["x"]}), "models.json"),
    "models-null": Start(models(lambda c, w: c | {"models": None}), "models.json"),
    "models-fields": Start(models(lambda c, w: c | {"models": [{}]}), "missing"),
    "models-types": Start(models(entry(ages_months="x", suffixes=None)), "models.json"),
    "weights-changed": Start(models(changed_byte), "changed or damaged", 1),
    "weights-missing": Start(models(lambda c, w: w.unlink()), "cannot be read", 1),
    "weights-pickle": Start(models(pickled), "not a safetensors file", 1),
    "weights-outside": Start(models(entry(file="../../../etc/passwd")), "outside"),
    "weights-code": Start(models(no_such_network), "unknown architecture", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_start(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"], ages(**{"01": 300}))
    monkeypatch.setattr("bmex_bids.report.subject_report", lambda out, subject: out)
    case = STARTS[name]
    argv = case.prepare(tmp_path)
    with no_longer_than(PATIENCE):
        ended = bmex(root, tmp_path / "out", "participant", "--skip-bids-validation", *argv)
    said = ended.err if case.code == 2 else ended.out
    assert ended.code == case.code, ended
    assert "Traceback" not in ended.out + ended.err
    lines = [x for x in said.splitlines() if re.search(r"^bmex: error: |^failed: sub-01_T1w: ", x)]
    assert len(lines) == 1, ended
    assert case.message in lines[0] or re.search(case.message, lines[0]), lines[0]
    assert len(lines[0]) < 1000
    assert not list(tmp_path.glob("PWNED*"))


def test_at_least_sixty() -> None:
    assert len(IMAGES) + len(STARTS) >= 60


def test_text_from_tables_is_escaped_in_pages(tmp_path: Path) -> None:
    cells = {"participants.tsv": "participant_id\tage\nsub-01\t<script>alert(1)</script>\x1b[2J\n"}
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"], cells)
    ended = bmex(root, tmp_path / "out", "participant", "--skip-bids-validation")
    assert ended.code == 1 and "\x1b" not in ended.out + ended.err
    page = (tmp_path / "out" / "sub-01.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page


def test_a_command_to_paste_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a $(touch PWNED)" / "sub-01_T1w.nii.gz"
    path.parent.mkdir()
    path.symlink_to(ANNEX)
    with pytest.raises(FileNotFoundError) as caught:
        load_image(path)
    assert str(caught.value).endswith(f"run datalad get '{path}'")


SHELLS = {"os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "yaml.load"}


@pytest.mark.parametrize("path", sorted(Path(bmex_bids.__file__).parent.rglob("*.py")), ids=str)
def test_no_shell_and_no_code_from_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in SHELLS and "shell" not in given, called
            assert called != "torch.load" or given.get("weights_only") == "True", called
