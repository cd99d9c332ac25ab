"""DUNCAN's networks: the content of 2-D slices without their artefacts, and volumes corrected so.

Liu et al., Nat Mach Intell 3:60-67 (2021), doi:10.1038/s42256-020-00270-2. Only what the app needs
stands here; the training, with artefact codes and discriminators, is in
:mod:`bmex_bids.evaluation.baselines`. Shapes: ``b`` slices, ``c`` channels, ``y z`` the slice.

As in BME-X's networks here, 2 x 2 voxels are folded into channels before the first layer and
unfolded after the last: every layer runs on a quarter of the voxels and sees twice as far.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.networks import (
    TISSUES,
    UNet,
    change_of,
    local_differences,
    mean_over_axes,
    normalisation,
    over_slices,
)

__all__ = ["Corrector", "Decoder", "Encoder", "SlicePair"]

FOLD = 2  # voxels a side that are folded into channels
PIXELS = FOLD**2
REACH = 2  # of the local differences


class Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to their input."""

    def __init__(self, channels: int, norm: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = _norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, y, z) -> (b, c, y, z)``."""
        y: Tensor = self.conv2(F.leaky_relu(self.norm(self.conv1(x)), 0.1))
        return x + y


def _norm(wanted: bool, channels: int) -> nn.Module:
    return normalisation("layer" if wanted else "none", channels)


def _begin(module: nn.Module) -> None:
    """First weights that keep the size of what goes through, as there is no normalisation."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=0.1)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for layer in module.modules():
        if isinstance(layer, Residual):
            with torch.no_grad():
                layer.conv2.weight *= 0.1


class Encoder(nn.Module):
    """A slice as a code at three scales: half, quarter and eighth of its resolution.

    The first four channels of the finest code begin as the slice itself, folded, so that a decoder
    can begin as the identity.

    Args:
        width: channels of the finest code, at least 4; the others have 2 and 4 times as many.
        blocks: residual blocks at the coarsest scale.
        norm: layer normalisation over the channels of each voxel.
    """

    def __init__(self, width: int, blocks: int, *, norm: bool = True):
        super().__init__()
        self.conv0 = nn.Conv2d(PIXELS, width, 5, padding=2)
        self.down1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.down2 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.norm1, self.norm2 = _norm(norm, 2 * width), _norm(norm, 4 * width)
        self.blocks = nn.Sequential(*(Residual(4 * width, norm) for _ in range(blocks)))
        if not norm:
            _begin(self)
        with torch.no_grad():
            self.conv0.weight[:PIXELS] = 0
            self.conv0.weight[range(PIXELS), range(PIXELS), 2, 2] = 1
            nn.init.zeros_(self.conv0.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(b, 1, y, z) -> [(b, w, y/2, z/2), (b, 2w, y/4, z/4), (b, 4w, y/8, z/8)]``."""
        fine = self.conv0(F.pixel_unshuffle(x, FOLD))
        middle = F.leaky_relu(self.norm1(self.down1(F.leaky_relu(fine, 0.1))), 0.1)
        coarse = self.blocks(F.leaky_relu(self.norm2(self.down2(middle)), 0.1))
        return [fine, middle, coarse]


class Decoder(nn.Module):
    """A slice from its content code and, for the domain with artefacts, an artefact code.

    As BME-X's enhancer here does, it adds to what the content code holds of the slice a free part
    and the :func:`bmex_bids.networks.local_differences` of that, each times a predicted weight.

    Args:
        width: of the content encoder.
        blocks: residual blocks at the coarsest scale.
        extra: width of the artefact encoder; 0 for the clean domain.
        norm: as in :class:`Encoder`.
    """

    def __init__(self, width: int, blocks: int, extra: int = 0, *, norm: bool = True):
        super().__init__()
        both = width + extra
        self.entry = nn.Conv2d(4 * both, 4 * width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(4 * width, norm) for _ in range(blocks)))
        self.up1 = nn.Conv2d(4 * width + 2 * both, 2 * width, 3, padding=1)
        self.up2 = nn.Conv2d(2 * width + both, width, 3, padding=1)
        self.norm1, self.norm2 = _norm(norm, 2 * width), _norm(norm, width)
        self.head = nn.Conv2d(width + both, PIXELS * (1 + 2 * REACH), 3, padding=1)
        if not norm:
            _begin(self)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, content: Sequence[Tensor], artefact: Sequence[Tensor] = ()) -> Tensor:
        """Codes as :class:`Encoder` gives them ``-> (b, 1, y, z)``."""
        codes = list(content)
        if artefact:
            codes = [torch.cat(pair, 1) for pair in zip(content, artefact, strict=True)]
        y = self.blocks(F.leaky_relu(self.entry(codes[2]), 0.1))
        y = torch.cat((F.interpolate(y, scale_factor=2.0, mode="nearest"), codes[1]), 1)
        y = F.leaky_relu(self.norm1(self.up1(y)), 0.1)
        y = torch.cat((F.interpolate(y, scale_factor=2.0, mode="nearest"), codes[0]), 1)
        y = F.leaky_relu(self.norm2(self.up2(y)), 0.1)
        said = F.pixel_shuffle(self.head(torch.cat((y, codes[0]), 1)).float(), FOLD)
        held = F.pixel_shuffle(content[0][:, :PIXELS].float(), FOLD)
        return held + change_of(said, (local_differences(held, REACH),))


class Corrector(nn.Module):
    """Slices with artefacts to slices without: encode the content, decode it as clean.

    Arguments as of :class:`Encoder`.
    """

    def __init__(self, width: int = 16, blocks: int = 4, *, norm: bool = True):
        super().__init__()
        self.content = Encoder(width, blocks, norm=norm)
        self.decode = Decoder(width, blocks, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 1, y, z) -> (b, 1, y, z)``; sides multiples of 8."""
        out: Tensor = self.decode(self.content(x))
        return out

    def volume(self, x: Tensor) -> Tensor:
        """A volume corrected along its three axes, and the mean of them.

        ``(b, 1, x, y, z) -> (b, 1, x, y, z)``; sides multiples of 8.
        """
        return mean_over_axes(functools.partial(over_slices, self), x)


class SlicePair(nn.Module):
    """Tissues by a BME-X classifier, and the image corrected slice by slice.

    Takes the place of :class:`bmex_bids.networks.TissueGuidedUNet` where the enhancement is
    DUNCAN's or another method's on slices; the correction does not see the tissues.

    Args:
        tissue: keyword arguments of the classifier's :class:`bmex_bids.networks.UNet`.
        corrector: keyword arguments of the :class:`Corrector`.
        conditions: how many conditions the classifier tells apart; 0 for none.
        condition: the one of the images.
        classes: tissue classes including background.
    """

    mixture = True  # of its tissues, see bmex_bids.mixture

    def __init__(
        self,
        tissue: dict[str, object],
        corrector: dict[str, Any],
        conditions: int = 0,
        condition: int = 0,
        classes: int = len(TISSUES),
    ):
        super().__init__()
        self.tissue = UNet(1, classes, conditions=conditions, **tissue)  # type: ignore[arg-type]
        self.corrector = Corrector(**corrector)
        self.conditions, self.condition = conditions, condition
        self.multiple = max(self.tissue.multiple, 8)
        self.live_channels = self.tissue.live_channels + 8

    def forward(self, x: Tensor, *, enhance: bool = True) -> tuple[Tensor, Tensor]:
        """``(b, 1, x, y, z) ->`` tissue scores (classes) and the corrected image (1).

        Without ``enhance`` the image comes back as it is.
        """
        condition = torch.full((len(x),), self.condition, device=x.device)
        scores = self.tissue(x, condition if self.conditions else None)
        return scores, self.corrector.volume(x) if enhance else x
