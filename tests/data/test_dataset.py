"""The catalogue, the choice of few labelled images, and the two embedded data sets."""

import numpy as np
import pytest

from afa_jax.data import catalog
from afa_jax.data.dataset import Request, few_per_class
from afa_jax.errors import UserError


def test_few_per_class_is_balanced_seeded_and_nested():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    five, ten, other = few_per_class(labels, 5, 1), few_per_class(labels, 10, 1), few_per_class(labels, 5, 2)
    assert np.bincount(labels[five]).tolist() == [5] * 4
    assert set(five) < set(ten)
    assert set(five) != set(other)
    np.testing.assert_array_equal(five, few_per_class(labels, 5, 1))


def test_more_labelled_images_than_there_are():
    labels = np.array([0, 0, 0, 1, 1])
    with pytest.raises(UserError, match="asks for 3 labelled images a class, but class 1 has 2: set it to at most 2"):
        few_per_class(labels, 3, 0)
    with pytest.raises(UserError, match="1 must stay for testing: set it to at most 1"):
        few_per_class(labels, 2, 0, spare=1)


def test_digits():
    data = catalog.load("digits", Request(size=16, per_class=5, seed=3))
    assert (len(data.train), len(data.test), len(data.classes)) == (50, 1747, 10)
    assert np.bincount(data.train.labels).tolist() == [5] * 10
    assert data.train.images.shape == (50, 16, 16, 3) and data.train.images.dtype == np.uint8
    assert data.test.images.min() == 0 and data.test.images.max() > 240
    together = np.concatenate([data.train.images, data.test.images]).reshape(1797, -1)
    everything = catalog.load("digits", Request(size=16, per_class=1, seed=0))
    again = np.concatenate([everything.train.images, everything.test.images]).reshape(1797, -1)
    np.testing.assert_array_equal(np.sort(together.sum(1)), np.sort(again.sum(1)))  # no digit lost, none twice


def test_digits_need_a_split():
    with pytest.raises(UserError, match=r"set data.per_class"):
        catalog.load("digits", Request(size=16))
    with pytest.raises(UserError, match="set it to at most 173"):
        catalog.load("digits", Request(size=16, per_class=1000))


def test_letters_are_always_the_same_and_all_there():
    data, again = (catalog.load("letters", Request(size=8)) for _ in range(2))
    assert (len(data.train), len(data.test), len(data.classes)) == (10_400, 1_040, 52)
    assert np.bincount(data.train.labels).tolist() == [200] * 52
    assert np.bincount(data.test.labels).tolist() == [20] * 52
    np.testing.assert_array_equal(data.train.images, again.train.images)
    assert (data.train.images.reshape(10_400, -1).max(1) > 30).all()  # nothing drawn outside its frame
    assert len(np.unique(data.train.images.reshape(10_400, -1), axis=0)) > 10_300


def test_letters_have_the_grey_levels_of_the_digits():
    letters, digits = catalog.load("letters", Request(size=8)), catalog.load("digits", Request(size=8, per_class=1))
    assert set(np.unique(letters.train.images)) == set(np.unique(digits.test.images))
    assert abs(letters.train.images.mean() - digits.test.images.mean()) < 15


def test_letters_few():
    assert len(catalog.load("letters", Request(size=8, per_class=2)).train) == 104


def test_a_wrong_name():
    with pytest.raises(UserError, match="no data set 'digit'; did you mean digits"):
        catalog.load("digit", Request(size=8))


def folds(n, seed=0, per_class=7):
    return [catalog.load("digits", Request(size=8, per_class=per_class, seed=seed, fold=(k + 1, n))) for k in range(n)]


def members(split):
    return {image.tobytes() for image in split.images[np.arange(len(split))]}


def test_folds_share_out_the_training_images_and_leave_the_test_images_alone():
    whole, parts = catalog.load("digits", Request(size=8, per_class=7)), folds(5)
    tested = [members(part.test) for part in parts]
    assert set.union(*tested) == members(whole.train) and sum(map(len, tested)) == len(whole.train) == 70
    for part in parts:
        assert members(part.train) == members(whole.train) - members(part.test)
        assert not (members(part.train) | members(part.test)) & members(whole.test)
        counts = np.bincount(part.test.labels, minlength=10)
        assert set(counts.tolist()) <= {1, 2} and counts.sum() == 14  # sevens shared out among five, class by class
    assert members(folds(5, seed=1)[0].test) != tested[0]


def test_folds_need_as_many_images_of_each_class():
    with pytest.raises(UserError, match="needs 8 labelled images of each class, and class 0 has 7: take fewer parts"):
        folds(8)


def test_a_fold_of_ten_crop_images_is_tested_like_them():
    request = Request(size=10, crop=8, per_class=4, augmentation="improved", fold=(1, 2))
    part = catalog.load("digits", request)
    assert part.test.images[np.arange(3)].shape == (3, 5, 8, 8, 3) and part.train.images[np.arange(3)].shape[-3:] == (
        10,
        10,
        3,
    )
