"""Networks: forward passes only.

Shapes use ``b`` for batch, ``c`` for channels and ``x y z`` for space, so that every tensor is
``(b, c, x, y, z)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TISSUES", "TissueGuidedUNet", "UNet"]

TISSUES = ("background", "CSF", "GM", "WM")
"""Tissue classes in channel order (index 0 to 3)."""


def space_to_depth(x: Tensor) -> Tensor:
    """Fold 2x2x2 voxels into channels: ``(b, c, 2x, 2y, 2z) -> (b, 8c, x, y, z)``."""
    b, c, nx, ny, nz = x.shape
    x = x.reshape(b, c, nx // 2, 2, ny // 2, 2, nz // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * 8, nx // 2, ny // 2, nz // 2)


def depth_to_space(x: Tensor) -> Tensor:
    """Inverse of :func:`space_to_depth`: ``(b, 8c, x, y, z) -> (b, c, 2x, 2y, 2z)``."""
    b, c, nx, ny, nz = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, nx, ny, nz)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // 8, nx * 2, ny * 2, nz * 2)


class Block(nn.Module):
    """Two 3x3x3 convolutions, each followed by an optional normalisation and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.norm1 = _norm(norm, outputs)
        self.norm2 = _norm(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, inputs, x, y, z) -> (b, outputs, x, y, z)``."""
        x = F.leaky_relu(self.norm1(self.conv1(x)), 0.1)
        return F.leaky_relu(self.norm2(self.conv2(x)), 0.1)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"unknown normalisation {kind!r}: expected 'batch', 'instance' or 'none'")


class UNet(nn.Module):
    """U-Net that works on the half-size grid, with a thin branch at full resolution.

    The input is folded by :func:`space_to_depth`, so that the wide layers run on an eighth of the
    voxels; the last layers unfold the result and join it with ``thin`` full-resolution features.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        widths: channels per level, from the half-size grid downwards.
        thin: channels of the full-resolution branch.
        norm: ``"batch"``, ``"instance"`` or ``"none"`` inside the levels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int] = (32, 64, 96, 128),
        thin: int = 12,
        norm: str = "none",
    ):
        super().__init__()
        widths = tuple(widths)
        self.multiple = 2 ** len(widths)
        self.down = nn.ModuleList()
        channels = inputs * 8
        for width in widths:
            self.down.append(Block(channels, width, norm))
            channels = width
        self.up = nn.ModuleList(
            Block(widths[i + 1] + widths[i], widths[i], norm) for i in range(len(widths) - 1)
        )
        self.unfold = nn.Conv3d(widths[0], thin * 8, 1)
        self.thin1 = nn.Conv3d(inputs, thin, 3, padding=1)
        self.thin2 = nn.Conv3d(thin, thin, 3, padding=1)
        self.head1 = nn.Conv3d(2 * thin, 16, 3, padding=1)
        self.head2 = nn.Conv3d(16, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, inputs, x, y, z) -> (b, outputs, x, y, z)``; sizes are multiples of ``multiple``."""
        fine = F.leaky_relu(self.thin2(F.leaky_relu(self.thin1(x), 0.1)), 0.1)
        skips: list[Tensor] = []
        y = space_to_depth(x)
        for level, block in enumerate(self.down):
            y = block(F.max_pool3d(y, 2) if level else y)
            skips.append(y)
        for level in reversed(range(len(self.up))):
            y = F.interpolate(y, scale_factor=2.0, mode="nearest")
            y = self.up[level](torch.cat((y, skips[level]), 1))
        coarse = depth_to_space(self.unfold(y))
        out = self.head1(torch.cat((coarse, fine), 1))
        return self.head2(F.leaky_relu(out, 0.1))


class TissueGuidedUNet(nn.Module):
    """Tissue classification, then enhancement guided by the tissue probabilities.

    The two-step idea of BME-X (doi:10.1038/s41551-024-01283-7) with two :class:`UNet`; the second
    predicts the difference between the clean and the given image.

    Args:
        tissue: keyword arguments of the classifier's :class:`UNet`.
        enhance: keyword arguments of the enhancer's :class:`UNet`.
    """

    def __init__(self, tissue: dict[str, object], enhance: dict[str, object]):
        super().__init__()
        self.tissue = UNet(1, len(TISSUES), **tissue)  # type: ignore[arg-type]
        self.enhance = UNet(1 + len(TISSUES), 1, **enhance)  # type: ignore[arg-type]
        self.multiple = max(self.tissue.multiple, self.enhance.multiple)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, 1, x, y, z) ->`` tissue scores ``(b, 4, x, y, z)``, enhanced ``(b, 1, x, y, z)``."""
        scores = self.tissue(x)
        guided = torch.cat((x, scores.softmax(1).to(x.dtype)), 1)
        return scores, x + self.enhance(guided)
