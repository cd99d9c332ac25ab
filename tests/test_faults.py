"""Disks that are full, read-only, slow or broken, at any step: one clear message, the rest is done.

Faults are injected where Python meets the system (an audit hook that raises), at each such place in
turn; a full disk is also a real one, a small tmpfs.
"""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from datasets import ages, make_dataset, make_models
from stubbed_app import Calls, install

import bmex_bids
from bmex_bids import image as image_module
from bmex_bids import plan
from bmex_bids.cli import main
from bmex_bids.image import Image, load_image, save_image
from bmex_bids.jobs import explain

SCRIPT = Path(__file__).parent / "stubbed_app.py"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
FREEING = {"os.remove", "os.rmdir", "os.chmod", "os.truncate"}
LOOKS = {"os.scandir", "os.listdir"}


@dataclass
class Fault:
    """What goes wrong: which error, below which folder, from which access on.

    ``first`` counts from 1; 0 only counts. ``last`` is the last access that fails, None for ever.
    """

    code: int
    below: Path
    writes: bool = True
    reads: bool = False
    first: int = 0
    last: int | None = None
    slow: float = 0.0
    seen: int = 0
    hit: list[str] = field(default_factory=list)

    def meet(self, event: str, args: tuple[object, ...]) -> None:
        path = args[0] if args else None
        if not isinstance(path, str | os.PathLike) or not self._concerned(event, args):
            return
        if not Path(os.fspath(path)).is_relative_to(self.below):
            return
        self.seen += 1
        time.sleep(self.slow)
        if self.first and self.first <= self.seen <= (self.last or self.seen):
            self.hit.append(f"{event} {path}")
            raise OSError(self.code, os.strerror(self.code), str(path))

    def _concerned(self, event: str, args: tuple[object, ...]) -> bool:
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            writing = bool(flags & (os.O_CREAT if self.code == errno.ENOSPC else WRITING))
            return self.writes if writing else self.reads
        if self.code == errno.ENOSPC and event in FREEING:
            return False  # which is possible on a full disk
        return (event in CHANGES and self.writes) or (event in LOOKS and self.reads)


ARMED: list[Fault] = []  # an audit hook stays for good, so it looks here whether it is wanted


def _hook(event: str, args: tuple[object, ...]) -> None:
    if ARMED:
        fault = ARMED.pop()  # what it does itself is no access of the program
        try:
            fault.meet(event, args)
        finally:
            ARMED.append(fault)


sys.addaudithook(_hook)


@contextmanager
def armed(fault: Fault) -> Iterator[Fault]:
    ARMED.append(fault)
    try:
        yield fault
    finally:
        ARMED.clear()


@dataclass
class App:
    """The stubbed program on a dataset of two runs, which costs milliseconds a start."""

    folder: Path
    calls: Calls
    capsys: pytest.CaptureFixture[str]

    @property
    def raw(self) -> Path:
        return self.folder / "bids"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self, *options: str) -> tuple[int, str, str]:
        basic = ["--models-dir", str(self.folder / "models"), "--model-set", "test"]
        argv = [str(self.raw), str(self.out), "participant", "--skip-bids-validation", *basic]
        self.calls.enhanced.clear()
        code = main([*argv, *options])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def fresh(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)


@pytest.fixture
def app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> App:
    def set_module(name: str, module: types.ModuleType) -> None:
        monkeypatch.setitem(sys.modules, f"bmex_bids.{name}", module)
        monkeypatch.setattr(bmex_bids, name, module, raising=False)

    calls = install(set_module, tmp_path / "healed")
    names = ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"]
    root = make_dataset(tmp_path / "bids", names, ages(**{"01": 72, "02": 72}))
    make_models(tmp_path / "models")
    images = sorted(root.glob("sub-*/anat/*.nii.gz"))
    monkeypatch.setattr(plan, "find_images", lambda *args, **options: images)  # pybids is slow
    monkeypatch.setattr("bmex_bids.jobs._limit_threads", lambda threads: None)
    monkeypatch.setattr("stubbed_app.time", types.SimpleNamespace(sleep=lambda seconds: None))
    return App(tmp_path, calls, capsys)


def complete(out: Path) -> list[str]:
    """The runs that a next start would find finished, and whose files are whole."""
    done = []
    for marker in sorted(out.glob("sub-*/anat/*_desc-enhanced_T1w.json")):
        outputs = json.loads(marker.read_text()).get("Outputs")
        if outputs is not None:
            assert all((out / name).read_text() == "image" for name in outputs)
            done.append(marker.name.split("_")[0])
    return done


def accesses(app: App, **options: bool) -> int:
    """How many places there are where an access of the output can fail."""
    app.start()
    app.fresh()
    with armed(Fault(errno.EIO, app.folder, **options)) as fault:
        assert app.start()[0] == 0
    app.fresh()
    return fault.seen


def test_the_disk_is_full_from_any_step_on(app: App) -> None:
    steps = accesses(app)
    assert steps > 20
    for step in range(1, steps + 1, 2):
        with armed(Fault(errno.ENOSPC, app.out, first=step)) as fault:
            code, out, err = app.start()
        said = [x for x in (out + err).splitlines() if "no space left for" in x]
        where = f"step {step}: {fault.hit[:1]}: {out}{err}"
        assert fault.hit and code in (1, 2) or code == 0 and len(complete(app.out)) == 2, where
        assert "Traceback" not in out + err, where
        assert code == 0 or said, where
        complete(app.out)  # whatever is there is whole
        assert app.start()[0] == 0, where
        assert complete(app.out) == ["sub-01", "sub-02"], where
        assert not [p for p in app.out.rglob("*") if p.name.startswith(".tmp-")], where
        app.fresh()


def test_one_access_fails_and_the_rest_is_done(app: App) -> None:
    code = errno.EIO
    steps = accesses(app, reads=True)
    failed = 0
    for step in range(1, steps + 1, 2):
        with armed(Fault(code, app.folder, reads=True, first=step, last=step)) as fault:
            ended, out, err = app.start()
        where = f"step {step}: {fault.hit}: {out}{err}"
        assert "Traceback" not in out + err, where
        runs = complete(app.out) if app.out.exists() else []
        if ended == 0:
            assert runs == ["sub-01", "sub-02"], where
        elif ended == 1:
            failed += 1
            assert runs or "participants" in fault.hit[0], where  # the other run
            assert os.strerror(code) in out + err, where
        else:
            assert ended == 2 and os.strerror(code) in err.splitlines()[-1], where
        app.fresh()
    assert failed > 5


def test_read_only_output(app: App) -> None:
    with armed(Fault(errno.EROFS, app.out, first=1)):
        code, out, err = app.start()
    assert code == 2 and out == "" and not app.calls.enhanced
    assert err.count("\n") == 1 and "for output choose a folder that can be written" in err


def test_nothing_is_written_below_the_dataset(app: App) -> None:
    with armed(Fault(errno.EROFS, app.raw, first=1)) as fault:
        assert app.start()[0] == 0
    assert not fault.hit


def test_output_that_becomes_read_only(app: App) -> None:
    steps = accesses(app)
    with armed(Fault(errno.EROFS, app.out, first=steps * 2 // 3)):
        code, out, err = app.start()
    assert code == 1 and "Traceback" not in out + err
    assert "for output choose a folder that can be written" in out


def test_slow_disk(app: App) -> None:
    with armed(Fault(errno.EIO, app.folder, reads=True, slow=0.005)) as fault:
        assert app.start()[0] == 0
    assert fault.seen > 20


def test_an_image_that_vanishes_after_the_plan(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = sys.modules["bmex_bids.pipeline"].enhance_run
    for path in app.raw.glob("sub-*/anat/*.nii.gz"):
        nib.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), None).to_filename(path)

    def enhance_run(job: object, *rest: object) -> object:
        if job.entities["sub"] == "01":  # type: ignore[attr-defined]
            job.path.unlink()  # type: ignore[attr-defined]
        load_image(job.path)  # type: ignore[attr-defined]
        return pretended(job, *rest)

    monkeypatch.setattr(sys.modules["bmex_bids.pipeline"], "enhance_run", enhance_run)
    code, out, _ = app.start()
    assert code == 1 and complete(app.out) == ["sub-02"]
    assert "sub-01_T1w.nii.gz: no such file" in out


class Broken(io.RawIOBase):
    """A file whose reading fails after its first bytes, as of a network disk that goes away."""

    def __init__(self, start: bytes, code: int):
        self.start, self.code = start, code

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self.start:
            raise OSError(self.code, os.strerror(self.code))  # as read(2): without a name
        count = min(len(buffer), len(self.start))
        buffer[:count], self.start = self.start[:count], self.start[count:]
        return count


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_that_fails_names_the_file_and_not_the_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "sub-01_T1w.nii.gz"
    nib.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), None).to_filename(path)
    broken = io.BufferedReader(Broken(path.read_bytes()[:100], code))
    files = iter([open(path, "rb"), broken])  # a look at its first bytes, then all of it
    monkeypatch.setattr(image_module, "open", lambda path, mode: next(files), raising=False)
    with pytest.raises(OSError) as caught:
        load_image(path)
    assert caught.value.errno == code
    text = explain(caught.value, tmp_path)
    assert text.startswith("the disk or the network failed") and str(path) in text


def test_no_space_in_the_middle_of_a_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((40, 40, 40), np.float32)
    like = Image(data, np.eye(4), nib.Nifti1Header())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            save_image(tmp_path / "a.nii.gz", data, like)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert explain(caught.value, tmp_path).startswith("no space left for")
    assert not list(tmp_path.iterdir())


def on_small_disk(folder: Path, kilobytes: int, left: int, program: list[str]) -> list[str]:
    """A shell command: mount a disk of this size at ``folder``, fill it but for ``left``, run."""
    script = 'mount -t tmpfs -o size="$1"k tmpfs "$2" && '
    script += 'head -c "$3"k /dev/zero > "$2/filler"; shift 3; exec "$@"'
    sizes = [str(kilobytes), str(folder), str(kilobytes - left)]
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", *sizes, *program]


def test_nobody_reads_what_is_printed(app: App) -> None:
    argv = [app.raw, app.out, "participant", "--models-dir", app.folder / "models", "--dry-run"]
    first = subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert first.stdout is not None and first.stderr is not None
    first.stdout.close()
    assert first.stderr.read() == b"" and first.wait() == 141
    first.stderr.close()


@pytest.mark.parametrize(("left", "codes"), [(0, {2}), (24, {1, 2}), (60, {1})])
def test_a_real_disk_that_is_full(tmp_path: Path, left: int, codes: set[int]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("unshare") or subprocess.run(
        on_small_disk(disk, 100, 50, ["true"]), capture_output=True
    ).returncode:
        pytest.skip("no disk can be mounted here")
    names = [f"sub-{k:02d}_T1w.nii.gz" for k in range(6)]
    root = make_dataset(tmp_path / "bids", names, ages(**{f"{k:02d}": 72 for k in range(6)}))
    models = make_models(tmp_path / "models")
    argv = [str(root), str(disk / "out"), "participant", "--models-dir", str(models)]
    argv += ["--model-set", "test", "--skip-bids-validation", "-w", str(tmp_path / "work")]
    done = subprocess.run(
        on_small_disk(disk, 400, left, [sys.executable, str(SCRIPT), *argv]),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode in codes, done
    assert "Traceback" not in done.stdout + done.stderr, done
    assert "no space left for" in done.stdout + done.stderr, done
