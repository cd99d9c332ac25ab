"""Synthesis: anatomy, contrasts and heads from label maps; what is measured is what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bmex_bids.training import (
    anatomy,
    fields,
    labels,
    losses,
    measure,
    pool,
    stages,
    synthesis,
    template_labels,
)
from bmex_bids.training.degrade import Recipe

NAMES = [
    "background",
    "left cerebral white matter",
    "left cerebral cortex",
    "CSF",
    "extra-cerebral",
    "left lateral ventricle",
    "left lesion",
]
TABLE = labels.LabelTable(NAMES, torch.tensor([0, 3, 2, 1, 5, 1, 4]))
WHITE, CORTEX, CSF, VENTRICLE, LESION = 1, 2, 3, 5, 6


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def label_head() -> labels.LabelMap:
    """Shells around a ventricle: white matter, cortex, fluid, skull."""
    grid = np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"), -1) - 23.5
    radius = np.sqrt((grid**2).sum(-1))
    made = np.zeros((48, 48, 48), np.uint8)
    for index, limit in ((4, 22), (CSF, 18), (CORTEX, 16), (WHITE, 12), (VENTRICLE, 4)):
        made[radius < limit] = index
    brain = labels.brain_of(made, TABLE)
    return labels.LabelMap("head-x", torch.from_numpy(made), torch.from_numpy(brain))


def count(volume: torch.Tensor, label: int) -> int:
    return int((volume == label).sum())


def test_brain_of_leaves_outer_fluid_out_and_fills_holes() -> None:
    head = label_head()
    assert bool(head.brain[23, 23, 23])
    inside = np.isin(head.labels.numpy(), (WHITE, CORTEX, VENTRICLE))
    np.testing.assert_array_equal(head.brain.numpy(), inside)


def test_a_wide_fissure_is_brain_and_the_fluid_beside_it_is_not() -> None:
    made = label_head().labels.numpy().copy()
    made[19:29, 14:34, 30:][np.isin(made[19:29, 14:34, 30:], (WHITE, CORTEX))] = CSF
    brain = labels.brain_of(made, TABLE)
    assert brain[20:28, 20:28, 30:36].all()
    assert not brain[23, 23, 41]


@pytest.mark.parametrize("steps", [-2, -1, 0, 1, 3])
def test_ventricles_grow_and_shrink_into_white_matter_only(steps: int) -> None:
    head = label_head()
    grown = anatomy.grow_ventricles(head.labels, TABLE, steps)
    change = count(grown, VENTRICLE) - count(head.labels, VENTRICLE)
    assert np.sign(change) == np.sign(steps)
    assert change == count(head.labels, WHITE) - count(grown, WHITE)
    for label in (CORTEX, CSF, 4):
        assert bool(((grown == label) == (head.labels == label)).all())


@pytest.mark.parametrize("amount", [-1.0, -0.4, 0.0, 0.4, 1.0])
def test_sulci_widen_with_atrophy_and_close_with_growth(amount: float) -> None:
    head = label_head()
    brain = torch.from_numpy(np.isin(head.labels.numpy(), (WHITE, CORTEX, CSF, VENTRICLE)))
    made = anatomy.grow_sulci(head.labels, brain, TABLE, amount, generator())
    change = count(made, CORTEX) - count(head.labels, CORTEX)
    assert np.sign(change) == -np.sign(amount)
    assert change == count(head.labels, CSF) - count(made, CSF)
    assert count(made, WHITE) == count(head.labels, WHITE)


@pytest.mark.parametrize("amount", [-1.0, -0.4, 0.0, 0.4, 1.0])
def test_cortex_grows_into_white_matter_and_back(amount: float) -> None:
    head = label_head()
    made = anatomy.grow_cortex(head.labels, TABLE, amount, generator())
    change = count(made, CORTEX) - count(head.labels, CORTEX)
    assert np.sign(change) == np.sign(amount)
    assert change == count(head.labels, WHITE) - count(made, WHITE)
    touching = torch.nn.functional.max_pool3d((made == WHITE)[None, None].float(), 3, 1, 1)[0, 0]
    outer = (head.labels == CSF) & (touching > 0)
    assert not bool(outer.any())  # some cortex stays everywhere


def test_smoothed_gyri_have_no_sulci_and_a_cortex_of_one_thickness() -> None:
    head = label_head()
    folded, brain = head.labels.clone(), head.labels > 0
    folded[:, 23:25, 34:44] = CSF  # a sulcus through the cortex into white matter
    made = anatomy.smooth_gyri(folded, brain & (folded != 4), TABLE, 2.0, 3)
    line = made[23, 24, 28:44].tolist()
    cut = line.index(CORTEX)
    assert set(line[:cut]) == {WHITE}
    assert line[cut : cut + 3] == [CORTEX] * 3
    assert CORTEX not in line[cut + 3 :]
    assert count(made, VENTRICLE) == count(head.labels, VENTRICLE)
    assert bool(((made == 4) == (folded == 4)).all())


def test_fluid_is_laid_around_the_brain() -> None:
    head = label_head()
    made, brain = anatomy.add_fluid(head.labels, head.brain, TABLE, 2.0, generator())
    assert bool((brain | head.brain).eq(brain).all())
    new = brain & ~head.brain
    assert bool((made[new] == CSF).all())
    assert bool((made[~new] == head.labels[~new]).all())
    shell = 4 / 3 * np.pi * ((16 + 2) ** 3 - 16**3)
    assert int(new.sum()) == pytest.approx(shell, rel=0.5)


def test_lesions_lie_in_white_matter_and_are_known() -> None:
    head = label_head()
    made, mask = anatomy.insert_lesions(head.labels, TABLE, 3, generator(), radius=(2.0, 3.0))
    assert 20 < int(mask.sum()) < 1500
    assert bool((head.labels[mask] == WHITE).all())
    assert bool(((made == LESION) == mask).all())
    again, _ = anatomy.insert_lesions(head.labels, TABLE, 3, generator(), radius=(2.0, 3.0))
    assert bool((again == made).all())


def test_no_white_matter_no_lesions() -> None:
    empty = torch.zeros(8, 8, 8, dtype=torch.uint8)
    made, mask = anatomy.insert_lesions(empty, TABLE, 3, generator())
    assert not bool(mask.any())
    assert bool((made == empty).all())


@pytest.mark.parametrize(
    ("condition", "white_is_brighter"),
    [("T1w-24", True), ("T1w-12", True), ("T2w-12", False), ("T1w-0", False), ("T2w-0", True)],
)
def test_drawn_contrast_has_the_order_of_the_stage(
    condition: str, white_is_brighter: bool
) -> None:
    for seed in range(5):
        drawn = stages.draw_contrast(condition, TABLE.names, TABLE.tissue, generator(seed)).means
        assert bool(drawn[WHITE] > drawn[CORTEX]) == white_is_brighter
        fluid_is_bright = condition.startswith("T2w")
        assert bool(drawn[VENTRICLE] > drawn[CORTEX]) == fluid_is_bright
        low, high = sorted((float(drawn[WHITE]), float(drawn[VENTRICLE])))
        assert low <= float(drawn[LESION]) <= high


def test_white_matter_of_newborns_is_brighter_where_myelination_begins() -> None:
    """Half of the shells' white matter is near a thalamus at their centre."""
    head = label_head()
    table = labels.LabelTable([*NAMES, "left thalamus"], torch.tensor([0, 3, 2, 1, 5, 1, 4, 2]))
    made = torch.where(head.labels == VENTRICLE, 7, head.labels)
    grid = torch.stack(torch.meshgrid(*[torch.arange(48) - 23.5] * 3, indexing="ij"), -1)
    radius = (grid**2).sum(-1).sqrt()
    ratio = {}
    for condition in ("T1w-0", "T2w-0", "T1w-24"):
        contrast = stages.draw_contrast(condition, table.names, table.tissue, generator(3))
        contrast = replace(contrast, spread=torch.zeros_like(contrast.spread))
        if contrast.myelination is not None:
            near = replace(contrast.myelination, reach=8.0)
            contrast = replace(contrast, myelination=near)
        painted = synthesis._painted(made, contrast, generator(4))[0]
        inner = painted[(made == WHITE) & (radius < 6)].mean()
        ratio[condition] = float(inner / painted[(made == WHITE) & (radius > 10)].mean())
    assert ratio["T1w-0"] > 1.005  # by a drawn share of what was measured
    assert ratio["T2w-0"] < 0.995
    assert ratio["T1w-24"] == pytest.approx(1)


def test_every_condition_has_a_measured_contrast() -> None:
    for condition in set(stages.CONDITIONS) - {"any"}:
        structures = stages.contrast_of(condition)
        assert {stages.WHITE, stages.GREY, stages.FLUID} <= set(structures)


def test_a_stage_between_others_lies_between_them() -> None:
    young, between, old = (stages.contrast_of(f"T1w-{s}", 0.25)[stages.WHITE][0] for s in "036")
    assert between == pytest.approx(0.75 * young + 0.25 * old)
    ratios = []
    for seed in range(20):
        drawn = stages.draw_contrast("T1w-3", TABLE.names, TABLE.tissue, generator(seed)).means
        ratios.append(float(drawn[WHITE] / drawn[CORTEX]))
    assert min(ratios) < 0.95 and max(ratios) > min(ratios) + 0.05


def test_synthesis_paints_tissues_in_order() -> None:
    head = label_head()
    contrast = stages.draw_contrast("T1w-24", TABLE.names, TABLE.tissue, generator())
    made = synthesis.synthesise(
        head.labels, head.brain, contrast, TABLE.tissue, generator(),
        geometry=synthesis.Geometry(1.0, (48, 48, 48)),
    )
    white, grey = made.clean[made.tissue == 3].mean(), made.clean[made.tissue == 2].mean()
    assert float(white) > float(grey) > 0.3
    assert bool(((made.tissue > 0) == made.brain).all())
    half = synthesis.synthesise(
        head.labels, head.brain, contrast, TABLE.tissue, generator(),
        geometry=synthesis.Geometry(2.0, (24, 24, 24)),
    )
    assert float(half.brain.sum()) * 8 == pytest.approx(float(made.brain.sum()), rel=0.1)


def test_lesions_become_a_class_of_their_own() -> None:
    head = label_head()
    marked, mask = anatomy.insert_lesions(head.labels, TABLE, 2, generator(), radius=(3.0, 4.0))
    contrast = stages.random_contrast(TABLE.tissue, generator())
    made = synthesis.synthesise(
        marked, head.brain, contrast, TABLE.tissue, generator(),
        geometry=synthesis.Geometry(1.0, (48, 48, 48), warp=0.0, turn=0.0),
    )
    assert float((made.tissue == 4).sum()) == pytest.approx(float(mask.sum()), rel=0.4)


@pytest.mark.parametrize("condition", ["any", "T2w-fetal", "T1w-24"])
def test_a_sample_says_what_it_is(condition: str) -> None:
    sample = pool.enhancement_sample(
        label_head(), TABLE, generator(), Recipe(noise=0.05), condition=condition, states=4
    )
    assert int(sample["condition"]) == stages.CONDITIONS.index(condition)
    inside = sample["brain"] > 0
    assert float(sample["input"][inside].float().median()) == pytest.approx(1, abs=0.02)
    assert not bool(sample["input"][~inside].any())
    assert int(sample["tissue"].max()) <= 4


def test_measured_statistics_by_hand() -> None:
    image = np.full((30, 30, 30), 2.0, np.float32)
    image[:10] = 4.0
    image[:, :, 20:] = 0  # outside the brain
    tissue = np.full(image.shape, 2, np.uint8)
    tissue[:10] = 3
    tissue[image == 0] = 0
    structures = np.where(tissue == 3, 1, 2).astype(np.uint8)
    found = measure.structure_statistics(image, tissue, structures, NAMES)
    assert found["cerebral white matter"][:2] == [2.0, 0.0]
    assert found["cerebral cortex"][:2] == [1.0, 0.0]
    assert "lesion" not in found


@pytest.mark.parametrize("true", [2.0, 0.3])
def test_narrow_spaces_do_not_draw_fluid_towards_grey_matter(true: float) -> None:
    rng = np.random.default_rng(0)
    noise = lambda n: rng.normal(0, 0.05 * true, n)  # noqa: E731
    share = rng.random(4000)  # of tissue in the voxels of sulci
    sulci = np.clip(true + noise(4000) + share * (1 - true), 0, None)
    ventricle = np.concatenate([true + noise(300), 1 + noise(150)])  # a third of it is tissue
    mean, spread = measure.pure_fluid([sulci, ventricle], grey=1.0)
    assert mean == pytest.approx(true, rel=0.08)
    assert spread == pytest.approx(0.05, abs=0.03)
    assert abs(np.median(sulci) - true) > 0.3 * abs(1 - true)  # what its median would have said


def test_fluid_has_one_intensity_in_all_spaces() -> None:
    for condition in stages.CONDITIONS[1:]:
        table = stages.contrast_of(condition)
        found = {table[name] for name in stages.FLUIDS if name in table}
        assert len(found) == 1, condition


def test_texture_has_unit_variance_and_bias_is_positive() -> None:
    assert float(fields.texture((20, 24, 28), (2, 4), generator()).std()) == pytest.approx(1)
    assert float(fields.bias_field((8, 9, 10), 0.3, generator()).min()) > 0
    assert bool((fields.bias_field((8, 9, 10), 0.0, generator()) == 1).all())


def test_white_matter_at_the_surface_is_not_known() -> None:
    tissue = np.zeros((20, 20, 20), np.uint8)
    tissue[3:17, 3:17, 3:17] = 3
    tissue[3, 5, 5] = 1  # what is not white stays
    found = template_labels.without_white_rim(tissue)
    assert set(np.unique(found[5:15, 5:15, 5:15])) == {3}
    assert found[3, 5, 5] == 1
    assert found[4, 10, 10] == losses.IGNORE
    assert not found[tissue == 0].any()
