"""Methods without training: non-local means, ANTs' DenoiseImage, interpolation.

Each is a :data:`Method`: a volume (x, y, z) scaled to a brain median of 1, its brain mask (x, y, z)
and the condition (``T1w-24``: contrast and stage) -> the volume (x, y, z) on the same scale.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bmex_bids.similar import noise_level
from bmex_bids.training.degrade import slice_grid

__all__ = ["Mask", "Method", "Volume", "ants_denoise", "interpolated", "non_local_means", "through"]

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Method = Callable[[Volume, Mask, str], Volume]

DENOISE = """
import sys, ants, numpy as np
given, mask = (ants.from_numpy(np.load(p).astype("float32")) for p in sys.argv[1:3])
made = ants.denoise_image(given, mask=mask, noise_model="Rician")
np.save(sys.argv[3], made.numpy().astype("float32"))
"""


def non_local_means(volume: Volume, mask: Mask, condition: str) -> Volume:
    """Dipy's non-local means with Rician noise of measured size (doi:10.1109/TMI.2007.906087).

    Dipy's own estimate of the noise, from differences to neighbours, takes edges for noise: it
    found 0.084 where there was 0.05, and the images came back too smooth.
    """
    from dipy.denoise.nlmeans import nlmeans

    sigma = noise_level(volume, mask)
    if not sigma > 0:
        return volume.copy()
    made = nlmeans(volume, sigma=sigma, mask=mask, rician=True, num_threads=1)
    return np.where(mask, made, 0).astype(np.float32)


def ants_denoise(python: str) -> Method:
    """ANTs' DenoiseImage (doi:10.1002/jmri.22003) by a Python that has antspyx.

    antspyx holds numpy back, so that it lives in an environment of its own.
    """
    return lambda volume, mask, condition: np.where(mask, through(python, DENOISE, volume, mask), 0)


def interpolated(factor: int, *, axis: int = 2, order: int = 3) -> Method:
    """The centres of slices that are ``factor`` voxels thick, interpolated (3 cubic, 1 linear)."""
    from scipy.ndimage import map_coordinates

    def method(volume: Volume, mask: Mask, condition: str) -> Volume:
        size = volume.shape[axis]
        slices, start = slice_grid(size, factor)
        places: list[npt.NDArray[np.float64]] = [np.arange(n, dtype=np.float64)
                                                 for n in volume.shape]
        places[axis] = np.asarray(start + factor * np.arange(slices), np.float64)
        centres = map_coordinates(volume, np.meshgrid(*places, indexing="ij"), order=1)
        places[axis] = np.clip((np.arange(size) - start) / factor, 0, slices - 1)
        full = map_coordinates(centres, np.meshgrid(*places, indexing="ij"), order=order,
                               mode="nearest")
        return np.where(mask, full, 0).astype(np.float32)

    return method


def through(python: str, script: str, volume: Volume, mask: Mask) -> Volume:
    """Run a script of another Python on an image and a mask, as ``.npy`` files.

    Args:
        python: the interpreter.
        script: gets three paths: the image and the mask to read, the result to write.
        volume: (x, y, z).
        mask: (x, y, z).

    Raises:
        RuntimeError: the script failed; the message has the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("image.npy", "mask.npy", "made.npy")]
        np.save(paths[0], volume)
        np.save(paths[1], mask)
        done = subprocess.run(
            [python, "-c", script, *map(str, paths)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{python}: {done.stderr[-500:]}")
        made: Volume = np.load(paths[2]).astype(np.float32)
        return made
