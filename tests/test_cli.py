"""The program from its command line, with a pipeline that only pretends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import SHA, ages, make_dataset, make_models
from stubbed_app import Calls, install

import bmex_bids
from bmex_bids import run as run_module
from bmex_bids import start as start_module
from bmex_bids.cli import main
from bmex_bids.plan import COLUMNS

Bmex = Callable[..., int]
SCRIPT = Path(__file__).parent / "stubbed_app.py"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    def set_module(name: str, module: types.ModuleType) -> None:
        monkeypatch.setitem(sys.modules, f"bmex_bids.{name}", module)
        monkeypatch.setattr(bmex_bids, name, module, raising=False)

    return install(set_module, tmp_path / "healed")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def dataset(tmp_path: Path, *labels: str, **files: str) -> Path:
    names = [f"sub-{label}_T1w.nii.gz" for label in labels]
    return make_dataset(tmp_path / "bids", names, ages(**dict.fromkeys(labels, 72)) | files)


@pytest.fixture
def bmex(calls: Calls, tmp_path: Path, out: Path) -> Bmex:
    """Run the participant level on the dataset of the test; more options as arguments."""
    models = make_models(tmp_path / "models")

    def call(*options: str, level: str = "participant") -> int:
        basic = ["--models-dir", str(models), "--model-set", "test", "--skip-bids-validation"]
        return main([str(tmp_path / "bids"), str(out), level, *basic, *options])

    return call


def test_all_is_well(
    bmex: Bmex, calls: Calls, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path, "01", "odd")
    assert bmex() == 0
    assert calls.enhanced == calls.figures == ["sub-01_T1w", "sub-odd_T1w"]
    assert calls.reports == ["01", "odd"]
    captured = capsys.readouterr()
    assert captured.out.startswith("2 done (")
    assert "[1/2] sub-01_T1w: done" in captured.err and "\r" not in captured.err
    assert "sub-odd_T1w: looks odd" in captured.err
    assert (out / "dataset_description.json").exists() and (out / "sub-01.html").exists()
    told = "".join(log.read_text() for log in (out / "logs").glob("*.log"))
    assert "[2/2] sub-odd_T1w: done" in told
    assert not list(out.rglob(".tmp*")) and not list(out.rglob("crash-*"))


def test_the_second_start_does_nothing(
    bmex: Bmex, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path, "01", "02")
    assert bmex() == 0 and bmex() == 0
    assert calls.enhanced == ["sub-01_T1w", "sub-02_T1w"] and calls.reports == ["01", "02"]
    assert "2 done before" in capsys.readouterr().out
    assert bmex("--overwrite") == 0
    assert len(calls.enhanced) == 4


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("bad", "the image is empty"),
        ("bug", "KeyError: 'x'"),
        ("full", "no space left for"),
        ("big", "not enough memory"),
        ("nofigures", "no figure"),
    ],
)
def test_one_failed_run(
    bmex: Bmex,
    calls: Calls,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    label: str,
    said: str,
) -> None:
    dataset(tmp_path, "01", label, "zz")
    assert bmex() == 1
    captured = capsys.readouterr()
    assert "2 done, 1 failed" in captured.out
    assert f"failed: sub-{label}_T1w: " in captured.out and said in captured.out
    assert {"sub-01_T1w", "sub-zz_T1w"} <= set(calls.enhanced)
    crash = out / "logs" / f"crash-sub-{label}_T1w.txt"
    assert said in crash.read_text().splitlines()[0] and "Traceback" in crash.read_text()
    assert json.loads((out / f"sub-{label}.html").read_text()) == [crash.name]
    (tmp_path / "healed").touch()
    calls.enhanced.clear(), calls.figures.clear(), calls.reports.clear()
    assert bmex() == 0
    assert calls.enhanced == ([] if label == "nofigures" else [f"sub-{label}_T1w"])
    assert calls.figures == [f"sub-{label}_T1w"] and calls.reports == [label]
    assert not crash.exists()


def test_a_failed_report(
    bmex: Bmex, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path, "01", "noreport")
    assert bmex() == 1
    assert "failed: report of sub-noreport: no report" in capsys.readouterr().out
    (tmp_path / "healed").touch()
    assert bmex() == 0
    assert calls.enhanced == ["sub-01_T1w", "sub-noreport_T1w"]
    assert calls.reports == ["01", "noreport"]


def test_pictures_that_are_gone_are_drawn_again(bmex: Bmex, calls: Calls, tmp_path: Path) -> None:
    dataset(tmp_path, "01")
    assert bmex() == 0
    (tmp_path / "out/sub-01/figures/sub-01_desc-before_T1w.svg").unlink()
    (tmp_path / "out/sub-01.html").unlink()
    assert bmex() == 0
    assert calls.enhanced == ["sub-01_T1w"] and len(calls.figures) == len(calls.reports) == 2


def test_missing_age_and_model_are_failures(
    bmex: Bmex, calls: Calls, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(
        tmp_path / "bids",
        ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", "sub-03_T1w.nii.gz"],
        ages(**{"01": 72, "02": 4}),
    )
    assert bmex() == 1
    text = capsys.readouterr().out
    assert "1 done, 2 failed" in text
    assert "failed: sub-02_T1w: no weights for T1w at stage 3" in text
    assert "failed: sub-03_T1w: no age: participants.tsv has 2 rows" in text
    assert "--age-months" in (out / "logs" / "crash-sub-03_T1w.txt").read_text()
    assert set(calls.reports) == {"01", "02", "03"}
    assert bmex("--age-months", "80") == 0
    assert not list((out / "logs").glob("crash-*"))


def test_left_out_is_no_failure(
    bmex: Bmex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["sub-01_T1w.nii.gz", "sub-01_rec-defaced_T1w.nii.gz", "sub-01_part-phase_T1w.nii.gz"]
    make_dataset(tmp_path / "bids", images, ages(**{"01": 72}))
    assert bmex() == 0
    captured = capsys.readouterr()
    assert "1 done, 2 left out" in captured.out
    assert "left out: defaced copy" in captured.err


def test_nothing_but_left_out(
    bmex: Bmex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "bids", ["sub-01_part-phase_T1w.nii.gz"], ages(**{"01": 72}))
    assert bmex() == 2
    assert "all 1 images are left out: part-phase" in capsys.readouterr().err


def test_stop_on_first_crash(
    bmex: Bmex, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path, "01", "bad", "zz")
    assert bmex("--stop-on-first-crash") == 1
    assert calls.enhanced == ["sub-01_T1w"]
    assert "1 done, 1 not started, 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize(("label", "code"), [("stopped", 130), ("ended", 143), ("hungup", 129)])
def test_interrupted(
    *,
    bmex: Bmex,
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    label: str,
    code: int,
) -> None:
    dataset(tmp_path, label)
    assert bmex() == code
    assert "goes on with what is missing" in capsys.readouterr().err
    assert not list((out / "logs").glob("*.lock"))
    (tmp_path / "healed").touch()
    assert bmex() == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"measure_only": False, "high_res": False, "uncertainty": False, "seed": 0}),
        (["--measure-only"], {"measure_only": True}),
        (["--high-res"], {"high_res": True}),
        (["--uncertainty"], {"uncertainty": True}),
        (["--lesions"], {"lesions": True}),
        (["--seed", "7"], {"seed": 7}),
        (["--model-set", "test"], {"model_set": "test"}),
    ],
)
def test_options_reach_the_pipeline(
    bmex: Bmex, calls: Calls, tmp_path: Path, options: list[str], expected: dict[str, object]
) -> None:
    dataset(tmp_path, "01")
    assert bmex(*options) == 0
    (settings,) = calls.settings
    assert {name: getattr(settings, name) for name in expected} == expected
    assert [model.name for model in settings.models][:1] == ["first"]


def test_device_precision_and_memory(bmex: Bmex, calls: Calls, tmp_path: Path) -> None:
    dataset(tmp_path, "01")
    assert bmex("--device", "cpu", "--precision", "float32", "--mem", "3G") == 0
    compute = calls.settings[0].compute
    assert (compute.device, compute.precision, compute.max_bytes) == ("cpu", "float32", 2 * 2**30)
    assert bmex("--overwrite", "--device", "cpu") == 0
    assert 0 < calls.settings[1].compute.max_bytes < 2**45


def test_too_little_memory(bmex: Bmex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path, "01")
    assert bmex("--mem", "2G", "--nprocs", "2", "--device", "cpu") == 2
    assert "raise --mem or lower --nprocs" in capsys.readouterr().err


def test_threads(bmex: Bmex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path, "01")
    seen = []
    monkeypatch.setattr("bmex_bids.jobs._limit_threads", seen.append)
    before = dict(os.environ)
    assert bmex("--omp-nthreads", "3") == 0
    assert seen == [3] and dict(os.environ) == before


def test_no_cuda(bmex: Bmex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    dataset(tmp_path, "01")
    assert bmex("--device", "cuda") == 2
    assert "no CUDA GPU can be used here. Use --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--participant-label", "sub-02"], ["sub-02_ses-1_T1w", "sub-02_ses-2_T1w"]),
        (["--participant_label", "01", "--session-id", "2"], ["sub-01_ses-2_T1w"]),
        (["--session-label", "ses-1"], ["sub-01_ses-1_T1w", "sub-02_ses-1_T1w"]),
        (["--suffix", "T1w", "--session-label", "2"], ["sub-01_ses-2_T1w", "sub-02_ses-2_T1w"]),
        (["--bids-filter-file", "FILTER"], ["sub-01_ses-2_T1w", "sub-02_ses-2_T1w"]),
        (["--bids-database-dir", "DB", "--participant-label", "01", "--session-label", "1"],
         ["sub-01_ses-1_T1w"]),
        (["-d", "masks=MASKS", "--session-id", "2"], ["sub-01_ses-2_T1w", "sub-02_ses-2_T1w"]),
    ],
)  # fmt: skip
def test_selection(
    bmex: Bmex, calls: Calls, tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    names = [f"sub-0{sub}_ses-{ses}_T1w.nii.gz" for sub in "12" for ses in "12"]
    make_dataset(tmp_path / "bids", names, ages(**{"01": 72, "02": 80}))
    (tmp_path / "FILTER").write_text('{"t1w": {"session": "2"}}')
    (tmp_path / "MASKS").mkdir()
    places = {"FILTER", "DB", "masks=MASKS"}
    options = [
        o.replace("MASKS", str(tmp_path / "MASKS")) if "=" in o else str(tmp_path / o)
        if o in places else o
        for o in options
    ]  # fmt: skip
    assert bmex(*options) == 0
    assert calls.enhanced == expected


def test_reports_only(
    bmex: Bmex, calls: Calls, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path, "01", "02")
    assert bmex("--participant-label", "01") == 0
    assert bmex("--reports-only") == 0
    assert calls.enhanced == ["sub-01_T1w"]
    assert calls.figures == ["sub-01_T1w"] * 2 and calls.reports == ["01", "01"]
    assert "1 done, 1 left out" in capsys.readouterr().out
    assert bmex("--reports-only", "--participant-label", "02") == 2
    assert "nothing to report" in capsys.readouterr().err


def test_work_dir(bmex: Bmex, tmp_path: Path) -> None:
    dataset(tmp_path, "01")
    before = tempfile.gettempdir()
    assert bmex("-w", str(tmp_path / "work")) == 0
    assert (tmp_path / "work").is_dir() and tempfile.gettempdir() == before


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_module.os, "access", lambda path, mode: False)
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", "/kept")
    with start_module.scratch(tmp_path / "work", "start"):
        assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "work" / "mplconfigdir")
        assert os.environ["TEMPLATEFLOW_HOME"] == "/kept"
        assert tempfile.gettempdir() == str(tmp_path / "work" / "bmex-start")
    assert "MPLCONFIGDIR" not in os.environ and not (tmp_path / "work" / "bmex-start").exists()


def test_dry_run(
    bmex: Bmex, calls: Calls, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = {"sub-01/sub-01_scans.tsv": "filename\tage\nx.nii\t5\n"}
    dataset(tmp_path, "01", **note)
    assert bmex("--dry-run") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "\t".join(COLUMNS),
        "sub-01/anat/sub-01_T1w.nii.gz\tT1w\t72\tparticipants.tsv:age (months)\t24\tfirst\tenhance",
    ]
    assert captured.err.startswith("note: sub-01_T1w: the only row of")
    assert not out.exists() and not calls.enhanced


def test_saved_options_can_be_used_again(
    bmex: Bmex, calls: Calls, tmp_path: Path, out: Path
) -> None:
    dataset(tmp_path, "01", "02")
    assert bmex("--participant-label", "02", "--seed", "5") == 0
    (saved,) = (out / "logs").glob("*.toml")
    assert tomllib.loads(saved.read_text())["participant_label"] == ["02"]
    assert main(["--config-file", str(saved), "--overwrite"]) == 0
    assert calls.enhanced == ["sub-02_T1w"] * 2
    assert [settings.seed for settings in calls.settings] == [5, 5]
    assert len(list((out / "logs").glob("*.toml"))) == 2


def test_verbose(bmex: Bmex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path, "01")
    assert bmex() == 0
    assert "pretend" not in capsys.readouterr().err
    assert bmex("-v", "--overwrite") == 0
    assert "sub-01_T1w: pretend" in capsys.readouterr().err


def test_a_bar_on_a_terminal(
    bmex: Bmex, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path, "01")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert bmex() == 0
    captured = capsys.readouterr()
    assert "1/1" in captured.err and "\r" in captured.err


def test_validation_warns_and_goes_on(
    calls: Calls,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "validate", lambda root, **options: ["odd names"])
    root, models = dataset(tmp_path, "01"), make_models(tmp_path / "models")
    argv = [str(root), str(tmp_path / "out"), "participant", "--models-dir", str(models)]
    assert main([*argv, "--model-set", "test"]) == 0
    assert "BIDS: odd names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["BIDS", "BIDS", "participant"], "output_dir is bids_dir"),
        (["BIDS/../bids", "BIDS", "participant"], "output_dir is bids_dir"),
        (["BIDS", "OTHER", "participant"], "holds a dataset made by fMRIPrep; choose another"),
        (["BIDS", "RAW", "group"], "holds a dataset that bmex did not make"),
        (["BIDS", "OUT", "participant", "-w", "BIDS/work"], "lies inside bids_dir"),
        (["OUT/none", "OUT", "participant"], "no such folder; give the root of a BIDS dataset"),
        (["BIDS/sub-01", "OUT", "participant"], "no dataset_description.json"),
        (["BIDS", "OUT", "participant", "--participant-label", "01", "9"], "no sub-9 (there is"),
        (["BIDS", "OUT", "participant", "--session-label", "9"], "no ses-9 (there is none)"),
        (["BIDS", "OUT", "participant", "--suffix", "T2w"], "no T2w image found"),
        (["BIDS", "OUT", "participant", "--bids-filter-file", "BIDS/x"], "No such file"),
        (["BIDS", "OUT", "participant", "--models-dir", "BIDS"], "no models.json there"),
        (["BIDS", "BIDS/README/x", "participant"], "README"),
        (["BIDS", "OUT", "group"], "run the participant level first"),
    ],
)
@pytest.mark.usefixtures("calls")
def test_wrong_input_stops_before_any_work(
    tmp_path: Path, out: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = dataset(tmp_path, "01", README="text")
    for name, made_by in (("OTHER", [{"Name": "fMRIPrep"}]), ("RAW", None)):
        make_dataset(tmp_path / name, [])
        text = json.dumps({"GeneratedBy": made_by})
        (tmp_path / name / "dataset_description.json").write_text(text)
        argv = [a.replace(name, str(tmp_path / name)) for a in argv]
    argv = [a.replace("BIDS", str(root)).replace("OUT", str(out)) for a in argv]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("bmex: error: ") and said in captured.err
    assert captured.out == "" and not list(tmp_path.rglob("out/sub-*"))


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.EROFS, "a folder that can be written"), (errno.ENOSPC, "no space left for")],
)
def test_output_that_cannot_be_written(
    bmex: Bmex,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    said: str,
) -> None:
    dataset(tmp_path, "01")

    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "out"))

    places = (
        (start_module.tempfile, "TemporaryFile"),
        (start_module, "write_text"),
        (run_module, "write_dataset_files"),
    )
    for module, name in places:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            assert bmex() == 2
        assert said in capsys.readouterr().err


def test_group(
    bmex: Bmex, calls: Calls, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "sub-01").mkdir(parents=True)
    assert bmex(level="group") == 0  # without the raw dataset
    assert calls.groups == 1
    assert capsys.readouterr().out == f"{out / 'group.html'}\n"
    (out / "sub-bad").mkdir()
    assert bmex(level="group") == 1
    captured = capsys.readouterr()
    assert "no group" in captured.err
    assert (out / "logs" / "crash-group.txt").exists()


def start(*argv: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def test_several_processes_and_one_that_dies(tmp_path: Path, out: Path) -> None:
    root, models = dataset(tmp_path, "01", "bad", "killed", "zz"), make_models(tmp_path / "models")
    argv = [root, out, "participant", "--models-dir", models, "--model-set", "test"]
    argv += ["--skip-bids-validation", "--nprocs", "2", "--omp-nthreads", "1"]
    first = start(*argv)
    text, errors = first.communicate(timeout=300)
    assert first.returncode == 1, errors
    assert "2 done, 2 failed" in text
    assert "failed: sub-killed_T1w: its process was ended by SIGKILL" in text
    assert (out / "sub-01.html").exists() and (out / "sub-zz.html").exists()
    (tmp_path / "healed").touch()
    second = start(*argv, HEALED=str(tmp_path / "healed"))
    text, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    assert "2 done, 2 done before" in text
    assert not list((out / "logs").glob("crash-*"))


def test_two_starts_into_one_output(tmp_path: Path, out: Path) -> None:
    labels = ["01", "02", "03", "04", "05", "06"]
    root, models = dataset(tmp_path, *labels), make_models(tmp_path / "models")
    argv = [root, out, "participant", "--models-dir", models, "--model-set", "test"]
    argv += ["--skip-bids-validation", "--participant-label"]
    both = [start(*argv, *labels[:3]), start(*argv, *labels[3:])]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for label in labels:
        sidecar = out / f"sub-{label}/anat/sub-{label}_desc-enhanced_T1w.json"
        assert json.loads(sidecar.read_text())["Model"]["SHA256"] == SHA
        assert (out / f"sub-{label}.html").exists()
    assert json.loads((out / "dataset_description.json").read_text())["GeneratedBy"]
    assert len(list((out / "logs").glob("*.toml"))) == 2
    assert not [path for path in out.rglob("*") if path.name.startswith(".tmp")]

@pytest.mark.parametrize(("number", "terminal", "expected"), [
    (errno.EIO, False, KeyboardInterrupt),
    (errno.EIO, True, OSError),
    (errno.ENOSPC, False, OSError),
])
def test_a_terminal_that_is_gone_before_its_signal_comes(
    number: int, terminal: bool, expected: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write to a closed terminal may fail before SIGHUP arrives."""
    there, turned = [True], []
    monkeypatch.setattr(os, "isatty", lambda fd: there[0])
    monkeypatch.setattr(os, "dup2", lambda new, fd: turned.append(fd))
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(expected) as raised, start_module.stopping():
        there[0] = terminal
        raise OSError(number, os.strerror(number))
    assert signal.getsignal(signal.SIGHUP) is before
    if expected is KeyboardInterrupt:
        assert raised.value.args == (signal.SIGHUP,) and turned == [1, 2]
