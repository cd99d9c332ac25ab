"""The command line with a pipeline that only pretends: what a subject's label says, happens.

Run as a script it is ``bmex`` itself, in this process and in the workers it starts.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bmex_bids
from bmex_bids import derivatives, jobs
from bmex_bids.bids import Job, derivative_path, output_stem, write_json, write_text

SHA = "0" * 64
SIGNALS = {"killed": signal.SIGKILL, "ended": signal.SIGTERM, "hungup": signal.SIGHUP}
FAILURES: dict[str, Callable[[], BaseException]] = {
    "bad": lambda: ValueError("the image is empty"),
    "bug": lambda: KeyError("x"),
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "big": lambda: MemoryError("tile"),
    "stopped": KeyboardInterrupt,
}


@dataclass(frozen=True)
class Settings:
    """As the real ones."""

    compute: Any
    models: tuple[Any, ...]
    measure_only: bool = False
    high_res: bool = False
    uncertainty: bool = False
    lesions: bool = False
    seed: int = 0
    model_set: str = ""


@dataclass
class Calls:
    """What the app asked for."""

    settings: list[Settings] = field(default_factory=list)
    enhanced: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    groups: int = 0


def install(set_module: Callable[[str, types.ModuleType], None], healed: Path) -> Calls:
    """Put the pretenders in place; subjects fail until the file ``healed`` exists."""
    calls = Calls()

    def enhance_run(job: Job, settings: Settings, progress: Callable[[str], None]) -> object:
        label = job.entities["sub"]
        calls.settings.append(settings)
        progress("pretend")
        if label in SIGNALS and not healed.exists():
            os.kill(os.getpid(), SIGNALS[label])
        if label in FAILURES and not healed.exists():
            raise FAILURES[label]()
        time.sleep(0.05)
        calls.enhanced.append(output_stem(job))
        flags = ("looks odd",) if label == "odd" else ()
        return types.SimpleNamespace(job=job, flags=flags, seconds={"pretend": 0.05})

    def write(result: Any, out: Path) -> list[Path]:
        image = derivative_path(out, result.job, desc="enhanced")
        write_text(image, "image")
        write_json(image.with_name(image.name.replace(".nii.gz", ".json")), {"x": 1})
        content = {"Model": {"SHA256": SHA}, "Metrics": {}}
        outputs = [image.relative_to(out).as_posix()]
        marker = derivatives.marker_path(out, result.job, measure_only=False)
        write_json(marker, content | {"Outputs": outputs})
        return [image]

    def run_figures(out: Path, job: Job) -> None:
        stem = output_stem(job).removesuffix(f"_{job.suffix}")
        if job.entities["sub"] == "nofigures" and not healed.exists():
            raise ValueError("no figure")
        calls.figures.append(output_stem(job))
        folder = out / f"sub-{job.entities['sub']}" / "figures"
        write_text(folder / f"{stem}_desc-before_{job.suffix}.svg", "<svg/>")

    def subject_report(out: Path, subject: str) -> Path:
        if subject == "noreport" and not healed.exists():
            raise ValueError("no report")
        calls.reports.append(subject)
        crashes = sorted(path.name for path in (out / "logs").glob(f"crash-sub-{subject}_*"))
        write_text(out / f"sub-{subject}.html", json.dumps(crashes))
        return out / f"sub-{subject}.html"

    def group_report(out: Path, site_column: str | None) -> list[Path]:
        calls.groups += 1
        if (out / "sub-bad").exists():
            raise ValueError("no group")
        return [out / "group.html"]

    for name, functions in {
        "pipeline": {"Settings": Settings, "enhance_run": enhance_run},
        "report": {"run_figures": run_figures, "subject_report": subject_report},
        "group": {"group_report": group_report},
        "derivatives": {**vars(derivatives), "write": write},
    }.items():
        module = types.ModuleType(f"bmex_bids.{name}")
        vars(module).update({k: v for k, v in functions.items() if not k.startswith("__")})
        set_module(name, module)
    return calls


def _set_for_good(name: str, module: types.ModuleType) -> None:
    sys.modules[f"bmex_bids.{name}"] = module
    setattr(bmex_bids, name, module)


if __name__ in ("__main__", "__mp_main__"):
    install(_set_for_good, Path(os.environ.get("HEALED", "/nowhere")))
    jobs._limit_threads = lambda threads: None  # so that the workers need no torch
if __name__ == "__main__":
    from bmex_bids.cli import main

    sys.exit(main())
