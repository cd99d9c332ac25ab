"""A network over a whole volume: device and precision, tiles where memory is short, flips.

Volumes are (x, y, z) float32 on the network's grid and intensity range. A volume is computed whole
where the memory allows, else in overlapping tiles whose weights sum to one in every voxel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bmex_bids.networks import TISSUES

__all__ = ["Compute", "enhance_volume", "mask_volume", "resolve", "three_tissues"]

OVERLAP = 32  # voxels that neighbouring tiles share
BFLOAT16_SHARE = 0.75  # of the float32 peak, measured: some tensors stay float32
FLIPS: tuple[tuple[int, ...], ...] = (
    (), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2),
)  # fmt: skip

Progress = Callable[[int, int], None]
Volume = npt.NDArray[np.float32]
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Compute:
    """Where and how networks run.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:n"``.
        precision: ``"float32"`` or ``"bfloat16"`` (of the convolutions).
        max_bytes: what one forward pass may hold; None for no limit.
    """

    device: str
    precision: str
    max_bytes: int | None = None


def resolve(device: str, precision: str, max_bytes: int | None = None) -> Compute:
    """Turn ``auto`` into what this machine has, and refuse what it does not have.

    Args:
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:n"``.
        precision: ``"auto"`` (bfloat16 where the hardware computes in it), ``"float32"`` or
            ``"bfloat16"``.
        max_bytes: see :class:`Compute`.

    Raises:
        ValueError: unknown names, no such GPU, or bfloat16 without hardware for it.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and index) or (index and not index.isdigit()):
        raise ValueError(f"device {device!r}: expected auto, cpu, cuda or cuda:N (N from 0)")
    if kind == "cuda" and not gpus:
        raise ValueError(
            f"device {device!r}: no CUDA GPU can be used here. Use --device cpu, or check the "
            "driver (nvidia-smi), that PyTorch was installed with CUDA, and that the container "
            "was started with the GPU (docker run --gpus all, singularity exec --nv)"
        )
    if kind == "cuda" and int(index or 0) >= gpus:
        raise ValueError(f"device {device!r}: this machine has cuda:0 to cuda:{gpus - 1}")
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision {precision!r}: expected auto, float32 or bfloat16")
    fast = _has_bfloat16(kind)
    if precision == "auto":
        precision = "bfloat16" if fast else "float32"
    if precision == "bfloat16" and not fast:
        raise ValueError(f"this {kind.upper()} does not compute in bfloat16: use float32 or auto")
    return Compute(device, precision, max_bytes)


def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def enhance_volume(
    network: nn.Module,
    volume: Volume,
    compute: Compute,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    flips: bool = False,
    progress: Progress | None = None,
) -> tuple[Volume, Volume, Volume | None]:
    """Classify the tissues of a brain and enhance it, in one pass.

    Args:
        network: ``(b, 1, x, y, z) -> scores (b, 4 or 5, x, y, z), enhanced (b, 1, x, y, z)``, with
            ``multiple`` and ``live_channels``, in eval mode; it is moved to the device.
        volume: (x, y, z) on the network's grid and intensity range, 0 outside the brain.
        compute: device, precision and memory limit.
        tile: side of the tiles in voxels; by default the largest that the memory allows.
        overlap: voxels that neighbouring tiles share; the middle half of them is blended.
        flips: average over the 8 mirror images of the volume.
        progress: called with (steps done, steps in all).

    Returns:
        Probabilities (4, x, y, z) of background, CSF, GM, WM, summing to one, and of lesions as a
        fifth where the network has that class; the enhanced
        image (x, y, z); with ``flips`` the standard deviation (x, y, z) of the enhanced image over
        the flips, else None.

    Raises:
        MemoryError: not even the smallest tile fits.
    """

    def forward(x: Tensor) -> Tensor:
        scores, enhanced = network(x)
        return torch.cat((scores.float().softmax(1), enhanced.float()), 1)

    mean = np.zeros((1, 1, 1, 1), np.float32)
    squares = np.zeros(volume.shape, np.float32)
    passes = FLIPS if flips else FLIPS[:1]
    for count, axes in enumerate(passes, 1):
        flipped = np.flip(volume, axes)
        steps = None if progress is None else _part(progress, count - 1, len(passes))
        out = _run(network, forward, flipped, compute, limit=tile, overlap=overlap, progress=steps)
        out = np.flip(out, tuple(axis + 1 for axis in axes))
        change = out - mean  # Welford's running mean and variance
        mean = mean + change / np.float32(count)
        squares += change[-1] * (out[-1] - mean[-1])
    deviation = np.sqrt(squares / np.float32(len(passes))) if flips else None
    return mean[:-1], mean[-1], deviation


def three_tissues(probabilities: Volume) -> Volume:
    """CSF, GM and WM (3, ...) of what :func:`enhance_volume` gives (4 or 5, ...).

    Lesions count as white matter, which is where they lie.
    """
    tissues = probabilities[1:4].copy()
    tissues[2] += probabilities[4:].sum(0)
    return tissues


def mask_volume(network: nn.Module, volume: Volume, compute: Compute) -> Volume:
    """Probability that a voxel belongs to the brain.

    Args:
        network: ``(b, 1, x, y, z) -> (b, c, x, y, z)`` scores, in eval mode. One channel: the
            brain's logit; two: outside and brain; four: background, CSF, GM, WM, of which the
            published network calls GM and WM the brain.
        volume: (x, y, z) on the network's grid and intensity range.
        compute: device, precision and memory limit.

    Returns:
        (x, y, z) from 0 to 1.

    Raises:
        MemoryError: not even the smallest tile fits.
    """

    def forward(x: Tensor) -> Tensor:
        scores: Tensor = network(x).float()
        if scores.shape[1] == 1:
            return scores.sigmoid()
        return scores.softmax(1)[:, scores.shape[1] // 2 :].sum(1, keepdim=True)

    probability: Volume = _run(network, forward, volume, compute)[0]
    return probability


def _part(progress: Progress, index: int, count: int) -> Progress:
    """Progress of part ``index`` of ``count`` equal parts, told as progress of the whole."""
    return lambda done, total: progress(index * total + done, count * total)


def _run(
    network: nn.Module,
    forward: Forward,
    volume: Volume,
    compute: Compute,
    *,
    limit: int | None = None,
    overlap: int = OVERLAP,
    progress: Progress | None = None,
) -> Volume:
    """``forward`` over (x, y, z), in tiles of at most ``limit`` a side -> (c, x, y, z)."""
    multiple = int(cast(int, network.multiple))
    overlap = -(-overlap // multiple) * multiple
    padded = np.pad(volume, [(0, -n % multiple) for n in volume.shape])
    x = torch.from_numpy(padded.astype(np.float32, copy=False))
    network.to(compute.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    most = _most_voxels(network, x.numel(), compute)
    while True:
        tile = _tile_shape(x.shape, most, limit, multiple=multiple, overlap=overlap)
        try:
            out = _tiles(
                forward, x, tile, compute, overlap=overlap, multiple=multiple, progress=progress
            )
            return out[:, : volume.shape[0], : volume.shape[1], : volume.shape[2]].numpy()
        except RuntimeError as error:  # the estimate was too low, or others use the device
            if not _is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        most = math.prod(tile) // 2


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _most_voxels(network: nn.Module, voxels: int, compute: Compute) -> int:
    """How many voxels one forward pass may have within the memory limit."""
    if compute.max_bytes is None:
        return voxels
    share = BFLOAT16_SHARE if compute.precision == "bfloat16" else 1.0
    each = 4 * share * cast(int, network.live_channels)
    weights = 8 * sum(p.numel() for p in network.parameters())  # and a copy in another layout
    volumes = 4 * voxels * 2 * (len(TISSUES) + 2) if compute.device == "cpu" else 0
    return max(0, int((compute.max_bytes - weights - volumes) / each))


def _tile_shape(
    shape: Sequence[int], most: int, limit: int | None, *, multiple: int, overlap: int
) -> tuple[int, int, int]:
    """The tile of at most ``most`` voxels that covers ``shape`` with the least computation."""
    sides: list[list[tuple[int, int]]] = []  # per axis: how many tiles, and how long they are
    for n in shape:
        axis = [(1, n)]
        while axis[-1][1] > overlap + multiple:
            count = axis[-1][0] + 1
            units = -(-(n + (count - 1) * overlap) // (count * multiple))
            axis.append((count, max(units * multiple, overlap + multiple)))
        sides.append([(c, t) for c, t in axis if limit is None or t <= max(limit, axis[-1][1])])
    fitting = [k for k in itertools.product(*sides) if math.prod(t for _, t in k) <= most]
    if not fitting:
        smallest = " x ".join(str(axis[-1][1]) for axis in sides)
        raise MemoryError(
            f"not even a tile of {smallest} voxels fits into the memory for the network: allow "
            "more (--mem), use --precision bfloat16 or the smaller bundled weights, or free the "
            "device"
        )
    best = min(fitting, key=lambda k: (math.prod(c * t for c, t in k), k))
    return best[0][1], best[1][1], best[2][1]


def _tiles(
    forward: Forward,
    x: Tensor,
    tile: tuple[int, int, int],
    compute: Compute,
    *,
    overlap: int,
    multiple: int,
    progress: Progress | None,
) -> Tensor:
    """``forward`` on every tile of (x, y, z), blended -> (c, x, y, z) on the CPU."""
    ramps = [_ramps(n, t, overlap, multiple) for n, t in zip(x.shape, tile, strict=True)]
    places = list(itertools.product(*ramps))
    out: Tensor | None = None
    with _computing(compute):
        for done, place in enumerate(places, 1):
            box = tuple(slice(start, start + len(weight)) for start, weight in place)
            result = forward(x[box][None, None].to(compute.device))[0].cpu()
            if len(places) == 1:
                out = result
            else:
                if out is None:
                    out = torch.zeros((result.shape[0], *x.shape))
                wx, wy, wz = (torch.from_numpy(weight) for _, weight in place)
                out[:, *box] += result * (wx[:, None, None] * wy[:, None] * wz)
            if progress is not None:
                progress(done, len(places))
    return cast(Tensor, out)


def _ramps(n: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, Volume]]:
    """Starts of tiles along one axis and their blending weights, which sum to one everywhere.

    The outer quarter of an overlap has weight zero, because a network sees nothing beyond its
    tile; the weights rise linearly over the middle half. Starts are multiples of ``multiple``, so
    that a network's coarser levels fall on the same voxels as in the whole volume.
    """
    if n <= tile:
        return [(0, np.ones(n, np.float32))]
    count = 1 + -(-(n - tile) // (tile - overlap))
    room = (n - tile) // multiple
    starts = [room * k // (count - 1) * multiple for k in range(count)]
    inside = np.arange(tile) + 0.5
    rise = np.clip((inside - overlap / 4) / max(overlap / 2, 1), 0, 1)
    weights = np.zeros((count, n))
    for k, start in enumerate(starts):
        low = rise if k else np.ones(tile)
        high = rise[::-1] if k < count - 1 else np.ones(tile)
        weights[k, start : start + tile] = low * high
    weights /= weights.sum(0)
    return [
        (start, weights[k, start : start + tile].astype(np.float32))
        for k, start in enumerate(starts)
    ]


@contextmanager
def _computing(compute: Compute) -> Iterator[None]:
    """No gradients, the precision asked for, and the same result every time."""
    kind = compute.device.partition(":")[0]
    lower = compute.precision == "bfloat16"
    with (
        torch.inference_mode(),
        torch.autocast(kind, torch.bfloat16, enabled=lower),
        torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False),
    ):
        yield
