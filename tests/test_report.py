import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy import ndimage
from synthetic_run import SHA, make_result

from bmex_bids import derivatives, figures, pictures, report
from bmex_bids.bids import write_text
from bmex_bids.image import load_image

HEADS = Path(__file__).parents[2] / "shared" / "data" / "heads" / "colin27_T1w.nii.gz"


class Page(HTMLParser):
    """Collects ids, links, pictures and everything that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        if named.get("id"):
            self.ids.append(named["id"] or "")
        if tag == "a":
            self.links.append(named.get("href") or "")
        if tag == "img":
            self.pictures.append((named.get("src") or "", named.get("alt") or ""))
        if tag in ("script", "link", "iframe", "object"):
            assert "src" not in named and "href" not in named and "data" not in named


def finished(folder: Path, entities: dict[str, str] | None = None, **options: object) -> Path:
    """Write derivatives and pictures of one run; return the output directory."""
    result = make_result(folder, entities, **options)  # type: ignore[arg-type]
    derivatives.write(result, folder / "out")
    report.run_figures(folder / "out", result.job)
    return folder / "out"


def figures_of(out: Path) -> set[str]:
    return {path.name for path in (out / "sub-01" / "figures").iterdir()}


def names(*descs: str) -> set[str]:
    """Names of pictures; of the sheets of slices only the layers are given, as ``+Before``."""
    found = {f"sub-01_desc-{d}_T1w{pictures.PICTURES[d]}" for d in descs if d[0] != "+"}
    for layer in (d[1:] for d in descs if d[0] == "+"):
        ext = "jpg" if layer in ("Before", "After") else "png"
        found.add(f"sub-01_desc-slices{layer}_T1w.{ext}")
    return found | {"sub-01_desc-slices_T1w.json"}


def test_pictures_of_a_run(tmp_path: Path) -> None:
    out = finished(tmp_path, extras=True)
    stills = ("before", "after", "contours", "residual", "uncertainty", "histogram")
    sheets = ("+Before", "+After", "+Residual", "+Uncertainty", "+Masks")
    assert figures_of(out) == names(*stills, *sheets)


def test_pictures_of_an_earlier_start_go(tmp_path: Path) -> None:
    out = finished(tmp_path, extras=True)
    other = out / "sub-01" / "figures" / "sub-01_run-2_desc-uncertainty_T1w.jpg"
    other.touch()
    finished(tmp_path)
    assert other.exists() and not {n for n in figures_of(out) if "Unc" in n or "-unc" in n} - {
        other.name
    }


def test_measured_only_shows_the_input_only(tmp_path: Path) -> None:
    out = finished(tmp_path, measure_only=True)
    assert figures_of(out) == names("before", "contours", "histogram", "+Before", "+Masks")
    text = report.subject_report(out, "01").read_text()
    assert "measured only" in text and "flicker" not in Page(text).ids
    assert "desc-after" not in text and "desc-residual" not in text


def test_before_and_after_share_one_window(tmp_path: Path) -> None:
    """Outside the brain nothing changes, so the two pictures must have equal pixels there."""
    result = make_result(tmp_path)
    out = finished(tmp_path)
    before, after = (
        np.asarray(Pillow.open(out / "sub-01" / "figures" / f"sub-01_desc-{d}_T1w.jpg"))
        for d in ("before", "after")
    )
    montage = figures.plan_montage(result.mask, result.image.affine)
    brain = figures.montage_image(result.mask, montage)
    rows = slice(figures.HEADER, figures.HEADER + montage.shape[0])
    # JPEG mixes blocks of 8 pixels, so what counts lies further away from the brain.
    far = ndimage.distance_transform_edt(brain == 0) > 16
    outside = before[rows][far], after[rows][far]
    np.testing.assert_allclose(*(part.astype(int) for part in outside), atol=1)
    assert len(np.unique(outside[0])) > 50
    assert (before[rows][brain == 1] != after[rows][brain == 1]).mean() > 0.5


def test_page_is_complete_and_offline(tmp_path: Path) -> None:
    out = finished(tmp_path, extras=True, flags=("The mask is small.",))
    path = report.subject_report(out, "01")
    assert path == out / "sub-01.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.pictures) == 6
    for source, alt in page.pictures:
        assert (out / source).is_file() and len(alt) > 20
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text) and "@import" not in text
    assert {"overview", "sub-01_T1w", "methods"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith("#") and link[1:] in page.ids
    viewer = json.loads(html.unescape(re.findall(r"data-viewer='([^']*)'", text)[0]))
    for name in viewer["files"].values():
        assert (out / viewer["folder"] / name).is_file()
    wanted = ["8.0 years", "participants.tsv:age (years)", "bmex-24-T1w", SHA, "float32"]
    wanted += ["Quality index", "over-smoothed", "higher is better", "lower is better", "Copy"]
    wanted += ["mask-net (SHA-256 cdcdcdcdcdcd...)", "bmex 0.1.0"]
    wanted += ["10.1038/s41551-024-01283-7", "10.1109/TMI.2010.2046908"]
    for word in wanted:
        assert word in text, word
    run = text.index('id="sub-01_T1w"')
    assert text.index("The mask is small.", run) < text.index("<img", run)
    assert [p for p in out.iterdir() if p.name.startswith(".")] == []


def test_runs_in_natural_order(tmp_path: Path) -> None:
    for entities in (
        {"sub": "01", "ses": "2", "run": "1"},
        {"sub": "01", "ses": "1", "run": "10"},
        {"sub": "01", "ses": "1", "run": "2"},
        {"sub": "01", "ses": "10"},
    ):
        derivatives.write(make_result(tmp_path, entities), tmp_path / "out")
    text = report.subject_report(tmp_path / "out", "01").read_text()
    runs = [name for name in Page(text).ids if name.endswith("_T1w") and name.startswith("sub")]
    assert runs == [
        "sub-01_ses-1_run-2_T1w",
        "sub-01_ses-1_run-10_T1w",
        "sub-01_ses-2_run-1_T1w",
        "sub-01_ses-10_T1w",
    ]
    assert text.count("pictures of this run are missing") == 4
    first, last = text.index(f'id="{runs[0]}"'), text.index(f'id="{runs[-1]}"')
    assert 'rel="prev"' not in text[first : text.index("</h3>", first)]
    assert f'href="#{runs[1]}" rel="next"' in text[first : text.index("</h3>", first)]
    assert f'href="#{runs[2]}" rel="prev"' in text[last:] and 'rel="next"' not in text[last:]
    assert "session 1, run 10" in text


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    out = finished(
        tmp_path, flags=("<script>alert(1)</script>", "{{ 7 * 7 }} {subject} \N{SNOWMAN}")
    )
    write_text(out / "logs" / "crash-sub-01_T2w.txt", "<img src=x>\nTraceback & more")
    text = report.subject_report(out, "01").read_text()
    assert "<script>alert" not in text and "<img src=x>" not in text
    assert "&lt;script&gt;" in text and "{{ 7 * 7 }} {subject}" in text
    assert Page(text).tags.count("script") == 1


def test_errors_come_first_and_only_of_this_subject(tmp_path: Path) -> None:
    out = finished(tmp_path)
    write_text(out / "logs" / "crash-sub-01_run-2_T1w.txt", "file damaged\nTraceback: x")
    write_text(out / "logs" / "crash-sub-011_T1w.txt", "another subject")
    text = report.subject_report(out, "01").read_text()
    assert "another subject" not in text
    assert text.index("file damaged") < text.index('id="sub-01_T1w"')
    assert "Traceback: x" in text and "1 run finished, 1 failed" in text


def test_subject_without_any_finished_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_text(out / "logs" / "crash-sub-01_T1w.txt", "no age found")
    text = report.subject_report(out, "01").read_text()
    assert "no age found" in text and "Methods text" not in text


def test_broken_sidecar_is_an_error_on_the_page(tmp_path: Path) -> None:
    out = finished(tmp_path)
    (out / "sub-01" / "anat" / "sub-01_desc-enhanced_T1w.json").write_text("{")
    assert "not valid JSON" in report.subject_report(out, "01").read_text()


def test_pictures_need_derivatives(tmp_path: Path) -> None:
    result = make_result(tmp_path)
    with pytest.raises(FileNotFoundError, match="run 'participant' first"):
        report.run_figures(tmp_path / "out", result.job)


def test_relative_output_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "sub-01_T1w" in report.subject_report(Path("out"), "01").read_text()


def test_methods_text_names_what_was_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in ("1", "2"):
        derivatives.write(make_result(tmp_path, {"sub": "01", "run": number}), out)
    runs = [derivatives.read_run(path) for path in derivatives.run_sidecars(out)]
    text = report.methods_text([run for run in runs if run])
    assert "2 T1w images enhanced with model bmex-24-T1w" in text
    assert "not the weights published" in text and "&" not in text
    assert "mixture of Gaussians" not in text and "Zhang" not in text
    mixed = [replace(run, content=run.content | {"TissueMethod": "network, then a mixture"})
             for run in runs if run]
    text = report.methods_text(mixed)
    assert "mixture of Gaussians" in text and "Zhang" in text and "\n\n\n" not in text


def test_oblique_image_is_drawn(tmp_path: Path) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    affine = turn @ np.diag([-5.0, 5.0, 5.0, 1.0])
    assert len(figures_of(finished(tmp_path, affine=affine))) == 10


def test_numbers_stand_among_those_of_other_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(5):
        derivatives.write(make_result(tmp_path, {"sub": f"1{number}"}), out)
    result = make_result(tmp_path, {"sub": "01"})
    derivatives.write(replace(result, metrics=result.metrics | {"TCTAfter": 9.0}), out)
    text = report.subject_report(out, "01").read_text()
    assert "the 5 other T1w runs of age stage 24 (5 participants)" in text
    assert "before above 0 of 5; after the highest of 6" in text
    assert text.count('<svg class="strip" role="img"') > 8
    alone = report.subject_report(finished(tmp_path / "alone"), "01").read_text()
    assert "There are no other T1w runs of age stage 24" in alone
    assert "No distribution of these measures from other data" in alone
    assert '<svg class="strip" role="img"' not in alone


def test_link_to_the_group(tmp_path: Path) -> None:
    out = finished(tmp_path)
    assert "group.html" not in Page(report.subject_report(out, "01").read_text()).links
    (out / "group.html").touch()
    assert "./group.html" in Page(report.subject_report(out, "01").read_text()).links


def test_real_head_within_budget(tmp_path: Path) -> None:
    if not HEADS.exists():
        pytest.skip("the shared data with a real head is not there")
    result = make_result(tmp_path)
    image = load_image(HEADS)
    brain = image.data > np.percentile(image.data, 75)
    labels = (brain * np.clip(image.data // 45, 1, 3)).astype(np.uint8)
    after = np.where(brain, image.data * np.float32(1.02), image.data).astype(np.float32)
    raw = result.job.path
    raw.write_bytes(HEADS.read_bytes())
    real = derivatives.Result(
        **(
            vars(result)
            | {"image": image, "mask": brain, "labels": labels, "preproc": after}
            | {"probabilities": np.stack([labels == k for k in (1, 2, 3)]).astype(np.float32)}
            | {"enhanced": after / 100}
        )
    )
    out = tmp_path / "out"
    derivatives.write(real, out)
    report.run_figures(out, real.job)
    report.subject_report(out, "01")
    size = sum(path.stat().st_size for path in (out / "sub-01" / "figures").iterdir())
    assert size < 6e6
