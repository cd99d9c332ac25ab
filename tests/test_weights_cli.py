"""The command bmex-weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_networks import random_state
from test_weights import bundle

from bmex_bids.weights_cli import main


def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = bundle(tmp_path)
    assert main(["list", "--models-dir", str(tmp_path)]) == 0
    header, first, *_ = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header[:6] == ["name", "set", "kind", "suffixes", "stage", "months"]
    assert first == [
        "bmex-T1w-24", "bundled", "enhance", "T1w", "24", "21 to 1200", "0.8", "1",
        record.sha256[:12],
    ]  # fmt: skip


def test_list_of_the_bundled_models_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out.startswith("name\tset")


def test_verify_tells_good_from_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = bundle(tmp_path)
    assert main(["verify", "--models-dir", str(tmp_path)]) == 0
    assert "bmex-T1w-24: ok" in capsys.readouterr().out
    content = bytearray(record.path.read_bytes())
    content[-1] ^= 1
    record.path.write_bytes(content)
    assert main(["verify", "--models-dir", str(tmp_path)]) == 1
    assert "changed or damaged" in capsys.readouterr().err


def test_import_then_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(random_state(32, 1, 4), tmp_path / "T1T2w-model.pt")
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(tmp_path)]) == 0
    assert "--models-dir bmex-models --model-set published" in capsys.readouterr().out
    assert main(["verify", "--models-dir", "bmex-models"]) == 0
    assert "published-brainmask: ok" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "verify", "import"])
def test_errors_are_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    folder = str(tmp_path / "nothing")
    arguments = [command, folder] if command == "import" else [command, "--models-dir", folder]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"bmex-weights: {folder}")


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err
