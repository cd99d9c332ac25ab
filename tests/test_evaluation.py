"""bmex-evaluate: pairing, grids, intensity scale, statistics, tables and the page."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter
from test_evaluation_degrade import AFFINE, SHAPE, brain, make_clean, write_image

from bmex_bids import metrics
from bmex_bids.bids import parse_entities
from bmex_bids.evaluation import evaluate_cli, grids, stages, statistics
from bmex_bids.evaluation.experiments.brains import adult
from bmex_bids.evaluation.measuring import MEASURES, Row
from bmex_bids.evaluation.pairing import Found, Pair, Source, pair_images, parse_source, tissues
from bmex_bids.image import Image
from bmex_bids.inference import resolve
from bmex_bids.layout import InputError
from bmex_bids.weights import find_model, list_models, models_dir


def found(name: str, folder: str = "/data") -> Found:
    return Found(Path(folder, f"{name}.nii.gz"), parse_entities(f"{name}."), name.rsplit("_", 1)[1])


def image(data: np.ndarray, affine: np.ndarray = AFFINE) -> Image:
    import nibabel as nib

    return Image(np.asarray(data, np.float32), np.asarray(affine, float), nib.Nifti1Header())


@pytest.mark.parametrize(
    ("references", "result", "wanted", "condition"),
    [
        (["sub-1_T1w"], "sub-1_T1w", 0, "none"),
        (["sub-1_T1w"], "sub-1_rec-noise0p1_desc-enhanced_T1w", 0, "noise0p1"),
        (["sub-1_T1w"], "sub-1_acq-move_T1w", 0, "acq-move"),
        (["sub-1_T1w", "sub-1_T2w"], "sub-1_rec-x_T2w", 1, "x"),
        (["sub-1_ses-1_T1w", "sub-1_ses-2_T1w"], "sub-1_ses-2_T1w", 1, "none"),
        (["sub-1_run-1_T1w", "sub-1_run-2_T1w"], "sub-1_rec-x_run-2_res-hi_T1w", 1, "x"),
        (["sub-1_T1w", "sub-1_acq-a_T1w"], "sub-1_acq-a_rec-x_T1w", 1, "x"),
        (["sub-1_T1w", "sub-1_acq-a_T1w"], "sub-1_rec-x_T1w", 0, "x"),
        (["sub-1_rec-norm_T1w"], "sub-1_rec-normnoise_T1w", 0, "noise"),
        (["sub-1_rec-norm_T1w", "sub-1_T1w"], "sub-1_rec-normnoise_T1w", 0, "noise"),
        (["sub-1_rec-norm_T1w", "sub-1_T1w"], "sub-1_rec-noise_T1w", 1, "noise"),
        (["sub-1_run-1_T1w"], "sub-1_desc-preproc_T1w", 0, "none"),
        (["sub-1_run-1_T1w"], "sub-1_run-2_T1w", None, ""),
        (["sub-1_T1w"], "sub-2_T1w", None, ""),
        (["sub-1_T1w"], "sub-1_ses-1_T1w", None, ""),
    ],
)
def test_pairs(references: list[str], result: str, wanted: int | None, condition: str) -> None:
    there = [found(name) for name in references]
    pairs, alone = pair_images(there, Source("m", Path("/m"), {}), [found(result)])
    if wanted is None:
        assert not pairs and len(alone) == 1
    else:
        assert [(p.reference, p.condition) for p in pairs] == [(there[wanted], condition)]


def test_what_is_ambiguous_is_said() -> None:
    runs = [found("sub-1_run-1_T1w"), found("sub-1_run-2_T1w")]
    with pytest.raises(InputError, match="fits sub-1_run-1_T1w.nii.gz and sub-1_run-2"):
        pair_images(runs, Source("m", Path("/m"), {}), [found("sub-1_T1w")])
    two = [found("sub-1_desc-a_T1w"), found("sub-1_desc-b_T1w")]
    with pytest.raises(InputError, match="both fit sub-1_T1w.nii.gz; choose one kind"):
        pair_images([found("sub-1_T1w")], Source("m", Path("/m"), {}), two)


def test_other_entities_can_name_the_condition() -> None:
    """As in datasets of real motion: acq-standard and acq-headmotion1."""
    still = found("sub-1_acq-standard_T1w")
    moved = found("sub-1_acq-headmotion1_T1w")
    source = Source("m", Path("/m"), {})
    assert pair_images([still], source, [moved])[0] == []
    (pair,), _ = pair_images([still], source, [moved], ["acq"])
    assert pair.condition == "headmotion1"


def test_sources_and_filters(tmp_path: Path) -> None:
    one = parse_source(f"me={tmp_path},desc=enhanced,res=none")
    assert (one.name, one.root, one.filters) == (
        "me", tmp_path, {"desc": "enhanced", "res": "none"}
    )  # fmt: skip
    assert parse_source(str(tmp_path)).name == tmp_path.name
    with pytest.raises(InputError, match="is no filter"):
        parse_source(f"{tmp_path},enhanced")
    with pytest.raises(InputError, match="no such folder"):
        parse_source("x=/nowhere")


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ("index\tname\n0\tbackground\n1\tCSF\n2\tGM\n3\tWM\n", {"CSF": 1, "GM": 2, "WM": 3}),
        ("index\tname\tabbreviation\n4\tGray Matter\tGM\n5\tWhite Matter\tWM\n9\tFluid\tCSF\n",
         {"CSF": 9, "GM": 4, "WM": 5}),
        (None, {"GM": 1, "WM": 2, "CSF": 3}),
    ],
)
def test_label_tables(tmp_path: Path, table: str | None, wanted: dict[str, int]) -> None:
    if table:
        (tmp_path / "dseg.tsv").write_text(table)
    assert tissues(tmp_path, tmp_path / "sub-1" / "anat" / "sub-1_dseg.nii.gz") == wanted


def smooth_volume(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A function of world space that is smooth on the scale of the voxels."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = np.moveaxis(places, -1, 0)
    return np.asarray(500 + 200 * np.sin(x / 31) * np.cos(y / 25) + 100 * np.sin(z / 28))


ANGLE = np.deg2rad(7)
GRIDS = {
    "same": (AFFINE, SHAPE),
    "finer": (AFFINE @ np.diag([0.5, 0.5, 0.5, 1]), (80, 92, 72)),
    "coarse": (AFFINE @ np.diag([1, 1, 1.5, 1]), (40, 46, 24)),
    "flipped": (
        AFFINE @ np.array([[-1, 0, 0, 39], [0, 0, 1, 0], [0, -1, 0, 35], [0, 0, 0, 1.0]]),
        (40, 36, 46),
    ),
    "oblique": (
        AFFINE @ np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0, 2], [np.sin(ANGLE), np.cos(ANGLE), 0,
                          -2], [0, 0, 1, 0], [0, 0, 0, 1]]),
        (42, 50, 36),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_images_come_onto_the_grid_of_the_reference(name: str) -> None:
    affine, shape = GRIDS[name]
    wanted = smooth_volume(AFFINE, SHAPE)
    moved = grids.onto_reference(image(smooth_volume(affine, shape), affine), image(wanted))
    inner = (slice(8, -8),) * 3
    np.testing.assert_allclose(moved[inner], wanted[inner], atol=6 if name == "coarse" else 2)
    if name == "same":
        np.testing.assert_array_equal(moved, wanted.astype(np.float32))


def test_labels_keep_their_values_on_another_grid() -> None:
    labels = (brain()[1] * 3).astype(np.float32)
    affine, shape = GRIDS["flipped"]
    there = grids.labels_onto(image(labels), image(np.zeros(shape), affine))
    assert set(np.unique(there)) == {0, 3}
    back = grids.labels_onto(image(there, affine), image(labels))
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("noise", [0, 120])
def test_the_line_is_found_in_spite_of_noise_and_errors(noise: float) -> None:
    clean, mask = brain()
    clean = np.where(mask, gaussian_filter(clean, 1), 0).astype(np.float32)
    given = clean * 0.25 + 30 + np.random.default_rng(1).normal(0, noise * 0.25, SHAPE)
    given[15:20, 15:20, 15:20] = 2000  # a tenth of a percent is wrong
    given = np.where(mask, given, 0).astype(np.float32)
    slope, offset = grids.match_scale(given, clean, mask, np.array([4.0, 4, 4]))
    assert slope == pytest.approx(4, rel=0.1 if noise else 0.01)
    assert offset == pytest.approx(-120, abs=60 if noise else 6)
    # plain least squares would flatten the noisy one
    if noise:
        plain = np.polyfit(*(v[mask].astype(float) for v in (given, clean)), 1)[0]
        assert plain < 3


def test_an_image_that_runs_against_the_reference_is_refused() -> None:
    clean, mask = brain()
    inverted = np.where(mask, 1300 - clean, 0).astype(np.float32)
    with pytest.raises(ValueError, match="does not follow the reference"):
        grids.match_scale(inverted, clean, mask, np.array([4.0, 4, 4]))
    with pytest.raises(ValueError, match="empty or constant"):
        grids.match_scale(mask.astype(np.float32), clean, mask, np.array([4.0, 4, 4]))


def test_whole_heads_have_their_brain_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mask or a word about stripping, the network decides."""
    data, mask = brain()
    monkeypatch.setattr(grids, "brain_mask", lambda *_, **__: (mask, False))
    monkeypatch.setattr(grids, "load_network", lambda record: None)
    got, origin, stripped = grids.reference_mask(image(data + 5), None, {})
    assert (origin, stripped) == ("brain extraction", False)
    np.testing.assert_array_equal(got, mask)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 -> times 3, 2, 1; the last may not fall below the one before
    assert statistics.holm([0.03, 0.01, float("nan"), 0.02]) == pytest.approx(
        [0.04, 0.03, float("nan"), 0.04], nan_ok=True
    )
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_cohens_d_by_hand() -> None:
    assert statistics.cohens_d(np.array([3.0, 5]), np.array([1.0, 3])) == pytest.approx(2 / 2**0.5)
    assert np.isnan(statistics.cohens_d(np.array([3.0]), np.array([1.0])))


def rows(values: dict[str, dict[str, list[float]]]) -> list[Row]:
    """method -> condition -> one value per participant."""
    made = []
    for method, conditions in values.items():
        for condition, numbers in conditions.items():
            for i, value in enumerate(numbers):
                reference = found(f"sub-{i}_T1w")
                result = found(f"sub-{i}_rec-{condition}_T1w", f"/{method}")
                made.append(Row(Pair(reference, result, method, condition), "PSNR", value))
    return made


def test_the_summary_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    base, better = rng.normal(20, 2, (2, 8)), rng.normal(23, 2, (2, 8))
    cells = statistics.summarise(
        rows({
            "input": {"a": list(base[0]), "b": list(base[1])},
            "net": {"a": list(better[0]), "b": list(better[1])},
        }),
        "input",
    )  # fmt: skip
    assert [(c.condition, c.method) for c in cells] == [
        (c, m) for c in ("a", "b", statistics.ALL) for m in ("input", "net")
    ]
    first = cells[1]
    assert (first.n, first.mean) == (8, pytest.approx(better[0].mean()))
    assert first.sd == pytest.approx(better[0].std(ddof=1))
    assert first.test is not None
    wanted = [
        stats.ttest_rel(x, y).pvalue
        for x, y in ((better[0], base[0]), (better[1], base[1]), (better.mean(0), base.mean(0)))
    ]
    tests = [c for c in cells if c.test]
    assert [c.test.t_p for c in tests if c.test] == pytest.approx(wanted)
    assert [c.t_holm for c in tests] == pytest.approx(statistics.holm(wanted))
    assert first.test.wilcoxon_p == pytest.approx(stats.wilcoxon(better[0], base[0]).pvalue)


def test_all_conditions_use_what_every_method_has() -> None:
    values = {
        "input": {"a": [1.0, 3, 5], "b": [2.0, 4, 6]},
        "net": {"a": [2.0, 4, float("inf")]},
    }
    table = statistics.values_of(rows(values), "T1w", "PSNR")
    assert table[statistics.ALL] == {"input": {"0": 1, "1": 3}, "net": {"0": 2, "1": 4}}
    assert table["a"]["net"] == {"0": 2, "1": 4}  # the infinite one is left out


def test_quality_index_is_that_of_the_baseline() -> None:
    made = [Row(r.pair, "TCT", r.value) for r in rows({"in": {"a": [1.0]}, "net": {"a": [2.0]}})]
    (row,) = statistics.quality_index_rows(made, "in")
    assert (row.metric, row.value, row.pair.method) == ("QI", 0.5, "net")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clean images with labels; a noisy dataset, and a denoised one on other scales."""
    root = tmp_path_factory.mktemp("study")
    names = [f"sub-{i}" for i in range(1, 6)]
    make_clean(root / "clean", tuple(f"{name}_T1w" for name in names))
    rng = np.random.default_rng(7)
    for i, name in enumerate(names):
        clean, mask = brain(i)
        labels = np.where(mask, np.digitize(clean, [500, 800]) + 1, 0).astype(np.uint8)
        masks = root / "masks" / name / "anat"
        write_image(masks / f"{name}_desc-brain_mask.nii.gz", mask.astype(np.uint8))
        write_image(masks / f"{name}_dseg.nii.gz", labels)
        for level, size in (("low", 60), ("high", 160)):
            noisy = np.where(mask, np.abs(clean + rng.normal(0, size, SHAPE)), 0)
            write_image(
                root / f"noisy/{name}/anat/{name}_rec-{level}_T1w.nii.gz",
                noisy.astype(np.float32),
            )
            calm = np.where(mask, gaussian_filter(noisy, 0.6) * 3 + 100, 0).astype(np.float32)
            anat = root / f"calm/{name}/anat"
            write_image(anat / f"{name}_rec-{level}_desc-denoised_T1w.nii.gz", calm)
            write_image(anat / f"{name}_rec-{level}_space-T1w_dseg.nii.gz", labels)
    for folder in ("masks", "calm"):
        (root / folder / "dseg.tsv").write_text("index\tname\n1\tCSF\n2\tGM\n3\tWM\n")
    return root


CHOSEN = ("PSNR", "SSIM", "TCT", "QI", "DiceGM")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_a_study_from_end_to_end(study: Path, tmp_path: Path) -> None:
    code = evaluate_cli.main([
        str(study / "clean"), str(tmp_path), "-d", str(study / "masks"),
        "--result", f"input={study / 'noisy'}", f"calm={study / 'calm'},desc=denoised",
        "--metrics", *CHOSEN,
    ])  # fmt: skip
    assert code == 0
    values = table(tmp_path / "metrics.tsv")
    # 5 people x 2 levels; input has no labels of its own and no QI
    counts = {m: sum(row["metric"] == m for row in values) for m in CHOSEN}
    assert counts == {"PSNR": 20, "SSIM": 20, "TCT": 20, "QI": 10, "DiceGM": 10}
    assert {row["condition"] for row in values} == {"low", "high"}
    dice = {row["value"] for row in values if row["metric"] == "DiceGM"}
    assert dice == {"1"}
    # one value, worked out apart from the program
    clean, mask = brain(0)
    import nibabel as nib

    noisy = np.asarray(nib.load(study / "noisy/sub-1/anat/sub-1_rec-high_T1w.nii.gz").dataobj)
    slope, offset = grids.match_scale(noisy, clean, mask, np.array([4.0, 4, 4]))
    top = float(np.percentile(clean[mask], 99.9))
    wanted = metrics.psnr(np.where(noisy != 0, slope * noisy + offset, 0), clean, mask, top)
    row = next(r for r in values if (r["participant_id"], r["condition"], r["method"], r["metric"])
               == ("sub-1", "high", "input", "PSNR"))
    assert float(row["value"]) == pytest.approx(wanted, abs=1e-3)
    lines = table(tmp_path / "summary.tsv")
    summary = {(r["metric"], r["condition"], r["method"]): r for r in lines}
    calm = summary["PSNR", "high", "calm"]
    assert float(calm["mean_difference"]) > 2 and float(calm["t_p_holm"]) < 0.01
    assert float(calm["t_p_holm"]) >= float(calm["t_p"])
    assert summary["PSNR", statistics.ALL, "calm"]["n_pairs"] == "5"
    assert summary["PSNR", "high", "input"]["t_p"] == "n/a"
    images = table(tmp_path / "images.tsv")
    assert {r["mask"] for r in images} == {"derivatives"}
    assert {round(float(r["slope"]), 1) for r in images if r["method"] == "calm"} <= {0.3, 0.4}
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == len(CHOSEN)
    assert "data:image/png;base64," in page and "Holm" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:|metrics|summary|images)[^"]*"', page)


def test_every_measure_of_one_participant(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_cli, "render", lambda comparison: "")
    code = evaluate_cli.main([
        str(study / "clean"), str(tmp_path), "-d", str(study / "masks"),
        "--result", f"input={study / 'noisy'}", f"calm={study / 'calm'}",
        "--participant-label", "sub-1", "--metrics", *MEASURES,
    ])  # fmt: skip
    assert code == 0
    values = table(tmp_path / "metrics.tsv")
    counts = {m: sum(row["metric"] == m for row in values) for m in MEASURES}
    single = {"QI", *(name for name in MEASURES if name.startswith(("Dice", "Volume")))}
    assert counts == {name: 2 if name in single else 4 for name in MEASURES}
    levels = json.loads((tmp_path / "metrics.json").read_text())["metric"]["Levels"]
    assert set(levels) == set(MEASURES)
    flat = {row["value"] for row in values if row["metric"].startswith("Volume")}
    assert flat == {"0"}  # the same labels


def test_without_matching_the_scale_counts(study: Path, tmp_path: Path) -> None:
    call = [str(study / "clean"), str(tmp_path), "--result", f"calm={study / 'calm'}",
            "--metrics", "PSNR", "--participant-label", "sub-1"]  # fmt: skip
    means = []
    for scale in ("linear", "none"):
        assert evaluate_cli.main([*call, "--scale", scale]) == 0
        means.append(float(table(tmp_path / "summary.tsv")[0]["mean"]))
    assert means[0] > means[1] + 10
    images = table(tmp_path / "images.tsv")
    assert {(r["slope"], r["offset"], r["mask"]) for r in images} == {
        ("1", "0", "voxels that are not 0")
    }


def test_one_bad_image_is_named_and_the_others_are_compared(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    for i in (1, 2):
        name = f"sub-{i}/anat/sub-{i}_rec-low_T1w.nii.gz"
        (bad / name).parent.mkdir(parents=True)
        (bad / name).write_bytes((study / "noisy" / name).read_bytes()[: 300 if i == 1 else None])
    out = tmp_path / "out"
    call = [str(study / "clean"), str(out), "--result", f"input={study / 'noisy'}", str(bad),
            "--metrics", "MSE"]  # fmt: skip
    assert evaluate_cli.main(call) == 1
    assert "bad, sub-1_rec-low_T1w.nii.gz: " in capsys.readouterr().err
    page = (out / "index.html").read_text()
    assert "Could not be compared" in page and "Missing: bad 9 of 10" in page
    assert len(table(out / "metrics.tsv")) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--baseline", "other"], "--baseline other: not among input"),
        (["--participant-label", "99"], "no T1w or T2w image as asked for"),
        (["-d", "/nowhere"], "--derivatives /nowhere: no such folder"),
        (["--result", "a=/nowhere"], "/nowhere: no such folder"),
        (["--result", "a={study}/noisy", "a={study}/calm"], "two results are called a"),
        (["--result", "a={study}/noisy,desc=x"], "none of its 0 images belongs to a reference"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    call = [str(study / "clean"), str(tmp_path), "--result", f"input={study / 'noisy'}"]
    assert evaluate_cli.main([*call, *(text.format(study=study) for text in change)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bmex-evaluate: ") and message in said


def test_bundled_labels_of_an_adult_brain_reach_the_goal() -> None:
    """MNI152, which no weights were trained on, against nilearn's tissue maps."""
    record = find_model(
        list_models(models_dir(None)), suffix="T1w", stage="24", model_set="bundled"
    )
    made = stages.rows_of(adult(), record, resolve("cpu", "auto"), number=0, cases=("clean",))
    row = next(iter(made))
    assert float(str(row["psnr"])) > 32
    assert float(str(row["dice_GM"])) > 0.85
    assert float(str(row["dice_WM"])) > 0.85
