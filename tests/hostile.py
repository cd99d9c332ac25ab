"""Hostile files by the thousand, and what each reader may do with them: accept, or say no in words.

Every target has a strategy that makes cases and a check that raises AssertionError when a case gets
through: an error of another kind, more memory than the file's size explains, or no end.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from datasets import ages, make_dataset
from hypothesis import strategies as st
from patience import no_longer_than

from bmex_bids import layout
from bmex_bids.age import AgeError, find_age
from bmex_bids.image import ImageError, load_image
from bmex_bids.layout import InputError, Selection, check_dataset, find_images, read_filters
from bmex_bids.options import parse_options
from bmex_bids.tables import TableError, read_table
from bmex_bids.weights import WeightsError, list_models

__all__ = ["TARGETS", "Tally", "Target"]

PATIENCE = 10  # seconds of computing for one case
SHAPE = (8, 9, 10)
ALLOWED = 16 << 20  # bytes that reading a file of a few kB may take, for all libraries do beside


@dataclass
class Tally:
    """What came of the cases of one target."""

    cases: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0


@dataclass(frozen=True)
class Target:
    """A strategy of cases, and what is done with each in a folder of its own."""

    cases: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]
    refusals: tuple[type[BaseException], ...]
    memory: bool = False

    def meet(self, case: object, folder: Path, tally: Tally) -> None:
        """Read one case; an error that is none of the refusals goes through."""
        tally.cases += 1
        started = time.process_time()
        if self.memory:
            tracemalloc.start()
        try:
            with no_longer_than(PATIENCE):
                self.read(case, folder)
            tally.accepted += 1
        except self.refusals as error:
            text = str(error)
            assert text.strip() and "Traceback" not in text, repr(error)
            tally.refused[type(error).__name__] += 1
        finally:
            if self.memory:
                tally.largest = max(tally.largest, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        tally.slowest = max(tally.slowest, time.process_time() - started)
        assert tally.largest < ALLOWED, f"{tally.largest:,} bytes"


# --- images --------------------------------------------------------------------------------------


@functools.cache
def good_image() -> bytes:
    head = nib.Nifti1Header()
    head.set_data_shape(SHAPE)
    head.set_data_dtype(np.int16)
    head.set_sform(np.diag([1.0, 1, 1, 1]), 1)
    head.set_qform(np.diag([1.0, 1, 1, 1]), 1)
    head["vox_offset"] = 352
    data = np.arange(np.prod(SHAPE), dtype=np.int16)
    return bytes(head.binaryblock + bytes(4) + data.tobytes())


# Places of the header that decide what is read: dim, datatype, bitpix, pixdim, vox_offset,
# scl_slope, scl_inter, units, qform and sform codes, quaternion, srow, magic, extension.
FIELDS = {
    "<h": (40, 42, 44, 46, 48, 50, 52, 54, 70, 72, 252, 254),
    "<f": (76, 80, 84, 88, 108, 112, 116, 256, 260, 264, 268, 280, 284, 296, 312, 324),
    "<i": (0, 344, 348, 352, 356),
    "<B": (123, 345, 348),
}
LIMITS = {
    "<h": (-32768, 32767, [0, 1, 2, 3, 4, 5, 8, 16, 64, 128, 256, 512, 768, 1024, 1536, 2304]),
    "<i": (-(2**31), 2**31 - 1, [0, 1, 8, 16, 348, 540, -1]),
    "<B": (0, 255, [0, 1, 2, 10, 255]),
}
SPECIAL = [0.0, -1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), -float("inf"), 352.0, 4e9]


def _edit() -> st.SearchStrategy[tuple[str, int, float]]:
    def of(form: str) -> st.SearchStrategy[tuple[str, int, float]]:
        if form == "<f":
            value: st.SearchStrategy[float] = st.sampled_from(SPECIAL) | st.floats(width=32)
        else:
            low, high, usual = LIMITS[form]
            value = st.sampled_from(usual) | st.integers(low, high)
        return st.tuples(st.just(form), st.sampled_from(FIELDS[form]), value)

    return st.one_of([of(form) for form in FIELDS])


@dataclass(frozen=True)
class Nifti:
    """A good image, spoilt: fields of its header, bytes anywhere, its length, its compression."""

    edits: list[tuple[str, int, float]]
    spots: list[tuple[int, int]]
    length: int
    packed: bool
    packed_spots: list[tuple[int, int]]
    packed_length: int
    padding: int

    def write(self, folder: Path) -> Path:
        content = bytearray(good_image())
        for form, at, value in self.edits:
            struct.pack_into(form, content, at, value)
        for at, value in self.spots:
            content[at % len(content)] = value
        raw = bytes(content[: self.length]) + bytes(self.padding)
        if self.packed:
            squeezed = bytearray(gzip.compress(raw, 1, mtime=0))
            for at, value in self.packed_spots:
                squeezed[at % len(squeezed)] = value
            raw = bytes(squeezed[: self.packed_length])
        path = folder / ("sub-01_T1w.nii.gz" if self.packed else "sub-01_T1w.nii")
        path.write_bytes(raw)
        return path


BYTE = st.integers(0, 255)
NIFTI = st.builds(
    Nifti,
    edits=st.lists(_edit(), max_size=4),
    spots=st.lists(st.tuples(st.integers(0, 360), BYTE), max_size=3),
    length=st.just(10**6) | st.integers(0, 2000),
    packed=st.booleans(),
    packed_spots=st.just([]) | st.lists(st.tuples(st.integers(0, 10**4), BYTE), max_size=3),
    packed_length=st.just(10**6) | st.integers(0, 2000),
    padding=st.just(0) | st.integers(0, 1 << 18),
)


def read_image(case: Nifti, folder: Path) -> None:
    image = load_image(case.write(folder), most_bytes=1 << 30)
    assert image.data.dtype == np.float32 and np.isfinite(image.data).all()
    assert image.data.ndim == 3 and np.isfinite(image.affine).all()


# --- text ----------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["participant_id", "session_id", "filename", "age", "age_months", "gestational_age", "sub-01",
     "ses-1", "n/a", "89+", "6", "-3", "1e9", "30 gestational weeks", "2 years 6 months", "006Y",
     "Units", "weeks", "years", "\t", "\n", "\r", '"', "\ufeff", "\0", "\u2028", "9" * 400]
)  # fmt: skip
TEXT = st.text(max_size=12) | WORDS
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
KEYS = TEXT | st.sampled_from(["age", "Age", "AgeUnits", "PatientAge", "Units", "Description"])
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)
DEEP = st.integers(1, 4000).map(lambda n: "[" * n) | st.integers(1, 4000).map(lambda n: '{"a":' * n)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


JSON_BYTES = JSON.map(_json) | st.binary(max_size=60) | DEEP.map(str.encode)
TABLE = (
    st.lists(st.lists(TEXT, max_size=5).map("\t".join), max_size=5).map("\n".join).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
    | st.binary(max_size=80)
)  # fmt: skip
ROW = st.lists(TEXT, min_size=1, max_size=3).map(
    lambda cells: ("participant_id\tage\nsub-01\t" + " ".join(cells)).encode("utf-8", "replace")
)
AGE = st.sampled_from(["6", "89+", "006Y", "30 gestational weeks", "2 years 6 months", "1e3"])
AGES = AGE.map(lambda age: f"participant_id\tage\nsub-01\t{age}\n".encode())
UNITS = st.sampled_from(["months", "weeks", "year", 7, None, ["d"]])
NAMED = st.just(b"{}") | UNITS.map(lambda unit: _json({"age": {"Units": unit}}))


def read_ages(case: tuple[bytes, bytes, object], folder: Path) -> None:
    table, description, sidecar = case
    (folder / "participants.tsv").write_bytes(table)
    (folder / "participants.json").write_bytes(description)
    metadata = sidecar if isinstance(sidecar, dict) else {}
    image = folder / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    read_table(folder / "participants.tsv", folder)
    age = find_age(folder, {"sub": "01"}, image, metadata)
    assert age.months is None or age.months == age.months


def read_jsons(case: tuple[bytes, bytes], folder: Path) -> None:
    description, models = case
    (folder / "sub-01").mkdir(exist_ok=True)
    (folder / "models.json").write_bytes(models)
    (folder / "dataset_description.json").write_bytes(description)
    try:
        list_models([folder])
    except WeightsError:
        check_dataset(folder)
        raise
    check_dataset(folder)


MODEL = st.fixed_dictionaries(
    {name: LEAF | st.lists(LEAF, max_size=2) | st.just({}) for name in
     ("name", "kind", "set", "suffixes", "stage", "ages_months", "grid_mm", "architecture", "file",
      "sha256", "version", "licence", "source")}
)  # fmt: skip
MODELS = st.lists(MODEL | JSON, max_size=2).map(lambda m: _json({"schema": 1, "models": m}))
GOOD_MODELS = st.just(_json({"schema": 1, "models": []}))

OBJECTS = st.dictionaries(KEYS, JSON, max_size=3).map(_json)

ENTITIES = st.sampled_from(
    ["subject", "session", "run", "acquisition", "suffix", "extension", "datatype", "scope",
     "regex_search", "return_type", "target", "invalid_filters", "absolute_paths", "filters",
     "self", "path", "../x", "subject; DROP TABLE files"]
)  # fmt: skip
FILTER = st.dictionaries(
    st.sampled_from(["t1w", "T1w", "t2w", "bold"]) | TEXT,
    st.dictionaries(ENTITIES | TEXT, LEAF | JSON, max_size=3) | JSON,
    max_size=3,
).map(_json)


@functools.cache
def indexed(root: Path) -> object:
    """A small dataset beside its index, made once."""
    make_dataset(root, ["sub-01_run-1_T1w.nii.gz", "sub-02_T2w.nii.gz"], ages(**{"01": 72}))
    make_dataset(root.parent / "secret", ["sub-03_T1w.nii.gz"])
    return layout._index(root, Selection(), ())


def read_filter(case: bytes, folder: Path) -> None:
    root = folder / "bids"
    known = indexed(root)
    path = folder / "filter.json"
    path.write_bytes(case)
    selection = Selection(filters=read_filters(path))
    original = layout._index
    layout._index = lambda *args: known  # type: ignore[assignment]
    try:
        found = find_images(root, selection)
    finally:
        layout._index = original
    assert found and all(image.is_relative_to(root) for image in found)


OPTION = st.sampled_from(
    ["seed", "mem", "device", "verbose", "overwrite", "participant_label", "suffix", "age_months",
     "nprocs", "bids_dir", "analysis_level", "derivatives", "models_dir", "config_file", "help"]
)  # fmt: skip


def _toml(pairs: list[tuple[str, object]]) -> bytes:
    lines = [
        f"{json.dumps(key) if not re.fullmatch('[a-z_]+', key) else key} = {json.dumps(value)}"
        for key, value in pairs
    ]
    return "\n".join(lines).encode("utf-8", "replace")


TOML_BYTES = (
    st.lists(st.tuples(OPTION | TEXT, LEAF | st.lists(TEXT, max_size=3)), max_size=4).map(_toml)
    | st.binary(max_size=60)
    | st.integers(1, 4000).map(lambda n: b"a = " + b"[" * n)
)


class Ended(Exception):
    """The program ended with code 2 and these words."""


def read_toml(case: bytes, folder: Path) -> None:
    path = folder / "bmex.toml"
    path.write_bytes(case)
    said = StringIO()
    try:
        with redirect_stderr(said):
            parse_options(["--config-file", str(path), "/bids", "/out", "participant"])
    except SystemExit as ended:
        assert ended.code == 2, ended.code
        raise Ended(said.getvalue()) from None


TARGETS = {
    "images": Target(NIFTI, read_image, (ImageError, MemoryError), memory=True),
    "tables": Target(
        st.tuples(TABLE | ROW | AGES, JSON_BYTES | NAMED, JSON), read_ages, (TableError, AgeError)
    ),
    "json": Target(
        st.tuples(JSON_BYTES | OBJECTS, JSON_BYTES | MODELS | GOOD_MODELS),
        read_jsons,
        (InputError, WeightsError),
    ),
    "filters": Target(FILTER | JSON_BYTES, read_filter, (InputError,)),
    "toml": Target(TOML_BYTES, read_toml, (Ended,)),
}
