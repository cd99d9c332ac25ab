"""The intensities of the image sharpen what the classifier says of its tissues."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from bmex_bids.inference import Compute, enhance_volume
from bmex_bids.metrics import dice
from bmex_bids.mixture import posterior
from bmex_bids.networks import TissueGuidedUNet

Volume = npt.NDArray[np.float32]
SIDE = 42  # no multiple of the blocks


def phantom(noise: float) -> tuple[npt.NDArray[np.intp], Volume, Volume]:
    """Folded shells of fluid, grey and white matter; what a coarse classifier says; the image."""
    x, y, z = np.mgrid[:SIDE, :SIDE, :SIDE] - (SIDE - 1) / 2
    fold = 1.5 * (np.sin(x / 2) + np.sin(y / 2))
    radius = np.sqrt(x**2 + y**2 + z**2) + fold
    tissue = np.select([radius < 9, radius < 13, np.sqrt(x**2 + y**2 + z**2) < 17], [3, 2, 1], 0)
    shares = np.stack([gaussian_filter((tissue == c).astype(np.float32), 1.5) for c in range(4)])
    probabilities = np.concatenate((shares, np.zeros((1, *tissue.shape)))).astype(np.float32)
    probabilities /= probabilities.sum(0)
    shading = 1 + 0.01 * x
    image = np.array([0, 0.3, 0.8, 1.2])[tissue] * shading
    image += noise * np.random.default_rng(1).standard_normal(tissue.shape)
    return tissue, probabilities, np.where(tissue > 0, np.maximum(image, 0.01), 0).astype(
        np.float32
    )


def scores(found: Volume, tissue: npt.NDArray[np.intp]) -> list[float]:
    labels = found[1:4].argmax(0) + 1
    return [dice((labels == c) & (tissue > 0), tissue == c) for c in (1, 2, 3)]


@pytest.mark.parametrize(("noise", "left"), [(0.0, 0.0), (0.1, 1 / 3)])
def test_borders_come_from_the_intensities(noise: float, left: float) -> None:
    tissue, given, image = phantom(noise)
    before, after = scores(given, tissue), scores(posterior(given, image), tissue)
    assert max(before) < 0.99
    assert all(1 - b <= left * (1 - a) for a, b in zip(before, after, strict=True)), (before, after)


def test_where_all_tissues_look_alike_the_network_is_believed() -> None:
    tissue, given, image = phantom(0.0)
    image = (image > 0).astype(np.float32)
    before, after = scores(given, tissue), scores(posterior(given, image), tissue)
    assert all(b > a - 0.05 for a, b in zip(before, after, strict=True)), (before, after)


def test_background_lesions_and_sum_stay() -> None:
    _, given, image = phantom(0.05)
    given *= 0.9
    given[4] += 0.1
    untouched = given.copy()
    found = posterior(given, image)
    np.testing.assert_array_equal(given, untouched)
    np.testing.assert_array_equal(found[[0, 4]], given[[0, 4]])
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    outside = image == 0
    np.testing.assert_array_equal(found[:, outside], given[:, outside])
    assert (found[1:4] >= 0).all()


def test_scale_of_the_image_does_not_matter() -> None:
    _, given, image = phantom(0.05)
    np.testing.assert_allclose(
        posterior(given, image), posterior(given, 700 * image), atol=2e-3
    )


def test_no_brain_and_no_tissue() -> None:
    _, given, image = phantom(0.0)
    np.testing.assert_array_equal(posterior(given, 0 * image), given)
    given[1:] = 0
    given[0] = 1
    np.testing.assert_array_equal(posterior(given, image), given)


def test_a_pair_is_refined_and_what_the_network_says_can_be_had() -> None:
    part = {"widths": [4, 6], "thin": 0}
    network = TissueGuidedUNet(part, part, classes=5).eval()
    _, _, image = phantom(0.05)
    cpu = Compute("cpu", "float32")
    plain = enhance_volume(network, image, cpu, mixture=False)
    refined = enhance_volume(network, image, cpu)
    np.testing.assert_array_equal(refined[0], posterior(plain[0], image))
    assert not np.allclose(refined[0], plain[0])
    np.testing.assert_array_equal(refined[1], plain[1])  # the image is not touched by it
