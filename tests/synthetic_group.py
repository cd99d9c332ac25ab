"""Generated derivatives of many runs at several sites, for tests and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

EDGES = np.linspace(0, 1000, 101)
TISSUES = {"CSF": (140.0, 45.0, 0.15), "GM": (300.0, 35.0, 0.5), "WM": (420.0, 30.0, 0.35)}
FLAGS = ("tissue contrast (TCT) fell", "thick slices (2.5 mm): fine detail is interpolated")
SCANNERS = (
    ("Siemens", "Prisma", 3), ("GE MEDICAL SYSTEMS", "Signa HDxt", 1.5), ("Philips", "Ingenia", 3),
    ("Siemens", "Skyra", 3), ("GE MEDICAL SYSTEMS", "Discovery MR750", 3),
)


def density(centre: float, spread: float) -> np.ndarray:
    """Return the share of voxels per bin of a bell curve."""
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    curve = np.exp(-0.5 * ((middles - centre) / spread) ** 2) + 1e-9
    return curve / curve.sum()


def histograms(
    rng: np.random.Generator, site: int, age: float, *, after: bool, tissues: bool = True
) -> dict[str, list[float]]:
    """Return what the pipeline stores: sites differ in contrast and spread before, hardly after."""
    found: dict[str, np.ndarray] = {}
    effect = np.random.default_rng(1000 + site).normal(0, 1, 4)  # the scanner's own
    growth = 12 * np.log(age / 24)
    for when in ("Before", "After") if after else ("Before",):
        size = 1.0 if when == "Before" else 0.12
        whole = np.zeros(100)
        for number, (tissue, (centre, spread, share)) in enumerate(TISSUES.items()):
            move = 25 * size * effect[number] + growth * (tissue == "GM") + rng.normal(0, 6)
            wide = spread * (1 + 0.25 * size * effect[3]) * np.exp(rng.normal(0, 0.04))
            found[when + tissue] = density(centre + move, wide)
            whole += share * found[when + tissue]
        found[when] = whole
    found["Reference"] = sum(share * density(c, s) for c, s, share in TISSUES.values())
    kept = {k: v for k, v in found.items() if tissues or k in ("Before", "After", "Reference")}
    return {k: [round(float(x), 7) for x in v] for k, v in kept.items()}


def write_run(
    out: Path,
    number: int,
    site: int | None,
    *,
    suffix: str = "T1w",
    enhanced: bool = True,
    tissues: bool = True,
    **changes: object,
) -> Path:
    """Write the main sidecar of one run as `derivatives.write` would, and return its path."""
    rng = np.random.default_rng([number, suffix == "T2w"])
    age = float(24 * np.exp(rng.uniform(0, 3)))
    tct = 1.5 + 0.1 * (site or 0) % 3 + 0.1 * float(rng.normal())
    metrics: dict[str, object] = {
        "TCTBefore": tct, "CNRBefore": 2 * tct, "CJVBefore": 0.5 + 0.03 * float(rng.normal()),
        "HistogramDistanceBefore": 20 + 4 * float(rng.normal()),
        "VolumeCSF": 250 + 20 * float(rng.normal()), "VolumeGM": 700 + 30 * float(rng.normal()),
        "VolumeWM": 500 + 30 * float(rng.normal()), "VolumeBrainMask": 1450.0,
    }
    if enhanced:
        metrics |= {
            "TCTAfter": tct + 0.3 + 0.05 * float(rng.normal()), "QualityIndex": 0.83,
            "CNRAfter": 3 * tct, "CJVAfter": 0.38 + 0.02 * float(rng.normal()),
            "HistogramDistanceAfter": 5 + abs(float(rng.normal())),
            "ResidualShare": 0.05 + 0.01 * float(rng.normal()), "DataConsistency": 0.01,
        }
    content: dict[str, object] = {
        "AgeMonths": age, "AgeSource": "participants.tsv:age", "AgeStage": "24",
        "Model": {"Name": "bmex-24-T1w", "SHA256": "ab" * 32},
        "Metrics": metrics,
        "Histograms": {"Edges": EDGES.tolist()}
        | histograms(rng, site or 0, age, after=enhanced, tissues=tissues),
        "Flags": [FLAGS[number % 2]] if number % 9 == 0 else [],
        "Outputs": [], "Notes": [],
    }
    if site is not None:
        maker, model, tesla = SCANNERS[site % len(SCANNERS)]
        content |= {"InstitutionName": f"Hospital {chr(65 + site)}", "Manufacturer": maker,
                    "ManufacturersModelName": model, "MagneticFieldStrength": tesla}
    anat = out / f"sub-{number:04d}" / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    kind = f"desc-enhanced_{suffix}" if enhanced else f"space-{suffix}_dseg"
    path = anat / f"sub-{number:04d}_{kind}.json"
    path.write_text(json.dumps(content | changes, indent=2))
    return path


def write_participants(out: Path, count: int, columns: Mapping[str, tuple[str, ...]]) -> None:
    """Write participants.tsv with columns whose values repeat in a fixed pseudo-random order."""
    rng = np.random.default_rng(5)
    lines = ["\t".join(["participant_id", *columns])]
    for number in range(count):
        cells = [values[int(rng.integers(len(values)))] for values in columns.values()]
        lines.append("\t".join([f"sub-{number:04d}", *cells]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "participants.tsv").write_text("\n".join(lines) + "\n")


def write_group(out: Path, count: int, sites: int, *, suffixes: tuple[str, ...] = ("T1w",)) -> None:
    """Write ``count`` runs of as many participants, with their (empty) pages."""
    for number in range(count):
        for suffix in suffixes:
            write_run(out, number, number % sites, suffix=suffix)
        (out / f"sub-{number:04d}.html").write_text("<!DOCTYPE html><title>page</title>page")
    columns = {"sex": ("M", "F"), "group": ("control", "patient")}
    write_participants(out, count, columns)
