"""A picture of a data set to look at: a row of training images for each class."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from afa_jax.data.dataset import Dataset

_ROWS, _COLUMNS, _TILE, _GAP, _NAME = 24, 10, 96, 4, 220


def contact_sheet(data: Dataset) -> Image.Image:
    """The first images of each class; of more than 24 classes, as many spread evenly over the list."""
    labels = np.unique(np.linspace(0, len(data.classes) - 1, min(_ROWS, len(data.classes))).round().astype(int))
    step = _TILE + _GAP
    sheet = Image.new("RGB", (_NAME + _COLUMNS * step + _GAP, len(labels) * step + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, label in enumerate(labels):
        members = np.flatnonzero(data.train.labels == label)
        top = row * step + _GAP
        name, count = data.classes[label].replace("_", " "), f"{len(members):,} for training"
        draw.text((8, top + _TILE / 2), f"{name[:26]}\n{count}", "black", font, anchor="lm")
        for column, i in enumerate(members[:_COLUMNS]):
            tile = Image.fromarray(data.train.images[i]).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (_NAME + column * step + _GAP, top))
    return sheet
