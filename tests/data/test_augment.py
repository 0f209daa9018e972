"""Crop, flip and normalise on the device against NumPy for the same random numbers."""

import jax
import numpy as np
import pytest

from afa_jax.data.augment import Preprocess, normalise, random_crop, random_flip
from afa_jax.data.images import centre_crop, five_crops
from afa_jax.models.network import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 7, 9, 3), np.uint8)


def test_normalise_equals_numpy(images):
    expected = (images / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(normalise(images, IMAGENET_MEAN, IMAGENET_STD), expected, rtol=1e-4, atol=1e-6)


def test_every_crop_is_a_window_of_its_image_and_all_places_occur(images):
    crops = np.asarray(random_crop(jax.random.key(0), images, 5))
    assert crops.shape == (64, 5, 5, 3)
    places = set()
    for image, crop in zip(images, crops, strict=True):
        found = [(i, j) for i in range(3) for j in range(5) if (image[i : i + 5, j : j + 5] == crop).all()]
        assert len(found) == 1
        places |= set(found)
    assert len(places) == 15


def test_flip_mirrors_about_half(images):
    flipped = np.asarray(random_flip(jax.random.key(0), images))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 20 < mirrored.sum() < 44


@pytest.mark.parametrize(("side", "size", "start"), [(8, 4, 2), (7, 4, 2), (9, 4, 2), (5, 4, 0), (256, 224, 16)])
def test_centre_crop_splits_an_odd_margin_as_torchvision_does(side, size, start):
    # torchvision: int(round((side - size) / 2.0)), Python's rounding of halves to even.
    image = np.arange(side)[None, :, None, None] * np.ones((1, 1, side, 1))
    assert centre_crop(image, size)[0, 0, 0, 0] == start
    assert centre_crop(image, size).shape == (1, size, size, 1)


def test_training_and_testing_treatments(images):
    plain = Preprocess(7, flip=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    square = images[:, :, :7]
    np.testing.assert_allclose(plain.test(square), square / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(plain.train(jax.random.key(0), square), plain.test(square))  # nothing to crop
    flipping = Preprocess(7, flip=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (flipping.train(jax.random.key(0), square) != plain.test(square)).any()
    np.testing.assert_array_equal(flipping.test(square), plain.test(square))


def test_crop_and_flip_equal_numpy_for_the_same_random_numbers(images):
    treatment = Preprocess(5, flip=True, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    crop_key, flip_key = jax.random.split(jax.random.key(3))
    corners = np.asarray(jax.random.randint(crop_key, (64, 2), 0, np.array([3, 5])))
    flips = np.asarray(jax.random.bernoulli(flip_key, shape=(64, 1, 1, 1))).ravel()
    expected = []
    for image, (top, left), flip in zip(images, corners, flips, strict=True):
        window = image[top : top + 5, left : left + 5]
        expected.append((window[:, ::-1] if flip else window) / 255 - np.array([0.1, 0.2, 0.3]))
    found = jax.jit(treatment.train)(jax.random.key(3), images)
    np.testing.assert_allclose(found, np.array(expected) / np.array([0.5, 0.6, 0.7]), rtol=1e-5, atol=1e-6)
    assert 0 < flips.sum() < 64


@pytest.mark.parametrize("flip", [True, False])
def test_the_views_of_five_crops_are_ten_with_their_mirror_images(images, flip):
    treatment = Preprocess(4, flip=flip, mean=(0.0,) * 3, std=(1.0,) * 3)
    crops = np.stack([five_crops(image, 4) for image in images])
    views = np.asarray(treatment.views(crops))
    assert views.shape == (10 if flip else 5, 64, 4, 4, 3)
    np.testing.assert_array_equal(views[:5], crops.swapaxes(0, 1))
    if flip:
        np.testing.assert_array_equal(views[5:], crops.swapaxes(0, 1)[..., ::-1, :])
    single = treatment.views(images[:, :4, :4])
    np.testing.assert_array_equal(single[0], images[:, :4, :4])
    assert len(single) == 1
