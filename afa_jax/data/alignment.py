"""Faces brought to one place by five points: the eyes, the tip of the nose, the corners of the mouth.

Coordinates are in pixels, (0, 0) the middle of the upper left one, x to the right and y down, as detectors of faces
give them. Left and right are the picture's, not the person's.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from afa_jax.errors import UserError

LANDMARKS = "landmarks.csv"
TEMPLATE_SIZE = 112
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Where ArcFace has the five points in an image of 112×112 pixels (Deng et al. 2019)."""


def similarity(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rotation, scale and shift that bring points nearest to where they are wanted, by least squares.

    Umeyama (PAMI 1991, eq. 40 to 42), in the plane; there is no mirroring in it.

    Args:
      points, wanted: `[P, 2]`, of which two or more points differ.

    Returns:
      `[2, 3]`: A and t of A·point + t.
    """
    middle, wanted_middle = points.mean(0), wanted.mean(0)
    points, wanted = points - middle, wanted - wanted_middle
    u, strength, v = np.linalg.svd(wanted.T @ points)
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    scaled = (strength @ signs) / (points**2).sum() * (u * signs) @ v
    return np.column_stack([scaled, wanted_middle - scaled @ middle])


def align(image: Image.Image, points: np.ndarray, size: int) -> np.ndarray:
    """The face with its five points where ArcFace has them, uint8 `[size, size, 3]`; black where there is no picture.

    By bilinear interpolation between four pixels, also where the face becomes smaller, as the data of published
    networks were made.

    Args:
      points: `[5, 2]` in the picture as it is stored.
      size: side in pixels; the template grows and shrinks with it.
    """
    ratio = size / TEMPLATE_SIZE
    wanted = (TEMPLATE + 0.5) * ratio - 0.5  # the image's edges go to its edges, not the middles of its pixels
    back = np.linalg.inv(np.vstack([similarity(np.asarray(points, np.float64), wanted), [0, 0, 1]]))[:2]
    # Pillow counts from the corner of a pixel, on both sides.
    back[:, 2] += 0.5 - back[:, :2].sum(1) / 2
    moved = image.transform((size, size), Image.Transform.AFFINE, tuple(back.ravel()), Image.Resampling.BILINEAR)
    return np.asarray(moved)


def read_landmarks(file: Path) -> dict[str, np.ndarray]:
    """The five points `[5, 2]` of each image of a table `file,x1,y1,…,x5,y5`, with or without these as a first line.

    The files' names are those below the table's folder, with `/` between their parts.

    Raises:
      UserError: a line has not these eleven values, names a file again, or its points are one.
    """
    found: dict[str, np.ndarray] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as table:
            for number, row in enumerate(csv.reader(table), 1):
                if row and not (number == 1 and row[0].strip().casefold() == "file"):
                    name = row[0].strip()
                    if name in found:
                        raise UserError(f"{file} has a second line for {name}, line {number}: remove one of them.")
                    found[name] = _points(row[1:], f"{file}, line {number},")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no table that can be read ({error}): write it as CSV in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    return found


def _points(values: list[str], where: str) -> np.ndarray:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError as error:
        raise UserError(f"{where} has a coordinate that is no number: {error}.") from error
    if len(numbers) != 10 or not np.isfinite(numbers).all():
        raise UserError(f"{where} must have a file and ten coordinates, x1,y1,…,x5,y5, and has {len(numbers)}.")
    points = numbers.reshape(5, 2)
    if (np.ptp(points, axis=0) == 0).all():
        raise UserError(f"{where} has five points in one place, to which no face can be aligned.")
    return points
