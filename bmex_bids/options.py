"""argv and the configuration file -> one frozen Options."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.age import STAGES
from bmex_bids.bids import read_text
from bmex_bids.logs import FORMATS
from bmex_bids.spaces import parse_spaces

__all__ = ["EXIT_CODES", "Options", "parse_memory", "parse_options", "to_toml"]

STAGE_NAMES = ("fetal", *(stage for stage, _, _ in STAGES))
USAGE = "bmex bids_dir output_dir {participant,group} [options]"
PLACES = ("bids_dir", "output_dir", "analysis_level")
EPILOG = """\
examples:
  bmex /data/bids /data/out participant --participant-label 01 02
  bmex /data/bids /data/out participant --dry-run
  bmex /data/bids /data/out group
exit code:
"""
EXIT_CODES = {
    0: "all that was asked for succeeded",
    1: "a run, a space or a report failed, or was not started",
    2: "wrong input or options; nothing was started",
    129: "ended by a closed terminal (SIGHUP); the same command goes on with what is missing",
    130: "ended by Ctrl-C; the same command goes on with what is missing",
    141: "ended because nobody reads what it prints (SIGPIPE)",
    143: "ended by SIGTERM; the same command goes on with what is missing",
}


@dataclass(frozen=True)
class Options:
    """The command line, complete and checked; the help of each option says what it does.

    ``mem`` is in bytes, ``age_months`` in months after birth, labels have no prefix, paths are
    absolute; ``()`` and None mean that nothing was asked for.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    suffix: tuple[str, ...] = ("T1w", "T2w")
    derivatives: tuple[tuple[str, Path], ...] = ()
    skip_bids_validation: bool = False
    bids_database_dir: Path | None = None
    age_months: float | None = None
    stage: str | None = None
    models_dir: Path | None = None
    model_set: str = "bundled"
    high_res: bool = False
    uncertainty: bool = False
    lesions: bool = False
    output_spaces: tuple[str, ...] = ()
    registration: str = "syn"
    measure_only: bool = False
    reports_only: bool = False
    site_column: str | None = None
    overwrite: bool = False
    device: str = "auto"
    precision: str = "auto"
    nprocs: int = 1
    omp_nthreads: int | None = None
    executor: str = "local"
    dask_scheduler: str | None = None
    jobs: int = 1
    cluster_config: Path | None = None
    mem: int | None = None
    seed: int = 0
    work_dir: Path | None = None
    stop_on_first_crash: bool = False
    dry_run: bool = False
    verbose: int = 0
    log_format: str = "text"


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Build the options from the command line, and from a configuration file where one is named.

    What the command line says counts before the file. Errors end the program with exit code 2.
    """
    parser = _parser()
    values = argparse.Namespace()
    config = _config_file(argv)
    places = {} if config is None else _apply_config(parser, config, values)
    parser.parse_args(argv, namespace=values)
    given: dict[str, Any] = vars(values)
    given.pop("config_file")
    given |= {name: given[name] or places.get(name) for name in PLACES}
    missing = [name for name in PLACES if given[name] is None]
    if missing:
        parser.error(
            f"{', '.join(missing)} missing; write 'bmex bids_dir output_dir participant' first and "
            "the options after it"
        )
    if given["measure_only"] and (given["high_res"] or given["uncertainty"]):
        parser.error("--measure-only writes no enhanced image; drop --high-res and --uncertainty")
    if given["measure_only"] and given["output_spaces"]:
        parser.error("--measure-only writes no enhanced image; drop --output-spaces")
    if given["dry_run"] and given["analysis_level"] == "group":
        parser.error(
            "--dry-run shows the plan of the participant level; drop it, or write participant"
        )
    if (given["executor"] == "dask") != (given["dask_scheduler"] is not None):
        parser.error("--executor dask and --dask-scheduler ADDRESS belong together")
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return Options(**frozen)


def to_toml(options: Options) -> str:
    """Return the options as TOML that ``--config-file`` reads back to the same options."""
    import tomli_w

    content: dict[str, object] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None or value == () or field.name == "dry_run":
            continue
        if field.name == "mem":
            content[field.name] = f"{value}B"
        elif field.name == "derivatives":
            content[field.name] = [f"{name}={path}" for name, path in value]
        elif isinstance(value, Path):
            content[field.name] = str(value)
        else:
            content[field.name] = list(value) if isinstance(value, tuple) else value
    return (
        f"# Options of bmex {__version__}; use again with --config-file\n{tomli_w.dumps(content)}"
    )


def parse_memory(text: str) -> int:
    """Return bytes, e.g. 8589934592 for ``8G``, ``8GB``, ``8GiB`` or ``8192M``.

    Raises:
        ValueError: no number, or no unit (programs disagree about the unit of a bare number).
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)", text.strip(), re.IGNORECASE)
    size = 0
    if match:
        size = int(float(match[1]) * 1024 ** " KMGT".index((match[2] or " ").upper()))
    if size <= 0:
        raise ValueError(f"'{text}': expected a number with its unit, e.g. 8G or 4096M")
    return size


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a zero byte
        raise argparse.ArgumentTypeError(f"'{text}' is no path ({error})") from error


def _memory(text: str) -> int:
    try:
        return parse_memory(text)
    except (OverflowError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _label(prefix: str) -> Callable[[str], str]:
    """Return a reader of labels that drops the prefix and refuses what is no label."""

    def read(text: str) -> str:
        label = text.strip().removeprefix(f"{prefix}-")
        if not re.fullmatch(r"[a-zA-Z0-9+]+", label):
            raise argparse.ArgumentTypeError(f"'{text}' is no label; separate labels by spaces")
        return label

    return read


def _derivative(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    folder = _path(path if equals else text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{folder}: no such folder; write NAME=PATH")
    return (name if equals else folder.name, folder)


def _folder(text: str) -> Path:
    folder = _path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{folder}: no such folder")
    return folder


def _space(text: str) -> str:
    try:
        parse_spaces([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"'{text}': expected auto, cpu, cuda or cuda:<number>")
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number from 0 to 4294967295")
    return int(text)


def _months(text: str) -> float:
    try:
        months = float(text)
    except ValueError:
        months = math.nan
    if not math.isfinite(months):
        raise argparse.ArgumentTypeError(
            f"'{text}': expected months, e.g. 7.5; negative before birth"
        )
    return months


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bmex",
        usage=USAGE,
        description="Tissue-aware enhancement of structural brain MRI, from fetus to old age.",
        epilog=EPILOG + "".join(f"  {code:3d}  {text}\n" for code, text in EXIT_CODES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Optional here, because a configuration file may name them.
    add_place = functools.partial(parser.add_argument, nargs="?")
    add_place("bids_dir", type=_path, help="root of the raw BIDS dataset")
    add_place("output_dir", type=_path, help="root of the output dataset")
    levels = ["participant", "group"]
    add_place("analysis_level", choices=levels, help="enhance each run, or summarise all of them")
    _add_input(parser.add_argument_group("which images"))
    _add_model(parser.add_argument_group("age and model"))
    _add_output(parser.add_argument_group("what to do"))
    _add_group(parser.add_argument_group("group level"))
    _add_compute(parser.add_argument_group("computer"))
    _add_cluster(parser.add_argument_group("cluster"))
    other = parser.add_argument_group("other")
    add = other.add_argument
    add(
        "--config-file",
        metavar="TOML",
        help="read options from a file; each start saves its own in logs/",
    )
    add("--version", action="version", version=f"bmex {__version__}")
    add("-v", "--verbose", action="count", default=0, help="say more; -vv says all")
    add(
        "--log-format",
        default="text",
        choices=FORMATS,
        help="text (default), or json: one object a line, in the logs and for the status",
    )
    return parser


def _add_input(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        *("--participant-label", "--participant_label"),
        nargs="+",
        default=[],
        type=_label("sub"),
        metavar="LABEL",
        help="participants, with or without sub-",
    )
    add(
        *("--session-label", "--session_label", "--session-id"),
        nargs="+",
        default=[],
        type=_label("ses"),
        metavar="LABEL",
        help="sessions, with or without ses-",
    )
    add(
        "--suffix",
        nargs="+",
        default=["T1w", "T2w"],
        choices=["T1w", "T2w"],
        help="contrasts (default: both)",
    )
    add(
        "--bids-filter-file",
        type=_path,
        metavar="JSON",
        help='e.g. {"t1w": {"acquisition": "mprage", "run": null}}; null: absent, "*": any value',
    )
    add(
        *("-d", "--derivatives"),
        nargs="+",
        default=[],
        type=_derivative,
        metavar="NAME=PATH",
        help="derivative datasets with brain masks (*_desc-brain_mask)",
    )
    add(
        "--bids-database-dir", type=_path, metavar="DIR", help="keep pybids' index here, and use it"
    )
    add("--skip-bids-validation", action="store_true", help="do not run the BIDS validators")


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--age-months",
        type=_months,
        metavar="MONTHS",
        help="age of every chosen image, instead of the tables; negative before birth",
    )
    add("--stage", choices=STAGE_NAMES, help="age stage of the model, instead of the age's")
    add("--models-dir", type=_folder, metavar="DIR", help="folder with models.json and weights")
    add("--model-set", default="bundled", metavar="NAME", help="bundled (default), published, ...")
    add(
        "--method", dest="model_set", type=_model_set, default=argparse.SUPPRESS, metavar="NAME",
        help="bme-x (default) or duncan: short for --model-set bundled, --model-set duncan",
    )


def _model_set(method: str) -> str:
    """The set of models of a method."""
    sets = {"bme-x": "bundled", "duncan": "duncan"}
    if method not in sets:
        raise argparse.ArgumentTypeError(f"{method!r}: expected {' or '.join(sets)}")
    return sets[method]


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dry-run", action="store_true", help="print the plan, one line per image, and stop")
    add(
        "--overwrite", action="store_true", help="do finished runs again (default: what is missing)"
    )
    add("--measure-only", action="store_true", help="measure and report the input, enhance nothing")
    add("--reports-only", action="store_true", help="make the reports of finished runs again")
    add("--high-res", action="store_true", help="write the enhanced image on the model's grid too")
    add("--uncertainty", action="store_true", help="map the deviation over an ensemble of flips")
    add("--lesions", action="store_true", help="map the probability of white-matter lesions")
    add(
        *("--output-spaces", "--output_spaces"),
        nargs="+",
        default=[],
        type=_space,
        metavar="SPACE",
        help="templates of TemplateFlow, e.g. MNI152NLin2009cAsym:res-2, MNIInfant (cohort by age)",
    )
    add(
        "--registration",
        default="syn",
        choices=["syn", "affine"],
        help="to the templates of --output-spaces (default: syn)",
    )
    add(
        "--stop-on-first-crash", action="store_true", help="start no further run after a failed one"
    )


def _add_group(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--site-column",
        metavar="NAME",
        help="column of participants.tsv that names the site (default: the scanner's fields)",
    )


def _add_compute(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", default="auto", type=_device, help="auto (default), cpu, cuda or cuda:N")
    add(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="of the network",
    )
    add("--nprocs", default=1, type=_count, metavar="N", help="runs at the same time (default: 1)")
    add("--omp-nthreads", type=_count, metavar="N", help="threads of each run (default: share all)")
    add("--mem", type=_memory, metavar="SIZE", help="memory for all runs together, e.g. 8G")
    add(
        "--seed",
        default=0,
        type=_seed,
        metavar="N",
        help="seed of every random choice (default: 0)",
    )
    add(
        *("-w", "--work-dir"),
        type=_path,
        metavar="DIR",
        help="folder for temporary files (default: the system's), kept afterwards",
    )


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--executor",
        default="local",
        choices=["local", "dask", "slurm", "pbs", "sge"],
        help="where runs are computed: here (default), by the workers of a Dask scheduler, or in "
        "jobs of a batch system; needs pip install 'bmex-bids[hpc]'",
    )
    add(
        "--dask-scheduler",
        metavar="ADDRESS",
        help="of a scheduler that runs, e.g. tcp://node1:8786, or its scheduler file",
    )
    add("--jobs", default=1, type=_count, metavar="N", help="jobs to submit (default: 1)")
    add(
        "--cluster-config",
        type=_path,
        metavar="YAML",
        help="options of the site in Dask's format: jobqueue: slurm: queue: ...",
    )


def _config_file(argv: Sequence[str] | None) -> Path | None:
    """Return the configuration file that argv names, before the other options are read."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config-file", type=_path)
    found = early.parse_known_args(argv)[0].config_file
    return found if isinstance(found, Path) else None


def _apply_config(
    parser: argparse.ArgumentParser, path: Path, values: argparse.Namespace
) -> dict[str, object]:
    """Read the TOML through the parser itself, so that the same checks apply to its values.

    The options go into ``values``; directories and level are returned.
    """
    try:
        content: Mapping[str, object] = tomllib.loads(read_text(path))
    except (OSError, RecursionError, ValueError) as error:
        parser.error(f"--config-file {path}: {error}")
    known = {field.name for field in dataclasses.fields(Options)}
    places: dict[str, object] = {}
    tokens: list[str] = []
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            parser.error(f"--config-file {path}: unknown option '{key}'{hint}")
        if name in PLACES:
            try:
                places[name] = _path(str(value)) if name.endswith("_dir") else value
            except argparse.ArgumentTypeError as error:
                parser.error(f"--config-file {path}: {name}: {error}")
        else:
            tokens += _tokens(parser, path, name, value)
    if places.get("analysis_level", "group") not in ("participant", "group"):
        parser.error(f"--config-file {path}: analysis_level has to be participant or group")
    parser.parse_args(tokens, namespace=values)
    return places


def _tokens(parser: argparse.ArgumentParser, path: Path, name: str, value: object) -> list[str]:
    """Return one option as the command line would say it."""
    flag = "--" + name.replace("_", "-")
    switch = isinstance(getattr(Options, name, None), bool)
    if switch != isinstance(value, bool):
        expected = "true or false" if switch else "a value"
        parser.error(f"--config-file {path}: {name} has to be {expected}")
    if isinstance(value, bool):
        return [flag] if value else []
    if name == "verbose":
        if not isinstance(value, int) or not 0 <= value <= 9:
            parser.error(f"--config-file {path}: verbose has to be a number from 0 to 9")
        return [flag] * value
    if isinstance(value, list):
        return [flag, *map(str, value)] if value else []
    return [f"{flag}={value}"]
