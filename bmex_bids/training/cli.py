"""The command ``bmex-train``: a BIDS dataset of clean scans in, a model for ``bmex`` out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.age import STAGES
from bmex_bids.layout import InputError, Selection, read_filters
from bmex_bids.training.settings import Settings, SettingsError, read_settings, to_toml
from bmex_bids.weights import ModelRecord, WeightsError, find_mask_model, list_models, models_dir

if TYPE_CHECKING:
    from bmex_bids.training.bidspool import Source
    from bmex_bids.training.ranks import Ranks

__all__ = ["main"]

OVERRIDES = ("steps", "batch", "patch", "rate", "seed", "device", "precision")
EPILOG = """\
examples:
  bmex-train /data/clean my-models --suffix T1w --stage 24 --start-from bmex-T1w-24
  bmex-train /data/clean my-models --stage 24 --labels fmriprep=/data/fmriprep --config train.toml
  torchrun --nproc-per-node 4 -m bmex_bids.training.cli /data/clean my-models --stage 24
then:
  bmex /data/bids /data/out participant --models-dir my-models --model-set trained
The same command goes on where it was stopped.
exit code: 0 the model is written, 2 wrong input, settings or options
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex-train``; 0 where the model was written, 2 for wrong input or options."""
    args = _parser().parse_args(argv)
    try:
        given = {name: getattr(args, name) for name in OVERRIDES if getattr(args, name) is not None}
        settings = read_settings(args.config, "enhance", given)
        if args.print_config:
            sys.stdout.write(to_toml(settings))
            return 0
        if args.bids_dir is None or args.models_dir is None or not args.stage:
            raise InputError("bids_dir, models_dir and --stage are needed; see bmex-train --help")
        _check(args)
        return _train(args, settings)
    except (InputError, SettingsError, WeightsError, OSError) as error:
        print(f"bmex-train: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bmex-train: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bmex-train", description=__doc__, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bids_dir", nargs="?", type=_path, help="BIDS dataset of clean scans")
    add("models_dir", nargs="?", type=_path, help="folder that receives the model")
    add = parser.add_argument_group("which scans").add_argument
    add("--suffix", nargs="+", default=["T1w"], choices=["T1w", "T2w"], help="default: T1w")
    names = ["fetal", *(stage for stage, _, _ in STAGES)]
    add("--stage", nargs="+", choices=names, help="age stage of the scans and the model")
    add("--participant-label", nargs="+", default=[], metavar="LABEL", help="only these people")
    add("--session-label", nargs="+", default=[], metavar="LABEL", help="only these sessions")
    add("--bids-filter-file", type=_path, metavar="JSON", help="as for bmex")
    add("-d", "--derivatives", nargs="+", default=[], type=_dataset, metavar="NAME=PATH",
        help="derivative datasets with brain masks (default: the bundled brain extraction)")
    add("--labels", nargs="+", default=[], type=_dataset, metavar="NAME=PATH",
        help="derivative datasets with tissue labels (*_dseg and dseg.tsv); default: the labels of "
        "--start-from's model, else none")
    add("--label-maps", type=_path, metavar="DIR",
        help="label maps (*_dseg.nii.gz, dseg.tsv) to synthesise more heads from")
    add = parser.add_argument_group("model").add_argument
    add("--start-from", metavar="MODEL", help="model to fine-tune, such as bmex-T1w-24; DIR/NAME "
        "for one of another models folder; default: from scratch")
    add("--model-set", default="trained", metavar="NAME", help="set of the model (trained)")
    add("--reference", type=_path, metavar="IMAGE", help="clean skull-stripped image that defines "
        "the intensity scale of the results (default: that of the model it starts from, or of a "
        "bundled one for the same scans)")
    add("--licence", default="not stated", help="of the weights")
    add = parser.add_argument_group("training").add_argument
    add("--config", type=_path, metavar="TOML", help="settings; see --print-config")
    add("--print-config", action="store_true", help="print every setting with what it means")
    for name in OVERRIDES:
        kind = {"rate": float, "device": str, "precision": str}.get(name, int)
        add(f"--{name}", type=kind, metavar="X", help="in place of the configuration's")
    add("-w", "--work-dir", type=_path, metavar="DIR", help="samples, checkpoints and curves "
        "(default: training-SET in models_dir), kept so that a second start goes on")
    add("--nprocs", type=int, default=1, metavar="N", help="processes that make samples")
    add("--prepare-only", action="store_true", help="stop when the samples are made")
    add("--allow-changes", action="store_true", help="go on although data or settings changed")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _dataset(text: str) -> Path:
    folder = _path(text.partition("=")[2] or text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{folder}: no such folder; write NAME=PATH")
    return folder


def _check(args: argparse.Namespace) -> None:
    """Complete the work folder; refuse folders that would harm the input, and names in use."""
    args.work_dir = args.work_dir or args.models_dir / f"training-{args.model_set}"
    for name in ("models_dir", "work_dir"):
        place = getattr(args, name)
        if place == args.bids_dir or place.is_relative_to(args.bids_dir):
            raise InputError(f"{name} ({place}) lies in bids_dir; choose another folder")
    if args.nprocs < 1:
        raise InputError("--nprocs: expected a whole number from 1 on")
    if not args.model_set.isalnum():
        raise InputError(f"--model-set {args.model_set}: expected letters and digits")
    if args.reference is not None and not args.reference.is_file():
        raise InputError(f"--reference {args.reference}: no such file")
    if args.model_set in ("bundled", "published"):
        raise InputError(f"--model-set {args.model_set}: taken; choose a name of your own")


def _start_record(text: str | None, target: Path) -> ModelRecord | None:
    """The model to start from: of the target folder, the bundled ones, or another folder's."""
    if text is None:
        return None
    folder, _, name = text.rpartition("/")
    if folder:
        there = list_models(models_dir(_path(folder))[:1])
    else:
        there = list_models([target, *models_dir(None)])
    chosen = [r for r in there if r.name == name and r.kind == "enhance"]
    if not chosen:
        known = ", ".join(r.name for r in there if r.kind == "enhance") or "none"
        raise InputError(f"--start-from {text}: no such model; there are: {known}")
    return chosen[0]


def _settled(settings: Settings, start: ModelRecord | None, args: argparse.Namespace) -> Settings:
    """The settings with network and grid decided.

    Raises:
        InputError: a contrast that a stage does not have.
        SettingsError: one network without conditions for several stages, or too few conditions.
    """
    from bmex_bids.training.settings import architecture_of
    from bmex_bids.training.stages import CONDITIONS

    for condition in (f"{suffix}-{stage}" for suffix in args.suffix for stage in args.stage):
        if condition not in CONDITIONS:
            raise InputError(f"{condition}: there is no such contrast at that stage")
    if settings.architecture is None and start is not None:
        network = {k: v for k, v in start.architecture.items() if k != "condition"}
        settings = replace(settings, architecture=network)
    if not settings.grid_mm:
        plain = 0.75 if args.stage == ["fetal"] else 0.8
        settings = replace(settings, grid_mm=start.grid_mm if start else plain)
    conditions = architecture_of(settings).get("conditions", 0)
    if conditions and conditions != len(CONDITIONS):
        raise SettingsError(f"[network] conditions = {conditions}: expected {len(CONDITIONS)}")
    if not conditions and len(args.stage) > 1:
        raise SettingsError(
            f"one network for the stages {', '.join(args.stage)} needs conditions = "
            f"{len(CONDITIONS)} in [network]; or train one for each"
        )
    return settings


def _train(args: argparse.Namespace, settings: Settings) -> int:
    start = _start_record(args.start_from, args.models_dir)
    settings = _settled(settings, start, args)
    from bmex_bids.training.ranks import joined

    with joined(settings.device) as ranks:
        return _steps(args, settings, start, ranks)


def _steps(
    args: argparse.Namespace, settings: Settings, start: ModelRecord | None, ranks: Ranks
) -> int:
    """Samples, training, publication; the first process alone does the first and the last."""
    from bmex_bids.inference import resolve
    from bmex_bids.training.bidspool import make_pools
    from bmex_bids.training.loop import train
    from bmex_bids.training.publish import Identity, publish, record_of_run
    from bmex_bids.training.ranks import meet

    work = args.work_dir
    data = None
    if ranks.rank == 0:
        source = _source(args, settings, start)
        data = make_pools(
            source, settings, work, processes=args.nprocs, allow_changes=args.allow_changes
        )
    meet(ranks)
    if args.prepare_only:
        return 0
    train(
        settings, work / "training", work, validation=work / "validation",
        start=_start_state(start), allow_changes=args.allow_changes, ranks=ranks,
    )
    if data is not None:
        identity = Identity(
            args.model_set, tuple(args.suffix), tuple(args.stage), settings.grid_mm, args.licence,
            start, args.reference,
        )
        run = record_of_run(args.bids_dir, data, settings, identity, work)
        run["Processes"] = ranks.world
        compute = resolve(ranks.device or settings.device, settings.precision)
        records = publish(identity, run, settings, work, args.models_dir, compute)
        print(f"{records[0].path}: use it with: bmex BIDS_DIR OUTPUT_DIR participant --models-dir "
              f"{args.models_dir} --model-set {args.model_set}")
    return 0


def _source(args: argparse.Namespace, settings: Settings, start: ModelRecord | None) -> Source:
    """The scans of the dataset, and how they are prepared."""
    from bmex_bids.inference import resolve
    from bmex_bids.training.bidspool import Source
    from bmex_bids.training.prepare import Preparation
    from bmex_bids.training.scans import Wanted, find_scans

    path = args.bids_filter_file
    selection = Selection(
        participants=tuple(label.removeprefix("sub-") for label in args.participant_label),
        sessions=tuple(label.removeprefix("ses-") for label in args.session_label),
        suffixes=tuple(args.suffix),
        filters=read_filters(path) if path else {},
    )
    scans, notes = find_scans(
        Wanted(args.bids_dir, selection, tuple(args.stage), tuple(args.derivatives),
               tuple(args.labels))
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    unlabelled = [scan.stem for scan in scans if scan.labels is None]
    if unlabelled and start is None and args.label_maps is None:
        print(
            f"warning: no tissue labels for {', '.join(unlabelled[:5])}"
            f"{', ...' * (len(unlabelled) > 5)}; tissue classes cannot be learnt from them. Give "
            "--labels, --label-maps or --start-from", file=sys.stderr,
        )
    mask_model = find_mask_model(list_models(models_dir(None)), model_set="bundled")
    how = Preparation(settings.grid_mm, mask_model, start, resolve("cpu", "float32"))
    return Source(tuple(scans), how, args.label_maps)


def _start_state(start: ModelRecord | None):  # type: ignore[no-untyped-def]
    """The weights to begin with, made for an input whose median is 1; None from scratch."""
    if start is None:
        return None
    from bmex_bids.training.architectures import at_scale_one
    from bmex_bids.weights import load_network

    return at_scale_one(load_network(start).state_dict(), start)


if __name__ == "__main__":
    sys.exit(main())
