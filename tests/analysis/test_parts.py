"""Parts of birds: where they land, and what is counted, by hand."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from afa_jax.analysis.parts import NAMES, at, on_crop, part_activations, summary
from afa_jax.data.builders.cub200_2011 import PARTS
from afa_jax.data.dataset import Split
from afa_jax.data.images import centre_crop, resize
from afa_jax.errors import UserError
from tests.analysis import made


@pytest.mark.parametrize("form", ["square", "whole"])
@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (33, 70)])
def test_a_point_lands_where_its_pixels_do(form, width, height):
    """A bright square around the point, resized and cropped as images are, has its middle there."""
    x, y = width / 2 + 4.0, height / 2 - 7.0
    image = np.zeros((height, width, 3), np.uint8)
    image[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4] = 255
    crop = centre_crop(resize(Image.fromarray(image), 80, form), 64)[..., 0].astype(float)
    rows, columns = np.mgrid[:64, :64]
    middle = [(crop * columns).sum() / crop.sum(), (crop * rows).sum() / crop.sum()]
    points = np.array([[[round(x), round(y)]]], float)
    np.testing.assert_allclose(on_crop(points, np.array([[width, height]]), form, 80, 64)[0, 0], middle, atol=0.1)


def test_a_map_is_read_as_if_it_were_resized_to_the_crop():
    maps = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    large = np.asarray(jax.image.resize(maps, (2, 24, 24, 5), "bilinear"))
    points = np.array([[[0, 0], [23, 23], [5, 11]], [[12, 7], [23, 0], [2, 22]]])
    read = at(maps, points, 24)
    for i in range(2):
        for k, (x, y) in enumerate(points[i]):
            np.testing.assert_allclose(read[i, k], large[i, y, x], atol=1e-6)


def run_on(split, size=8, resize=10):
    """What `part_activations` asks of a run."""
    experiment = SimpleNamespace(data=SimpleNamespace(augmentation="default", name="birds"))
    return SimpleNamespace(test=split, experiment=experiment, resize=resize, size=size, preprocess=made.plain(size))


def test_only_parts_that_are_visible_and_inside_the_crop_are_counted():
    """Originals of 20 × 40 pixels, resized to 10 × 10 and cropped to 8 × 8."""
    images = np.zeros((2, 10, 10, 3), np.uint8)
    images[0, 4, 5] = 255  # red, green and blue
    images[1, 2, 7] = (255, 0, 0)
    images[1, 6, 3] = (0, 255, 0)
    parts = np.zeros((2, PARTS, 3), np.float32)
    original = lambda row, column: (2 * column + 0.5, 4 * row + 1.5)  # noqa: E731
    parts[0, 0] = (*original(4, 5), 1)  # seen, bright in both units
    parts[0, 1] = (*original(4, 5), 0)  # invisible
    parts[0, 2] = (*original(0, 5), 1)  # cropped away
    parts[1, 0] = (*original(2, 7), 1)  # bright in the first unit only
    parts[1, 3] = (*original(6, 3), 1)  # in the second only
    extras = {"parts": parts, "original_size": np.array([[20, 40]] * 2, np.int32)}
    told = part_activations(
        run_on(Split(images, np.zeros(2, np.int32), (), extras)), made.net((1, 0, 0), (0, 1, 0)), "see"
    )
    assert told["parts"]["back"] == {"mean": pytest.approx((1 + 0.5) / 2), "count": 2}
    assert told["parts"]["breast"] == {"mean": pytest.approx(0.5), "count": 1}
    assert set(told["parts"]) == {"back", "breast"}
    assert told["mean"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert told["sum"] == pytest.approx(0.75 + 0.5)


def test_the_official_names_are_as_many_as_the_parts():
    assert len(set(NAMES)) == PARTS == 15
    with pytest.raises(UserError, match="No test image shows any part"):
        summary(np.zeros(15), np.zeros(15, int))


def test_a_data_set_without_parts(trained):
    with pytest.raises(UserError, match="digits says nothing of parts; cub200_2011 does"):
        part_activations(trained, trained.target, "layer4")
