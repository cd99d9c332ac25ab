"""Claims that are held, given up, left by the dead, and what is removed then."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bmex_bids import claims
from bmex_bids.claims import claimed, is_claimed, present, run_claim, sweep_folders

HOLD = """
import sys, time
from pathlib import Path
from bmex_bids.claims import claimed
with claimed(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the claim on sub-01_T1w."""
    path = run_claim(tmp_path, "sub-01_T1w")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_one_at_a_time(tmp_path: Path) -> None:
    path = run_claim(tmp_path, "sub-01_T1w")
    with claimed(path) as first, claimed(path) as second:
        assert first and not second and is_claimed(path)
    assert not is_claimed(path) and not path.exists()
    with claimed(path) as third:
        assert third


def test_a_killed_holder_frees_its_claim_at_once(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    path = run_claim(tmp_path, "sub-01_T1w")
    with claimed(path) as mine:
        assert not mine and is_claimed(path)
    holder.kill()
    holder.wait()
    assert path.exists() and not is_claimed(path)
    with claimed(path) as mine:
        assert mine
    left = list(path.parent.iterdir())
    assert [name.name[:5] for name in left] == ["left-"] and not is_claimed(left[0])


def test_waiting(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    seen = []

    def look(seconds: float) -> None:
        seen.append(seconds)
        holder.kill()
        holder.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims.time, "sleep", look)
        with claimed(run_claim(tmp_path, "sub-01_T1w"), wait=True) as mine:
            assert mine and len(seen) == 1


@pytest.mark.parametrize(("seconds", "free"), [(10, False), (1000, True), (-1000, True)])
def test_another_machine_lives_while_it_touches(tmp_path: Path, seconds: int, free: bool) -> None:
    path = run_claim(tmp_path, "sub-01_T1w")
    path.parent.mkdir()
    path.write_text("another machine")
    os.utime(path, (time.time() - seconds,) * 2)
    assert is_claimed(path) == (not free)
    with claimed(path) as mine:
        assert mine == free


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.fcntl, "flock", no_locks)
    path = run_claim(tmp_path, "sub-01_T1w")
    with claimed(path) as first, claimed(path) as second:
        assert first and not second
        os.utime(path, (time.time() - 1000,) * 2)  # nobody has touched it for long
        with claimed(path) as third:
            assert third


def test_the_holder_touches_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TOUCHED_EVERY", 0.01)
    path = run_claim(tmp_path, "sub-01_T1w")
    with claimed(path):
        os.utime(path, (1, 1))
        while path.stat().st_mtime < 2:
            time.sleep(0.01)


def test_a_folder_that_takes_no_file_grants_every_claim(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with claimed(run_claim(tmp_path, "sub-01_T1w")) as mine:
        assert mine


def leave(root: Path) -> list[Path]:
    """What a killed process may leave: a claim, files and a folder that are not complete."""
    names = ["logs/killed.lock", "sub-01/anat/.tmp-1-sub-01_T1w.nii.gz", ".tmp-report-1/page.html"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "sub-01/anat/sub-01_desc-enhanced_T1w.nii.gz").touch()
    return [root / name for name in names]


def test_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    leave(tmp_path)
    with present(tmp_path, "start"):
        files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert files == {"start.lock", "sub-01_desc-enhanced_T1w.nii.gz"}
    assert not list((tmp_path / "logs").iterdir()) and not (tmp_path / ".tmp-report-1").exists()


def test_nothing_is_removed_while_another_works(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    left = leave(tmp_path)
    with present(tmp_path, "start"):
        assert all(path.exists() for path in left)
        holder.kill()
        holder.wait()
    assert not any(path.exists() for path in left)  # the last one cleans


def test_without_a_dead_claim_nothing_is_looked_for(tmp_path: Path) -> None:
    temporary = tmp_path / ".tmp-of-somebody"
    temporary.touch()
    with present(tmp_path, "start"):
        pass
    assert temporary.exists()


def test_work_folders_of_the_dead(tmp_path: Path) -> None:
    for name in ("bmex-dead", "bmex-alive", "bmex-other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "bmex-dead.lock").touch()
    with claimed(tmp_path / "bmex-alive.lock"):
        sweep_folders(tmp_path, "bmex-")
        assert {path.name for path in tmp_path.iterdir()} == {
            *("bmex-alive", "bmex-alive.lock", "bmex-other"),
        }
