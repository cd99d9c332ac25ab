"""What a magnitude image keeps of a head that moved: undoing motion that is known exactly.

    python -m bmex_bids.evaluation.knownmotion HEAD.nii.gz

A real, clean, whole head moves in the simulation. Then the image is sought that, moved in the same
way, gives what was seen, with total variation as the only prior: once from the complex image, as
raw data have it, and once from its magnitude, which is all that a DICOM or NIfTI file holds. No
program that must find the motion first can expect more from that prior. The objective without any
motion stands beside it: where it is lower than that of the true motion, total variation does not
tell the true motion from none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.evaluation.ghostcheck import coarse_head
from bmex_bids.metrics import psnr
from bmex_bids.training import motion
from bmex_bids.training.degrade import along, rician

__all__ = ["Motion", "acquire", "main", "move_head", "objective", "restored"]

NOISE = 0.02  # of the bright tissue
SEVERITY, SEED, STATES = "severe", 1, 16
PRIOR = 10.0  # weight of the total variation, against squared errors in units of the noise
BRAINLIKE = 0.35  # intensity from which errors count


@dataclass(frozen=True)
class Motion:
    """Rigid positions and the lines of k-space that were filled in them.

    Attributes:
        poses: (states, 6) translations in mm and rotations in degrees.
        lines: (states, lines) 1 where a line belongs to the state, in the order of ``torch.fft``.
        phase: (x, y, z) phase of the image in radians.
    """

    poses: Tensor
    lines: Tensor
    phase: Tensor


def _turned(fine: Tensor, zooms: Tensor, degrees: Tensor) -> Tensor:
    """An image turned about its centre; linear interpolation between half voxels."""
    size = [(n + 1) // 2 for n in fine.shape]
    theta = motion.turning(size, zooms, degrees)
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=True)
    return F.grid_sample(fine[None, None], grid, align_corners=True)[0, 0]


def _shift(shape: Sequence[int], zooms: Tensor, millimetres: Tensor) -> Tensor:
    """Phase ramps that shift an image, (x, y, z) complex, in the order of ``torch.fft``."""
    x, y, z = (
        motion.phase_ramp(torch.fft.fftfreq(size), float(millimetres[a]), float(zooms[a]))
        for a, size in enumerate(shape)
    )
    return x[:, None, None] * y[:, None] * z


def _finer(image: Tensor) -> Tensor:
    """Band-limited interpolation onto half voxels, (x, y, z) -> (2x - 1, 2y - 1, 2z - 1)."""
    for axis, size in enumerate(image.shape):
        waves = torch.fft.rfft(torch.eye(size), dim=0)
        waves[-1] *= 0.5 if size % 2 == 0 else 1.0  # the highest frequency stands for both signs
        image = along(image, axis, 2 * torch.fft.irfft(waves, n=2 * size, dim=0)[:-1])
    return image


def acquire(image: Tensor, zooms: Tensor, moved: Motion, axis: int = 1) -> Tensor:
    """What a moving head gives: complex (x, y, z), the phase of a head at rest taken out.

    Args:
        image: (x, y, z); the result is linear in it and carries its gradient.
        zooms: (3,) voxel size in mm.
        moved: the motion.
        axis: phase-encoding axis.
    """
    fine, coil = _finer(image), torch.polar(torch.ones_like(moved.phase), moved.phase)
    shape = [-1 if a == axis else 1 for a in range(3)]
    total = torch.zeros(image.shape, dtype=torch.complex64)
    for pose, own in zip(moved.poses, moved.lines, strict=True):
        part = torch.fft.fftn(_turned(fine, zooms, pose[3:]) * coil)
        total = total + part * _shift(image.shape, zooms, pose[:3]) * own.view(shape)
    back: Tensor = torch.fft.ifftn(total) * coil.conj()
    return back


def objective(image: Tensor, seen: Tensor, zooms: Tensor, moved: Motion) -> Tensor:
    """Squared misfit in units of the noise, and the weighted total variation.

    Args:
        image: (x, y, z) guess.
        seen: (x, y, z), complex, or real: then the part in phase alone is compared, which is what
            a magnitude is where the signal is stronger than what motion adds.
        zooms: (3,) voxel size in mm.
        moved: the motion.
    """
    made = acquire(image, zooms, moved)
    misfit = (made if seen.is_complex() else made.real) - seen
    steps = torch.stack([
        image.diff(dim=a, append=image.narrow(a, image.shape[a] - 1, 1)) for a in range(3)
    ])  # fmt: skip
    variation = torch.sqrt(steps.square().sum(0) + 1e-4).sum()
    return misfit.abs().square().sum() / (2 * NOISE**2) + PRIOR * variation


def restored(seen: Tensor, zooms: Tensor, moved: Motion, steps: int) -> tuple[Tensor, float]:
    """The image with the least :func:`objective` (L-BFGS from what was seen), and its value."""
    image = seen.abs().clone(memory_format=torch.contiguous_format).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [image], max_iter=steps, history_size=8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective(image, seen, zooms, moved)
        value.backward()
        return value

    optimiser.step(closure)
    with torch.no_grad():
        return image.detach(), float(objective(image, seen, zooms, moved))


def move_head(
    head: Tensor, zooms: Tensor, kind: str, severity: str, seed: int
) -> tuple[Tensor, Motion]:
    """The magnitude of a moved head, by the project's own simulation, and its motion."""
    generator = torch.Generator().manual_seed(seed)
    amplitude, frequency = motion.SEVERITIES[severity]
    position, direction = motion.trajectory(kind, head.shape[1], amplitude, frequency, generator)
    shape = (head.shape[0], head.shape[1], head.shape[2])
    phase = motion.smooth_phase(shape, generator)
    origin = motion.mean_position(head, zooms, position, direction)
    made = motion.corrupt(
        head, zooms, position, direction, states=STATES, phase=phase, origin=origin
    )
    level = torch.fft.ifftshift(motion.quantised(position, origin, STATES))
    values = level.unique()
    lines = torch.stack([(level == value).float() for value in values])
    return rician(made, NOISE, generator), Motion(values[:, None] * direction, lines, phase)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per kind of motion."""
    parser = argparse.ArgumentParser(
        prog="python -m bmex_bids.evaluation.knownmotion", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("head", type=Path, help="a real, clean, whole head")
    parser.add_argument("--factor", type=int, default=2, help="voxels that are averaged per axis")
    parser.add_argument("--steps", type=int, default=14, help="of the optimiser")
    args = parser.parse_args(argv)
    head, zooms = coarse_head(args.head, args.factor)
    head = head / torch.quantile(head[head > head.mean()][::7], 0.9)
    bright = (head > BRAINLIKE).numpy()
    print("| motion | seen, dB | restored from the complex image | from the magnitude | "
          "objective, against that of no motion |\n|---|---|---|---|---|")  # fmt: skip
    for kind in motion.KINDS:
        seen, moved = move_head(head, zooms, kind, SEVERITY, SEED)
        generator = torch.Generator().manual_seed(SEED)
        noise = NOISE * torch.randn((2, *head.shape), generator=generator)
        with torch.no_grad():
            raw = acquire(head, zooms, moved) + torch.complex(noise[0], noise[1])
        still = Motion(torch.zeros(1, 6), torch.ones(1, head.shape[1]), moved.phase)
        complete, _ = restored(raw, zooms, moved, args.steps)
        magnitude, aware = restored(seen, zooms, moved, args.steps)
        _, without = restored(seen, zooms, still, args.steps)
        found = [
            psnr(image.numpy(), head.numpy(), bright, 1.0) for image in (seen, complete, magnitude)
        ]
        cells = [kind, *(f"{value:.2f}" for value in found), f"{aware / without:.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
