"""Printed letters, drawn on the spot from the fonts that matplotlib ships: a source task that needs no network.

Upper and lower case, 52 classes, in varied size, weight, slant and place, brought to the resolution and the grey levels
of the handwritten digits (8×8 pixels of 0…16) before they are enlarged.
"""

import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from afa_jax.data.builders.digits import enlarge
from afa_jax.data.dataset import Builder, Dataset, Request, Split, generator, limited

CLASSES = tuple(string.ascii_letters)
TRAIN_PER_CLASS, TEST_PER_CLASS = 200, 20
_FAMILIES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmtt10", "cmti10")
_CANVAS = 96  # pixels; the letter is drawn large here before it is made small


def load(request: Request) -> Dataset:
    """Draws the set: always the same letters, `request.per_class` (0: all 200) of each class for training."""
    labels = np.tile(np.arange(len(CLASSES), dtype=np.int32), TRAIN_PER_CLASS + TEST_PER_CLASS)
    images = enlarge(np.stack(list(_draw(labels))), request.size)
    held_out = len(CLASSES) * TEST_PER_CLASS
    test = Split(images[:held_out], labels[:held_out])
    train = Split(images[held_out:], labels[held_out:])
    return limited(Dataset(CLASSES, train, test), request)


def _draw(labels: np.ndarray) -> Iterator[np.ndarray]:
    random = generator("letters", 0)
    fonts = _fonts()
    for label in labels:
        canvas = Image.new("L", (_CANVAS, _CANVAS))
        font, weight = fonts[random.randint(len(fonts))], random.randint(4)
        middle = (_CANVAS / 2, _CANVAS / 2)
        ImageDraw.Draw(canvas).text(middle, CLASSES[label], 255, font, anchor="mm", stroke_width=weight)
        yield _shrink(canvas, random)


def _shrink(canvas: Image.Image, random: np.random.RandomState) -> np.ndarray:
    """Fits the drawn letter, slanted, turned and shifted, into 32×32 pixels and takes the mean of each 4×4."""
    left, top, right, bottom = canvas.getbbox() or (0, 0, _CANVAS, _CANVAS)
    scale = max(right - left, bottom - top) / random.uniform(22, 31)
    width = scale * random.uniform(0.8, 1.3)
    slant, turn = random.uniform(-0.3, 0.3), np.deg2rad(random.uniform(-12, 12))
    shift = random.uniform(-2, 2, 2)
    # Affine map from a small pixel to the place on the canvas that it shows, both taken from their middles.
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[1, slant], [0, 1]]) @ np.diag([width, scale])
    origin = np.array([left + right, top + bottom]) / 2 - matrix @ (16 + shift)
    coefficients = (*matrix[0], origin[0], *matrix[1], origin[1])
    small = canvas.transform((32, 32), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    levels = np.asarray(small, np.float64).reshape(8, 4, 8, 4).mean((1, 3)) * (16 / 255)
    return np.round(np.round(levels) * (255 / 16)).astype(np.uint8)


@cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(f for f in folder.glob("*.ttf") if f.stem.startswith(_FAMILIES) and not f.stem.endswith("Display"))
    return tuple(ImageFont.truetype(str(f), 56) for f in files)


DATASETS = {"letters": Builder(load, mirrored=False)}
