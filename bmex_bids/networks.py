"""Networks: forward passes only.

Shapes use ``b`` for batch, ``c`` for channels and ``x y z`` for space, so that every tensor is
``(b, c, x, y, z)``. Every network has ``multiple`` (its input's sides are multiples of that) and
``live_channels`` (float32 channels per voxel that its forward pass holds at its peak, rounded up
from measured peaks: what a memory limit is divided by).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.similar import nonlocal_means

__all__ = ["TISSUES", "BMEXPair", "DUNet", "SliceUNet", "TissueGuidedUNet", "UNet"]

TISSUES = ("background", "CSF", "GM", "WM")
"""Tissue classes in channel order (index 0 to 3)."""
GAIN = 10.0  # brings the differences to non-local means to about 1, as the other inputs are
SLICES = 16  # that are computed at once, which bounds the memory


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


class Convolution(nn.Conv3d):
    """3-D convolution; over 2 x 2 x 2 voxels it is trained in float32 on CPUs.

    There oneDNN's bfloat16 gradient of the weights is now and then infinite or not a number (seen
    with PyTorch 2.13 on a CPU with avx512_bf16). The forward pass is right.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(b, inputs, x, y, z) -> (b, outputs, x, y, z)``."""
        if not (self.training and x.device.type == "cpu" and max(x.shape[2:]) <= 2):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class Block(nn.Module):
    """Two convolutions of side 3, each followed by an optional normalisation and a leaky ReLU.

    With ``conditions`` it learns one shift of its features for each of them, such as for each age
    stage and contrast. A ``flat`` one is for slices, (b, c, y, z).
    """

    def __init__(
        self, inputs: int, outputs: int, norm: str, conditions: int = 0, *, flat: bool = False
    ):
        super().__init__()
        convolution = nn.Conv2d if flat else Convolution
        self.conv1 = convolution(inputs, outputs, 3, padding=1)
        self.conv2 = convolution(outputs, outputs, 3, padding=1)
        self.norm1 = normalisation(norm, outputs)
        self.norm2 = normalisation(norm, outputs)
        if conditions:
            self.shift = nn.Embedding(conditions, outputs)
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``(b, inputs, x, y, z) -> (b, outputs, x, y, z)``; condition ``(b,)`` whole numbers."""
        x = self.norm1(self.conv1(x))
        if condition is not None:
            shift = self.shift(condition).to(x.dtype)
            x = x + shift.reshape(*shift.shape, *(1,) * (x.dim() - 2))
        x = F.leaky_relu(x, 0.1)
        return F.leaky_relu(self.norm2(self.conv2(x)), 0.1)


def normalisation(kind: str, channels: int) -> nn.Module:
    """``"batch"``, ``"instance"``, ``"layer"`` or ``"none"``; the first two for volumes only.

    Raises:
        ValueError: another name.
    """
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if kind == "layer":
        return VoxelNorm(channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(
        f"unknown normalisation {kind!r}: expected 'batch', 'instance', 'layer' or 'none'"
    )


def local_differences(x: Tensor, reach: int) -> Tensor:
    """Mean of the two neighbours minus the voxel, per axis and distance.

    ``(b, 1, x, y, z) -> (b, 3 * reach, x, y, z)``: axes x, y, z at distance 1, then at 2, ...;
    at the border the outermost voxels are repeated. Of slices: ``(b, 1, y, z) -> (b, 2 * reach, y,
    z)``.
    """
    found: list[Tensor] = []
    axes = set(range(2, x.ndim))
    for distance in range(1, reach + 1):
        wide = F.pad(x, (distance,) * (2 * len(axes)), mode="replicate")
        for axis in sorted(axes):
            middle = wide
            for other in axes - {axis}:
                middle = middle.narrow(other, distance, x.shape[other])
            size = x.shape[axis]
            both = middle.narrow(axis, 0, size) + middle.narrow(axis, 2 * distance, size)
            found.append(0.5 * both - x)
    return torch.cat(found, 1)


def change_of(said: Tensor, differences: Sequence[Tensor]) -> Tensor:
    """What an enhancer adds to an image: a free part, and differences from it by their weights.

    Args:
        said: (b, 1 + all differences, ...) the free part and the weights.
        differences: (b, differences, ...) each, such as :func:`local_differences`.

    Returns:
        (b, 1, ...).
    """
    sizes = [1, *(part.shape[1] for part in differences)]
    change: Tensor
    change, *weights = said.split(sizes, 1)
    for weight, part in zip(weights, differences, strict=True):
        change = change + (weight * part).sum(1, keepdim=True)
    return change


class VoxelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each voxel.

    It depends on no other voxel, so that a patch and a whole brain give the same result, and the
    size of the field of view does not matter.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, x, y, z) -> (b, c, x, y, z)``."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class UNet(nn.Module):
    """U-Net that works on the half-size grid, with a thin branch at full resolution.

    The input is folded by :func:`space_to_depth`, so that the wide layers run on an eighth of the
    voxels; the last layers unfold the result and join it with ``thin`` full-resolution features.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        widths: channels per level, from the half-size grid downwards.
        thin: channels of the full-resolution branch; 0 leaves it out, so that the unfolded output
            of the half-size grid is the result.
        norm: ``"batch"``, ``"instance"``, ``"layer"`` or ``"none"`` inside the levels.
        conditions: how many conditions the levels tell apart; 0 for none.
        flat: for slices, ``(b, c, y, z)``: 2 x 2 pixels are folded.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int] = (32, 64, 96, 128),
        thin: int = 12,
        norm: str = "none",
        conditions: int = 0,
        *,
        flat: bool = False,
    ):
        super().__init__()
        widths = tuple(widths)
        self.multiple = 2 ** len(widths)
        self.live_channels = widths[0] + 8 * thin + 16
        fold, convolution = (4, nn.Conv2d) if flat else (8, nn.Conv3d)
        self.flat = flat
        self.down = nn.ModuleList()
        channels = inputs * fold
        for width in widths:
            self.down.append(Block(channels, width, norm, conditions, flat=flat))
            channels = width
        self.up = nn.ModuleList(
            Block(widths[i + 1] + widths[i], widths[i], norm, conditions, flat=flat)
            for i in range(len(widths) - 1)
        )
        self.unfold = convolution(widths[0], (thin or outputs) * fold, 1)
        self.thin = thin
        if not thin:
            return
        self.thin1 = convolution(inputs, thin, 3, padding=1)
        self.thin2 = convolution(thin, thin, 3, padding=1)
        self.head1 = convolution(2 * thin, 16, 3, padding=1)
        self.head2 = convolution(16, outputs, 1)

    @property
    def last(self) -> nn.Module:
        """The layer that writes the output."""
        return self.head2 if self.thin else self.unfold

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``(b, inputs, x, y, z) -> (b, outputs, x, y, z)``; sizes multiples of ``multiple``.

        ``condition`` is ``(b,)``, whole numbers below ``conditions``.
        """
        skips: list[Tensor] = []
        y = F.pixel_unshuffle(x, 2) if self.flat else space_to_depth(x)
        pool = F.max_pool2d if self.flat else F.max_pool3d
        for level, block in enumerate(self.down):
            y = block(pool(y, 2) if level else y, condition)
            skips.append(y)
        for level in reversed(range(len(self.up))):
            y = F.interpolate(y, scale_factor=2.0, mode="nearest")
            y = self.up[level](torch.cat((y, skips[level]), 1), condition)
        y = self.unfold(y)
        coarse = F.pixel_shuffle(y, 2) if self.flat else depth_to_space(y)
        if not self.thin:
            return coarse
        fine = F.leaky_relu(self.thin2(F.leaky_relu(self.thin1(x), 0.1)), 0.1)
        out = self.head1(torch.cat((coarse, fine), 1))
        scores: Tensor = self.head2(F.leaky_relu(out, 0.1))
        return scores


def over_slices(
    network: Callable[..., Tensor], x: Tensor, condition: Tensor | None = None
) -> Tensor:
    """A network of slices over those along the first axis of space, :data:`SLICES` at once.

    Args:
        network: (b, inputs, y, z), and (b,) conditions if there are any -> (b, outputs, y, z).
        x: (b, inputs, slices, y, z).
        condition: (b,) of each volume.

    Returns:
        (b, outputs, slices, y, z).
    """
    slices = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    given = [slices.split(SLICES)]
    if condition is not None:
        given.append(condition.repeat_interleave(x.shape[2]).split(SLICES))
    made = torch.cat([network(*part) for part in zip(*given, strict=True)])
    out: Tensor = made.unflatten(0, (len(x), x.shape[2]))
    return out.transpose(1, 2)


def mean_over_axes(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean of what a function of (b, c, x, y, z) gives with each axis of space in the first place.

    The function gives a tensor of the same space; the mean is in the precision of ``x``.
    """
    found = (function(x.movedim(axis, 2)).movedim(2, axis).to(x.dtype) for axis in (2, 3, 4))
    total = next(found)
    for one in found:
        total = total + one
    return total / 3


class SliceUNet(nn.Module):
    """A U-Net that sees whole slices, each with its neighbours: far along two axes, a little along
    the third.

    What motion does to an image lies along the phase-encoding axis and reaches across the field of
    view, which no cube that fits into a training step holds. The first axis of space is that of
    the slices.

    Args:
        inputs: channels of the input; of the first one, the image, neighbours are seen.
        outputs: channels of the output.
        slices: the slice and its neighbours, an odd number; beyond the ends the last is repeated.
        widths: channels per level, from the half-size grid downwards.
        norm: as in :class:`UNet`; with ``"layer"`` an enhancer forgets its input.
        conditions: how many conditions the levels tell apart; 0 for none.

    Raises:
        ValueError: an even number of slices.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        slices: int = 5,
        widths: Sequence[int] = (48, 96, 144, 192, 256),
        norm: str = "none",
        conditions: int = 0,
    ):
        super().__init__()
        if slices % 2 == 0:
            raise ValueError(f"slices {slices}: expected an odd number")
        self.slices = slices
        self.plane = UNet(inputs + slices - 1, outputs, widths, 0, norm, conditions, flat=True)
        self.multiple, self.live_channels = self.plane.multiple, 2 * outputs + 8

    @property
    def last(self) -> nn.Module:
        """The layer that writes the output."""
        return self.plane.last

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``(b, inputs, slices, y, z) -> (b, outputs, slices, y, z)``.

        y and z are multiples of ``multiple``; ``condition`` as in :class:`UNet`.
        """
        reach, count = self.slices // 2, x.shape[2]
        image = F.pad(x[:, :1], (0, 0, 0, 0, reach, reach), mode="replicate")
        around = [image.narrow(2, k, count) for k in range(self.slices)]
        seen = torch.cat((*around, x[:, 1:]), 1)
        return over_slices(self.plane, seen, condition)


class Similar(TypedDict):
    """Arguments of :func:`bmex_bids.similar.nonlocal_means`."""

    strongest: float
    count: int


class TissueGuidedUNet(nn.Module):
    """Tissue classification, then enhancement guided by the tissue probabilities.

    The two-step idea of BME-X (doi:10.1038/s41551-024-01283-7) with two :class:`UNet`; the second
    predicts the difference between the clean and the given image. With ``reach``, that difference
    is a free part plus the image's own :func:`local_differences`, each times a predicted weight:
    smoothing is a weight above zero and sharpening one below, which is learnt in a few steps. With
    ``similar`` the differences to :func:`bmex_bids.similar.nonlocal_means` are among them, which
    the enhancer also sees. The classifier learns from labels alone: no gradient of the enhancement
    reaches it.

    With ``slices`` among the enhancer's arguments it is a :class:`SliceUNet`. It is then trained on
    slices along the first axis, and gives the mean over those along all three.

    Args:
        tissue: keyword arguments of the classifier's :class:`UNet`.
        enhance: keyword arguments of the enhancer's :class:`UNet` or :class:`SliceUNet`.
        conditions: how many conditions (age stage and contrast) one pair serves; 0 for one alone.
        condition: the one that an image has when the call does not say.
        classes: tissue classes including background; a fifth one is for lesions.
        reach: voxels that the local differences reach to each side; 0 for none.
        similar: ``count`` non-local means and the strength of the ``strongest``, in which the
            brain's median is 1; none by default.
        residual: predict the difference between the clean and the given image, or the clean image.
        guided: show the enhancer the tissue probabilities; without them it is a U-Net by itself.
    """

    mixture = True  # of its tissues, see bmex_bids.mixture; the enhancer sees what the network says
    restrained = True  # where there is no noise, see inference.enhancement_strength

    def __init__(
        self,
        tissue: dict[str, object],
        enhance: dict[str, object],
        conditions: int = 0,
        condition: int = 0,
        classes: int = len(TISSUES),
        reach: int = 0,
        residual: bool = True,
        guided: bool = True,
        similar: Similar | None = None,
    ):
        super().__init__()
        self.reach, self.residual, self.guided = reach, residual, guided
        self.similar = similar
        means = similar["count"] if similar else 0
        self.tissue = UNet(1, classes, conditions=conditions, **tissue)  # type: ignore[arg-type]
        enhancer = SliceUNet if "slices" in enhance else UNet
        self.enhance = enhancer(
            1 + classes * guided + means, 1 + 3 * reach + means, conditions=conditions,
            **enhance,  # type: ignore[arg-type]
        )
        self.conditions, self.condition = conditions, condition
        self.multiple = max(self.tissue.multiple, self.enhance.multiple)
        wider = max(self.tissue.live_channels, self.enhance.live_channels)
        self.live_channels = wider + 5 + 2 * means

    def forward(
        self, x: Tensor, condition: Tensor | None = None, *, enhance: bool = True
    ) -> tuple[Tensor, Tensor]:
        """``(b, 1, x, y, z) ->`` tissue scores (4 or 5 channels) and the enhanced image (1).

        ``condition`` is ``(b,)``, whole numbers below ``conditions``; a pair without them ignores
        it. Without ``enhance``, which saves most of the time, the image comes back as it is.
        """
        if not self.conditions:
            condition = None
        elif condition is None:
            condition = torch.full((len(x),), self.condition, device=x.device)
        scores = self.tissue(x, condition)
        if not enhance:
            return scores, x
        seen = x
        if self.guided:
            seen = torch.cat((x, scores.detach().softmax(1).to(x.dtype)), 1)
        if self.similar:
            seen = torch.cat((seen, GAIN * (nonlocal_means(x, **self.similar) - x)), 1)
        if isinstance(self.enhance, SliceUNet) and not self.training:
            change = mean_over_axes(functools.partial(self._change, condition=condition), seen)
        else:
            change = self._change(seen, condition)
        return scores, x + change if self.residual else change

    def _change(self, seen: Tensor, condition: Tensor | None) -> Tensor:
        """What the enhancer says of the image, the first channel: (b, 1, x, y, z)."""
        said: Tensor = self.enhance(seen, condition)
        differences: list[Tensor] = []
        if self.reach:
            differences.append(local_differences(seen[:, :1], self.reach))
        if self.similar:
            differences.append(seen[:, -self.similar["count"]:] / GAIN)
        return change_of(said, [part.to(said.dtype) for part in differences])


class DUNet(nn.Module):
    """The published densely connected U-Net (doi:10.1038/s41551-024-01283-7), of any width.

    Parameters are named as in the authors' weight files (``conv4_1.weight``, ``deconv23.bias``),
    so that those load as they are. Tissue classification is ``DUNet(64, 1, 4)``; the published
    brain extraction is ``DUNet(32, 1, 4)`` on a 1.6 mm grid.

    Args:
        width: channels at full resolution, a multiple of 4; 64 is the published size.
        inputs: channels of the input.
        outputs: channels of the output.
    """

    multiple = 8

    def __init__(self, width: int = 64, inputs: int = 1, outputs: int = len(TISSUES)):
        super().__init__()
        self.live_channels = 10 * width
        for name, layer in _dunet_layers(width, inputs, outputs):
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, inputs, x, y, z) -> (b, outputs, x, y, z)``, not negative; sizes multiples of 8."""
        return _dunet_forward(self, x, "")


class BMEXPair(nn.Module):
    """The published pair: tissue classification guides the enhancement.

    One :class:`DUNet` gives tissue scores; a second, whose parameters end in ``_recon``, predicts
    the clean image from features of the tissue probabilities and of the image (``_con``).
    doi:10.1038/s41551-024-01283-7.

    Args:
        width: channels at full resolution, a multiple of 4; 64 is the published size.
    """

    multiple = DUNet.multiple

    def __init__(self, width: int = 64):
        super().__init__()
        self.live_channels = 10 * width
        half, classes = width // 2, len(TISSUES)
        for name, layer in _dunet_layers(width, 1, classes):
            self.add_module(name, layer)
        self.conv1_con = nn.Conv3d(classes, half, 3, padding=1)
        self.bn1_con = nn.BatchNorm3d(half)
        self.conv2_con = nn.Conv3d(1, half, 3, padding=1)
        self.bn2_con = nn.BatchNorm3d(half)
        for name, layer in _dunet_layers(width, 2 * half, 1):
            self.add_module(f"{name}_recon", layer)

    def forward(self, x: Tensor, *, enhance: bool = True) -> tuple[Tensor, Tensor]:
        """``(b, 1, x, y, z) ->`` tissue scores (4 channels) and the enhanced image (1).

        Without ``enhance`` the image comes back as it is.
        """
        scores = _dunet_forward(self, x, "")
        if not enhance:
            return scores, x
        tissue = F.relu(self.bn1_con(self.conv1_con(scores.softmax(1))), inplace=True)
        image = F.relu(self.bn2_con(self.conv2_con(x)), inplace=True)
        return scores, _dunet_forward(self, torch.cat((tissue, image), 1), "_recon")


def _dunet_layers(width: int, inputs: int, outputs: int) -> Iterable[tuple[str, nn.Module]]:
    """Name and layer of everything in a DU-Net: ``convN``, ``bnN``, ``deconvN``."""
    if width % 4:
        raise ValueError(f"width {width}: expected a multiple of 4")
    w = width
    fine, coarse = w // 4, w // 2  # what one dense layer adds, at full resolution and below it
    plain = {
        "1": (inputs, w),
        "2": (w, w),
        "5": (w + 3 * fine, w),
        "6": (w, w),
        "10": (w + 3 * coarse, 2 * w),
        "11": (2 * w, 2 * w),
        "12": (4 * w, 4 * w),
        "16": (4 * w, 4 * w),
        "20": (4 * w + 3 * coarse, 4 * w),
        "24": (2 * w, 2 * w),
        "28": (2 * w + 3 * fine, w),
        "32": (w + 3 * fine, outputs),
    }
    dense = {
        ("3", "4", "4_1"): (w, fine),
        ("7", "8", "9"): (w, coarse),
        ("13", "14", "15"): (4 * w, coarse),
        ("17", "18", "19"): (4 * w, coarse),
        ("21", "22", "23"): (4 * w, coarse),
        ("25", "26", "27"): (2 * w, fine),
        ("29", "30", "31"): (w, fine),
    }
    up = {
        "11": (2 * w, 2 * w),
        "15": (4 * w + 3 * coarse, 2 * w),
        "23": (4 * w + 3 * coarse, w),
    }
    for n, (i, o) in plain.items():
        yield f"conv{n}", nn.Conv3d(i, o, 3, padding=1)
        yield f"bn{n}", nn.BatchNorm3d(o)
    for names, (start, growth) in dense.items():
        for k, n in enumerate(names):
            yield f"conv{n}", nn.Conv3d(start + k * growth, growth, 3, padding=1)
            yield f"bn{n}", nn.BatchNorm3d(start + (k + 1) * growth)
    for n, (i, o) in up.items():
        yield f"deconv{n}", nn.ConvTranspose3d(i, o, 4, stride=2, padding=1)


def _dunet_forward(net: nn.Module, x: Tensor, suffix: str) -> Tensor:
    """The DU-Net among the layers of ``net`` whose names end in ``suffix``."""

    def apply(name: str, x: Tensor) -> Tensor:
        y: Tensor = net.get_submodule(f"{name}{suffix}")(x)
        return y

    def conv(n: str, x: Tensor) -> Tensor:
        return apply(f"conv{n}", x)

    def active(n: str, x: Tensor) -> Tensor:
        return F.relu(apply(f"bn{n}", x), inplace=True)

    def dense(start: str, x: Tensor, names: Sequence[str]) -> Tensor:
        """Raw output of layer ``start`` -> activated output of the dense block after it."""
        a = active(start, x)
        for n in names:
            new = F.dropout(conv(n, a), 0.1, net.training)
            x = a if n == "19" else x  # the released weights expect the activated one there
            del a  # the widest tensors of the network: keep no more of them than needed
            # ... and what conv7 adds in front of what it came from
            x = torch.cat((new, x) if n == "7" else (x, new), 1)
            a = active(n, x)
        return a

    x = dense("2", conv("2", active("1", conv("1", x))), ("3", "4", "4_1"))
    fine = conv("5", x)
    x = dense("6", conv("6", _pool(active("5", fine))), ("7", "8", "9"))
    middle = conv("10", x)
    coarse = conv("11", _pool(active("10", middle)))
    x = apply("deconv11", _pool(active("11", coarse)))
    x = dense("12", conv("12", torch.cat((coarse, x), 1)), ("13", "14", "15"))
    x = apply("deconv15", x)
    x = conv("20", dense("16", conv("16", torch.cat((middle, x), 1)), ("17", "18", "19")))
    x = apply("deconv23", dense("20", x, ("21", "22", "23")))
    x = conv("28", dense("24", conv("24", torch.cat((fine, x), 1)), ("25", "26", "27")))
    del fine
    x = dense("28", x, ("29", "30", "31"))
    with torch.autocast(x.device.type, enabled=False):
        # the last layer writes intensities: bfloat16 would leave 8 bits of them
        return active("32", conv("32", x.float()))


def _pool(x: Tensor) -> Tensor:
    return F.max_pool3d(x, 3, stride=2, padding=1)
