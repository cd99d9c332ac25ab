"""The command ``bmex-evaluate``: results of any programs against clean reference images."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.bids import write_json, write_text
from bmex_bids.evaluation.measuring import MEASURES, Measured, Row, Task, measure_one
from bmex_bids.evaluation.page import Comparison, render
from bmex_bids.evaluation.pairing import (
    Found,
    Pair,
    Source,
    find_dseg,
    find_images,
    pair_images,
    parse_source,
)
from bmex_bids.evaluation.statistics import Cell, quality_index_rows, summarise
from bmex_bids.evaluation.tasks import run_tasks
from bmex_bids.layout import InputError, find_mask, sidecar_reader

__all__ = ["main"]

EPILOG = """\
A dataset is given as NAME=DIR, or DIR alone; what follows commas chooses among its images:

  bmex-evaluate clean compared --result input=corrupted bmex=enhanced,desc=preproc \\
      other=derivatives/other,desc=denoised -d clean/derivatives/masks

Images are paired by the entities of their names; 'rec' (see --vary) names the condition, as
bmex-degrade writes it. The first result is the baseline of the tests, unless --baseline names one.
"""
DEFAULT = [name for name in MEASURES if name not in ("SSIM2D", "MS-SSIM2D", "UQI2D")]
SCALES = {
    "linear": "each image is brought to the reference's by one line (slope and offset in "
    "images.tsv), fitted robustly to both images smoothed by 6 mm inside the mask; voxels that are "
    "exactly 0 stay 0. The same for all methods.",
    "none": "as the files have it.",
}
COLUMNS = {
    "participant_id": "Participant.",
    "session_id": "Session.",
    "reference": "Name of the reference image.",
    "suffix": "Contrast.",
    "condition": "What the result's name says beyond the reference's; none if nothing.",
    "method": "Name of the method, as given on the command line.",
    "metric": "Measure; see Levels.",
    "value": "Value; inf for the PSNR of equal images.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """``bmex-evaluate``; 0 where all went well, 1 where an image failed, 2 for wrong input."""
    args = _parser().parse_args(argv)
    try:
        reference = parse_source(args.reference)
        sources = [parse_source(text) for text in args.result]
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise InputError(f"two results are called {_twice(names)}; name them, e.g. a=DIR b=DIR")
        baseline = args.baseline or names[0]
        if baseline not in names:
            raise InputError(f"--baseline {baseline}: not among {', '.join(names)}")
        tasks, alone = _tasks(args, reference, sources)
    except (InputError, OSError) as error:
        print(f"bmex-evaluate: {error}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    images: list[dict[str, object]] = []
    failed: list[str] = []
    for number, done in enumerate(run_tasks(measure_one, tasks, args.nprocs), 1):
        print(f"{number}/{len(tasks)} {tasks[number - 1].reference.path.name}: "
              f"{len(done.images)} images compared")
        _report(done)
        rows += done.rows
        images += done.images
        failed += done.failed
    if not rows:
        print("bmex-evaluate: no image could be compared", file=sys.stderr)
        return 1
    rows += quality_index_rows(rows, baseline) if "QI" in args.metrics else []
    cells = summarise(rows, baseline)
    out: Path = args.output_dir
    _write_tables(out, rows, images, cells, baseline)
    found = Comparison(
        reference=reference.root.name,
        facts=_facts(args, reference, tasks, images),
        methods=[_method(s, baseline, images, alone[s.name]) for s in sources],
        baseline=baseline,
        rows=rows,
        cells=cells,
        tasks=tasks,
        failed=failed,
        warnings=_warnings(rows, names),
    )
    write_text(out / "index.html", render(found))
    print(f"{out / 'index.html'}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bmex-evaluate",
        description="Compare the results of one or more programs with clean reference images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("reference", metavar="REFERENCE", help="BIDS dataset of the clean images")
    add("output_dir", type=lambda text: Path(text).expanduser().resolve(),
        help="where the tables and index.html go")
    add("--result", nargs="+", required=True, metavar="NAME=DIR[,entity=value]",
        help="dataset of each method (raw or derivatives)")
    add("--baseline", metavar="NAME", help="method that the others are tested against")
    add("--metrics", nargs="+", choices=tuple(MEASURES), default=DEFAULT, metavar="NAME",
        help=f"of {', '.join(MEASURES)} (default: all but the slice-wise SSIM, MS-SSIM and UQI; "
        "those of tissues need tissue labels)")
    add("--scale", choices=tuple(SCALES), default="linear",
        help="linear: bring each image to the reference's intensities by a robustly fitted line "
        "(default); none: compare as it is")
    add("-d", "--derivatives", nargs="+", type=Path, default=[], metavar="DIR",
        help="derivatives of the reference: brain masks (desc-brain_mask) and tissue labels (dseg) "
        "(default mask: the voxels of a stripped image, else brain extraction)")
    add("--vary", nargs="*", default=["rec"], metavar="ENTITY",
        help="entities that name the condition and need not be equal (default: rec)")
    add("--participant-label", "--participant_label", nargs="+", default=[], metavar="LABEL",
        type=lambda text: text.removeprefix("sub-"))
    add("--suffix", nargs="+", choices=("T1w", "T2w"), default=["T1w", "T2w"])
    add("--nprocs", type=int, default=1, help="references at a time (default: 1)")
    add("--version", action="version", version=f"bmex {__version__}")
    return parser


def _tasks(
    args: argparse.Namespace, reference: Source, sources: Sequence[Source]
) -> tuple[list[Task], dict[str, int]]:
    """Pair everything; a task per reference that has results, and results without a reference."""

    def images(source: Source) -> list[Found]:
        found = find_images(source, args.suffix)
        chosen = args.participant_label
        return [i for i in found if not chosen or i.entities["sub"] in chosen]

    references = images(reference)
    if not references:
        raise InputError(f"{reference.root}: no {' or '.join(args.suffix)} image as asked for")
    for folder in args.derivatives:
        if not folder.is_dir():
            raise InputError(f"--derivatives {folder}: no such folder")
    pairs: dict[Path, list[Pair]] = {}
    alone = {}
    for source in sources:
        found = images(source)
        made, left = pair_images(references, source, found, args.vary)
        if not made:
            raise InputError(
                f"{source.name} ({source.root}): none of its {len(found)} images belongs to a "
                "reference; pairs need the same sub, ses, suffix and other entities (see --vary)"
            )
        alone[source.name] = len(left)
        for pair in made:
            pairs.setdefault(pair.reference.path, []).append(pair)
    read = sidecar_reader(reference.root)
    roots = {source.name: source.root for source in sources}
    tasks = []
    for image in references:
        if image.path not in pairs:
            continue
        siblings = [i.path for i in references if i.path.parent == image.path.parent]
        labels = next(
            ((root, path) for root in (*args.derivatives, reference.root)
             if (path := find_dseg(root, image)) is not None), None
        )
        tasks.append(
            Task(
                image, read(image.path)[0], find_mask(args.derivatives, image.path, siblings),
                labels, tuple(pairs[image.path]), roots, tuple(args.metrics), args.scale,
            )
        )
    return tasks, alone


def _report(done: Measured) -> None:
    for text in done.failed:
        print(f"  {text}", file=sys.stderr)


def _write_tables(
    out: Path, rows: Sequence[Row], images: Sequence[dict[str, object]], cells: Sequence[Cell],
    baseline: str,
) -> None:
    lines = [list(COLUMNS)]
    for row in rows:
        image = row.pair.reference
        session = image.entities.get("ses")
        lines.append([
            f"sub-{image.entities['sub']}", f"ses-{session}" if session else "n/a",
            image.path.name.split(".")[0], image.suffix, row.pair.condition, row.pair.method,
            row.metric, _number(row.value),
        ])  # fmt: skip
    _table(out / "metrics.tsv", lines)
    _table(out / "images.tsv", [
        list(images[0]),
        *([_number(v) if isinstance(v, float) else str(v) for v in i.values()] for i in images),
    ])  # fmt: skip
    dictionary: dict[str, object] = {k: {"Description": v} for k, v in COLUMNS.items()}
    dictionary["metric"] = {
        "Description": COLUMNS["metric"],
        "Levels": {
            name: m.text + (f" {m.better.capitalize()} is better." if m.better else "")
            for name, m in MEASURES.items()
        },
    }
    write_json(out / "metrics.json", dictionary)
    header = ["suffix", "metric", "condition", "method", "baseline", "n", "mean", "sd", "n_pairs",
              "mean_difference", "ci95_low", "ci95_high", "cohens_dz", "cohens_d", "t_p",
              "t_p_holm", "wilcoxon_p", "wilcoxon_p_holm"]
    lines = [header]
    for c in cells:
        t = c.test
        numbers = [c.mean, c.sd]
        tested = [math.nan] * 6 if t is None else [
            t.mean_difference, t.low, t.high, t.effect, c.cohens_d, t.t_p
        ]
        last = [c.t_holm, math.nan if t is None else t.wilcoxon_p, c.wilcoxon_holm]
        lines.append([
            c.suffix, c.metric, c.condition, c.method, baseline, str(c.n),
            *map(_number, numbers), "n/a" if t is None else str(t.n),
            *map(_number, [*tested, *last]),
        ])  # fmt: skip
    _table(out / "summary.tsv", lines)


def _table(path: Path, lines: Sequence[Sequence[str]]) -> None:
    write_text(path, "".join("\t".join(line) + "\n" for line in lines))


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6g}"


def _facts(
    args: argparse.Namespace, reference: Source, tasks: Sequence[Task],
    images: Sequence[dict[str, object]],
) -> list[tuple[str, str]]:
    masks = ", ".join(sorted({str(image["mask"]) for image in images}))
    people = len({task.reference.entities["sub"] for task in tasks})
    conditions = len({pair.condition for task in tasks for pair in task.pairs})
    labelled = sum(task.labels is not None for task in tasks)
    return [
        ("Reference", f"{reference.root}: {len(tasks)} images of {people} participants"),
        ("Conditions", str(conditions)),
        ("Mask", f"{masks}; the same for all methods"),
        ("Intensity scale", SCALES[args.scale]),
        ("Grid", "the reference's; other grids are resampled onto it (cubic spline, mean over "
         "larger voxels), in the same world space. Nothing is registered."),
        ("Tissue labels", f"of {labelled} references, the same for all methods; Dice and volumes "
         "compare each method's own labels with them" if labelled else
         "none given, so TCT, CNR, CJV, Dice and volumes are left out"),
    ]  # fmt: skip


def _method(
    source: Source, baseline: str, images: Sequence[dict[str, object]], alone: int
) -> dict[str, object]:
    own = [image for image in images if image["method"] == source.name]
    chosen = "".join(f", {key}={value}" for key, value in source.filters.items())
    return {
        "name": source.name, "root": f"{source.root}{chosen}", "images": len(own), "alone": alone,
        "resampled": sum(image["resampled"] == "yes" for image in own),
        "baseline": source.name == baseline,
    }  # fmt: skip


def _warnings(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Say where methods were not measured on the same images, and where values are infinite."""
    found = []
    images = {
        name: {(r.pair.reference.path, r.pair.condition) for r in rows if r.pair.method == name}
        for name in names
    }
    every = set().union(*images.values())
    missing = {name: len(every - have) for name, have in images.items() if every - have}
    if missing:
        found.append(
            "Methods differ in which images they have, so their means are over different images "
            "(the tests and the row of all conditions use what they share). Missing: "
            + ", ".join(f"{name} {count} of {len(every)}" for name, count in missing.items())
        )
    infinite = sum(math.isinf(r.value) for r in rows)
    if infinite:
        found.append(f"{infinite} images equal their reference; their infinite PSNR is left out of "
                     "means, tests and plots.")
    return found


def _twice(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


if __name__ == "__main__":
    raise SystemExit(main())
