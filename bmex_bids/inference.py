"""A network over a whole volume: device and precision, tiles where memory is short, flips.

Volumes are (x, y, z) float32 on the network's grid and intensity range. A volume is computed whole
where the memory allows, else in overlapping tiles whose weights sum to one in every voxel.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bmex_bids.mixture import posterior
from bmex_bids.networks import TISSUES
from bmex_bids.similar import noise_level
from bmex_bids.tiles import NoTileError, ramps, tile_shape

__all__ = [
    "Compute", "enhance_volume", "enhancement_strength", "lay_out", "mask_volume", "mixed",
    "resolve", "three_tissues", "tissue_method",
]  # fmt: skip

OVERLAP = 32  # voxels that neighbouring tiles share
BFLOAT16_SHARE = 0.75  # of the float32 peak, measured: some tensors stay float32
FLIPS: tuple[tuple[int, ...], ...] = (
    (), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2),
)  # fmt: skip

QUIET, NOISY = 0.003, 0.006  # noise as a share of the brain's median
GENTLE = 0.4  # share of the change that an image without noise gets

# How PyTorch says it on a CPU, in its own words and in those of oneDNN and of C++.
OUT_OF_MEMORY = re.compile(r"allocate memory|out[ _]of[ _]memory|bad_alloc", re.IGNORECASE)
FREE_SHARE = 0.9  # of a GPU's free memory that one forward pass may take

Progress = Callable[[int, int], None]
Warn = Callable[[str], None]
Volume = npt.NDArray[np.float32]
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Compute:
    """Where and how networks run.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:n"``.
        precision: ``"float32"`` or ``"bfloat16"`` (of the convolutions).
        max_bytes: what one forward pass may hold in main memory; None for no limit. A GPU's limit
            is its free memory.
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


def _say(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def enhance_volume(
    network: nn.Module,
    volume: Volume,
    compute: Compute,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    flips: bool = False,
    enhance: bool = True,
    mixture: bool = True,
    strength: float | None = None,
    progress: Progress | None = None,
    warn: Warn = _say,
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
        enhance: without, the tissues alone are computed, and the volume comes back as it is.
        mixture: where the network is for it (``mixture``), its probabilities are the prior of
            :func:`bmex_bids.mixture.posterior`, see :func:`mixed`; without, they come back as they
            are.
        strength: share of the enhancer's change that is applied; by default
            :func:`enhancement_strength`.
        progress: called with (steps done, steps in all).
        warn: told when the GPU's memory is too small, so that the CPU computes.

    Returns:
        Probabilities (4, x, y, z) of background, CSF, GM, WM, summing to one, and of lesions as a
        fifth where the network has that class; the enhanced image (x, y, z); with ``flips`` the
        standard deviation (x, y, z) of the enhanced image over the flips, else None.

    Raises:
        MemoryError: not even the smallest tile fits.
    """

    def forward(x: Tensor) -> Tensor:
        scores, enhanced = network(x) if enhance else network(x, enhance=False)
        return torch.cat((scores.float().softmax(1), enhanced.float()), 1)

    mean = np.zeros((1, 1, 1, 1), np.float32)
    squares = np.zeros(volume.shape, np.float32)
    passes = FLIPS if flips else FLIPS[:1]
    for count, axes in enumerate(passes, 1):
        flipped = np.flip(volume, axes)
        steps = None if progress is None else _part(progress, count - 1, len(passes))
        out, compute = _run(
            network, forward, flipped, compute, limit=tile, overlap=overlap, progress=steps,
            warn=warn,
        )
        out = np.flip(out, tuple(axis + 1 for axis in axes))
        change = out - mean  # Welford's running mean and variance
        mean = mean + change / np.float32(count)
        squares += change[-1] * (out[-1] - mean[-1])
    deviation = np.sqrt(squares / np.float32(len(passes))) if flips else None
    probabilities = mean[:-1]
    if mixture:
        probabilities = mixed(network, probabilities, volume)
    if not enhance:
        return probabilities, mean[-1], deviation
    share = np.float32(enhancement_strength(network, volume) if strength is None else strength)
    enhanced = volume + share * (mean[-1] - volume) if share < 1 else mean[-1]
    return probabilities, enhanced, None if deviation is None else share * deviation


def enhancement_strength(network: nn.Module, volume: Volume) -> float:
    """The share of an enhancer's change that suits an image, up to 1.

    An enhancer that learnt from noisy images smooths those without noise, too, and takes away more
    than it mends. So where a network is for it (``restrained``) an image with hardly any noise
    gets a part of the change (:data:`GENTLE`), one with noise all of it.

    Args:
        network: that enhances; published ones are not for it.
        volume: (x, y, z) what the network is given, 0 outside the brain.
    """
    inside = volume > 0
    if not getattr(network, "restrained", False) or not inside.any():
        return 1.0
    noise = noise_level(volume, inside) / float(np.median(volume[inside]))
    return float(np.interp(noise, (QUIET, NOISY), (GENTLE, 1.0)))


def mixed(network: nn.Module, probabilities: Volume, volume: Volume) -> Volume:
    """The network's tissue probabilities behind the mixture, where it is for it (``mixture``).

    Args:
        network: that gave the probabilities; published ones are not for it.
        probabilities: (4 or 5, x, y, z).
        volume: (x, y, z) what the network was given.
    """
    return posterior(probabilities, volume) if _is_mixed(network) else probabilities


def _is_mixed(network: nn.Module) -> bool:
    return bool(getattr(network, "mixture", False))


def tissue_method(network: nn.Module) -> str:
    """In words, where the tissues of :func:`enhance_volume` come from."""
    if _is_mixed(network):
        return "network, then a mixture of Gaussians with local means of the image's intensities"
    return "network"


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

    probability: Volume = _run(network, forward, volume, compute)[0][0]
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
    warn: Warn = _say,
) -> tuple[Volume, Compute]:
    """``forward`` over (x, y, z), in tiles of at most ``limit`` a side -> (c, x, y, z).

    Where a GPU has no memory for the smallest tile, the CPU computes; the second value says what
    did.
    """
    fitted = partial(
        _fitted, network, forward, volume, limit=limit, overlap=overlap, progress=progress
    )
    if compute.device == "cpu":
        return fitted(compute), compute
    try:
        return fitted(compute), compute
    except MemoryError:
        pass  # and the memory that the error holds on to is free
    lower = compute.precision == "bfloat16" and _has_bfloat16("cpu")
    slower = replace(compute, device="cpu", precision="bfloat16" if lower else "float32")
    warn(
        f"{compute.device} has too little free memory even for small tiles; computed on the CPU "
        f"in {slower.precision}, which takes longer"
    )
    return fitted(slower), slower


def _fitted(
    network: nn.Module,
    forward: Forward,
    volume: Volume,
    compute: Compute,
    *,
    limit: int | None,
    overlap: int,
    progress: Progress | None,
) -> Volume:
    """``forward`` on one device, in tiles that get smaller until they fit.

    Raises:
        MemoryError: not even the smallest tile fits.
    """
    multiple = int(cast(int, network.multiple))
    overlap = -(-overlap // multiple) * multiple
    padded = np.pad(volume, [(0, -n % multiple) for n in volume.shape])
    x = torch.from_numpy(padded.astype(np.float32, copy=False))
    tile: tuple[int, int, int] | None = None
    while True:
        try:
            if tile is None:
                lay_out(network.to(compute.device))
            most = math.prod(tile) // 2 if tile else _most_voxels(network, x.numel(), compute)
            tile = tile_shape(x.shape, most, limit, multiple=multiple, overlap=overlap)
            out = _tiles(
                forward, x, tile, compute, overlap=overlap, multiple=multiple, progress=progress
            )
            return out[:, : volume.shape[0], : volume.shape[1], : volume.shape[2]].numpy()
        except NoTileError:
            raise
        except (RuntimeError, MemoryError) as error:  # the estimate was too low, or others use it
            if not _is_out_of_memory(error):
                raise
            problem = str(error)
        if tile is None:
            raise MemoryError(f"the network itself does not fit into the memory ({problem})")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def lay_out(network: nn.Module) -> None:
    """Channels last in the weights of convolutions, which is the fast layout of both devices.

    ``Module.to`` would refuse a network that has both 2-D and 3-D ones.
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or OUT_OF_MEMORY.search(str(error)) is not None


def _room(compute: Compute) -> int | None:
    """Bytes that one forward pass may hold on its device; None for no limit."""
    if compute.device == "cpu":
        return compute.max_bytes
    free, _ = torch.cuda.mem_get_info(compute.device)
    return int(FREE_SHARE * free)


def _most_voxels(network: nn.Module, voxels: int, compute: Compute) -> int:
    """How many voxels one forward pass may have within the memory limit."""
    room = _room(compute)
    if room is None:
        return voxels
    share = BFLOAT16_SHARE if compute.precision == "bfloat16" else 1.0
    each = 4 * share * cast(int, network.live_channels)
    weights = 8 * sum(p.numel() for p in network.parameters())  # and a copy in another layout
    volumes = 4 * voxels * 2 * (len(TISSUES) + 2) if compute.device == "cpu" else 0
    return max(0, int((room - weights - volumes) / each))


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
    axes = [ramps(n, t, overlap, multiple) for n, t in zip(x.shape, tile, strict=True)]
    places = list(itertools.product(*axes))
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
