"""The command line and the configuration file become one Options."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bmex_bids import __version__
from bmex_bids.options import Options, parse_memory, parse_options, to_toml

BASE = ["/bids", "/out", "participant"]


def test_defaults() -> None:
    assert parse_options(BASE) == Options(Path("/bids"), Path("/out"), "participant")


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_options(BASE).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--participant-label", "sub-01", "02"], "participant_label", ("01", "02")),
        (["--participant_label", "01"], "participant_label", ("01",)),
        (["--session-label", "ses-1", "2"], "session_label", ("1", "2")),
        (["--session_label", "1"], "session_label", ("1",)),
        (["--session-id", "1"], "session_label", ("1",)),
        (["--bids-filter-file", "/f.json"], "bids_filter_file", Path("/f.json")),
        (["--suffix", "T2w"], "suffix", ("T2w",)),
        (["-d", "fmriprep=/"], "derivatives", (("fmriprep", Path("/")),)),
        (["--derivatives", "a=/", "b=/"], "derivatives", (("a", Path("/")), ("b", Path("/")))),
        (["-w", "/w"], "work_dir", Path("/w")),
        (["--work-dir", "/w"], "work_dir", Path("/w")),
        (["--skip-bids-validation"], "skip_bids_validation", True),
        (["--bids-database-dir", "/db"], "bids_database_dir", Path("/db")),
        (["--age-months", "7.5"], "age_months", 7.5),
        (["--age-months", "-2"], "age_months", -2.0),
        (["--stage", "fetal"], "stage", "fetal"),
        (["--models-dir", "/"], "models_dir", Path("/")),
        (["--model-set", "published"], "model_set", "published"),
        (["--method", "duncan"], "model_set", "duncan"),
        (["--model-set", "published", "--method", "bme-x"], "model_set", "bundled"),
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--precision", "bfloat16"], "precision", "bfloat16"),
        (["--nprocs", "3"], "nprocs", 3),
        (["--omp-nthreads", "2"], "omp_nthreads", 2),
        (["--mem", "8G"], "mem", 8 * 2**30),
        (["--seed", "7"], "seed", 7),
        (["--overwrite"], "overwrite", True),
        (["--stop-on-first-crash"], "stop_on_first_crash", True),
        (["--reports-only"], "reports_only", True),
        (["--measure-only"], "measure_only", True),
        (["--dry-run"], "dry_run", True),
        (["--high-res"], "high_res", True),
        (["--uncertainty"], "uncertainty", True),
        (["--lesions"], "lesions", True),
        (["--output-spaces", "MNIInfant", "X:res-2"], "output_spaces", ("MNIInfant", "X:res-2")),
        (["--output_spaces", "anat"], "output_spaces", ("anat",)),
        (["--registration", "affine"], "registration", "affine"),
        (["-vv"], "verbose", 2),
    ],
)
def test_every_option(argv: list[str], name: str, value: object) -> None:
    changed = {
        field.name: getattr(parse_options([*BASE, *argv]), field.name)
        for field in dataclasses.fields(Options)
    }
    assert changed == vars(dataclasses.replace(parse_options(BASE), **{name: value}))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "bids_dir, output_dir, analysis_level missing"),
        (["/bids", "/out"], "analysis_level missing"),
        (["/bids", "/out", "both"], "invalid choice: 'both'"),
        ([*BASE, "--participant-label", "01,02"], "separate labels by spaces"),
        (["--participant-label", "01", *BASE], "is no label"),
        ([*BASE, "--suffix", "FLAIR"], "invalid choice"),
        ([*BASE, "-d", "x=/not/there"], "/not/there: no such folder"),
        ([*BASE, "--models-dir", "/not/there"], "no such folder"),
        ([*BASE, "--age-months", "six"], "'six': expected months"),
        ([*BASE, "--age-months", "nan"], "'nan': expected months"),
        ([*BASE, "--stage", "7"], "invalid choice: '7'"),
        ([*BASE, "--device", "gpu"], "expected auto, cpu, cuda"),
        ([*BASE, "--nprocs", "0"], "a whole number from 1"),
        ([*BASE, "--omp-nthreads", "1.5"], "a whole number from 1"),
        ([*BASE, "--mem", "8"], "expected a number with its unit"),
        ([*BASE, "--seed", "-1"], "from 0 to 4294967295"),
        ([*BASE, "--measure-only", "--high-res"], "--measure-only writes no enhanced image"),
        ([*BASE, "--measure-only", "--output-spaces", "X"], "drop --output-spaces"),
        ([*BASE, "--output-spaces", "fsaverage:den-10k"], "is a surface"),
        ([*BASE, "--registration", "rigid"], "rigid"),
        (["/bids", "/out", "group", "--dry-run"], "the plan of the participant level"),
        ([*BASE, "--participant"], "unrecognized arguments"),
        ([*BASE, "--config-file", "/not/there.toml"], "No such file"),
    ],
)
def test_wrong_usage(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(argv)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8G", 8 * 2**30),
        ("8 GB", 8 * 2**30),
        ("8gib", 8 * 2**30),
        ("1.5M", 1572864),
        ("2K", 2048),
        ("1T", 2**40),
        ("123B", 123),
    ],
)
def test_memory(text: str, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["8", "G", "-1G", "0G", "8X", ""])
def test_memory_without_sense(text: str) -> None:
    with pytest.raises(ValueError, match="e.g. 8G"):
        parse_memory(text)


EVERYTHING = [
    *("--participant-label", "01", "02", "--session-label", "1", "--bids-filter-file", "/f.json"),
    *("--suffix", "T1w", "-d", "a=/", "-w", "/w", "--skip-bids-validation", "--age-months", "-1"),
    *("--bids-database-dir", "/db", "--stage", "fetal", "--models-dir", "/", "--model-set", "p"),
    *("--device", "cuda:1", "--precision", "float32", "--nprocs", "2", "--omp-nthreads", "3"),
    *("--mem", "8G", "--seed", "4", "--overwrite", "--stop-on-first-crash", "--reports-only"),
    *("--high-res", "--uncertainty", "--lesions", "--output-spaces", "MNIInfant:cohort-2", "-vv"),
    *("--registration", "affine"),
]


@pytest.mark.parametrize("argv", [BASE, BASE + EVERYTHING, [*BASE, "--measure-only"]])
def test_saved_options_read_back(tmp_path: Path, argv: list[str]) -> None:
    options = parse_options(argv)
    path = tmp_path / "saved.toml"
    path.write_text(to_toml(options))
    assert parse_options(["--config-file", str(path)]) == options


def test_the_command_line_counts_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('seed = 3\nparticipant-label = ["sub-01"]\nnprocs = 2\noverwrite = true\n')
    options = parse_options(["/b", "/o", "group", "--config-file", str(path), "--seed", "5"])
    assert (options.seed, options.nprocs, options.overwrite) == (5, 2, True)
    assert options.participant_label == ("01",)
    options = parse_options(
        ["/b", "/o", "participant", f"--config-file={path}", "--participant-label", "02"]
    )
    assert options.participant_label == ("02",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sead = 3", "unknown option 'sead'; did you mean seed?"),
        ("config_file = 'x'", "unknown option 'config_file'"),
        ("seed = -3", "from 0 to 4294967295"),
        ("overwrite = 'yes'", "overwrite has to be true or false"),
        ("seed = true", "seed has to be a value"),
        ("analysis_level = 'all'", "has to be participant or group"),
        ("seed = ", "Invalid value"),
        ("mem = 8", "expected a number with its unit"),
        ("verbose = 'much'", "verbose has to be a number"),
    ],
)
def test_wrong_files(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse_options([*BASE, "--config-file", str(path)])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as caught:
            parse_options([flag])
        assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"bmex {__version__}" in text
    for group in ("which images:", "age and model:", "what to do:", "computer:", "exit code:"):
        assert group in text
    for field in dataclasses.fields(Options)[3:]:
        assert "--" + field.name.replace("_", "-") in text
