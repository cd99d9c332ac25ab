"""Undoing motion that is known."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bmex_bids.evaluation import knownmotion
from bmex_bids.training import motion

ZOOMS = torch.tensor([4.0, 4.0, 4.0])


@pytest.fixture(scope="module")
def head() -> torch.Tensor:
    """A ball with a core and a bright wall, smooth enough for its grid."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (26, 30, 27)],
                                      indexing="ij"))  # fmt: skip
    radius = (grid * torch.tensor([1.0, 1.2, 1.1]).view(3, 1, 1, 1)).norm(dim=0)
    ball = torch.sigmoid(20 * (0.75 - radius)) * (0.6 + 0.4 * torch.cos(12 * radius))
    return ball * (1 + 0.5 * torch.sin(9 * grid[0] + 2) * torch.cos(8 * grid[1] + 5 * grid[2]))


def still(head: torch.Tensor, phase: torch.Tensor) -> knownmotion.Motion:
    return knownmotion.Motion(torch.zeros(1, 6), torch.ones(1, head.shape[1]), phase)


def test_no_motion_changes_nothing(head: torch.Tensor) -> None:
    phase = motion.smooth_phase((26, 30, 27), torch.Generator().manual_seed(0))
    seen = knownmotion.acquire(head, ZOOMS, still(head, phase))
    assert float((seen - head).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", motion.KINDS)
def test_the_model_is_the_simulation(
    head: torch.Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knownmotion, "NOISE", 0.0)
    seen, moved = knownmotion.move_head(head, ZOOMS, kind, "severe++", 3)
    with torch.no_grad():
        made = knownmotion.acquire(head, ZOOMS, moved).abs()
    inside = head > 0.4
    error = float((made - seen)[inside].square().mean())
    assert error < 0.1 * float((head - seen)[inside].square().mean())


def test_known_motion_is_undone_and_better_with_phase(head: torch.Tensor) -> None:
    seen, moved = knownmotion.move_head(head, ZOOMS, "sudden", "severe++", 1)
    with torch.no_grad():
        raw = knownmotion.acquire(head, ZOOMS, moved)
    inside = head > 0.4
    errors = []
    for given in (raw, seen):
        image, value = knownmotion.restored(given, ZOOMS, moved, 8)
        assert value < float(knownmotion.objective(given.abs(), given, ZOOMS, moved))
        errors.append(float((image - head)[inside].square().mean()))
    before = float((seen - head)[inside].square().mean())
    assert errors[0] < errors[1] < before


def test_table_of_a_head(head: torch.Tensor, tmp_path: Path,
                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    nib.save(nib.Nifti1Image(head.numpy(), np.diag([4.0, 4, 4, 1])), tmp_path / "head.nii.gz")
    assert knownmotion.main([str(tmp_path / "head.nii.gz"), "--factor", "1", "--steps", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(motion.KINDS)
