"""Alignment: the least-squares similarity, faces that are drawn and found again, and tables that are wrong."""

import numpy as np
import pytest
from PIL import Image

from afa_jax.data.alignment import TEMPLATE, align, read_landmarks, similarity
from afa_jax.errors import UserError


def turned(points, degrees, scale, shift):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return scale * points @ np.array([[c, -s], [s, c]]).T + shift


def disc(point, radius, width=400, height=300):
    """A white disc on black; its edge is soft, so that its middle is exact."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    inside = np.clip(radius + 0.5 - np.hypot(x - point[0], y - point[1]), 0, 1)
    return Image.fromarray((255 * inside).round().astype(np.uint8)).convert("RGB")


def middle(pixels):
    """(x, y) of what is bright."""
    y, x = np.indices(pixels.shape[:2])
    bright = pixels[..., 0].astype(float)
    return np.array([(bright * x).sum(), (bright * y).sum()]) / bright.sum()


@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [(0, 1, (0, 0)), (0, 1, (37.3, 20.6)), (25, 1.4, (100, 30)), (-40, 2.0, (60, 120)), (170, 0.9, (200, 150))],
)
@pytest.mark.parametrize("size", [112, 96])
def test_a_drawn_face_lands_on_the_template(degrees, scale, shift, size):
    points = turned(TEMPLATE, degrees, scale, shift)
    for point, wanted in zip(points, (TEMPLATE + 0.5) * size / 112 - 0.5, strict=True):
        aligned = align(disc(point, 4.2 * scale), points, size)
        assert aligned.shape == (size, size, 3) and aligned.dtype == np.uint8
        assert np.abs(middle(aligned) - wanted).max() < 0.1


def test_a_face_in_its_place_stays_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    # Pillow cuts off what is behind the point.
    np.testing.assert_allclose(align(Image.fromarray(picture), TEMPLATE, 112).astype(int), picture, atol=1)
    moved = align(Image.fromarray(picture), TEMPLATE - [3, 5], 112)  # the face is up and to the left of its place
    np.testing.assert_allclose(moved[5:, 3:].astype(int), picture[:-5, :-3], atol=1)
    assert moved[:4].max() == moved[:, :2].max() == 0  # there is no picture there


def test_the_similarity_is_found_again_and_has_no_mirror_in_it():
    points = np.random.default_rng(1).normal(size=(5, 2))
    for degrees, scale in ((0, 1), (33, 0.2), (180, 4), (-91, 1.7)):
        found = similarity(points, turned(points, degrees, scale, (3, -2)))
        np.testing.assert_allclose(turned(points, degrees, scale, (3, -2)), points @ found[:, :2].T + found[:, 2])
    mirrored = similarity(points, points * [-1, 1])
    assert np.linalg.det(mirrored[:, :2]) > 0


def test_the_similarity_is_the_best_there_is():
    """Against the least-squares solution of x' = a·x − b·y + c, y' = b·x + a·y + d."""
    random = np.random.default_rng(2)
    for _ in range(10):
        points, wanted = random.normal(size=(5, 2)), random.normal(size=(5, 2))
        (x, y), one, none = points.T, np.ones(5), np.zeros(5)
        system = np.vstack([np.column_stack([x, -y, one, none]), np.column_stack([y, x, none, one])])
        a, b, c, d = np.linalg.lstsq(system, wanted.T.ravel())[0]
        np.testing.assert_allclose(similarity(points, wanted), [[a, -b, c], [b, a, d]], atol=1e-12)


LINE = "a/1.jpg,1,2,3,4,5,6,7,8,9,10.5\n"


@pytest.mark.parametrize("head", ["", "file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n", "\ufeffFile,x1\r\n"])
def test_tables_with_and_without_a_first_line(tmp_path, head):
    file = tmp_path / "landmarks.csv"
    file.write_text(f'{head}{LINE}\n"b, c/é.png", 1,2,3,4,5,6,7,8,9,0\n', encoding="utf-8")
    found = read_landmarks(file)
    assert list(found) == ["a/1.jpg", "b, c/é.png"]
    np.testing.assert_array_equal(found["a/1.jpg"], [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10.5]])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (LINE + LINE, r"landmarks.csv has a second line for a/1.jpg, line 2"),
        ("a.jpg,1,2,3,4,5,6,7,8,9\n", r"line 1, must have a file and ten coordinates, .*, and has 9"),
        (LINE + "a.jpg,1,2,3,4,5,6,7,8,9,ten\n", r"line 2, has a coordinate that is no number: .*'ten'"),
        ("a.jpg,1,2,3,4,5,6,7,8,9,nan\n", r"line 1, must have a file and ten coordinates"),
        ("a.jpg" + ",7" * 10, r"line 1, has five points in one place"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path, text, match):
    (tmp_path / "landmarks.csv").write_text(text)
    with pytest.raises(UserError, match=match):
        read_landmarks(tmp_path / "landmarks.csv")


def test_what_is_no_table(tmp_path):
    (tmp_path / "landmarks.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no table that can be read"):
        read_landmarks(tmp_path / "landmarks.csv")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_landmarks(tmp_path)
