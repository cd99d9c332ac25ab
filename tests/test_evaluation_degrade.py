"""bmex-degrade: the list of conditions, one image, and whole datasets that are valid BIDS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bmex_bids.bids import read_json
from bmex_bids.evaluation import conditions, degrade_cli
from bmex_bids.evaluation.conditions import Condition, Setup
from bmex_bids.layout import find_mask
from bmex_bids.training.degrade import NOISES

SHAPE = (40, 46, 36)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0]) + np.array(
    [[0, 0, 0, -80], [0, 0, 0, -92], [0, 0, 0, -70], [0, 0, 0, 0]]
)


def brain(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A brain of 4 mm voxels: an ellipsoid with texture, about 1 litre, and its mask."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE, float)
    radii = [(axis - (n - 1) / 2) / (0.38 * n) for axis, n in zip(grid, SHAPE, strict=True)]
    mask = sum(r**2 for r in radii) < 1
    texture = 700 + 1200 * gaussian_filter(rng.standard_normal(SHAPE), 1.5)
    return np.where(mask, np.clip(texture, 50, 1200), 0).astype(np.float32), mask


def write_image(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.to_filename(path)


def make_clean(root: Path, names: tuple[str, ...] = ("sub-01_T1w", "sub-02_T1w")) -> Path:
    """Stripped clean images with ages in participants.tsv."""
    root.mkdir(parents=True, exist_ok=True)
    description = {"Name": "Clean", "BIDSVersion": "1.10.0", "Authors": ["A", "B"]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "T1w.json").write_text('{"SkullStripped": true, "MagneticFieldStrength": 3}')
    subjects = []
    for number, name in enumerate(names):
        parts = name.split("_")
        folder = root / parts[0] / (parts[1] if parts[1].startswith("ses-") else "") / "anat"
        write_image(folder / f"{name}.nii.gz", brain(number)[0])
        subjects += [parts[0]] if parts[0] not in subjects else []
    rows = "".join(f"{subject}\t{30 + i}\tF\n" for i, subject in enumerate(subjects))
    (root / "participants.tsv").write_text("participant_id\tage\tsex\n" + rows)
    (root / "participants.json").write_text(
        '{"age": {"Description": "age", "Units": "years"}, "sex": {"Description": "sex"}}'
    )
    return root


def errors_of(root: Path) -> list[str]:
    """What bids-validator-deno calls an error."""
    program = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run(
        [program, root, "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i.get('code')} {i.get('location')}" for i in issues if i["severity"] == "error"]


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_labels_are_valid_and_differ() -> None:
    every = conditions.list_conditions(
        conditions.parse_motion(["all:all"]), [1.1, 11], [0.02, 0.2], [0.5],
        ("severity", "resolution", "noise"), noise_kinds=tuple(NOISES),
    )
    labels = [c.label for c in every]
    # (4 x 5 + 1) x 3 x (2 x 2 + 1) - 1, and the smoothing that is not in the grid
    assert len(labels) == len(set(labels)) == 21 * 15 - 1 + 1
    assert all(label.isalnum() for label in labels)
    worst = Condition("rotation", "severe++", 2.4, 0.02)
    assert worst.label == "rotationSeverePlusPlusThick2p4Noise0p02"
    assert Condition(smooth=1).label == "smooth1"
    assert Condition().label == "clean"


def test_each_value_alone_without_a_grid() -> None:
    found = conditions.list_conditions([("sudden", "minor")], [2.4], [0.02], [])
    assert found == [Condition("sudden", "minor"), Condition(thickness=2.4), Condition(noise=0.02)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rotation:severe", [("rotation", "severe")]),
        ("all:minor", [(k, "minor") for k in ("rotation", "periodic", "continuous", "sudden")]),
        ("sudden:all", [("sudden", s) for s in ("minor", "moderate", "severe", "severe+",
                                                "severe++")]),
    ],
)
def test_motion_names(text: str, wanted: list[tuple[str, str]]) -> None:
    assert conditions.parse_motion([text, text]) == wanted


@pytest.mark.parametrize("text", ["rotation", "rotation:", "spin:severe", "rotation:huge", ""])
def test_unknown_motion_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected kind:severity"):
        conditions.parse_motion([text])


@pytest.mark.parametrize("text", ["severity", "severity-by-colour", "noise-by-noise"])
def test_unknown_grid_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected two or more of"):
        conditions.parse_grid(text)


@pytest.mark.parametrize(
    "values", [([0.0], [], []), ([], [1.5], []), ([], [], [-1.0]), ([], [float("nan")], [])]
)
def test_impossible_values_are_refused(values: tuple[list[float], ...]) -> None:
    with pytest.raises(ValueError, match="expected more than 0"):
        conditions.list_conditions([], *values)


def test_levels_of_a_kind_share_their_draw() -> None:
    """The head moves the same way at each severity and resolution; another image, another way."""
    volume = brain()[0] / 1000
    done = {
        key: conditions.corrupt(volume, AFFINE, Condition(*parts), Setup(seed=seed), key)[0]
        for key, parts, seed in [("a", ("rotation", "severe"), 1), ("b", ("rotation", "severe"), 1)]
    }
    again = conditions.corrupt(volume, AFFINE, Condition("rotation", "severe"), Setup(1), "a")[0]
    other = conditions.corrupt(volume, AFFINE, Condition("rotation", "severe"), Setup(2), "a")[0]
    thick = conditions.corrupt(
        volume, AFFINE, Condition("rotation", "severe", 8.0), Setup(1), "a"
    )[0]
    np.testing.assert_array_equal(done["a"], again)
    assert not np.allclose(done["a"], done["b"], atol=1e-3)
    assert not np.allclose(done["a"], other, atol=1e-3)
    means = done["a"].reshape(40, 46, 18, 2).mean(-1)
    assert np.corrcoef(thick.ravel(), means.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", ["x", "y", "z"])
def test_thick_slices_lie_along_the_world_axis(name: str) -> None:
    turned = AFFINE[:, [2, 0, 1, 3]]  # array axes 0, 1, 2 are world z, x, y
    volume = np.transpose(brain()[0], (2, 0, 1)) / 1000
    made, affine = conditions.corrupt(
        volume, turned, Condition(thickness=8.0), Setup(slice_axis=name), "k"
    )
    axis = {"z": 0, "x": 1, "y": 2}[name]
    assert made.shape[axis] == volume.shape[axis] // 2
    assert np.sqrt((affine[:3, axis] ** 2).sum()) == pytest.approx(8)
    assert made.mean() == pytest.approx(volume.mean(), rel=1e-3)
    ends = [
        (a @ [*((np.array(shape) - 1) / 2), 1])[:3]
        for a, shape in ((affine, made.shape), (turned, volume.shape))
    ]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)  # the middle stays where it is


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_the_size_that_was_asked_for(kind: str) -> None:
    flat = np.ones((30, 30, 30), np.float32)
    made, _ = conditions.corrupt(
        flat, AFFINE, Condition(thickness=12.0, noise=0.05, noise_kind=kind), Setup(), "k"
    )
    assert made.std() == pytest.approx(0.05, rel=0.05)  # not averaged away by the slices


def test_both_kinds_of_noise_lie_beside_each_other(tmp_path: Path) -> None:
    clean, out = make_clean(tmp_path / "clean"), tmp_path / "out"
    assert degrade_cli.main(
        [str(clean), str(out), "--noise", "0.05", "--noise-kind", "rician", "gaussian"]) == 0
    for label, name in (("noise0p05", "RicianNoise"), ("gaussian0p05", "GaussianNoise")):
        path = out / "sub-01" / "anat" / f"sub-01_rec-{label}_T1w.json"
        parameters = json.loads(path.read_text("utf-8"))["SimulatedArtefacts"]
        assert parameters[name] == 0.05


def test_a_valid_dataset_with_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = make_clean(tmp_path / "clean")
    out = tmp_path / "out"
    options = ["--motion", "rotation:severe", "rotation:minor", "--slice-thickness", "8",
               "--noise", "0.05", "--smooth", "3", "--grid", "severity-by-resolution", "--clean",
               "--seed", "3"]
    assert degrade_cli.main([str(clean), str(out), *options]) == 0
    assert "2 images x 8 conditions" in capsys.readouterr().out
    assert errors_of(out) == []
    anat = out / "sub-01" / "anat"
    names = sorted(p.name.split("rec-")[1].removesuffix("_T1w.nii.gz") for p in anat.glob("*.gz"))
    assert names == ["clean", "noise0p05", "rotationMinor", "rotationMinorThick8",
                     "rotationSevere", "rotationSevereThick8", "smooth3", "thick8"]
    # the clean copy is clean, all are stripped again, ages came along
    np.testing.assert_array_equal(load(anat / "sub-01_rec-clean_T1w.nii.gz"), brain(0)[0])
    severe = load(anat / "sub-01_rec-rotationSevere_T1w.nii.gz")
    assert not severe[~brain(0)[1]].any() and severe[brain(0)[1]].any()
    thick = nib.load(anat / "sub-01_rec-thick8_T1w.nii.gz")
    assert thick.shape == (40, 46, 18) and thick.header.get_zooms() == (4, 4, 8)
    assert (np.asarray(thick.dataobj) == 0).mean() > 0.5
    assert (out / "participants.tsv").read_text() == (clean / "participants.tsv").read_text()
    sidecars = {n: read_json(anat / f"sub-01_rec-{n}_T1w.json") for n in names}
    severity = {n: s["MeasuredSeverity"]["PSNR"] for n, s in sidecars.items()}  # type: ignore[index, call-overload]
    assert severity["clean"] is None
    assert severity["rotationMinor"] > severity["rotationSevere"] + 3
    assert severity["thick8"] > severity["rotationSevereThick8"]
    assert sidecars["rotationSevereThick8"]["SliceThickness"] == 8
    assert sidecars["rotationSevere"]["MagneticFieldStrength"] == 3  # inherited
    assert sidecars["rotationSevere"]["Sources"] == ["bids:clean:sub-01/anat/sub-01_T1w.nii.gz"]
    parameters = sidecars["rotationSevere"]["SimulatedArtefacts"]
    assert {**parameters, "Version": ""} == {  # type: ignore[dict-item]
        "Condition": "rotationSevere", "Version": "", "Seed": 3, "SliceAxis": "z",
        "PhaseAxis": "y", "KeepGrid": False, "MotionKind": "rotation",
        "MotionSeverity": "severe", "MotionAmplitude": 3.0, "MotionFrequency": 0.42,
        "MotionReference": "mean position",
    }  # fmt: skip


def test_only_what_is_missing_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = make_clean(tmp_path / "clean")
    call = [str(clean), str(tmp_path / "out"), "--noise", "0.05", "0.1"]
    assert degrade_cli.main([*call, "--participant-label", "sub-01"]) == 0
    assert (tmp_path / "out" / "participants.tsv").read_text().count("\n") == 2
    first = tmp_path / "out" / "sub-01" / "anat" / "sub-01_rec-noise0p1_T1w.nii.gz"
    content = first.read_bytes()
    first.unlink()
    capsys.readouterr()
    assert degrade_cli.main(call) == 0
    said = capsys.readouterr().out
    assert "sub-01_T1w.nii.gz: 1 made, 1 there already" in said
    assert "sub-02_T1w.nii.gz: 2 made" in said
    assert first.read_bytes() == content
    assert degrade_cli.main([*call, "--seed", "1"]) == 0
    assert first.read_bytes() != content


def test_sessions_scans_and_a_rec_of_its_own(tmp_path: Path) -> None:
    clean = make_clean(tmp_path / "clean", ("sub-01_ses-1_rec-norm_T1w", "sub-01_ses-2_T1w"))
    (clean / "sub-01" / "sub-01_sessions.tsv").write_text(
        "session_id\tage_months\nses-1\t6\nses-2\t12\n"
    )
    (clean / "sub-01" / "ses-2" / "sub-01_ses-2_scans.tsv").write_text(
        "filename\tacq_time\nanat/sub-01_ses-2_T1w.nii.gz\t2020-01-01T00:00:00\n"
    )
    out = tmp_path / "out"
    assert degrade_cli.main([str(clean), str(out), "--noise", "0.05"]) == 0
    assert (out / "sub-01/ses-1/anat/sub-01_ses-1_rec-normnoise0p05_T1w.nii.gz").exists()
    assert (out / "sub-01/sub-01_sessions.tsv").exists()
    assert "anat/sub-01_ses-2_rec-noise0p05_T1w.nii.gz\t2020" in (
        out / "sub-01/ses-2/sub-01_ses-2_scans.tsv"
    ).read_text()
    assert errors_of(out) == []


def test_whole_heads_stay_whole(tmp_path: Path) -> None:
    """With the mask of a derivative dataset; the corruption reaches the air."""
    clean = make_clean(tmp_path / "clean", ("sub-01_T1w",))
    data, mask = brain()
    skull = gaussian_filter(mask.astype(np.float32), 2) * 900
    head = np.where(mask, data, skull) + np.abs(np.random.default_rng(0).normal(0, 9, SHAPE))
    write_image(clean / "sub-01" / "anat" / "sub-01_T1w.nii.gz", head.astype(np.float32))
    (clean / "T1w.json").write_text("{}")
    masks = tmp_path / "masks"
    write_image(masks / "sub-01/anat/sub-01_desc-brain_mask.nii.gz", mask.astype(np.uint8))
    out = tmp_path / "out"
    code = degrade_cli.main(
        [str(clean), str(out), "--motion", "periodic:severe", "-d", str(masks), "--suffix", "T1w"]
    )
    assert code == 0
    name = out / "sub-01" / "anat" / "sub-01_rec-periodicSevere_T1w"
    sidecar = read_json(name.with_suffix(".json"))
    assert sidecar["SkullStripped"] is False
    assert sidecar["MeasuredSeverity"]["Mask"] == "derivatives"  # type: ignore[index, call-overload]
    made = load(name.with_suffix(".nii.gz"))
    assert (made[~mask] > 0).mean() > 0.99


def test_the_app_plans_the_corrupted_images(tmp_path: Path) -> None:
    """Ages are found, names keep the condition, and masks can be found for them."""
    from bmex_bids.plan import Request, plan_jobs

    clean = make_clean(tmp_path / "clean")
    out = tmp_path / "out"
    assert degrade_cli.main([str(clean), str(out), "--noise", "0.05", "--nprocs", "1"]) == 0
    jobs = plan_jobs(Request(out, tmp_path / "enhanced"))
    assert [job.age_months for job in jobs] == [360, 372]
    assert [job.action for job in jobs] == ["enhance", "enhance"]
    assert jobs[0].entities["rec"] == "noise0p05"
    assert find_mask([tmp_path], jobs[0].path, [jobs[0].path]) is None


def test_slices_as_thin_as_the_voxels_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = make_clean(tmp_path / "clean", ("sub-01_T1w",))
    call = [str(clean), str(tmp_path / "out"), "--slice-thickness", "4", "8", "--keep-grid"]
    assert degrade_cli.main(call) == 0
    assert "skipped: slices of 4 mm: the voxels are 4 mm already" in capsys.readouterr().err
    made = list((tmp_path / "out" / "sub-01" / "anat").glob("*.nii.gz"))
    assert [p.name for p in made] == ["sub-01_rec-thick8_T1w.nii.gz"]
    assert nib.load(made[0]).shape == SHAPE


def test_a_damaged_image_fails_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = make_clean(tmp_path / "clean")
    (clean / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(b"nothing")
    assert degrade_cli.main([str(clean), str(tmp_path / "out"), "--noise", "0.05"]) == 1
    assert "sub-01_T1w.nii.gz" in capsys.readouterr().err
    assert (tmp_path / "out" / "sub-02" / "anat" / "sub-02_rec-noise0p05_T1w.nii.gz").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to do"),
        (["--motion", "spin:severe"], "expected kind:severity"),
        (["--noise", "0.1", "--grid", "noise-by-severity"], "severity has no values"),
        (["--noise", "0.1", "--participant-label", "99"], "no sub-99"),
        (["--noise", "0.1", "-d", "/nowhere"], "no such folder"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    clean = make_clean(tmp_path / "clean", ("sub-01_T1w",))
    assert degrade_cli.main([str(clean), str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bmex-degrade: ") and message in said


def test_another_dataset_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = make_clean(tmp_path / "clean", ("sub-01_T1w",))
    other = make_clean(tmp_path / "other", ("sub-01_T1w",))
    for out in (clean, other):
        assert degrade_cli.main([str(clean), str(out), "--noise", "0.1"]) == 2
    assert "holds another dataset" in capsys.readouterr().err
