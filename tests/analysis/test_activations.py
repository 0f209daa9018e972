"""Activation maps by hand, and which photos are looked at."""

import numpy as np
import pytest
from PIL import Image

from afa_jax.analysis.activations import activation_maps, normalise, quiet_channels
from afa_jax.analysis.photos import UNKNOWN, digest, photos
from afa_jax.errors import UserError
from tests.analysis import by_hand


def test_each_map_is_stretched_by_itself_and_a_flat_one_is_zero():
    maps = np.array([[[[1.0, 7.0], [3.0, 7.0]], [[2.0, 7.0], [5.0, 7.0]]]])  # [1, 2, 2, 2]
    made = normalise(maps)
    np.testing.assert_allclose(made[0, ..., 0], [[0, 0.5], [0.25, 1]])
    assert not made[0, ..., 1].any() and made.dtype == np.float32


def test_quiet_channels_are_the_least_active_but_not_the_dead():
    maps = np.ones((2, 3, 3, 5)) * np.array([0.5, 0.0, -0.1, 3.0, 0.2])
    assert quiet_channels(maps, 3) == [2, 4, 0]
    assert quiet_channels(maps, 9) == [2, 4, 0, 3]


def test_maps_before_and_after(trained):
    seen = photos(trained, (), 2)
    made = activation_maps(trained, seen, "layer2", [5, 1])
    assert made["channels"].tolist() == [5, 1] and made["layer"] == "layer2"
    np.testing.assert_array_equal(made["photos"], seen.images)
    for name, net in (("source", trained.start), ("target", trained.target)):
        features = by_hand.features(net.variables, seen.images, ("layer2",))[0]["layer2"]
        for k, c in enumerate((5, 1)):
            own = features[..., c]
            low, high = own.min((1, 2), keepdims=True), own.max((1, 2), keepdims=True)
            expected = (own - low) / np.where(high > low, high - low, 1)
            np.testing.assert_allclose(made[name][:, k], expected, atol=1e-3)
        assert made[name].shape == (2, 2, 4, 4)


def test_channels_are_chosen_by_the_source_network(trained):
    seen = photos(trained, (), 2)
    source = by_hand.features(trained.start.variables, seen.images, ("layer4.0.conv2",))[0]["layer4.0.conv2"]
    expected = np.argsort(np.abs(source).mean((0, 1, 2)))[:4]
    assert activation_maps(trained, seen, "layer4.0.conv2", ())["channels"].tolist() == expected.tolist()


def test_a_channel_that_is_not_there(trained):
    with pytest.raises(UserError, match="The layer layer2 has channels 0 to 31, and no 32"):
        activation_maps(trained, photos(trained, (), 1), "layer2", [3, 32])


def test_test_photos_are_spread_over_the_split(trained):
    seen = photos(trained, (), 3)
    rows = [0, 883, 1766]
    np.testing.assert_array_equal(seen.images, trained.data.test.images[rows])
    assert seen.labels.tolist() == trained.data.test.labels[rows].tolist()
    assert seen.files == ["test image 0", "test image 883", "test image 1766"]
    assert len(photos(trained, (), 10**6)) == 1767


def test_a_persons_own_photos_are_resized_and_cropped_like_the_runs(trained, tmp_path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / ".hidden").touch()
    random = np.random.default_rng(0)
    for name in ("b.png", "a.jpg"):
        Image.fromarray(random.integers(0, 256, (30, 50, 3), np.uint8)).save(folder / name)
    seen = photos(trained, (folder, folder / "b.png"), 99)
    assert seen.files == ["a.jpg", "b.png", "b.png"] and seen.labels.tolist() == [UNKNOWN] * 3
    expected = np.asarray(Image.open(folder / "b.png").resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(seen.images[1], expected)
    assert digest(seen) != digest(photos(trained, (folder / "b.png",), 99))


def test_photos_that_cannot_be_read(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    for name, sentence in (("none.jpg", "There is no photo"), ("empty", "has no photos"), ("text.txt", "is no image")):
        with pytest.raises(UserError, match=sentence):
            photos(trained, (tmp_path / name,), 1)
