"""Crop, flip and normalise on the device against NumPy for the same random numbers."""

import jax
import numpy as np
import pytest

from afa_jax.data.augment import Preprocess, centre_crop, normalise, random_crop, random_flip
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
