"""Brain extraction: cleaning, stripped input, and a network that marks what is bright."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmex_bids import brainmask
from bmex_bids.inference import Compute

COMPUTE = Compute("cpu", "float32")


class Bright(nn.Module):
    """Calls everything above 0.5 brain, in place of trained weights."""

    multiple = 8
    live_channels = 2

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) * 50


class Lopsided(Bright):
    """Calls the first half along x brain."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + torch.linspace(50, -50, x.shape[2]).view(-1, 1, 1)


def ball(side: int = 60, radius: float = 20) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1) - (side - 1) / 2
    return (grid**2).sum(-1) < radius**2


def test_clean_mask_keeps_the_largest_part_and_fills_it() -> None:
    mask = ball()
    full = mask.copy()
    mask[30, 30, 30] = False
    mask[0, 0, 0] = True
    np.testing.assert_array_equal(brainmask.clean_mask(mask), full)
    with pytest.raises(ValueError, match="no brain"):
        brainmask.clean_mask(np.zeros((4, 4, 4), bool))


def test_head_gain_does_not_depend_on_the_field_of_view() -> None:
    volume = (ball() * 300).astype(np.float32)
    volume += np.random.default_rng(1).normal(0, 5, volume.shape).clip(0).astype(np.float32)
    wide = np.pad(volume, 40)
    assert brainmask.head_gain(volume) == pytest.approx(1 / 300, rel=0.05)
    assert brainmask.head_gain(wide) == pytest.approx(brainmask.head_gain(volume), rel=0.05)
    with pytest.raises(ValueError, match="above zero"):
        brainmask.head_gain(np.zeros((4, 4, 4), np.float32))


def test_the_head_and_its_mirror_image_are_both_asked() -> None:
    head = np.ones((16, 16, 16), np.float32)
    both = brainmask.brain_probability(head, Lopsided(), COMPUTE)
    np.testing.assert_allclose(both, both[::-1], atol=1e-6)
    alone = brainmask.brain_probability(head, Lopsided(), COMPUTE, scale=1.0)
    assert alone[0].min() > 0.9 and alone[-1].max() < 0.1
    np.testing.assert_allclose((alone + alone[::-1]) / 2, both, atol=1e-6)


def test_whole_head_and_stripped() -> None:
    brain = ball()
    head = (brain * 100 + (ball(radius=28) & ~brain) * 20).astype(np.float32)
    head += np.float32(1)  # air is not zero
    affine = np.diag([1.5, 1.5, 1.5, 1])
    mask, stripped = brainmask.brain_mask(head, affine, Bright(), COMPUTE)
    assert not stripped
    assert 2 * (mask & brain).sum() / (mask.sum() + brain.sum()) > 0.97
    mask, stripped = brainmask.brain_mask(head * brain, affine, Bright(), COMPUTE)
    assert stripped
    np.testing.assert_array_equal(mask, brain)


def test_no_brain() -> None:
    volume = np.zeros((40, 40, 40), np.float32)
    volume[20:22, 20:22, 20:22] = 100
    with pytest.raises(ValueError, match="no brain"):
        brainmask.brain_mask(volume, np.eye(4), Bright(), COMPUTE)
    assert torch.is_grad_enabled()
