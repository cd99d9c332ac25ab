"""Decisions: what is enhanced, with which model, and why something is not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import SHA, ages, make_dataset, make_models

from bmex_bids.bids import Job, derivative_path
from bmex_bids.layout import InputError, Selection
from bmex_bids.plan import COLUMNS, Request, format_plan, left_out, plan_jobs


def request_for(root: Path, tmp_path: Path, **changes: object) -> Request:
    models = make_models(tmp_path / "models")
    request = Request(root, tmp_path / "out", models_dir=models, model_set="test")
    return replace(request, **changes)  # type: ignore[arg-type]


def finish(out: Path, job: Job, sha256: str = SHA) -> None:
    """Write what makes a run complete."""
    image = derivative_path(out, job, desc="enhanced")
    image.parent.mkdir(parents=True, exist_ok=True)
    image.touch()
    derivative_path(out, job, desc="enhanced", ext=".json").write_text(
        json.dumps(
            {
                "Model": {"SHA256": sha256},
                "Metrics": {},
                "Outputs": [image.relative_to(out).as_posix()],
            }
        )
    )


def test_a_plan(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "bids",
        ["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz", "sub-02_T1w.nii.gz", "sub-03_T1w.nii.gz"],
        ages(**{"01": 72, "02": 4}) | {"T1w.json": '{"Manufacturer": "M"}'},
    )
    jobs = plan_jobs(request_for(root, tmp_path))
    assert [(job.action, job.stage, job.weights) for job in jobs] == [
        ("enhance", "24", "first"),
        ("skip", "24", None),
        ("skip", "3", None),
        ("skip", None, None),
    ]
    first = jobs[0]
    assert first.metadata == {"Manufacturer": "M"}
    assert (first.age_months, first.age_source) == (72, "participants.tsv:age (months)")
    assert "no weights for T2w at stage 24" in jobs[1].reason
    assert "T1w stage 24" in jobs[2].reason  # the stages there are
    assert "participants.tsv has 2 rows, none for sub-03" in jobs[3].reason
    assert all(job.wanted for job in jobs)


def test_a_set_that_is_not_there_is_told_before_any_run(tmp_path: Path) -> None:
    names = ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"]
    root = make_dataset(tmp_path / "bids", names, ages(**{"01": 72, "02": 72}))
    with pytest.raises(InputError, match="no set of models is called 'nonsense'. There are: test"):
        plan_jobs(request_for(root, tmp_path, model_set="nonsense"))


def test_the_table_of_the_plan(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "bids",
        ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", "sub-03_part-phase_T1w.nii.gz"],
        ages(**{"01": 72.5, "02": 30}),
    )
    request = request_for(root, tmp_path)
    finish(request.output_dir, plan_jobs(request)[1])
    lines = format_plan(plan_jobs(request)).splitlines()
    source = "participants.tsv:age (months)"
    assert [line.split("\t") for line in lines] == [
        list(COLUMNS),
        ["sub-01/anat/sub-01_T1w.nii.gz", "T1w", "72.5", source, "24", "first", "enhance"],
        ["sub-02/anat/sub-02_T1w.nii.gz", "T1w", "30", source, "24", "first", "done"],
        [
            "sub-03/anat/sub-03_part-phase_T1w.nii.gz",
            *("T1w", "n/a", "n/a", "n/a", "n/a"),
            "skip: part-phase; only magnitude images are enhanced",
        ],
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sub-1_part-mag_T1w.nii.gz", "sub-1_part-phase_T1w.nii.gz"], {1: "part-phase"}),
        (["sub-1_T1w.nii.gz", "sub-1_rec-defaced_T1w.nii.gz"], {1: "defaced copy"}),
        (["sub-1_run-1_T1w.nii.gz", "sub-1_run-1_rec-pydeface_T1w.nii.gz"], {1: "defaced copy"}),
        (["sub-1_run-1_T1w.nii.gz", "sub-1_run-2_rec-defaced_T1w.nii.gz"], {}),
        (["sub-1_rec-defaced_T1w.nii.gz"], {}),  # the only image of the subject
        (["sub-1_T1w.nii.gz", "sub-1_desc-defaced_T1w.nii.gz"], {1: "defaced copy"}),
        (["sub-1_T1w.nii.gz", "sub-1_desc-preproc_T1w.nii.gz"], {1: "a derivative (desc-preproc)"}),
        (["sub-1_space-MNI_T1w.nii.gz"], {0: "a derivative (space-MNI)"}),
        (["sub-1_T1w.nii.gz", "sub-1_mod-T1w_defacemask.nii.gz"], {1: "a defacing mask"}),
        (["sub-1_T1w.nii", "sub-1_T1w.nii.gz"], {0: "the same image is there as"}),
        (["sub-1_rec-norm_T1w.nii.gz", "sub-1_acq-b_echo-2_T1w.nii.gz"], {}),
    ],
)
def test_left_out_on_purpose(names: list[str], expected: dict[int, str]) -> None:
    paths = [Path("/raw/sub-1/anat") / name for name in names]
    reasons = left_out(paths)
    assert {paths.index(path) for path in reasons} == set(expected)
    for index, said in expected.items():
        assert said in reasons[paths[index]]


def test_left_out_is_no_failure(tmp_path: Path) -> None:
    images = ["sub-01_T1w.nii.gz", "sub-01_rec-defaced_T1w.nii.gz", "sub-01_mod-T1w_defacemask.nii"]
    root = make_dataset(tmp_path / "bids", images, ages(**{"01": 72}))
    jobs = {job.path.name: job for job in plan_jobs(request_for(root, tmp_path))}
    assert [jobs[name].wanted for name in images] == [True, False, False]
    assert [jobs[name].action for name in images] == ["enhance", "skip", "skip"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"age_months": 30.0}, (30.0, "--age-months", "24", "enhance")),
        ({"age_months": 3.0}, (3.0, "--age-months", "3", "skip")),
        ({"age_months": -2.0}, (-2.0, "--age-months", "fetal", "skip")),
        ({"stage": "24"}, (None, "", "24", "enhance")),
        ({"age_months": 3.0, "stage": "24"}, (3.0, "--age-months", "24", "enhance")),
    ],
)
def test_age_and_stage_from_the_options(
    tmp_path: Path, changes: dict[str, object], expected: tuple[object, ...]
) -> None:
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"])
    job = plan_jobs(request_for(root, tmp_path, **changes))[0]
    assert (job.age_months, job.age_source, job.stage, job.action) == expected
    if job.age_months is None:
        assert "stage 24 from --stage; no age" in job.notes[0]


def test_what_is_done(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"], ages(**{"01": 72}))
    request = request_for(root, tmp_path)
    out = request.output_dir
    job = plan_jobs(request)[0]
    finish(out, job)

    def action(**changes: object) -> str:
        return plan_jobs(replace(request, **changes))[0].action  # type: ignore[arg-type]

    assert action() == "done"
    assert action(measure_only=True) == "done"
    assert action(overwrite=True) == "enhance"
    assert action(high_res=True) == "enhance"
    assert action(uncertainty=True) == "enhance"
    assert action(lesions=True) == "enhance"
    derivative_path(out, job, res="hi", desc="enhanced").touch()
    assert action(high_res=True) == "done"
    derivative_path(out, job, desc="enhanced").unlink()
    assert action() == "enhance"
    finish(out, job, sha256="1" * 64)
    assert action() == "enhance"  # other weights
    assert action(reports_only=True) == "done"


def test_reports_only_wants_nothing_new(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"])
    job = plan_jobs(request_for(root, tmp_path, reports_only=True))[0]
    assert (job.action, job.wanted) == ("skip", False)
    assert "nothing to report" in job.reason


def test_masks_of_derivatives(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"], ages(**{"01": 72}))
    masks = make_dataset(tmp_path / "masks", ["sub-01_desc-brain_mask.nii.gz"])
    job = plan_jobs(request_for(root, tmp_path, derivatives=(masks,)))[0]
    assert job.mask == masks / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"


def test_no_subjects(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "bids", [])
    with pytest.raises(InputError, match="no sub-"):
        plan_jobs(request_for(root, tmp_path))


def test_age_notes_are_kept(tmp_path: Path) -> None:
    files = ages(**{"01": 72}) | {"sub-01/sub-01_scans.tsv": "filename\tage\nsub-9_T1w.nii\t7\n"}
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"], files)
    assert "is for sub-9_T1w.nii" in plan_jobs(request_for(root, tmp_path))[0].notes[0]


def test_cost_is_linear(tmp_path: Path) -> None:
    """Four times the subjects take about four times the time, not sixteen."""
    times = []
    for count in (50, 200):
        labels = [f"{index:04d}" for index in range(count)]
        images = [f"sub-{label}_T1w.nii.gz" for label in labels]
        root = make_dataset(tmp_path / f"b{count}", images, ages(**dict.fromkeys(labels, 72)))
        request = request_for(root, tmp_path, selection=Selection())
        started = time.process_time()
        assert len(plan_jobs(request)) == count
        times.append(time.process_time() - started)
    assert times[1] < 10 * times[0] + 1


def test_planning_loads_no_torch(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "bids", ["sub-01_T1w.nii.gz"], ages(**{"01": 72}))
    code = (
        "import sys; from bmex_bids.cli import main; "
        f"code = main([{str(root)!r}, {str(tmp_path / 'out')!r}, 'participant', '--dry-run']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "\t".join(COLUMNS)
    assert not (tmp_path / "out").exists()
