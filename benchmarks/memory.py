"""What ``--mem`` promises: the peak of a whole run, as the system counts it, by size of the head.

    python benchmarks/memory.py [--voxel 1.0 0.8 0.5] [--mem 4 8 16] [-- OPTIONS OF BMEX]

Each case is one start of the program in a process of its own, on a head of 176 x 240 x 256 mm made
of nilearn's MNI152 (skull-stripped) with noise. Printed are the largest resident memory of that
process (``ru_maxrss``), or of it and all that it started together (looked at 20 times a second)
where that is more, whether it stayed within the promise, and what came of the run: done, or
refused in words. Exit code 1 if a peak lies above its promise or a process was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from scipy.ndimage import affine_transform

FIELD_MM = (176, 240, 256)


def write_head(root: Path, voxel: float) -> None:
    """Write a BIDS dataset of one head at this voxel size."""
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    brain = nib.load(str(files("nilearn") / "datasets" / "data" / name))
    shape = [round(side / voxel) for side in FIELD_MM]
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = -88, -130, -120
    step = np.linalg.inv(brain.affine) @ affine
    data = affine_transform(
        np.asarray(brain.dataobj, np.float32), step[:3, :3], step[:3, 3], shape, order=1
    )
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    noise = np.random.default_rng(0).random(shape, np.float32)
    noise *= 40
    np.add(data, noise, out=data, where=data > 0)
    image = nib.Nifti1Image((1000 * data / data.max()).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(anat / "sub-01_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "head", "BIDSVersion": "1.10.0"}')


def measure(root: Path, out: Path, gigabytes: int, options: list[str]) -> tuple[float, int, str]:
    """Start the program; return its peak in GiB, its exit code and its last words."""
    argv = [sys.executable, "-m", "bmex_bids.cli", str(root), str(out), "participant"]
    argv += ["--age-months", "300", "--skip-bids-validation", "--device", "cpu"]
    argv += ["--mem", f"{gigabytes}G", *options]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(argv, stdout=said, stderr=subprocess.STDOUT)
        peak, ended = 0.0, 0
        while not ended:
            peak = max(peak, together(process.pid))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = [x for x in said.read().splitlines() if x.startswith(("failed", "bmex: error"))]
    return max(peak, usage.ru_maxrss / 2**20), process.returncode, " ".join(lines) or "done"


def together(pid: int) -> float:
    """Return what a process and all that it started hold at this moment, in GiB."""
    try:
        first = psutil.Process(pid)
        family = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    held = 0
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            held += one.memory_info().rss
    return held / 2**30


def main() -> int:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxel", type=float, nargs="+", default=[1.0, 0.8, 0.5])
    parser.add_argument("--mem", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("options", nargs="*", help="of bmex, after --")
    args = parser.parse_args()
    broken = 0
    print("voxel  promised    peak  within  exit  what came of it", flush=True)
    for voxel in args.voxel:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "bids")
            write_head(root, voxel)
            for gigabytes in args.mem:
                out = Path(folder, f"out-{gigabytes}")
                peak, code, said = measure(root, out, gigabytes, args.options)
                within = peak <= gigabytes and code >= 0
                broken += not within
                answer = "yes" if within else "NO"
                row = f"{voxel:4.1f} mm {gigabytes:4d} GiB {peak:6.2f}  {answer:6s} {code:5d}"
                print(f"{row}  {said}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
