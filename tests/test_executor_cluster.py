"""Runs on the workers of a real Dask scheduler: two processes beside this one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_executor import job_of
from tiny_app import tiny_argv

from bmex_bids import cluster
from bmex_bids.bids import Job, output_stem
from bmex_bids.cli import main
from bmex_bids.jobs import Outcome, crash_path
from bmex_bids.layout import InputError
from bmex_bids.options import Options, parse_options

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def two_workers() -> Iterator[distributed.LocalCluster]:
    import dask

    quick = {"distributed.scheduler.allowed-failures": 1}
    with (
        dask.config.set(quick),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
    ):
        yield local


def files(out: Path) -> dict[str, bytes]:
    """All files of an output dataset and their bytes, without the logs."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.parent.name != "logs"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def test_the_same_bytes_as_here(
    two_workers: distributed.LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["sub-01_T1w", "sub-02_T1w"]
    argv = tiny_argv(tmp_path, tmp_path / "here", images)
    assert main(argv) == 0
    argv[1] = str(tmp_path / "there")
    remote = ["--executor", "dask", "--dask-scheduler", two_workers.scheduler_address]
    assert main([*argv, *remote]) == 0
    assert capsys.readouterr().out.count("2 done (") == 2
    here, there = files(tmp_path / "here"), files(tmp_path / "there")
    assert len([name for name in there if name.endswith(".nii.gz")]) == 14
    assert {name for name in here if here[name] != there.get(name)} == set()
    assert set(here) == set(there)
    left = {path.suffix for path in (tmp_path / "there" / "logs").iterdir()}
    assert left == {".log", ".toml", ".md"}


def dies(job: Job, options: Options, version: str) -> Outcome:
    """A task whose worker is killed, once or always, as the label says."""
    mark = options.output_dir / output_stem(job)
    if job.entities["sub"] == "always" or not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(output_stem(job), job.entities["sub"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lost_worker(
    two_workers: distributed.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_task", dies)
    options = Options(tmp_path, tmp_path, "participant")
    outcomes = []
    with distributed.Client(two_workers) as client:
        for label in ("once", "always"):  # a killed worker counts against all its tasks
            jobs = [job_of(label)]
            outcomes += cluster.on_cluster(jobs, client=client, options=options)
    once, always = outcomes
    assert not once.failed
    assert always.failed and "were lost again and again" in always.message
    assert always.message in crash_path(tmp_path, "sub-always_T1w").read_text()


def test_a_worker_that_sees_another_disk_or_has_another_version(
    two_workers: distributed.LocalCluster, tmp_path: Path
) -> None:
    options = Options(tmp_path, tmp_path / "out", "participant")
    with distributed.Client(two_workers) as client:
        (outcome,) = cluster.on_cluster([job_of("01")], client=client, options=options)
        assert outcome.failed and "it has to be on a shared file system" in outcome.message
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster, "__version__", "9.9")
            (outcome,) = cluster.on_cluster([job_of("01")], client=client, options=options)
        assert outcome.failed and "this start has 9.9" in outcome.message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--executor", "dask"], "belong together"),
        (["--dask-scheduler", "tcp://x:1"], "belong together"),
        (["--executor", "lsf"], "invalid choice"),
        (["--jobs", "0"], "whole number from 1 on"),
    ],
)
def test_wrong_options(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options([str(tmp_path), str(tmp_path / "out"), "participant", *arguments])
    assert said in capsys.readouterr().err


def options_of(tmp_path: Path, executor: str, **more: object) -> Options:
    return Options(
        tmp_path,
        tmp_path / "out",
        "participant",
        executor=executor,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("executor", ["slurm", "pbs", "sge"])
def test_job_scripts_of_batch_systems(executor: str, tmp_path: Path) -> None:
    """The script that would be submitted; SLURM itself is tried by ``make slurm-test``."""
    pytest.importorskip("dask_jobqueue")
    site = tmp_path / "site.yml"
    text = f"jobqueue:\n  {executor}:\n    cores: 6\n    memory: 12GiB\n    queue: brains\n"
    site.write_text(text)
    options = options_of(tmp_path, executor, cluster_config=site, nprocs=2, jobs=0)
    with cluster._jobs(options) as (queue, share):
        script = queue.job_script()
    assert "brains" in script and "--nthreads 2" in script and "bmex" in script
    assert share.omp_nthreads == 3 and share.mem == 12 * 2**30


@pytest.mark.parametrize(
    ("text", "said"), [("jobqueue: 1", "expected 'jobqueue:'"), ("a: [", "site.yml"), (None, "No")]
)
def test_site_options_that_cannot_be_read(tmp_path: Path, text: str | None, said: str) -> None:
    site = tmp_path / "site.yml"
    if text is not None:
        site.write_text(text)
    with (
        pytest.raises(InputError, match=said),
        cluster._jobs(options_of(tmp_path, "slurm", cluster_config=site, jobs=0)),
    ):
        pass


def test_no_scheduler_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.1)
    options = options_of(tmp_path, "dask", dask_scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="is it running"), cluster.cluster(options):
        pass
