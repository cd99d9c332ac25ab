"""DUNCAN, CycleGAN and Pix2Pix: what each is made of and what it minimises.

All three correct slices with the same :class:`bmex_bids.duncan.Corrector`, which is what is kept
after training; what they learn it with differs:

* DUNCAN (doi:10.1038/s42256-020-00270-2), unpaired: content and artefact codes;
* CycleGAN (doi:10.1109/ICCV.2017.244), unpaired: the way there and back;
* Pix2Pix (doi:10.1109/CVPR.2017.632), paired: absolute error and a critic that sees the input.

The critics are trained by least squares (doi:10.1109/ICCV.2017.304).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.duncan import Corrector, Decoder, Encoder
from bmex_bids.evaluation.baselines.slices import Slices

__all__ = ["METHODS", "CycleGAN", "Duncan", "Losses", "Pix2Pix"]

SCALES = 3  # of the reconstruction consistency
BAND_GAIN = 10.0  # brings a slice's differences from its local mean to about 1


@dataclass(frozen=True)
class Losses:
    """What a step minimises.

    Attributes:
        generators: of the networks that make images.
        critics: of those that judge them; no gradient of it reaches the first.
    """

    generators: Tensor
    critics: Tensor


class Critic(nn.Module):
    """Patch critics of the bands of a Laplacian pyramid: real is 1, made is 0.

    What tells a slice with artefacts from another person's clean one is small beside what tells two
    people and contrasts apart. On the slices themselves these critics learnt nothing in 1,200
    steps; on their differences from a local mean they do from the first hundreds on (as in LAPGAN,
    doi:10.48550/arXiv.1506.05751).
    """

    def __init__(self, width: int, inputs: int = 1):
        super().__init__()
        self.scales = nn.ModuleList(self._one(inputs, width) for _ in range(2))

    @staticmethod
    def _one(inputs: int, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def loss(self, x: Tensor, wanted: float) -> Tensor:
        """Mean squared distance of the judgements of ``(b, inputs, y, z)`` from what is wanted."""
        total = x.new_zeros((), dtype=torch.float32)
        for one in self.scales:
            mean = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
            total = total + ((one(BAND_GAIN * (x - mean)).float() - wanted) ** 2).mean()
            x = F.avg_pool2d(x, 2)
        return total / len(self.scales)


def _judged(critic: Critic, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the maker, who wants ``made`` to pass for real, and of the critic."""
    for parameter in critic.parameters():
        parameter.requires_grad_(False)
    maker = critic.loss(made, 1.0)
    for parameter in critic.parameters():
        parameter.requires_grad_(True)
    return maker, 0.5 * (critic.loss(real, 1.0) + critic.loss(made.detach(), 0.0))


def _pyramid(one: Tensor, other: Tensor) -> Tensor:
    """Mean absolute difference of two images at full, half and quarter resolution."""
    total = one.new_zeros(())
    for scale in range(SCALES):
        if scale:
            one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
        total = total + (one - other).abs().mean()
    return total / SCALES


def _codes(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of two codes at their three scales."""
    parts = [(a - b).abs().mean() for a, b in zip(one, other, strict=True)]
    return torch.stack(parts).mean()


class Duncan(nn.Module):
    """Unpaired removal of artefacts by taking content and artefact apart.

    Args:
        width: channels of the finest content code.
        blocks: residual blocks of each encoder and decoder.
        reconstruction: weight of the multi-scale reconstruction consistency (an image from its own
            codes, and a clean one that was given artefacts and corrected).
        content: weight of the multi-scale content consistency (an image and the one made of it).
        quality: weight of the image-quality consistency (a clean image through the corrector).
        norm: layer normalisation in the encoders and decoders.
    """

    def __init__(
        self,
        width: int = 16,
        blocks: int = 4,
        reconstruction: float = 20.0,
        content: float = 5.0,
        quality: float = 20.0,
        *,
        norm: bool = True,
    ):
        super().__init__()
        self.corrector = Corrector(width, blocks, norm=norm)
        self.content = Encoder(width, blocks, norm=norm)
        self.artefact = Encoder(width // 2, max(blocks // 2, 1), norm=norm)
        self.soil = Decoder(width, blocks, extra=width // 2, norm=norm)
        self.critics = nn.ModuleDict({"clean": Critic(width), "artefact": Critic(width)})
        self.weights = (reconstruction, content, quality)

    def losses(self, slices: Slices) -> Losses:
        """Of one step, without looking at ``paired``."""
        a, c = slices.artefact, slices.clean
        reconstruction, content, quality = self.weights
        of_a, artefact, of_c = self.corrector.content(a), self.artefact(a), self.content(c)
        cleaned, soiled = self.corrector.decode(of_a), self.soil(of_c, artefact)
        of_soiled = self.corrector.content(soiled)
        rebuilt = _pyramid(self.soil(of_a, artefact), a) + _pyramid(self.corrector.decode(of_c), c)
        rebuilt = rebuilt + _pyramid(self.corrector.decode(of_soiled), c)
        same = _codes(of_a, self.content(cleaned)) + _codes(of_c, of_soiled)
        kept = (self.corrector(c) - c).abs().mean()
        (passes, critic), (soils, other) = (
            _judged(self.critics["clean"], c, cleaned),  # type: ignore[arg-type]
            _judged(self.critics["artefact"], a, soiled),  # type: ignore[arg-type]
        )
        total = passes + soils + reconstruction * rebuilt + content * same + quality * kept
        return Losses(total, critic + other)


class CycleGAN(nn.Module):
    """Unpaired translation there and back.

    Args:
        width: see :class:`Duncan`.
        blocks: see :class:`Duncan`.
        norm: see :class:`Duncan`.
        cycle: weight of the absolute error of an image that was translated there and back.
        identity: weight of that of an image that is in the domain already.
    """

    def __init__(
        self, width: int = 16, blocks: int = 4, cycle: float = 10.0, identity: float = 5.0,
        *, norm: bool = True,
    ):
        super().__init__()
        self.corrector, self.soil = (Corrector(width, blocks, norm=norm) for _ in range(2))
        self.critics = nn.ModuleDict({"clean": Critic(width), "artefact": Critic(width)})
        self.weights = (cycle, identity)

    def losses(self, slices: Slices) -> Losses:
        """Of one step, without looking at ``paired``."""
        a, c = slices.artefact, slices.clean
        cycle, identity = self.weights
        cleaned, soiled = self.corrector(a), self.soil(c)
        back = (self.soil(cleaned) - a).abs().mean() + (self.corrector(soiled) - c).abs().mean()
        same = (self.corrector(c) - c).abs().mean() + (self.soil(a) - a).abs().mean()
        (passes, critic), (soils, other) = (
            _judged(self.critics["clean"], c, cleaned),  # type: ignore[arg-type]
            _judged(self.critics["artefact"], a, soiled),  # type: ignore[arg-type]
        )
        return Losses(passes + soils + cycle * back + identity * same, critic + other)


class Pix2Pix(nn.Module):
    """Paired translation.

    Args:
        width: see :class:`Duncan`.
        blocks: see :class:`Duncan`.
        norm: see :class:`Duncan`.
        absolute: weight of the absolute error.
    """

    def __init__(self, width: int = 16, blocks: int = 4, absolute: float = 100.0, *,
                 norm: bool = True):
        super().__init__()
        self.corrector = Corrector(width, blocks, norm=norm)
        self.critics = nn.ModuleDict({"pair": Critic(width, inputs=2)})
        self.absolute = absolute

    def losses(self, slices: Slices) -> Losses:
        """Of one step, without looking at ``clean``."""
        made = self.corrector(slices.artefact)
        pairs = [torch.cat((slices.artefact, y), 1) for y in (slices.paired, made)]
        passes, critic = _judged(self.critics["pair"], *pairs)  # type: ignore[arg-type]
        error = (made - slices.paired).abs().mean()
        return Losses(passes + self.absolute * error, critic)


METHODS: dict[str, type[Duncan] | type[CycleGAN] | type[Pix2Pix]] = {
    "duncan": Duncan, "cyclegan": CycleGAN, "pix2pix": Pix2Pix,
}
