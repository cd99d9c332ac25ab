"""Settings of a training: the TOML file, its checks, and the command's options."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bmex_bids.training import cli, settings
from bmex_bids.training.settings import Settings, SettingsError, read_settings, to_toml
from bmex_bids.training.stages import CONDITIONS


def test_the_bundled_network_knows_every_condition() -> None:
    assert settings.ARCHITECTURES["enhance"]["conditions"] == len(CONDITIONS)


@pytest.mark.parametrize(
    "chosen",
    [
        Settings("enhance"),
        Settings("enhance", steps=7, rate=1e-4, optimiser="sgd", clip=0.0),
        Settings("enhance", architecture={"name": "BMEXPair", "width": 64}),
        Settings("enhance", architecture=settings.ARCHITECTURES["enhance"]),
    ],
)
def test_toml_reads_back(tmp_path: Path, chosen: Settings) -> None:
    path = tmp_path / "train.toml"
    path.write_text(to_toml(chosen))
    assert read_settings(path, "enhance", {}) == chosen


def test_every_setting_is_printed_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-config", "--steps", "12"]) == 0
    printed = capsys.readouterr().out
    content = tomllib.loads(printed)
    names = {name for section in content.values() for name in section}
    fields = {f.name for f in settings.dataclasses.fields(Settings)}
    assert names == fields - {"kind", "architecture"}
    assert content["run"]["steps"] == 12
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            assert lines[number - 1].startswith("# "), line
    network = "\n".join(line[2:] for line in lines if line.startswith("# "))
    assert tomllib.loads(network[network.index("[network]") :])["network"] == (
        settings.ARCHITECTURES["enhance"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nstep = 3", r"\[run\] step: no such setting; did you mean steps"),
        ("[run]\nrate = 0.1", r"rate belongs to \[optimiser\], not to \[run\]"),
        ("steps = 3", r"steps: settings belong to a \[section\]"),
        ("[run]\nsteps = 0", "steps = 0: expected 1 or more"),
        ("[run]\nsteps = 2.5", "steps = 2.5: expected a whole number"),
        ("[run]\nsteps = true", "steps = True: expected a whole number"),
        ("[optimiser]\nrate = -1", "rate = -1.0: expected 0 or more"),
        ("[optimiser]\nrate = nan", "rate = nan: expected 0 or more"),
        ("[optimiser]\nmomentum = 1", "momentum = 1.0: expected less than 1"),
        ('[optimiser]\noptimiser = "adam"', "optimiser = 'adam': expected adamw, sgd"),
        ("[run]\nevery = 40", r"validate_every 500: expected a multiple of every \(40\)"),
        ("[loss]\nfloor = 0", "floor = 0: expected more than 0"),
        ("[run\n", "train.toml: "),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_settings(path, "enhance", {})


def test_the_command_line_counts_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text("[run]\nsteps = 5\nbatch = 3\n[optimiser]\nrate = 1\n")
    chosen = read_settings(path, "enhance", {"steps": 9})
    assert (chosen.steps, chosen.batch, chosen.rate) == (9, 3, 1.0)


def test_changes_know_defaults_and_old_checkpoints() -> None:
    now = Settings("enhance", 10, 1, 32)
    old: dict[str, Any] = {"kind": "enhance", "steps": 10, "batch": 1, "patch": 32}
    old |= {"device": "cuda"}
    assert settings.changes(old, now) == []
    assert settings.changes(old | {"steps": 12}, now) == ["steps was 12, now 10"]
    assert settings.changes(old | {"architecture": {"name": "BMEXPair"}}, now)[0].startswith(
        "architecture was {'name': 'BMEXPair'}"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{bids}", "{out}"], "--stage are needed"),
        (["{bids}", "{bids}/models", "--stage", "24"], "lies in bids_dir"),
        (["{bids}", "{out}", "--stage", "24", "-w", "{bids}/w"], "work_dir .* lies in bids_dir"),
        (["{bids}", "{out}", "--stage", "24", "--model-set", "bundled"], "taken"),
        (["{bids}", "{out}", "--stage", "24", "--model-set", "a-b"], "letters and digits"),
        (["{bids}", "{out}", "--stage", "24", "--start-from", "no"], "there are: bmex-T1w-0"),
        (["{bids}", "{out}", "--stage", "24", "--reference", "no.nii"], "no such file"),
        (["{bids}", "{out}", "--stage", "fetal"], "T1w-fetal: there is no such contrast"),
        (["{bids}", "{out}", "--stage", "24", "--nprocs", "0"], "from 1 on"),
        (["{bids}", "{out}", "--stage", "24"], "no dataset_description.json"),
        (["{bids}", "{out}", "--stage", "24", "--config", "{bids}/no.toml"], "No such file"),
    ],
)
def test_wrong_use_is_told(
    tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bids = tmp_path / "bids"
    bids.mkdir()
    filled = [text.format(bids=bids, out=tmp_path / "out") for text in argv]
    assert cli.main(filled) == 2
    assert re.search(message, capsys.readouterr().err)
