"""A section of the group page: mean and spread of all runs in a standard space."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bmex_bids.bids import parse_entities, read_json
from bmex_bids.grouppage import ExtraSection
from bmex_bids.image import ImageError, load_image
from bmex_bids.rendering import natural_key, templates
from bmex_bids.spacefiles import result_digest

__all__ = ["Spread", "spread_of", "space_sections"]

Array = npt.NDArray[np.float32]
MOST_RUNS = 200  # of a space; of more, this many are taken evenly
SHARE = 0.5  # of the runs whose brain covers a voxel that is drawn and counted


@dataclass(frozen=True)
class Spread:
    """Voxelwise mean and standard deviation of runs on one grid.

    Attributes:
        mean: (x, y, z) on the common scale.
        sd: (x, y, z) with n - 1 in the denominator; 0 for a single run.
        cover: (x, y, z) share of the runs that are above 0.
        affine: (4, 4) voxel -> RAS+ mm.
        count: number of runs.
    """

    mean: Array
    sd: Array
    cover: Array
    affine: npt.NDArray[np.float64]
    count: int


@dataclass(frozen=True)
class _Pair:
    """The two images of one run in a space."""

    before: Path
    after: Path


def space_sections(out: Path) -> list[ExtraSection]:
    """Return one section for every contrast and space that two runs or more have.

    Args:
        out: root of the output dataset.
    """
    sections = []
    groups = _groups(out)
    for suffix, label in sorted(groups, key=lambda key: (key[0], natural_key(key[1]))):
        found = groups[suffix, label]
        if len(found) < 2:
            continue
        step = max(len(found) / MOST_RUNS, 1.0)
        chosen = [found[int(i * step)] for i in range(min(len(found), MOST_RUNS))]
        before, after, left_out = _spreads(chosen)
        if after.count < 2:
            continue
        html = (
            templates()
            .get_template("groupspaces.html.j2")
            .render(
                suffix=suffix,
                label=label,
                count=after.count,
                total=len(found),
                rows=_rows(before, after),
                picture=_picture(before, after),
                left_out=left_out,
            )
        )
        anchor = f"{suffix}-space-{label.replace('+', '-')}"
        sections.append(ExtraSection(anchor, f"{suffix}: all runs in {label}", html))
    return sections


def spread_of(paths: Sequence[Path]) -> tuple[Spread, list[str]]:
    """Return mean and standard deviation of images on one grid, read one after the other.

    Welford's updates, so that two volumes are held whatever the number of runs.

    Args:
        paths: of the images; those on another grid than the first, or unreadable, are left out.

    Returns:
        The spread, and the names of the images that were left out.
    """
    mean: npt.NDArray[np.float64] = np.zeros((0, 0, 0))
    squares, cover = mean, mean
    affine, count, left_out = np.eye(4), 0, []
    for path in paths:
        try:
            image = load_image(path)
        except (ImageError, OSError):
            left_out.append(path.name)
            continue
        if count == 0:
            affine = image.affine
            mean, squares, cover = (np.zeros(image.data.shape) for _ in range(3))
        elif image.data.shape != mean.shape or not np.allclose(image.affine, affine, atol=1e-3):
            left_out.append(path.name)
            continue
        count += 1
        off = image.data - mean
        mean += off / count
        squares += off * (image.data - mean)
        cover += image.data > 0
    sd = np.sqrt(squares / max(count - 1, 1))
    cover = cover / max(count, 1)
    single = [array.astype(np.float32) for array in (mean, sd, cover)]
    return Spread(single[0], single[1], single[2], affine, count), left_out


def _spreads(pairs: Sequence[_Pair]) -> tuple[Spread, Spread, list[str]]:
    """Return the spread before and after of the same runs, and which images were left out."""
    before, bad = spread_of([pair.before for pair in pairs])
    kept = [pair for pair in pairs if pair.before.name not in bad]
    after, more = spread_of([pair.after for pair in kept])
    if more:
        before, _ = spread_of([pair.before for pair in kept if pair.after.name not in more])
    return before, after, [*bad, *more]


def _groups(out: Path) -> dict[tuple[str, str], list[_Pair]]:
    """Return the pairs of images by contrast and space, of complete runs, in natural order."""
    found: dict[tuple[str, str], list[_Pair]] = {}
    for marker in _markers(out):
        try:
            content = read_json(marker)
        except (OSError, ValueError):
            continue
        entities = parse_entities(marker.name)
        suffix, label = entities["from"], entities["to"]
        start = marker.name.partition("_from-")[0]
        main = marker.with_name(f"{start}_desc-enhanced_{suffix}.json")
        if content.get("SourceSHA256") != result_digest(main):
            continue  # made from another result than the one that is there now
        outputs = content.get("Outputs")
        pairs = [
            _Pair(out / name.replace("_desc-enhanced_", "_desc-input_"), out / name)
            for name in sorted(map(str, outputs if isinstance(outputs, list) else ()))
            if name.endswith(f"_desc-enhanced_{suffix}.nii.gz")
        ]
        if pairs:
            found.setdefault((suffix, label), []).append(pairs[0])
    return found


def _markers(out: Path) -> Iterator[Path]:
    for subject in sorted(out.glob("sub-*"), key=lambda path: natural_key(path.name)):
        if subject.is_dir():
            for where in ("anat", "ses-*/anat"):
                yield from sorted(subject.glob(f"{where}/*_mode-image_xfm.json"))


def _rows(before: Spread, after: Spread) -> list[tuple[str, str, str]]:
    """Return numbers over the voxels that most brains cover: name, before, after."""
    inside = (before.cover >= SHARE) & (after.cover >= SHARE)

    def middles(measure: Callable[[Array, Array], Array]) -> tuple[str, str]:
        found = [measure(s.mean[inside], s.sd[inside]) for s in (before, after)]
        texts = [f"{float(np.median(v)):.4g}" if v.size else "n/a" for v in found]
        return texts[0], texts[1]

    return [
        ("Mean over runs", *middles(lambda mean, sd: mean)),
        ("Standard deviation between runs", *middles(lambda mean, sd: sd)),
        (
            "Standard deviation in % of the mean",
            *middles(lambda mean, sd: np.asarray(100 * sd / np.maximum(mean, 1e-6), np.float32)),
        ),
    ]


def _picture(before: Spread, after: Spread) -> str:
    """Return the four volumes in three slices each as a data URL; one window for each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    inside = (before.cover >= SHARE) & (after.cover >= SHARE)
    figure = Figure(figsize=(12.4, 5.0), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 6)
    for row, (name, colours) in enumerate((("Mean", "gray"), ("Standard deviation", "magma"))):
        volumes = [(s.mean if row == 0 else s.sd) for s in (before, after)]
        values = np.concatenate([volume[inside] for volume in volumes])
        top = float(np.percentile(values, 99.5)) if values.size else 1.0
        norm = Normalize(0, top or 1.0)
        for column, (volume, spread) in enumerate(zip(volumes, (before, after), strict=True)):
            for axis, part in enumerate(_slices(volume, inside, spread.affine)):
                axes = grid[row, 3 * column + axis]
                axes.imshow(part, cmap=colours, norm=norm)
                axes.set_axis_off()
                if axis == 1:
                    axes.set_title(
                        f"{name}, {'after' if column else 'before'}", color="white", fontsize=11
                    )
        scale = ScalarMappable(norm, colours)
        bar = figure.colorbar(scale, ax=list(grid[row]), fraction=0.02, pad=0.01)
        bar.ax.tick_params(colors="white", labelsize=8)
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _slices(
    volume: Array, inside: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64]
) -> Iterator[Array]:
    """Yield a sagittal, a coronal and an axial slice through the brain's middle, in RAS+."""
    import nibabel as nib

    turn = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(volume, turn)
    places = np.argwhere(nib.orientations.apply_orientation(inside, turn))
    middle = places.mean(0).astype(int) if len(places) else np.array(volume.shape) // 2
    middle[0] += max(turned.shape[0] // 12, 1)  # beside the midline, where there is tissue
    for axis in range(3):
        yield np.asarray(np.rot90(turned.take(int(middle[axis]), axis=axis)), np.float32)
